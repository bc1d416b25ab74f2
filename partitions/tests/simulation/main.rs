//! The whole protocol in virtual time: processes and operators with the real state machines, the bucket, the JetStream consumers and the
//! network as models. Faults are drawn by a seed; what must always be true is checked at every step. A failing seed prints its trace:
//! `SEED=17 cargo test -p jetwright-partitions --test simulation one_seed`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this target is tests, their helpers too")]
#![allow(missing_docs, reason = "nobody uses this target")]

mod bucket;
mod jetstream;
mod process;
mod rng;
mod scenarios;
mod world;

use world::{PARTITIONS, World};

const PROCESSES: usize = 4;
const SECOND: u64 = 1_000;

/// One thing that goes wrong.
fn disturb(world: &mut World) {
    let index = world.rng.index(PROCESSES);
    let partition = u32::try_from(world.rng.index(PARTITIONS as usize)).unwrap();
    match world.rng.within(0, 100) {
        0..15 => {
            let (restart_after, is_reported) = (world.rng.within(100, 20 * SECOND), world.rng.permille(500));
            world.kill(index, restart_after, is_reported);
        }
        15..30 => {
            let duration = world.rng.within(SECOND, 60 * SECOND);
            world.freeze(index, duration);
        }
        30..40 => world.terminate_now(index),
        40..50 => {
            let duration = world.rng.within(2 * SECOND, 45 * SECOND);
            world.cut_off(index, duration);
        }
        50..60 => {
            let steps_back = world.rng.within(0, 4);
            world.change_leader(partition, steps_back);
        }
        60..70 => {
            let duration = world.rng.within(10 * SECOND, 60 * SECOND);
            world.blind(index, duration);
        }
        70..77 => {
            let duration =
                if world.rng.permille(200) { 40 * SECOND } else { world.rng.within(SECOND, 12 * SECOND) };
            world.restart_nats(duration);
        }
        77..88 => {
            let operator = world.rng.index(2);
            if world.operators[operator].is_some() {
                world.stop_operator(operator);
            } else {
                world.start_operator(operator);
            }
        }
        88..91 => world.make_bucket_again(),
        91..96 => {
            let offset = 1_700_000_000_000 + world.rng.within(0, 7_200 * SECOND);
            world.set_wall_clock(index, offset);
        }
        _ => world.roll_out(),
    }
}

fn run(seed: u64) -> World {
    let mut world = World::new(seed, PROCESSES);
    world.start_operator(0);
    for index in 0..PROCESSES {
        world.start(index);
    }
    world.run_for(15 * SECOND);
    for _ in 0..2 {
        world.is_lossy = true;
        let end = world.now + 70 * SECOND;
        while world.now < end {
            let pause = world.rng.within(SECOND, 9 * SECOND);
            world.run_for(pause);
            disturb(&mut world);
        }
        world.is_lossy = false;
        // With or without an operator.
        if world.rng.permille(700) && world.operators.iter().all(Option::is_none) {
            world.start_operator(0);
        }
        world.run_calm();
    }
    if world.operators.iter().all(Option::is_none) {
        world.start_operator(1);
    }
    world.run_for(60 * SECOND);
    world.stop_publishing();
    world.run_for(40 * SECOND);
    world.assert_well();
    world
}

/// In parts, which run at once.
fn seeds(part: u64) {
    let (mut published, mut redeliveries, mut unfenced, mut serves) = (0, 0, 0, 0);
    for seed in part * 64..(part + 1) * 64 {
        println!("seed {seed}");
        let world = run(seed);
        published += world.published();
        redeliveries += world.redeliveries();
        unfenced += world.unfenced;
        serves += world.serves;
    }
    println!(
        "{published} events, {redeliveries} redeliveries, {serves} times served, {unfenced} frozen handlers"
    );
    assert!(published > 10_000 && redeliveries > 100 && serves > 500, "the simulation simulates something");
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_1() {
    seeds(0);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_2() {
    seeds(1);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_3() {
    seeds(2);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_4() {
    seeds(3);
}

/// The seed of the environment, for a closer look.
#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    run(seed);
}
