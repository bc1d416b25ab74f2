//! A consumer with order per key: each pod has whole partitions, which hold more than the pod works at.

use std::time::Duration;

use proptest::prelude::*;

use super::world::{LOOK_TICKS, TICK, changes_of_direction, scaling, whole};
use crate::{
    partitions::sharing::{HolderWork, PartitionHolder},
    scaling::{
        autoscaler::{Autoscaler, Decision, Look, Reason},
        capacity::Capacity,
        figures::{Part, Reading, Sample},
        spec::{Scaling, Useful, as_f64},
    },
};

/// Ticks between two reports of the processes.
const REPORT_TICKS: u32 = 10;
/// How long it takes until what one pod gave back is delivered to the next.
const REDELIVERY: Duration = Duration::from_secs(1);
/// How long a pod takes until it is ready.
const STARTUP: Duration = Duration::from_secs(2);
#[derive(Clone, Debug, Default)]
struct Partition {
    pending: u64,
    held: u64,
    delivered: u64,
    /// The number of the pod that has it.
    owner: u32,
    /// What the one before had, and when that is delivered again.
    given_back: (u64, Duration),
    /// Of those that are held, what the pod works at, and what it could begin and has no room for.
    running: u64,
    queued: u64,
    /// Busy at each tick of the last half of the time between two reports.
    is_busy: bool,
    /// What the last report said.
    reported: Option<HolderWork>,
    /// Parts of messages that arrived, and that were settled.
    fractions: (f64, f64),
}

impl Partition {
    /// How many keys the held messages have, of so many in all.
    fn keys(&self, keys: f64) -> u64 {
        let distinct = keys * (1.0 - (1.0 - 1.0 / keys).powf(as_f64(self.held)));
        whole(distinct.round()).min(self.held)
    }
}

/// A workload whose pods share partitions.
struct World {
    scaling: Scaling,
    partitions: Vec<Partition>,
    /// Messages that arrive in each partition in a second, and the time from one batch of them to the next.
    arrivals: Vec<f64>,
    batch: Duration,
    /// Messages that a pod works at at once, and how long each takes.
    slots: u64,
    time: Duration,
    /// Keys in each partition.
    keys: f64,
    /// Most that one pod settles in a second, and all pods together.
    pod_cap: f64,
    cap: f64,
    /// Most messages of a partition that may be unacknowledged.
    max_held: u64,
    /// Whether pods say what they do.
    says: bool,
    /// All handlers fail at once, and their messages wait for the next attempt.
    is_out: bool,
    autoscaler: Autoscaler,
    now: Duration,
    ticks: u32,
    /// When each pod is ready.
    pods: Vec<Duration>,
    steps: Vec<(Duration, u32)>,
    reason: Reason,
}

impl World {
    /// With one ready pod, which works at so many at once and settles so many in a second.
    fn new(arrivals: &[f64], slots: u64, rate: f64) -> Self {
        Self {
            scaling: Scaling { max: 16, ..scaling() },
            partitions: vec![Partition::default(); arrivals.len()],
            arrivals: arrivals.to_vec(),
            batch: TICK,
            slots,
            time: Duration::from_secs_f64(as_f64(slots) / rate),
            keys: 10_000.0,
            pod_cap: f64::INFINITY,
            cap: f64::INFINITY,
            max_held: 256,
            says: true,
            is_out: false,
            autoscaler: Autoscaler::new(1),
            now: Duration::ZERO,
            ticks: 0,
            pods: vec![Duration::ZERO],
            steps: vec![(Duration::ZERO, 1)],
            reason: Reason::Steady,
        }
    }

    /// What a pod can do is known already.
    fn learnt(mut self) -> Self {
        let capacity = Capacity::of(Some(as_f64(self.slots) / self.time.as_secs_f64()));
        self.autoscaler.consumers.entry("orders".to_owned()).or_default().capacity = capacity;
        self
    }

    fn capacity(&self) -> Option<f64> {
        self.autoscaler.consumers.get("orders")?.capacity.learnt()
    }

    /// So many messages arrive at once, as many in each partition.
    fn publish(&mut self, count: u64) {
        let each = count / u64::try_from(self.partitions.len()).unwrap();
        self.partitions.iter_mut().for_each(|partition| partition.pending += each);
    }

    fn lag(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.pending + partition.held).sum()
    }

    fn run(&mut self, seconds: u64) {
        self.run_while(seconds, |_| true);
    }

    /// Moves on, for so long at most; the seconds that passed.
    fn run_while(&mut self, seconds: u64, goes_on: impl Fn(&Self) -> bool) -> f64 {
        let begun = self.now;
        while self.now < begun + Duration::from_secs(seconds) && goes_on(self) {
            self.now += TICK;
            self.ticks += 1;
            self.share_out();
            self.arrive();
            for pod in 0..u32::try_from(self.pods.len()).unwrap() {
                self.work(pod);
            }
            if self.says && self.ticks.is_multiple_of(REPORT_TICKS) {
                for partition in &mut self.partitions {
                    let Partition { is_busy, running, queued, .. } = *partition;
                    partition.reported = Some(HolderWork { is_busy, running, queued });
                }
            }
            if self.ticks.is_multiple_of(REPORT_TICKS / 2) {
                for partition in &mut self.partitions {
                    partition.is_busy = partition.held > 0;
                }
            }
            if self.ticks.is_multiple_of(LOOK_TICKS) {
                self.look();
            }
        }
        self.now.saturating_sub(begun).as_secs_f64()
    }

    /// Pods that are ready have neighbours each. What is handed over is delivered again.
    fn share_out(&mut self) {
        let ready = self.pods.iter().filter(|ready_at| **ready_at <= self.now).count().max(1);
        let share = self.partitions.len().div_ceil(ready);
        for (number, partition) in self.partitions.iter_mut().enumerate() {
            let owner = u32::try_from(number / share).unwrap();
            if owner != partition.owner {
                partition.owner = owner;
                partition.given_back = (partition.held, self.now + REDELIVERY);
                (partition.is_busy, partition.reported) = (false, None);
            }
        }
    }

    fn arrive(&mut self) {
        for (partition, rate) in self.partitions.iter_mut().zip(&self.arrivals) {
            if self.now >= partition.given_back.1 {
                partition.delivered += std::mem::take(&mut partition.given_back.0);
            }
            partition.fractions.0 += rate * TICK.as_secs_f64();
            if self.now.as_millis().is_multiple_of(self.batch.as_millis()) {
                partition.pending += whole(partition.fractions.0);
                partition.fractions.0 = partition.fractions.0.fract();
            }
        }
    }

    /// A pod holds what it may of each of its partitions, and has room for some of their keys.
    fn work(&mut self, pod: u32) {
        let part = TICK.as_secs_f64() / self.time.as_secs_f64();
        let running: u64 = self.partitions.iter().map(|partition| partition.running).sum();
        let fair = self.cap * TICK.as_secs_f64() / as_f64(running.max(1));
        let own = self.partitions.iter().filter(|partition| partition.owner == pod);
        let own_running: u64 = own.map(|partition| partition.running).sum();
        let fair = fair.min(self.pod_cap * TICK.as_secs_f64() / as_f64(own_running.max(1)));
        let mut own: Vec<_> = self.partitions.iter_mut().filter(|partition| partition.owner == pod).collect();
        for partition in &mut own {
            let settled = if self.is_out { 0.0 } else { as_f64(partition.running) * part.min(fair) };
            let settled = settled + partition.fractions.1;
            partition.fractions.1 = settled.fract();
            partition.held -= whole(settled).min(partition.held);
            let count = partition.pending.min(self.max_held - partition.held);
            partition.pending -= count;
            partition.held += count;
            partition.delivered += count;
        }
        let startable: u64 = own.iter().map(|partition| partition.keys(self.keys)).sum();
        for partition in own {
            let keys = partition.keys(self.keys);
            let share = as_f64(keys) * as_f64(self.slots) / as_f64(startable.max(self.slots));
            partition.running = whole(share.ceil()).min(keys);
            partition.queued = keys - partition.running;
            if self.is_out {
                (partition.running, partition.queued) = (0, 0);
            }
            partition.is_busy &= partition.queued > 0;
        }
    }

    fn look(&mut self) {
        let part = |partition: &Partition| Part {
            sample: Sample {
                at: self.now,
                delivered: partition.delivered,
                pending: partition.pending,
                ack_pending: partition.held,
                max_ack_pending: Some(self.max_held),
                waiting_pulls: u64::from(partition.held < self.max_held),
                ..Sample::default()
            },
            holder: Some(PartitionHolder { process: partition.owner.to_string(), work: partition.reported }),
        };
        let parts: Vec<_> = self.partitions.iter().map(part).collect();
        let count = u32::try_from(parts.len()).unwrap();
        let reading = Reading { parts, unknown: None, partitions: Some(count) };
        let useful = Some(Useful { partitions: count });
        let ready = self.pods.iter().filter(|ready_at| **ready_at <= self.now).count();
        let (ready, readings) = (u32::try_from(ready).unwrap(), [("orders".to_owned(), reading)]);
        let look = Look {
            at: self.now,
            ready,
            readings: &readings,
            scaling: &self.scaling,
            useful,
            observes: false,
        };
        let Decision { replicas, reason, .. } = self.autoscaler.look(look);
        self.reason = reason;
        if self.steps.last().is_none_or(|(_, last)| *last != replicas) {
            self.steps.push((self.now, replicas));
        }
        let replicas = usize::try_from(replicas).unwrap();
        self.pods.resize(replicas, self.now + STARTUP);
    }

    /// Requires that the pods are so many in the second hour, and that they came there with one turn at most.
    fn assert_comes_to_rest_at(&mut self, pods: u32) {
        self.run(3_600);
        let later = self.now;
        self.run(3_600);
        assert_eq!(self.steps(later), [pods], "{:?}", self.steps);
        assert!(changes_of_direction(&self.steps(Duration::ZERO)) <= 1, "{:?}", self.steps);
        assert!(self.lag() < 500, "{} wait", self.lag());
    }

    /// The changes of direction in the second quarter of an hour.
    fn later_turns(&mut self) -> usize {
        self.run(900);
        let begin = self.now;
        self.run(900);
        changes_of_direction(&self.steps(begin))
    }

    /// The numbers of pods since then.
    fn steps(&self, since: Duration) -> Vec<u32> {
        let before = self.steps.iter().rposition(|(at, _)| *at <= since).unwrap_or_default();
        self.steps[before..].iter().map(|(_, replicas)| *replicas).collect()
    }
}

#[test]
fn what_a_pod_holds_and_cannot_begin_calls_for_others() {
    for count in [4_000, 10_000] {
        let mut world = World::new(&[0.0; 16], 64, 32.0).learnt();
        world.scaling.target_drain_time = Duration::from_mins(1);
        world.run(60);
        world.publish(count);
        let drained = world.run_while(600, |world| {
            assert_ne!(world.reason, Reason::AckPendingLimit, "another pod gets what the first has");
            world.lag() > 0
        });
        assert!(drained <= 90.0, "{count} after {drained} s: {:?}", world.steps);
        world.run(600);
        assert_eq!(world.steps(world.now), [1]);
    }
}

#[test]
fn what_a_pod_can_do_is_learnt_also_where_it_holds_all_that_there_is() {
    let mut world = World::new(&[0.0; 16], 64, 32.0);
    world.publish(4_000);
    world.run(300);
    let learnt = world.capacity().unwrap();
    assert!((20.0..40.0).contains(&learnt), "{learnt}");
}

#[test]
fn keys_that_lie_in_some_of_the_partitions_make_no_scaling_to_and_fro() {
    let some = |rate: f64, of: usize| {
        let mut arrivals = vec![0.0; 8];
        arrivals[..of].fill(rate);
        arrivals
    };
    for arrivals in [some(70.0, 5), some(50.0, 5), some(60.0, 2), some(30.0, 3), some(95.0, 1)] {
        let mut world = World::new(&arrivals, 64, 100.0);
        world.run(1_800);
        assert!(changes_of_direction(&world.steps(Duration::ZERO)) <= 1, "{arrivals:?}: {:?}", world.steps);
        let later = world.now;
        world.run(3_600);
        assert_eq!(world.steps(later).len(), 1, "{arrivals:?}: {:?}", world.steps);
        assert!(world.lag() < 500, "{arrivals:?}: {} wait, {:?}", world.lag(), world.steps);
    }
}

#[test]
fn what_is_handed_over_teaches_nothing_of_what_a_pod_can_do() {
    let mut world = World::new(&[0.4; 16], 64, 6.4).learnt();
    world.publish(4_000);
    let mut highest = 0.0_f64;
    for _ in 0..120 {
        world.run(10);
        highest = highest.max(world.capacity().unwrap());
    }
    assert!(world.steps.len() > 2, "{:?}", world.steps);
    assert!(highest < 10.0, "{highest}: {:?}", world.steps);
}

#[test]
fn events_that_wait_for_others_of_their_keys_call_for_no_pods() {
    // Of 40 a second that take a second each, one pod can do 64. They have 80 keys; or one key, which falls behind with any number of pods.
    for (arrivals, keys) in [(vec![5.0; 8], 10.0), (vec![1.2, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0)] {
        let mut world = World::new(&arrivals, 64, 64.0);
        world.keys = keys;
        world.run(3_600);
        assert_eq!(world.steps(Duration::ZERO), [1], "{arrivals:?}");
    }
}

#[test]
fn a_key_that_nobody_can_keep_up_with_calls_for_no_pods_beside_others_that_come_in_batches() {
    for (batch, handling) in [(1_000, 200), (2_000, 1_500), (6_000, 3_000)] {
        let rate = 1_000.0 / as_f64(batch);
        let mut world = World::new(&[rate; 8], 64, 64_000.0 / as_f64(handling));
        (world.keys, world.batch) = (1.0, Duration::from_millis(batch));
        world.arrivals[4] = 8.0;
        world.run(1_800);
        assert_eq!(world.steps(Duration::ZERO), [1], "{:?}", world.steps);
    }
}

#[test]
fn handlers_that_take_a_minute_get_no_more_pods_than_they_take() {
    let mut world = World::new(&[0.125; 8], 64, 64.0 / 60.0).learnt();
    world.run(1_800);
    assert!(world.steps(Duration::ZERO).iter().all(|pods| *pods <= 3), "{:?}", world.steps);
}

#[test]
fn a_pod_whose_room_is_never_full_since_no_more_may_be_unacknowledged_makes_no_scaling_to_and_fro() {
    // Also of programs that do not say what they do. Two pods are enough for the first, and one is for the second.
    for (says, rate, pods) in [(true, 10.0, 2), (false, 10.0, 2), (true, 4.0, 1), (false, 4.0, 1)] {
        let mut world = World::new(&[rate; 8], 64, 200.0);
        (world.says, world.max_held, world.pod_cap) = (says, 8, 60.0);
        world.assert_comes_to_rest_at(pods);
    }
}

#[test]
fn pods_whose_processors_are_the_limit_and_that_have_room_for_more_keys_make_no_scaling_to_and_fro() {
    let mut world = World::new(&[10.0; 8], 64, 400.0);
    (world.keys, world.pod_cap) = (3.0, 60.0);
    world.assert_comes_to_rest_at(2);
}

#[test]
fn messages_that_all_wait_for_their_next_attempt_call_for_no_pods() {
    for learnt in [true, false] {
        let mut world = World::new(&[5.0; 16], 64, 200.0);
        if learnt {
            world = world.learnt();
        }
        world.run(300);
        world.is_out = true;
        let begin = world.now;
        world.run(600);
        assert_eq!(world.steps(begin), [1], "an outage is not worked off by more pods");
        world.is_out = false;
        world.run(900);
        assert!(world.lag() < 500, "{} wait: {:?}", world.lag(), world.steps);
    }
}

// numaproj/numaflow#136, kedacore/keda#7092.
#[test]
fn pods_that_share_a_database_at_its_limit_are_no_gain() {
    let mut world = World::new(&[150.0 / 32.0; 32], 64, 100.0).learnt();
    (world.cap, world.scaling.max) = (100.0, 50);
    world.run(1_800);
    assert_eq!(world.reason, Reason::NoGain, "{:?}", world.steps);
    assert!(world.steps(world.now)[0] <= 11, "{:?}", world.steps);
}

#[test]
fn where_each_partition_has_a_pod_more_are_wished_for_and_there_are_none() {
    let mut world = World::new(&[150.0; 8], 64, 100.0);
    world.scaling.max = 50;
    world.run(1_800);
    assert_eq!((world.steps(world.now), world.reason), (vec![8], Reason::AtMaximum));
}

// numaproj/numaflow#828.
#[test]
fn a_lag_in_one_partition_calls_for_one_pod() {
    let mut world = World::new(&[0.0; 16], 64, 100.0).learnt();
    world.partitions[3].pending = 100_000;
    world.run(300);
    assert_eq!(world.steps(Duration::ZERO), [1]);
}

// kedacore/keda#3997, kedacore/keda#7517.
#[test]
fn there_are_only_as_many_pods_as_take_something_from_the_busiest() {
    let mut world = World::new(&[0.0; 16], 64, 100.0);
    world.scaling.max = 100;
    for step in 1..=30_u32 {
        world.arrivals = vec![f64::from(step) * 6.0; 16];
        world.run(120);
    }
    let steps = world.steps(Duration::ZERO);
    assert!(steps.iter().all(|step| [1, 2, 3, 4, 6, 8, 16].contains(step)), "{steps:?}");
    assert_eq!(steps.last(), Some(&16));
}

#[test]
fn a_bound_between_two_numbers_that_are_of_use_is_never_passed_and_the_lower_one_is_the_most() {
    let mut world = World::new(&[125.0; 16], 64, 100.0);
    world.scaling.max = 7;
    world.run(600);
    let steps = world.steps(Duration::ZERO);
    assert_eq!((steps.iter().max(), steps.last()), (Some(&6), Some(&6)), "{steps:?}");
    assert_eq!(world.reason, Reason::AtMaximum);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// As long as no partition alone is too much for a pod.
    #[test]
    fn a_load_that_stays_as_it_lies_turns_the_scaling_at_most_once_after_a_quarter_of_an_hour(
        arrivals in prop::collection::vec(prop_oneof![Just(0.0), 0.1..70.0, 60.0..97.0], 8), backlog in 0..20_000_u64,
    ) {
        let mut world = World::new(&arrivals, 64, 100.0);
        world.publish(backlog);
        prop_assert!(world.later_turns() <= 1, "{:?}", world.steps);
        prop_assert!(world.lag() < 500, "{} wait: {:?}", world.lag(), world.steps);
    }

    /// Whatever holds pods up: their processors, few keys, or few messages that may be unacknowledged; and whether they say so or not.
    #[test]
    fn a_load_that_stays_turns_the_scaling_at_most_once_whatever_holds_pods_up(
        arrivals in prop::collection::vec(prop_oneof![Just(0.0), 0.1..30.0], 8), backlog in 0..20_000_u64,
        keys in prop_oneof![1..30_u64, Just(10_000)], max_held in prop_oneof![Just(1_u64), 2..64_u64, Just(256)],
        (rate, pod_cap) in (20.0..400.0, prop_oneof![20.0..200.0, Just(f64::INFINITY)]), says: bool,
    ) {
        let mut world = World::new(&arrivals, 64, rate);
        (world.keys, world.max_held, world.pod_cap, world.says) = (as_f64(keys), max_held, pod_cap, says);
        world.publish(backlog);
        prop_assert!(world.later_turns() <= 1, "{:?}", world.steps);
    }
}
