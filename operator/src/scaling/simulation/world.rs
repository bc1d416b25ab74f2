//! A consumer, its pods and what they need, moved on step by step.

use std::{collections::VecDeque, time::Duration};

use rand::{RngExt as _, rngs::StdRng};

use crate::scaling::{
    autoscaler::{Autoscaler, Decision, Look, Reason},
    capacity::Capacity,
    figures::{Reading, Sample, Unknown},
    spec::{Scaling, as_f64, ceil},
};

/// How far the world moves at once.
pub const TICK: Duration = Duration::from_millis(500);
/// Ticks between two looks.
pub const LOOK_TICKS: u32 = 4;
/// Attempts at a message that always fails.
const ATTEMPTS: u32 = 6;

/// How a pod works.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// So many messages a second, of which it holds some in advance.
    Fast { rate: f64, hold: u64 },
    /// So many at once, each for so long.
    Slow { slots: u64, time: Duration },
}

impl Work {
    fn room(self) -> u64 {
        match self {
            Self::Fast { hold, .. } => hold,
            Self::Slow { slots, .. } => slots,
        }
    }

    /// Messages that a pod settles in a second.
    pub fn rate(self) -> f64 {
        match self {
            Self::Fast { rate, .. } => rate,
            Self::Slow { slots, time } => as_f64(slots) / time.as_secs_f64(),
        }
    }
}

/// Messages that are alike.
#[derive(Clone, Copy, Debug)]
struct Batch {
    count: u64,
    /// Attempts that failed: those that failed once always do.
    failed: u32,
    /// When they end, or are delivered again.
    at: Duration,
}

#[derive(Clone, Debug, Default)]
struct Pod {
    ready_at: Duration,
    held: VecDeque<Batch>,
    /// What it may settle, in messages.
    credit: f64,
}

impl Pod {
    fn count(&self) -> u64 {
        self.held.iter().map(|batch| batch.count).sum()
    }
}

/// What a look led to.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    pub at: Duration,
    pub replicas: u32,
    pub lag: u64,
    pub pending: u64,
    pub reason: Reason,
    /// Pods by the formula, with what really arrives and what a pod really can.
    pub ideal: u32,
}

/// A workload with its queue.
pub struct World {
    pub scaling: Scaling,
    pub work: Work,
    pub startup: Duration,
    /// How many of the pods that come first never become ready, as on a node that cannot run them.
    pub broken: u32,
    /// Most that all pods together settle in a second.
    pub cap: Option<f64>,
    /// Most messages that may be unacknowledged at once.
    pub max_ack_pending: Option<u64>,
    /// Part of the messages that always fail.
    pub poison: f64,
    /// How long all pods pause when there are others.
    pub rebalance: Duration,
    /// Messages that arrive in a second, at a time in seconds.
    pub arrivals: Box<dyn Fn(f64) -> f64>,
    /// Whether JetStream does not answer.
    pub unknown: Box<dyn Fn(f64) -> Option<Unknown>>,
    pub autoscaler: Autoscaler,
    pub trace: Vec<Point>,
    now: Duration,
    ticks: u32,
    paused_until: Duration,
    pods: Vec<Pod>,
    pending: u64,
    delivered: u64,
    retrying: VecDeque<Batch>,
    /// Parts of messages that arrived, and that failed.
    fractions: (f64, f64),
    /// Ticks between two looks.
    pub look_ticks: u32,
    /// By which messages come; None where they come evenly.
    pub chance: Option<StdRng>,
}

/// How the examples are scaled.
pub fn scaling() -> Scaling {
    Scaling {
        min: 1,
        max: 50,
        target_drain_time: Duration::from_secs(30),
        lag_per_replica: 100,
        scale_down_after: Duration::from_mins(1),
    }
}

impl World {
    /// With so many ready pods, each for a hundred messages a second; others come within two seconds.
    pub fn new(replicas: u32) -> Self {
        let pod = Pod::default();
        Self {
            scaling: scaling(),
            work: Work::Fast { rate: 100.0, hold: 60 },
            startup: Duration::from_secs(2),
            broken: 0,
            cap: None,
            max_ack_pending: None,
            poison: 0.0,
            rebalance: Duration::ZERO,
            arrivals: Box::new(|_| 0.0),
            unknown: Box::new(|_| None),
            autoscaler: Autoscaler::new(replicas),
            trace: Vec::new(),
            now: Duration::ZERO,
            ticks: 0,
            paused_until: Duration::ZERO,
            pods: vec![pod; usize::try_from(replicas).unwrap()],
            pending: 0,
            delivered: 0,
            retrying: VecDeque::new(),
            fractions: (0.0, 0.0),
            look_ticks: LOOK_TICKS,
            chance: None,
        }
    }

    /// What a pod can do is known already.
    pub fn learn(&mut self) {
        let capacity = Capacity::of(Some(self.work.rate()));
        self.autoscaler.consumers.entry("orders".to_owned()).or_default().capacity = capacity;
    }

    /// So many messages arrive at once.
    pub fn publish(&mut self, count: u64) {
        self.pending += count;
    }

    /// The consumer's figures fall back, as with a leader that does not have the last ones.
    pub fn fall_back(&mut self) {
        self.delivered -= self.delivered / 10;
    }

    /// Moves on for a while.
    pub fn run(&mut self, seconds: u64) -> &mut Self {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now += TICK;
            self.arrive();
            if self.now >= self.paused_until {
                self.work();
            }
            self.ticks += 1;
            if self.ticks.is_multiple_of(self.look_ticks) {
                self.look();
            }
        }
        self
    }

    pub fn now(&self) -> f64 {
        self.now.as_secs_f64()
    }

    pub fn replicas(&self) -> u32 {
        self.autoscaler.replicas()
    }

    pub fn lag(&self) -> u64 {
        self.pending + self.ack_pending()
    }

    pub fn pending(&self) -> u64 {
        self.pending
    }

    fn ack_pending(&self) -> u64 {
        let retrying: u64 = self.retrying.iter().map(|batch| batch.count).sum();
        retrying + self.pods.iter().map(Pod::count).sum::<u64>()
    }

    fn ready(&self) -> u32 {
        u32::try_from(self.pods.iter().filter(|pod| pod.ready_at <= self.now).count()).unwrap()
    }

    fn arrive(&mut self) {
        let mean = (self.arrivals)(self.now()) * TICK.as_secs_f64();
        if let Some(chance) = &mut self.chance {
            self.pending += by_chance(chance, mean);
            return;
        }
        let came = mean + self.fractions.0;
        self.fractions.0 = came.fract();
        self.pending += whole(came);
    }

    fn work(&mut self) {
        let (now, ready) = (self.now, f64::from(self.ready().max(1)));
        let share = self.cap.map_or(f64::INFINITY, |cap| cap / ready);
        for number in 0..self.pods.len() {
            if self.pods[number].ready_at <= now {
                self.pull(number);
                let settled = self.settle(number, share);
                for batch in settled {
                    self.settled(batch);
                }
                self.pull(number);
            }
        }
    }

    /// A pod takes what it has room for, what failed first.
    fn pull(&mut self, number: usize) {
        let ends = match self.work {
            Work::Fast { .. } => self.now,
            Work::Slow { time, .. } => self.now + time,
        };
        let mut room = self.work.room().saturating_sub(self.pods[number].count());
        while room > 0 {
            let (count, failed) = self.take(room);
            if count == 0 {
                return;
            }
            self.delivered += count;
            room -= count;
            self.pods[number].held.push_back(Batch { count, failed, at: ends });
        }
    }

    /// Takes at most so many messages out, and how often they failed.
    fn take(&mut self, most: u64) -> (u64, u32) {
        let due = self.retrying.iter().position(|batch| batch.at <= self.now);
        if let Some((due, batch)) = due.and_then(|due| Some((due, self.retrying.get_mut(due)?))) {
            let (count, failed) = (batch.count.min(most), batch.failed);
            batch.count -= count;
            if batch.count == 0 {
                self.retrying.remove(due);
            }
            return (count, failed);
        }
        let limit = self.max_ack_pending.unwrap_or(u64::MAX);
        let count = self.pending.min(most).min(limit.saturating_sub(self.ack_pending()));
        self.pending -= count;
        (count, 0)
    }

    /// What a pod is done with in one tick.
    fn settle(&mut self, number: usize, share: f64) -> Vec<Batch> {
        let (now, work) = (self.now, self.work);
        let pod = &mut self.pods[number];
        let mut done = Vec::new();
        pod.credit = match work {
            Work::Fast { rate, .. } => pod.credit.fract() + rate.min(share) * TICK.as_secs_f64(),
            Work::Slow { .. } => f64::INFINITY,
        };
        while let Some(batch) = pod.held.front_mut() {
            let count = if batch.at > now { 0 } else { batch.count.min(whole(pod.credit)) };
            if count == 0 {
                break;
            }
            pod.credit -= as_f64(count);
            batch.count -= count;
            done.push(Batch { count, ..*batch });
            if batch.count == 0 {
                pod.held.pop_front();
            }
        }
        done
    }

    /// Attempts ended: what failed is tried again later.
    fn settled(&mut self, batch: Batch) {
        let failed = if batch.failed == 0 {
            let failed = as_f64(batch.count) * self.poison + self.fractions.1;
            self.fractions.1 = failed.fract();
            whole(failed)
        } else {
            batch.count
        };
        if failed > 0 && batch.failed + 1 < ATTEMPTS {
            let delay = Duration::from_millis(500) * 2_u32.pow(batch.failed);
            self.retrying.push_back(Batch { count: failed, failed: batch.failed + 1, at: self.now + delay });
        }
    }

    fn look(&mut self) {
        let ready = self.ready();
        let reading = match (self.unknown)(self.now()) {
            Some(unknown) => Reading::unknown(unknown),
            None => self.sample().into(),
        };
        let (before, ideal) = (self.replicas(), self.ideal());
        let readings = [("orders".to_owned(), reading)];
        let look = Look {
            at: self.now,
            ready,
            readings: &readings,
            scaling: &self.scaling,
            useful: None,
            observes: false,
        };
        let Decision { replicas, reason, .. } = self.autoscaler.look(look);
        let (at, lag, pending) = (self.now, self.lag(), self.pending);
        self.trace.push(Point { at, replicas, lag, pending, reason, ideal });
        if replicas != before {
            self.scale(replicas);
        }
    }

    fn sample(&self) -> Sample {
        let has_room = |pod: &&Pod| pod.ready_at <= self.now && pod.count() < self.work.room();
        let asking = self.pods.iter().filter(has_room).count();
        Sample {
            at: self.now,
            delivered: self.delivered,
            pending: self.pending,
            ack_pending: self.ack_pending(),
            max_ack_pending: self.max_ack_pending,
            waiting_pulls: u64::try_from(asking).unwrap(),
            ..Sample::default()
        }
    }

    fn ideal(&self) -> u32 {
        let load = self.scaling.load((self.arrivals)(self.now()), as_f64(self.lag()), Some(self.work.rate()));
        self.scaling.bound(ceil(load))
    }

    /// Pods that end give back what they hold.
    fn scale(&mut self, replicas: u32) {
        self.paused_until = self.now + self.rebalance;
        let ready_at = self.now + self.startup;
        let replicas = usize::try_from(replicas).unwrap();
        while self.pods.len() > replicas {
            let ended = self.pods.pop().unwrap();
            self.retrying.extend(ended.held.into_iter().map(|batch| Batch { at: Duration::ZERO, ..batch }));
        }
        while self.pods.len() < replicas {
            let ready_at = if self.broken > 0 { Duration::MAX } else { ready_at };
            self.broken = self.broken.saturating_sub(1);
            self.pods.push(Pod { ready_at, ..Pod::default() });
        }
    }

    /// The numbers of pods that there were since a time in seconds, each once.
    pub fn steps(&self, since: f64) -> Vec<u32> {
        let mut steps: Vec<_> = self.since(since).map(|point| point.replicas).collect();
        steps.dedup();
        steps
    }

    /// How often pods that came were taken away again, or came back.
    pub fn changes_of_direction(&self, since: f64) -> usize {
        changes_of_direction(&self.steps(since))
    }

    /// How many times the pods that the load took then, a step up led to at most.
    pub fn overshoot(&self, since: f64) -> f64 {
        // What led to a step was sampled in the windows before it.
        let before = Duration::from_secs(30);
        let points: Vec<_> = self.since(since).collect();
        let steps = points.windows(2).filter(|pair| pair[1].replicas > pair[0].replicas).map(|pair| pair[1]);
        let over = steps.map(|step| {
            let called = points.iter().filter(|other| other.at <= step.at && other.at + before >= step.at);
            let called = called.map(|other| other.ideal).max().unwrap_or(0).max(1);
            // One pod more is no overshoot, however few there are.
            f64::from(step.replicas.saturating_sub(1).max(called)) / f64::from(called)
        });
        over.fold(0.0, f64::max)
    }

    /// Seconds from a time until nothing waits that no pod has.
    pub fn drained_after(&self, since: f64) -> Option<f64> {
        let drained = self.since(since).find(|point| point.pending == 0);
        drained.map(|point| point.at.as_secs_f64() - since)
    }

    pub fn since(&self, seconds: f64) -> impl Iterator<Item = &Point> {
        self.trace.iter().filter(move |point| point.at.as_secs_f64() > seconds)
    }
}

/// How many come where so many come on average, each independent of the others.
fn by_chance(chance: &mut StdRng, mean: f64) -> u64 {
    let (mut count, mut left) = (0, mean);
    loop {
        left += chance.random::<f64>().max(f64::MIN_POSITIVE).ln();
        if left < 0.0 {
            return count;
        }
        count += 1;
    }
}

/// How often numbers of pods that grew became smaller, or the other way round.
pub fn changes_of_direction(steps: &[u32]) -> usize {
    let ups: Vec<_> = steps.windows(2).map(|pair| pair[1] > pair[0]).collect();
    ups.windows(2).filter(|pair| pair[0] != pair[1]).count()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts of messages, or endless")]
pub fn whole(count: f64) -> u64 {
    count as u64
}
