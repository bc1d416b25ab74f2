//! The whole protocol in virtual time: processes and operators with the real state machines, the bucket, the JetStream consumers and the
//! network as models. Faults are drawn by a seed; what must always be true is checked at every step. A failing seed prints its trace:
//! `SEED=17 cargo test -p jetwright-partitions --test simulation one_seed`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this target is tests, their helpers too")]
#![allow(missing_docs, reason = "nobody uses this target")]

mod bucket;
mod incidents;
mod jetstream;
mod process;
mod rng;
mod scenarios;
mod world;

use std::ops::Range;

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
        50..56 => {
            let steps_back = world.rng.within(0, 4);
            world.change_leader(partition, steps_back);
        }
        56..60 => {
            let duration = world.rng.within(SECOND / 5, 15 * SECOND);
            world.stall(partition, duration);
        }
        60..65 => {
            let duration = world.rng.within(10 * SECOND, 60 * SECOND);
            world.blind(index, duration);
        }
        65..70 => {
            let duration = world.rng.within(SECOND, 30 * SECOND);
            world.ask_nothing(index, duration);
        }
        70..77 => {
            let duration =
                if world.rng.permille(200) { 40 * SECOND } else { world.rng.within(SECOND, 12 * SECOND) };
            world.restart_nats(duration);
        }
        77..88 => disturb_an_operator(world),
        88..91 => world.make_bucket_again(),
        91..96 => {
            let offset = 1_700_000_000_000 + world.rng.within(0, 7_200 * SECOND);
            world.set_wall_clock(index, offset);
        }
        _ => world.roll_out(),
    }
}

/// There may be two at once, or none.
fn disturb_an_operator(world: &mut World) {
    let operator = world.rng.index(2);
    let duration = world.rng.within(SECOND, 60 * SECOND);
    match world.rng.within(0, 6) {
        _ if world.operators[operator].is_none() => world.start_operator(operator),
        0..3 => world.stop_operator(operator),
        3..5 => world.freeze_operator(operator, duration),
        _ => world.blind_operator(operator, duration),
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
            if world.rng.permille(400) {
                world.remove_some();
            }
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
fn part(number: u64) {
    seeds(number * 64..(number + 1) * 64);
}

fn seeds(seeds: Range<u64>) {
    let count = seeds.end - seeds.start;
    let (mut published, mut redeliveries, mut unfenced, mut serves, mut removed, mut in_vain) =
        (0, 0, 0, 0, 0, 0);
    for seed in seeds {
        println!("seed {seed}");
        let world = run(seed);
        published += world.published();
        redeliveries += world.redeliveries();
        unfenced += world.unfenced;
        serves += world.serves;
        removed += world.removed_early;
        in_vain += world.in_vain();
    }
    println!(
        "{published} events, {removed} removed before they were handled, {redeliveries} redeliveries, {serves} times \
         served, {unfenced} frozen handlers, {in_vain} deliveries and acknowledgements of leaders without a quorum"
    );
    let simulates = published as u64 > 150 * count && redeliveries > count && serves > 7 * count;
    let simulates = simulates && removed > count && in_vain > count / 4;
    assert!(simulates, "the simulation simulates something");
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_1() {
    part(0);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_2() {
    part(1);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_3() {
    part(2);
}

#[test]
fn whatever_breaks_order_holds_and_nothing_is_lost_part_4() {
    part(3);
}

/// Those of the environment, such as `SEEDS=256..2256`: more than each change needs.
#[test]
fn many_seeds() {
    let range = std::env::var("SEEDS").unwrap_or_else(|_| "256..264".to_owned());
    let (first, end) = range.split_once("..").unwrap();
    seeds(first.parse().unwrap()..end.parse().unwrap());
}

/// The seed of the environment, for a closer look.
#[test]
fn one_seed() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    run(seed);
}
