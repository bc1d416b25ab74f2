//! What once broke others, one at a time.

use jetwright_partitions::{keys::Key, records::DeathReason};

use crate::{
    SECOND,
    world::{PARTITIONS, TICK, World},
};

/// So many processes that share out the partitions, with an operator.
pub fn calm(processes: usize) -> World {
    let mut world = World::new(7, processes);
    world.start_operator(0);
    for index in 0..processes {
        world.start(index);
    }
    world.run_for(30 * SECOND);
    assert_eq!(world.loads().iter().sum::<usize>(), PARTITIONS as usize);
    world.gaps.clear();
    world
}

pub fn longest_gap(world: &World) -> u64 {
    world.gaps.values().copied().max().unwrap()
}

pub fn end_well(mut world: World) {
    world.run_for(90 * SECOND);
    world.stop_publishing();
    world.run_for(40 * SECOND);
    world.assert_well();
}

#[test]
fn a_clean_hand_over_takes_less_than_a_second_and_delivers_nothing_twice() {
    let mut world = calm(3);
    let before = (world.redeliveries(), world.serves);
    for _ in 0..10 {
        world.roll_out();
        world.run_for(60 * SECOND);
    }
    assert!(world.serves >= before.1 + 10 * u64::from(PARTITIONS));
    assert!(longest_gap(&world) < 1_500, "{}", longest_gap(&world));
    let again = world.redeliveries() - before.0;
    let given_back = world.given_back;
    assert!(again <= given_back, "{again} redeliveries, and {given_back} events were given back");
    end_well(world);
}

#[test]
fn in_a_rollout_a_partition_moves_at_most_twice() {
    let mut world = calm(4);
    let before = world.serves;
    world.roll_out();
    world.run_for(60 * SECOND);
    assert!(world.serves - before <= 2 * u64::from(PARTITIONS), "{}", world.serves - before);
    end_well(world);
}

#[test]
fn a_killed_owner_whose_container_ended_is_followed_within_three_seconds() {
    let mut world = calm(3);
    world.kill(0, 60 * SECOND, true);
    world.run_for(20 * SECOND);
    assert!(longest_gap(&world) < 3 * SECOND, "{}", longest_gap(&world));
    end_well(world);
}

#[test]
fn a_silent_owner_is_followed_after_the_lease_and_the_skew() {
    let mut world = calm(3);
    world.kill(0, 120 * SECOND, false);
    world.run_for(60 * SECOND);
    let gap = longest_gap(&world);
    assert!((26 * SECOND..34 * SECOND).contains(&gap), "{gap}");
    end_well(world);
}

#[test]
fn an_acknowledgement_that_is_lost_soon_after_a_take_over_holds_its_partition_up_for_a_moment() {
    let mut world = calm(3);
    world.handler = (4 * SECOND, 5 * SECOND);
    world.run_for(20 * SECOND);
    let killed = world.processes[0].as_ref().unwrap();
    let partition = (0..PARTITIONS).find(|partition| killed.serves(*partition)).unwrap();
    world.kill(0, 200 * SECOND, true);
    while !world.is_recovered(partition) {
        world.run_for(TICK);
    }
    world.lost_ack = Some(partition);
    let mut held_up = 0;
    for _ in 0..200 {
        world.run_for(TICK);
        held_up += if world.is_recovered(partition) { 0 } else { TICK };
    }
    assert!((1..SECOND).contains(&held_up), "{held_up}");
    world.handler = (5, 400);
    end_well(world);
}

#[test]
fn a_frozen_owner_that_wakes_begins_nothing_and_joins_again() {
    let mut world = calm(3);
    world.handler = (3 * SECOND, 4 * SECOND);
    world.publish_every = 2 * SECOND;
    while !world.is_handling(0) {
        world.run_for(SECOND);
    }
    world.freeze(0, 90 * SECOND);
    world.run_for(100 * SECOND);
    assert!(world.unfenced > 0, "a handler was frozen");
    world.handler = (5, 400);
    end_well(world);
}

#[test]
fn without_an_operator_the_members_take_what_is_free() {
    let mut world = calm(3);
    world.stop_operator(0);
    world.run_for(40 * SECOND);
    world.kill(0, 400 * SECOND, false);
    world.run_for(60 * SECOND);
    assert_eq!(world.loads().iter().sum::<usize>(), PARTITIONS as usize, "{:?}", world.loads());
    assert!(longest_gap(&world) < 36 * SECOND, "{}", longest_gap(&world));
    world.start_operator(1);
    end_well(world);
}

#[test]
fn a_pod_that_comes_while_no_operator_is_there_helps_those_that_are() {
    let mut world = World::new(9, 3);
    world.start(0);
    world.run_for(60 * SECOND);
    assert_eq!(world.loads(), [PARTITIONS as usize]);
    world.start(1);
    world.start(2);
    world.run_for(60 * SECOND);
    assert_eq!(world.loads().iter().sum::<usize>(), PARTITIONS as usize);
    world.start_operator(0);
    end_well(world);
}

#[test]
fn a_lost_watch_moves_nothing() {
    let mut world = calm(3);
    let serves = world.serves;
    for index in 0..3 {
        world.blind(index, 300 * SECOND);
    }
    world.run_for(290 * SECOND);
    assert_eq!(world.serves, serves, "nobody was taken for dead");
    world.roll_out();
    world.run_for(60 * SECOND);
    end_well(world);
}

#[test]
fn nats_that_is_away_for_eight_seconds_moves_nothing() {
    let mut world = calm(3);
    let serves = world.serves;
    for _ in 0..5 {
        world.restart_nats(8 * SECOND);
        world.run_for(30 * SECOND);
    }
    assert_eq!(world.serves, serves);
    end_well(world);
}

#[test]
fn nats_that_is_away_for_longer_than_the_lease_suspends_everything_and_moves_nothing() {
    let mut world = calm(3);
    let epochs = world.epochs.clone();
    world.restart_nats(50 * SECOND);
    world.run_for(45 * SECOND);
    assert!(world.loads().iter().all(|load| *load == 0), "{:?}", world.loads());
    world.run_for(30 * SECOND);
    assert_eq!(world.epochs, epochs, "the same owners go on");
    end_well(world);
}

#[test]
fn in_a_bucket_that_is_made_again_nobody_serves_before_the_last_lease_of_the_old_one_is_over() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        world.start_operator(0);
        (0..3).for_each(|index| world.start(index));
        world.run_for(30 * SECOND);
        // One of the owners does not see that the bucket is another one, and acts on.
        world.cut_off(0, 60 * SECOND);
        world.make_bucket_again();
        world.start(3);
        world.run_for(100 * SECOND);
        end_well(world);
    }
}

#[test]
fn two_operators_at_once_do_no_harm() {
    let mut world = calm(4);
    world.start_operator(1);
    for index in [0, 1, 2, 3, 0, 1] {
        world.kill(index, 3 * SECOND, true);
        world.run_for(20 * SECOND);
    }
    world.stop_operator(0);
    end_well(world);
}

#[test]
fn a_slow_handler_holds_only_its_own_partition_in_a_hand_over() {
    let mut world = calm(3);
    world.handler = (15 * SECOND, 18 * SECOND);
    world.publish_every = 9 * SECOND;
    world.run_for(30 * SECOND);
    world.roll_out();
    world.run_for(120 * SECOND);
    world.handler = (5, 400);
    end_well(world);
}

#[test]
fn who_is_found_dead_is_written_before_what_it_held_is_taken() {
    let mut world = calm(3);
    let owner = |world: &World| match world.bucket.values.get(&Key::Operator) {
        Some(_) => world.processes[0].as_ref().unwrap().participant.id().clone(),
        None => unreachable!(),
    };
    let id = owner(&world);
    world.kill(0, 200 * SECOND, false);
    world.run_for(60 * SECOND);
    let (_, value) = &world.bucket.values[&Key::Member(id)];
    let reason = serde_json::to_value(DeathReason::Silent).unwrap();
    let value: serde_json::Value = serde_json::from_str(value).unwrap();
    assert_eq!(value["dead"]["reason"], reason);
    end_well(world);
}

/// Whatever goes wrong while partitions are multiplied and consumers divided.
#[test]
fn multiplied_partitions_lose_no_event_and_handle_no_key_twice_at_once() {
    for seed in 0..30 {
        let mut world = World::new(seed, 4);
        world.start_operator(0);
        (0..4).for_each(|index| world.start(index));
        world.run_for(30 * SECOND);
        world.is_lossy = true;
        world.multiply(true);
        for _ in 0..6 {
            let pause = world.rng.within(0, 4 * SECOND);
            world.run_for(pause);
            crate::disturb(&mut world);
            world.remove_some();
        }
        world.is_lossy = false;
        // Members alone know of the old ones only.
        if world.operators.iter().all(Option::is_none) {
            world.start_operator(0);
        }
        world.run_calm();
        world.run_for(200 * SECOND);
        assert!(world.is_divided(), "seed {seed}");
        world.roll_out();
        end_well(world);
    }
}

#[test]
fn while_no_operator_is_there_members_of_the_old_count_take_none_of_the_new_partitions_and_lose_none() {
    let mut world = calm(3);
    world.multiply(true);
    world.run_for(SECOND);
    world.stop_operator(0);
    world.kill(1, 20 * SECOND, false);
    world.run_for(150 * SECOND);
    world.start_operator(1);
    world.run_for(150 * SECOND);
    assert!(world.is_divided());
    end_well(world);
}

/// What the pause is for.
#[test]
#[should_panic(expected = "of key")]
fn a_consumer_that_is_divided_while_it_owes_events_breaks_their_order() {
    let mut world = calm(3);
    world.handler = (2 * SECOND, 4 * SECOND);
    world.run_for(20 * SECOND);
    world.multiply(false);
    end_well(world);
}
