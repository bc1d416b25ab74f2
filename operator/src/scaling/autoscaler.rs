//! In: what a workload declares, its pods, and what JetStream says of the consumers in them, every few seconds. Out: how many pods there should
//! be, and why. Pure: it has no clock and asks nobody, so that the simulation runs it as the operator does.
//!
//! figures → rates, loads → capacity → wish → a bounded step. Each [`Consumer`] has the first four for itself, and the workload takes the highest wish.

use std::{collections::BTreeMap, time::Duration};

use super::{
    capacity::WARMUP,
    consumer::Consumer,
    figures::{Reading, Unknown},
    peak::Peak,
    rates::{MAX_GAP, WINDOW},
    spec::{Scaling, Useful},
    startup::{STARTUP_TIMEOUT, Startup},
    wish::{Present, Wish},
};

/// Least time between two steps.
const STEP_INTERVAL: Duration = Duration::from_secs(15);
/// Pods that a step up may add in any case; beyond that it at most doubles them.
const STEP_UP: u32 = 4;
/// A step down takes at most two of five.
const STEP_DOWN: (u32, u32) = (2, 5);

/// Why there are as many pods as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// They are what is wished for.
    Steady,
    ScaledUp,
    ScaledDown,
    /// More are wished for, once those that came last are ready and were watched for a while.
    Starting,
    /// The lag falls, and later than it should: no pod is taken away.
    Draining,
    /// More are wished for, and the last ones brought too little.
    NoGain,
    /// More are wished for than spec allows.
    AtMaximum,
    /// More are wished for, and JetStream delivers nothing more before something is settled.
    AckPendingLimit,
    /// The figures of a consumer are unknown.
    FiguresUnknown(Unknown),
}

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub replicas: u32,
    /// What the load takes, without bounds and steps.
    pub wish: u32,
    pub reason: Reason,
}

impl Decision {
    /// As many pods as there are, while nothing is known.
    #[must_use]
    pub fn steady(replicas: u32) -> Self {
        Self { replicas, wish: replicas, reason: Reason::Steady }
    }
}

/// What there is at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    pub at: Duration,
    /// Pods that are ready.
    pub ready: u32,
    /// The consumers whose messages the pods handle.
    pub readings: &'a [(String, Reading)],
    pub scaling: &'a Scaling,
    pub useful: Option<Useful>,
    /// Whether what is decided is only said.
    pub observes: bool,
}

impl Look<'_> {
    /// The most pods: as many as are allowed, down to a number that is of use.
    fn most(&self) -> u32 {
        let Scaling { min, max, .. } = *self.scaling;
        self.useful.map_or(max, |useful| useful.round_down(max)).max(min)
    }
}

/// Decides for one workload, look by look.
#[derive(Clone, Debug)]
pub struct Autoscaler {
    replicas: u32,
    /// When they became as many.
    changed_at: Option<Duration>,
    startup: Startup,
    pub consumers: BTreeMap<String, Consumer>,
    down: Peak,
}

/// What the consumers wish for together.
#[derive(Clone, Copy, Debug, Default)]
struct Wishes {
    all: Wish,
    unknown: Option<Unknown>,
    has_no_gain: bool,
}

impl Autoscaler {
    /// For a workload with so many pods.
    #[must_use]
    pub fn new(replicas: u32) -> Self {
        let (startup, consumers, down) = (Startup::default(), BTreeMap::new(), Peak::default());
        Self { replicas, changed_at: None, startup, consumers, down }
    }

    /// The desired number of pods.
    #[must_use]
    pub fn replicas(&self) -> u32 {
        self.replicas
    }

    /// Takes over a number of pods that is set outside: by spec.workload.replicas, or by other bounds.
    pub fn follow(&mut self, at: Duration, replicas: u32) {
        if self.replicas != replicas {
            self.set(at, replicas);
        }
    }

    /// The declared autoscaling changed: what was learnt of more pods or fewer may no longer hold.
    pub fn redeclared(&mut self) {
        self.consumers.values_mut().for_each(Consumer::redeclared);
    }

    /// Takes over what there is, and decides.
    pub fn look(&mut self, look: Look<'_>) -> Decision {
        let before = self.replicas;
        if !look.observes {
            self.follow(look.at, look.scaling.bound(before).min(look.most()));
        }
        if self.startup.observe(look.at, look.ready, self.replicas) {
            self.consumers.values_mut().for_each(|consumer| consumer.capacity.limit_trial(look.ready));
        }
        let wishes = self.wishes(look);
        if wishes.unknown.is_none() {
            self.down.add(look.at, wishes.all.down, MAX_GAP);
        }
        let (replicas, held) = self.step(look, &wishes);
        if !look.observes && replicas != self.replicas {
            self.take(look.at, replicas);
        }
        let reason = match replicas {
            replicas if replicas > before => Reason::ScaledUp,
            replicas if replicas < before => Reason::ScaledDown,
            _ => held,
        };
        Decision { replicas, wish: wishes.all.pods, reason }
    }

    fn wishes(&mut self, look: Look<'_>) -> Wishes {
        self.consumers.retain(|name, _| look.readings.iter().any(|(known, _)| known == name));
        let mut wishes = Wishes::default();
        let present = Present { scaling: look.scaling, useful: look.useful, replicas: self.replicas };
        for (name, reading) in look.readings {
            let consumer = self.consumers.entry(name.clone()).or_default();
            match consumer.add(reading, look.ready, present) {
                Ok(wish) => wishes.add(wish, consumer.capacity.has_no_gain()),
                Err(unknown) => {
                    wishes.unknown = Some(unknown);
                    // A message that waits while there are no pods needs one, whatever its rate and the other partitions.
                    if self.replicas == 0 && reading.is_lagging() {
                        wishes.add(Wish { pods: 1, up: 1, down: 1, ..Wish::default() }, false);
                    }
                }
            }
        }
        wishes
    }

    /// The next number of pods, at most one step away; or the same, with the reason.
    fn step(&mut self, look: Look<'_>, wishes: &Wishes) -> (u32, Reason) {
        let replicas = self.replicas;
        let up = look.scaling.bound(wishes.all.up).min(look.most());
        if up > replicas {
            return self.step_up(look, up);
        }
        if let Some(unknown) = wishes.unknown {
            return (replicas, Reason::FiguresUnknown(unknown));
        }
        if wishes.all.pods > replicas {
            let reason = match () {
                () if wishes.all.is_limited => Reason::AckPendingLimit,
                () if wishes.has_no_gain => Reason::NoGain,
                () if replicas >= look.most() => Reason::AtMaximum,
                () => Reason::Steady,
            };
            return (replicas, reason);
        }
        let highest = self.down.highest(look.at, look.scaling.scale_down_after);
        match highest.map(|highest| look.scaling.bound(highest)) {
            Some(highest) if highest < replicas => self.step_down(look, highest, wishes),
            _ => (replicas, Reason::Steady),
        }
    }

    fn step_up(&self, look: Look<'_>, wished: u32) -> (u32, Reason) {
        let replicas = self.replicas;
        // What handlers that take long bring, and partitions that move for as long, is not waited for without end.
        let watched = self.startup.ready_at.is_some_and(|ready_at| {
            let ready = look.at.saturating_sub(ready_at);
            let are_watched = || self.consumers.values().all(|consumer| consumer.is_watched(ready));
            ready >= WARMUP + WINDOW && (ready >= STARTUP_TIMEOUT || are_watched())
        });
        // Without pods, there is nothing to wait for.
        if replicas > 0 && !(watched && self.rested(look.at)) {
            return (replicas, Reason::Starting);
        }
        let most = (replicas * 2).max(replicas + STEP_UP);
        let step = wished.min(most);
        // The next number that is of use may be beyond a step.
        let useful =
            look.useful.map_or(step, |useful| useful.round_down(step).max(useful.round_up(replicas + 1)));
        (useful.min(look.most()), Reason::ScaledUp)
    }

    fn step_down(&self, look: Look<'_>, enough: u32, wishes: &Wishes) -> (u32, Reason) {
        let replicas = self.replicas;
        if wishes.all.is_draining {
            return (replicas, Reason::Draining);
        }
        if !self.rested(look.at) {
            return (replicas, Reason::Steady);
        }
        let (part, whole) = STEP_DOWN;
        let most = (replicas * part / whole).max(1);
        let step = enough.max(replicas - most);
        let useful = look.useful.map_or(step, |useful| useful.round_down(step).max(enough));
        (useful, Reason::ScaledDown)
    }

    /// Makes a step.
    fn take(&mut self, at: Duration, replicas: u32) {
        if replicas > self.replicas {
            self.consumers.values_mut().for_each(|consumer| consumer.scaled_up(self.replicas, replicas));
        }
        self.set(at, replicas);
    }

    fn rested(&self, at: Duration) -> bool {
        self.changed_at.is_none_or(|changed| at >= changed + STEP_INTERVAL)
    }

    fn set(&mut self, at: Duration, replicas: u32) {
        if replicas < self.replicas {
            self.consumers.values_mut().for_each(|consumer| consumer.capacity.drop_trial());
        }
        (self.replicas, self.changed_at, self.startup) = (replicas, Some(at), Startup::begin(at));
    }
}

impl Wishes {
    /// The pods have to be enough for each consumer.
    fn add(&mut self, wish: Wish, has_no_gain: bool) {
        let all = self.all;
        self.has_no_gain |= has_no_gain;
        self.all = Wish {
            pods: all.pods.max(wish.pods),
            up: all.up.max(wish.up),
            down: all.down.max(wish.down),
            is_draining: all.is_draining || wish.is_draining,
            is_limited: all.is_limited || wish.is_limited,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::{figures::Sample, simulation::scaling};

    /// A consumer in which so much waits, of which nothing was ever delivered.
    fn waits(at: Duration, pending: u64) -> Reading {
        Sample { at, pending, ..Sample::default() }.into()
    }

    /// Looks every two seconds for a while at what is read of the consumers then; the last decision.
    fn look(
        autoscaler: &mut Autoscaler,
        seconds: std::ops::Range<u64>,
        read: impl Fn(Duration) -> Vec<(&'static str, Reading)>,
    ) -> Decision {
        let scaling = scaling();
        let mut last = Decision::steady(autoscaler.replicas());
        for second in seconds.step_by(2) {
            let at = Duration::from_secs(second);
            let readings: Vec<_> =
                read(at).into_iter().map(|(name, reading)| (name.to_owned(), reading)).collect();
            let ready = autoscaler.replicas();
            let (readings, scaling) = (readings.as_slice(), &scaling);
            last = autoscaler.look(Look { at, ready, readings, scaling, useful: None, observes: false });
        }
        last
    }

    #[test]
    fn the_highest_wish_of_several_consumers_counts() {
        let mut autoscaler = Autoscaler::new(1);
        let read = |at| vec![("orders", waits(at, 250)), ("payments", waits(at, 350))];
        assert_eq!(look(&mut autoscaler, 0..40, read).replicas, 4);
    }

    #[test]
    fn beside_a_consumer_that_is_unknown_another_adds_pods_and_takes_none_away() {
        let mut autoscaler = Autoscaler::new(1);
        let missing = || ("payments", Reading::unknown(Unknown::Missing));
        let read = |at| vec![("orders", waits(at, 250)), missing()];
        look(&mut autoscaler, 0..40, read);
        assert_eq!(autoscaler.replicas(), 3);
        let read = |at| vec![("orders", waits(at, 0)), missing()];
        let held = look(&mut autoscaler, 40..400, read);
        assert_eq!((held.replicas, held.reason), (3, Reason::FiguresUnknown(Unknown::Missing)));
        let read = |at| vec![("orders", waits(at, 0)), ("payments", waits(at, 0))];
        assert_eq!(look(&mut autoscaler, 400..600, read).replicas, 1);
    }

    #[test]
    fn without_pods_messages_that_were_delivered_to_some_that_are_gone_bring_one() {
        let mut autoscaler = Autoscaler::new(0);
        let read = |at| {
            let (delivered, ack_pending, max_ack_pending) = (5, 5, Some(5));
            let sample = Sample { at, delivered, ack_pending, max_ack_pending, ..Sample::default() };
            vec![("orders", sample.into())]
        };
        look(&mut autoscaler, 0..20, read);
        assert_eq!(autoscaler.replicas(), 1);
    }

    // A partition without a leader holds up no event of the others.
    #[test]
    fn without_pods_a_message_brings_one_also_where_another_partition_does_not_answer() {
        let mut autoscaler = Autoscaler::new(0);
        let read = |at| {
            let silent = Reading { unknown: Some(Unknown::Unanswered), ..waits(at, 5) };
            vec![("orders", silent)]
        };
        assert_eq!(look(&mut autoscaler, 0..2, read).replicas, 1);
        let held = look(&mut autoscaler, 2..600, read);
        assert_eq!((held.replicas, held.reason), (1, Reason::FiguresUnknown(Unknown::Unanswered)));
    }

    #[test]
    fn other_bounds_count_at_once() {
        let mut autoscaler = Autoscaler::new(60);
        let decision = look(&mut autoscaler, 0..2, |at| vec![("orders", waits(at, 0))]);
        assert_eq!((decision.replicas, decision.reason), (50, Reason::ScaledDown));
    }

    #[test]
    fn who_observes_says_what_it_would_do_and_does_nothing() {
        let mut autoscaler = Autoscaler::new(1);
        let scaling = scaling();
        for second in (0..60).step_by(2) {
            let at = Duration::from_secs(second);
            let readings = [("orders".to_owned(), waits(at, 250))];
            let look =
                Look { at, ready: 1, readings: &readings, scaling: &scaling, useful: None, observes: true };
            let decision = autoscaler.look(look);
            assert_eq!(decision.replicas, if second < 36 { 1 } else { 3 }, "{second}");
        }
        assert_eq!(autoscaler.replicas(), 1);
    }
}
