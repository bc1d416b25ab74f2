//! Loads that are known to mislead autoscalers, each with what must not happen.

use std::time::Duration;

use super::world::{Work, World};
use crate::scaling::{autoscaler::Reason, capacity::Capacity, figures::Unknown, rates::WINDOW};

/// How much later than its target a lag may be worked off, and how many times the needed pods there may be.
const BOUND: f64 = 1.5;

/// Handlers of a minute, four at once in a pod.
fn slow() -> Work {
    Work::Slow { slots: 4, time: Duration::from_mins(1) }
}

/// A world that has learnt what a pod can do.
fn experienced(replicas: u32) -> World {
    let mut world = World::new(replicas);
    world.learn();
    world
}

/// Asserts that a load that stays the same turns the scaling at most once, and never takes far too many pods.
fn assert_calm(world: &World, since: f64) {
    let steps = world.steps(since);
    assert!(world.changes_of_direction(since) <= 1, "{steps:?}");
    assert!(world.overshoot(since) <= BOUND, "{steps:?}");
}

#[test]
fn a_step_of_the_load_is_met_and_a_steady_load_is_left_alone() {
    let mut world = World::new(1);
    world.arrivals = Box::new(|second| if second < 120.0 { 50.0 } else { 1000.0 });
    world.run(118);
    assert_eq!(world.steps(0.0), [1]);
    world.run(1200);
    assert_calm(&world, 118.0);
    assert!((13..=20).contains(&world.replicas()), "{:?}", world.steps(0.0));
    assert_eq!(world.pending(), 0);
    let calm = world.now();
    world.run(3600);
    assert_eq!(world.steps(calm).len(), 1, "{:?}", world.steps(calm));
}

#[test]
fn a_burst_is_worked_off_in_time_and_then_the_pods_go_down_in_steps() {
    let mut world = experienced(2);
    world.arrivals = Box::new(|_| 100.0);
    world.run(60);
    let begin = world.now();
    world.publish(6000);
    world.run(600);
    let drained = world.drained_after(begin).unwrap();
    assert!(drained <= 30.0 * BOUND, "{drained} s");
    assert_calm(&world, begin);
    assert_eq!(world.replicas(), 2, "{:?}", world.steps(begin));
}

#[test]
fn a_saw_is_followed_without_a_lag_that_stays() {
    let mut world = World::new(1);
    // Up to 500 a second and down again, in ten minutes.
    world.arrivals = Box::new(|second| 500.0 * (1.0 - (second % 600.0 / 300.0 - 1.0).abs()));
    world.run(3600);
    // A lag is never more than what arrives in the time in which it should be worked off, and half of that.
    let most = world.since(600.0).map(|point| point.lag).max().unwrap();
    assert!(most <= 500 * 45, "{most}");
    assert!(world.changes_of_direction(600.0) <= 11, "{:?}", world.steps(600.0));
    assert!(world.overshoot(600.0) <= BOUND, "{:?}", world.steps(600.0));
}

#[test]
fn messages_wake_a_workload_at_zero_at_the_first_look_and_it_goes_back_after_a_silence() {
    let mut world = World::new(0);
    world.scaling.min = 0;
    world.run(60);
    world.publish(1);
    world.run(2);
    assert_eq!(world.replicas(), 1);
    world.run(60);
    assert_eq!((world.replicas(), world.lag()), (1, 0));
    world.run(60);
    assert_eq!(world.steps(0.0), [0, 1, 0]);
}

// numaproj/numaflow#2373.
#[test]
fn a_silence_shorter_than_scale_down_after_does_not_take_all_pods_away() {
    let mut world = experienced(1);
    world.scaling.min = 0;
    world.arrivals = Box::new(|second| if second % 60.0 < 10.0 { 50.0 } else { 0.0 });
    world.run(1800);
    assert_eq!(world.steps(0.0), [1]);
}

#[test]
fn a_trickle_keeps_one_pod() {
    let mut world = World::new(1);
    world.scaling.min = 0;
    world.arrivals = Box::new(|_| 0.05);
    world.run(3600);
    assert_eq!(world.steps(0.0), [1]);
}

// numaproj/numaflow#1407.
#[test]
fn low_traffic_does_not_look_like_slow_pods() {
    let mut world = World::new(1);
    world.arrivals = Box::new(|_| 1.0);
    world.run(600);
    world.publish(60);
    world.run(60);
    assert_eq!(world.steps(0.0), [1]);
}

// numaproj/numaflow#630.
#[test]
fn messages_that_pods_work_at_for_long_call_for_no_other_pods() {
    for learnt in [None, Some(Work::rate(slow()))] {
        let mut world = World::new(2);
        world.work = Work::Slow { slots: 4, time: Duration::from_mins(10) };
        world.scaling.min = 0;
        world.autoscaler.consumers.entry("orders".into()).or_default().capacity = Capacity::of(learnt);
        world.publish(4);
        world.run(500);
        let most = world.steps(0.0).into_iter().max().unwrap();
        assert!(most <= 2 && world.replicas() > 0, "{:?}", world.steps(0.0));
    }
}

#[test]
fn handlers_that_take_a_minute_are_scaled_by_what_they_can_do() {
    let mut world = World::new(1);
    world.work = slow();
    world.scaling.target_drain_time = Duration::from_mins(5);
    world.arrivals = Box::new(|_| 0.5);
    world.run(7200);
    // Half a message a second for a minute each, four in a pod, at four fifths.
    assert!((10..=15).contains(&world.replicas()), "{:?}", world.steps(0.0));
    assert!(world.changes_of_direction(0.0) <= 1, "{:?}", world.steps(0.0));
    assert!(world.overshoot(0.0) <= BOUND, "{:?}", world.steps(0.0));
}

#[test]
fn messages_that_always_fail_call_for_no_pods_without_end() {
    let mut world = experienced(2);
    world.poison = 0.05;
    world.arrivals = Box::new(|_| 100.0);
    world.run(1800);
    assert!(world.steps(0.0).into_iter().max().unwrap() <= 3, "{:?}", world.steps(0.0));
    assert!(world.changes_of_direction(0.0) <= 1, "{:?}", world.steps(0.0));
}

// numaproj/numaflow#1853.
#[test]
fn pods_that_need_a_minute_and_a_half_to_start_are_waited_for() {
    let mut world = World::new(1);
    world.startup = Duration::from_secs(90);
    world.arrivals = Box::new(|_| 350.0);
    world.run(3600);
    assert_calm(&world, 0.0);
    assert!((5..=7).contains(&world.replicas()), "{:?}", world.steps(0.0));
    assert_eq!(world.pending(), 0);
}

#[test]
fn a_pod_that_never_becomes_ready_keeps_no_others_from_coming() {
    let mut world = experienced(1);
    world.broken = 1;
    world.arrivals = Box::new(|_| 700.0);
    world.run(3600);
    assert!(world.changes_of_direction(0.0) <= 1 && world.pending() == 0, "{:?}", world.steps(0.0));
    assert!((8..=12).contains(&world.replicas()), "{:?}", world.steps(0.0));
}

#[test]
fn where_no_pod_becomes_ready_no_more_come() {
    let mut world = World::new(0);
    (world.scaling.min, world.broken) = (0, 50);
    world.arrivals = Box::new(|_| 350.0);
    world.run(3600);
    assert_eq!(world.steps(0.0), [1]);
}

#[test]
fn pods_that_share_a_database_are_no_gain_although_one_never_becomes_ready() {
    let mut world = experienced(1);
    (world.broken, world.cap) = (1, Some(150.0));
    world.arrivals = Box::new(|_| 1000.0);
    world.run(3600);
    assert_eq!(world.trace.last().unwrap().reason, Reason::NoGain, "{:?}", world.steps(0.0));
    assert!(world.replicas() <= 20, "{:?}", world.steps(0.0));
}

// numaproj/numaflow#136, kedacore/keda#7092.
#[test]
fn pods_that_share_a_database_at_its_limit_are_no_gain_and_go_on_when_it_can_do_more() {
    let mut world = experienced(1);
    world.cap = Some(300.0);
    world.arrivals = Box::new(|_| 1000.0);
    world.run(600);
    let held = world.replicas();
    assert!((3..=20).contains(&held), "{:?}", world.steps(0.0));
    assert_eq!(world.trace.last().unwrap().reason, Reason::NoGain);
    assert_eq!(world.changes_of_direction(0.0), 0, "it is not reversed");
    world.cap = None;
    world.run(900);
    assert!(world.replicas() > held && world.pending() == 0, "{:?}", world.steps(0.0));
}

#[test]
fn more_pods_than_may_have_messages_are_not_made() {
    let mut world = experienced(2);
    world.work = slow();
    world.learn();
    world.max_ack_pending = Some(8);
    world.arrivals = Box::new(|_| 1.0);
    world.run(900);
    assert_eq!(world.steps(0.0), [2]);
    assert_eq!(world.trace.last().unwrap().reason, Reason::AckPendingLimit);
}

// kedacore/keda#4098.
#[test]
fn nothing_is_decided_on_unknown_figures() {
    for unknown in [Unknown::Unanswered, Unknown::Missing, Unknown::Paused] {
        let mut world = experienced(5);
        world.scaling.min = 0;
        world.arrivals = Box::new(|second| if second < 300.0 { 350.0 } else { 2000.0 });
        world.unknown = Box::new(move |second| (second > 200.0 && second < 500.0).then_some(unknown));
        world.run(498);
        assert_eq!(world.steps(0.0), [5]);
        assert_eq!(world.trace.last().unwrap().reason, Reason::FiguresUnknown(unknown));
        world.run(60);
        assert!(world.replicas() > 5);
    }
}

#[test]
fn figures_that_fall_back_are_held_for_a_window_and_scale_nothing() {
    let mut world = experienced(5);
    world.arrivals = Box::new(|_| 350.0);
    for _ in 0..20 {
        world.run(60);
        world.fall_back();
        let begin = world.now();
        world.run(4);
        let reason = world.trace.last().unwrap().reason;
        assert_eq!(reason, Reason::FiguresUnknown(Unknown::Reset));
        world.run(WINDOW.as_secs());
        let reason = world.trace.last().unwrap().reason;
        assert_eq!(reason, Reason::Steady, "{:?}", world.steps(begin));
    }
    assert_eq!(world.steps(0.0), [5]);
}

// numaproj/numaflow#1529, kedacore/keda#5096.
#[test]
fn a_lag_that_each_step_makes_itself_calls_for_no_further_steps() {
    let mut world = experienced(1);
    world.rebalance = Duration::from_secs(5);
    world.arrivals = Box::new(|_| 350.0);
    world.run(3600);
    assert_calm(&world, 0.0);
    assert_eq!(world.pending(), 0);
}

// Of thousands of consumers, each is looked at less often.
#[test]
fn pods_that_share_a_database_at_its_limit_are_no_gain_however_often_they_are_looked_at() {
    for look_ticks in [4, 5, 6, 7, 8, 10, 12, 16, 20] {
        let mut world = World::new(1);
        (world.look_ticks, world.cap, world.scaling.max) = (look_ticks, Some(300.0), 100);
        world.arrivals = Box::new(|_| 1_000.0);
        world.run(1_800);
        assert!(world.replicas() <= 16, "{look_ticks}: {:?}", world.steps(0.0));
        assert_eq!(world.trace.last().unwrap().reason, Reason::NoGain, "{look_ticks}");
    }
}

#[test]
fn handlers_that_end_together_are_no_reason_to_stop() {
    for (time, rate, backlog) in [(15, 64.0, 3_135), (40, 20.0, 2_000), (8, 100.0, 10_000)] {
        let mut world = World::new(5);
        world.work = Work::Slow { slots: 64, time: Duration::from_secs(time) };
        world.arrivals = Box::new(move |_| rate);
        world.publish(backlog);
        world.run(3_600);
        assert!(world.pending() < 1_000, "{time}: {} wait, {:?}", world.pending(), world.steps(0.0));
    }
}

#[test]
fn what_pods_did_while_little_was_to_do_is_not_what_they_can_do() {
    let mut world = World::new(1);
    world.work = Work::Slow { slots: 64, time: Duration::from_mins(1) };
    world.arrivals = Box::new(|second| if second < 1_200.0 { 0.02 } else { 2.8 });
    world.run(7_200);
    assert!(world.replicas() <= 8, "{:?}", world.steps(0.0));
}

#[test]
fn a_burst_of_handlers_that_take_a_minute_leaves_no_pods_behind() {
    let mut world = World::new(4);
    world.work = Work::Slow { slots: 64, time: Duration::from_mins(1) };
    world.arrivals = Box::new(|_| 3.0);
    world.run(1_200);
    world.publish(2_000);
    world.run(3_600);
    assert!(world.replicas() <= 6, "{:?}", world.steps(0.0));
}

#[test]
fn peaks_that_a_database_cannot_bear_take_no_more_pods_each_time() {
    let mut world = World::new(1);
    world.cap = Some(300.0);
    world.arrivals = Box::new(|second| if second % 1_200.0 < 300.0 { 360.0 } else { 100.0 });
    world.run(1_200);
    let first = world.since(0.0).map(|point| point.replicas).max().unwrap();
    world.run(9_600);
    let last = world.since(9_600.0).map(|point| point.replicas).max().unwrap();
    assert!(last <= first + 1, "{first} and {last}: {:?}", world.steps(0.0));
}

#[test]
fn slow_handlers_get_their_pods_step_after_step() {
    let mut world = World::new(5);
    world.work = Work::Slow { slots: 64, time: Duration::from_secs(15) };
    (world.scaling.max, world.startup) = (100, Duration::from_secs(1));
    world.learn();
    world.arrivals = Box::new(|_| 200.0);
    world.run(180);
    assert!(world.replicas() >= 40, "{:?}", world.steps(0.0));
}

#[test]
fn a_wave_of_handlers_that_end_together_is_not_what_a_pod_can_do() {
    let mut world = World::new(1);
    world.work = Work::Slow { slots: 64, time: Duration::from_mins(1) };
    world.publish(300);
    world.run(60).publish(400);
    world.arrivals = Box::new(|_| 5.0);
    world.run(3_600);
    assert!(world.pending() < 100, "{} wait: {:?}", world.pending(), world.steps(0.0));
}
