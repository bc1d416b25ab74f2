//! Incidents of other systems in which partitions, shards or leases have owners, each with what must not happen.

use crate::{
    SECOND,
    scenarios::{calm, end_well, longest_gap},
    world::{PARTITIONS, TICK, World},
};

/// Two of three processes, with an operator: the third can come later.
fn two_of_three() -> World {
    let mut world = World::new(7, 3);
    world.start_operator(0);
    (0..2).for_each(|index| world.start(index));
    world.run_for(30 * SECOND);
    assert_eq!(shares(&world), [2, 3]);
    world
}

fn shares(world: &World) -> Vec<usize> {
    let mut loads = world.loads();
    loads.sort_unstable();
    loads
}

// Azure/azure-sdk-for-js#6945: who owned nothing was no candidate.
#[test]
fn a_member_that_has_nothing_is_seen_and_gets_its_share() {
    let mut world = two_of_three();
    world.start(2);
    world.run_for(10 * SECOND);
    assert_eq!(shares(&world), [1, 2, 2]);
    end_well(world);
}

// Azure/azure-sdk-for-python#38812.
#[test]
fn of_all_that_claim_a_partition_at_once_one_gets_it() {
    for seed in 0..20 {
        let mut world = World::new(seed, 4);
        (0..4).for_each(|index| world.start(index));
        world.run_for(60 * SECOND);
        assert_eq!(world.serves, u64::from(PARTITIONS), "each was served by the first that had it");
        assert_eq!(world.loads().iter().sum::<usize>(), PARTITIONS as usize, "{:?}", world.loads());
        world.start_operator(0);
        end_well(world);
    }
}

// Azure/azure-sdk-for-go#24164, Azure/azure-sdk-for-java#13597, golemcloud/golem: an epoch grows at a change of owner alone.
#[test]
fn in_an_hour_without_trouble_no_partition_changes_hands_and_no_epoch_grows() {
    let mut world = calm(4);
    world.publish_every = 5 * SECOND;
    let (epochs, serves) = (world.epochs.clone(), world.serves);
    world.run_for(3_600 * SECOND);
    assert_eq!((&world.epochs, world.serves), (&epochs, serves));
    // As long as it takes to look again.
    assert!(longest_gap(&world) <= TICK, "{}", longest_gap(&world));
    end_well(world);
}

// golemcloud/golem#3766: a plan dropped what was not drained in time from both sides.
#[test]
fn hand_overs_that_pass_their_deadline_leave_no_partition_to_nobody() {
    let mut world = two_of_three();
    // The deadline is 20 s.
    world.handler = (30 * SECOND, 35 * SECOND);
    world.publish_every = SECOND;
    world.run_for(40 * SECOND);
    world.gaps.clear();
    let serves = world.serves;
    world.start(2);
    world.run_for(120 * SECOND);
    assert!(world.serves > serves, "nothing was handed over");
    assert!(longest_gap(&world) < 1_500, "{}", longest_gap(&world));
    assert_eq!(shares(&world), [1, 2, 2]);
    world.handler = (5, 400);
    end_well(world);
}

// awslabs/amazon-kinesis-client#708, golemcloud/golem#3766: one after another takes longer than anybody waits.
#[test]
fn a_process_that_stops_gives_up_all_that_it_has_in_the_time_of_its_slowest_handler() {
    let mut world = two_of_three();
    world.handler = (15 * SECOND, 18 * SECOND);
    world.publish_every = SECOND;
    world.run_for(40 * SECOND);
    world.gaps.clear();
    let before = world.processes[0].as_ref().map(|process| process.incarnation);
    let begun = world.now;
    world.terminate_now(0);
    while world.processes[0].as_ref().map(|process| process.incarnation) == before {
        world.run_for(SECOND);
    }
    let took = world.now - begun;
    assert!(took < 22 * SECOND, "{took}");
    assert!(longest_gap(&world) < 1_500, "{}", longest_gap(&world));
    world.handler = (5, 400);
    end_well(world);
}

// A message that a network keeps for longer than anybody waits for its answer.
#[test]
fn a_first_write_that_comes_into_a_bucket_which_was_made_again_renews_no_membership_of_the_one_before() {
    let mut world = two_of_three();
    let arrives = world.now + 60 * SECOND;
    world.late_join = Some((2, arrives));
    world.start(2);
    world.run_until(arrives - 1);
    assert_eq!(shares(&world), [1, 2, 2], "its second write was stored");
    // It sees nobody take what it has, and nobody says to whom that belongs.
    world.blind(2, 120 * SECOND);
    world.stop_operator(0);
    world.make_bucket_again();
    world.run_for(120 * SECOND);
    world.start_operator(1);
    end_well(world);
}

// Two leaders, of which one believes what was true a minute ago.
#[test]
fn an_operator_that_wakes_with_what_it_knew_before_moves_nothing() {
    let mut world = calm(4);
    world.freeze_operator(0, 100 * SECOND);
    world.start_operator(1);
    world.run_for(10 * SECOND);
    world.kill(0, 20 * SECOND, true);
    world.roll_out();
    world.run_for(85 * SECOND);
    let serves = world.serves;
    world.run_for(60 * SECOND);
    assert_eq!(world.serves, serves);
    end_well(world);
}

// A watch that is lost looks like members that are all silent.
#[test]
fn an_operator_to_which_its_watch_brings_nothing_takes_nobody_for_dead() {
    let mut world = calm(3);
    let (epochs, serves) = (world.epochs.clone(), world.serves);
    world.blind_operator(0, 300 * SECOND);
    world.run_for(290 * SECOND);
    assert_eq!((&world.epochs, world.serves), (&epochs, serves));
    end_well(world);
}
