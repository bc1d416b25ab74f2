//! What holds whatever the load is.

use std::time::Duration;

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::world::{Work, World};
use crate::scaling::{autoscaler::Reason, figures::Unknown, spec::as_f64};

/// How long each part of a load lasts, in seconds.
const PART: u32 = 120;
/// How long the last one lasts.
const TAIL: u64 = 1200;

/// A load: the parts of it in messages a second, and times without figures.
#[derive(Clone, Debug)]
struct Load {
    parts: Vec<f64>,
    /// Beginning and length, in seconds.
    outages: Vec<(f64, f64)>,
}

#[derive(Clone, Debug)]
struct Workload {
    rate: f64,
    startup: u64,
    min: u32,
    max: u32,
    first: u32,
}

fn loads() -> impl Strategy<Value = Load> {
    // What comes more seldom than once in scaleDownAfter, a minute here, starts and ends a pod each time, as declared.
    let rate = prop_oneof![Just(0.0), 0.02..1.0, 1.0..50.0, 50.0..2000.0];
    let outages = prop::collection::vec((0.0..700.0, 1.0..90.0), 0..3);
    (prop::collection::vec(rate, 1..6), outages).prop_map(|(parts, outages)| Load { parts, outages })
}

fn workloads() -> impl Strategy<Value = Workload> {
    let replicas = (0..3_u32, 1..40_u32, 0..40_u32);
    (5.0..200.0, 1..90_u64, replicas).prop_map(|(rate, startup, (min, max, first))| {
        let max = max.max(min);
        Workload { rate, startup, min, max, first: first.clamp(min, max) }
    })
}

fn world(load: Load, workload: &Workload) -> World {
    let mut world = World::new(workload.first);
    world.work = Work::Fast { rate: workload.rate, hold: 120 };
    world.startup = Duration::from_secs(workload.startup);
    (world.scaling.min, world.scaling.max) = (workload.min, workload.max);
    let Load { parts, outages } = load;
    world.arrivals = Box::new(move |second| {
        let part = parts.iter().zip(1_u32..).find(|(_, number)| second < f64::from(number * PART));
        *part.map_or(&parts[parts.len() - 1], |(rate, _)| rate)
    });
    let is_out =
        move |second: f64| outages.iter().any(|(begin, time)| second >= *begin && second < begin + time);
    world.unknown = Box::new(move |second| is_out(second).then_some(Unknown::Unanswered));
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pods_stay_within_their_bounds_go_by_bounded_steps_and_never_change_on_unknown_figures(
        load in loads(), workload in workloads()
    ) {
        let mut world = world(load, &workload);
        world.run(900);
        let mut before = workload.first;
        for point in world.since(0.0) {
            let replicas = point.replicas;
            prop_assert!((workload.min..=workload.max).contains(&replicas));
            prop_assert!(replicas <= (before * 2).max(before + 4), "{before} to {replicas}");
            prop_assert!(f64::from(replicas) >= f64::from(before) * 0.6 - 1.0, "{before} to {replicas}");
            if (world.unknown)(point.at.as_secs_f64()).is_some() {
                prop_assert_eq!(replicas, before);
                prop_assert!(matches!(point.reason, Reason::FiguresUnknown(_)), "{:?}", point.reason);
            }
            before = replicas;
        }
    }

    #[test]
    fn a_burst_that_one_step_meets_is_worked_off_in_time(
        rate in 5.0..200.0, first in 1..20_u32, used in 0.1..0.75, part in 0.1..1.0, startup in 1..6_u64
    ) {
        let mut world = World::new(first);
        world.work = Work::Fast { rate, hold: 120 };
        world.startup = Duration::from_secs(startup);
        world.learn();
        let arrivals = used * rate * f64::from(first);
        world.arrivals = Box::new(move |_| arrivals);
        world.run(60);
        let begin = world.now();
        let target = world.scaling.target_drain_time.as_secs_f64();
        // As much as the pods of one step work off in the time.
        let pods = f64::from((2 * first).max(first + 4));
        world.publish(as_u64(part * target * (0.8 * rate * pods - arrivals)));
        world.run(300);
        let drained = world.drained_after(begin).unwrap_or(f64::INFINITY);
        prop_assert!(drained <= 1.5 * target, "{drained} s: {:?}", world.steps(begin));
        prop_assert!(world.changes_of_direction(begin) <= 1, "{:?}", world.steps(begin));
    }

    #[test]
    fn a_load_that_stays_the_same_turns_the_scaling_at_most_once_and_is_worked_off(
        load in loads(), workload in workloads()
    ) {
        let last = load.parts[load.parts.len() - 1];
        let changes = u64::try_from(load.parts.len()).unwrap_or_default() * u64::from(PART);
        let mut world = world(load, &workload);
        world.run(changes.max(900));
        let (begin, lag) = (world.now(), world.lag());
        world.run(TAIL);
        let steps = world.steps(begin);
        prop_assert!(world.changes_of_direction(begin) <= 1, "{steps:?}");
        prop_assert!(world.overshoot(begin) <= 1.5, "{steps:?}");
        let most = 0.7 * workload.rate * f64::from(workload.max) * as_f64(TAIL);
        if last * as_f64(TAIL) + as_f64(lag) <= most {
            let waits = world.pending();
            prop_assert!(as_u64(last) + 1 >= waits, "{waits} wait: {steps:?}");
        }
    }

    /// What comes by chance, and is looked at less often, as one of many consumers is.
    #[test]
    fn a_load_that_stays_the_same_and_comes_by_chance_turns_the_scaling_seldom(
        arrivals in prop_oneof![1.0..10.0, 10.0..60.0], rate in 2.0..50.0, look_ticks in 4..12_u32, seed: u64,
    ) {
        let mut world = World::new(1);
        world.work = Work::Fast { rate, hold: 120 };
        (world.look_ticks, world.chance) = (look_ticks, Some(StdRng::seed_from_u64(seed)));
        world.arrivals = Box::new(move |_| arrivals);
        world.run(900);
        let begin = world.now();
        world.run(1_800);
        let turns = world.changes_of_direction(begin);
        prop_assert!(turns <= 2, "{turns}: {:?}", world.steps(begin));
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate that is not negative")]
fn as_u64(rate: f64) -> u64 {
    rate as u64
}
