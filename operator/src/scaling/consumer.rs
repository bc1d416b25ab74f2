//! In: what is read of one consumer, look by look. Out: how many pods it asks for. Pure.

use std::time::Duration;

use super::{
    capacity::{Capacity, WARMUP, Work},
    figures::{Reading, Unknown},
    partition_loads::{Movement, PartitionLoads},
    rates::{Rates, Saturation, Series, WINDOW},
    wish::{Known, Present, Wish, wish},
};

/// Part of the arrivals that were too much for some pods, from which on they are so again.
const MIN_OVERLOAD: f64 = 0.9;
/// How long it is known: other pods may bear it.
pub const OVERLOAD_MEMORY: Duration = Duration::from_hours(6);

/// How long it is waited for what one pod can do: it takes a window, and handlers that take long take longer.
const LEARNING_TIMEOUT: Duration = Duration::from_secs(WARMUP.as_secs() + 3 * WINDOW.as_secs());

/// What is known of one consumer.
#[derive(Clone, Debug, Default)]
pub struct Consumer {
    series: Series,
    loads: PartitionLoads,
    pub capacity: Capacity,
    /// The rates at the last look, if they were known then.
    pub rates: Option<Rates>,
    pub overload: Option<Overload>,
    /// What it wished for then.
    wish: Wish,
}

/// What was too much for some pods. Without this, pods that were added are removed as soon as the lag is gone where it does not show what one can
/// do: none had as much as it can work at, as where their processors are the limit, or it differs from time to time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overload {
    /// When it is forgotten, since this process began to sample.
    pub until: Duration,
    pub pods: u32,
    /// Messages that arrived in a second.
    pub arrivals: f64,
}

impl Overload {
    /// Whether so much is too much for them now.
    fn is_again(&self, rates: &Rates) -> bool {
        !rates.is_idle && rates.arrivals >= MIN_OVERLOAD * self.arrivals
    }
}

impl Consumer {
    /// Of which this is known from before.
    #[must_use]
    pub fn new(capacity: Capacity, overload: Option<Overload>) -> Self {
        Self { capacity, overload, ..Self::default() }
    }

    /// The declared autoscaling changed: what was too much for the pods, or brought too little, may no longer be.
    pub fn redeclared(&mut self) {
        self.overload = None;
        self.capacity.forget_no_gain();
    }

    /// Takes over what was read, and says what the consumer wishes for.
    ///
    /// # Errors
    ///
    /// Where its rates are unknown.
    pub fn add(&mut self, reading: &Reading, ready: u32, present: Present<'_>) -> Result<Wish, Unknown> {
        let total = reading.total();
        let movement = total.map_or(Movement::None, |_| self.loads.add(&reading.parts));
        let rates = self.series.add(total, movement);
        self.rates = rates.ok();
        match (rates, self.series.so_far()) {
            // Measured from the first look, what a pod can do is known by the first step.
            (Ok(_) | Err(Unknown::New), Some(so_far)) => {
                if self.series.begins() {
                    self.capacity.interrupt();
                }
                if movement == Movement::None {
                    let saturation = so_far.saturation();
                    let is_partial = saturation == Saturation::Partial;
                    if is_partial && !self.loads.can_be_relieved() {
                        self.capacity.drop_trial();
                    }
                    let busy = is_partial.then(|| reading.busy_processes()).flatten();
                    self.capacity.add(Work { sample: so_far.sample, saturation, ready, busy });
                } else {
                    self.capacity.restart(so_far.sample.at, ready);
                }
            }
            (Err(Unknown::Unanswered), _) => {}
            _ => self.capacity.interrupt(),
        }
        let loads = reading.partitions.map(|_| &self.loads);
        let rates = rates?;
        let mut wish = wish(Known { rates: &rates, capacity: &self.capacity, loads }, present);
        // Where more pods do not help, fewer were none too few.
        let is_over = |then: &Overload| rates.sample.at >= then.until || self.capacity.has_no_gain();
        self.overload = self.overload.filter(|then| !is_over(then));
        if let Some(Overload { pods, .. }) = self.overload.filter(|then| then.is_again(&rates)) {
            wish.down = wish.down.max(present.round_up(pods.saturating_add(1)));
        }
        // While they work off what waits, what holds them up does so still.
        if wish.pods <= present.replicas && !rates.is_partly_saturated() {
            self.capacity.forget_no_gain();
        }
        self.wish = wish;
        Ok(wish)
    }

    /// Whether pods that are ready for so long have shown what they bring and what one of them can do, where that is to be seen.
    #[must_use]
    pub fn is_watched(&self, ready: Duration) -> bool {
        let is_busy = self.rates.is_some_and(|rates| rates.is_partly_saturated());
        let is_learning = is_busy && self.capacity.learnt().is_none() && ready < LEARNING_TIMEOUT;
        !(self.capacity.has_trial() || is_learning)
    }

    /// Pods are added.
    pub fn scaled_up(&mut self, from: u32, to: u32) {
        let Some(rates) = self.rates else { return };
        if rates.is_partly_saturated() {
            let busy = rates.sample.processes.map(|processes| processes.busy);
            self.capacity.scaled_up(from, to, rates.settled_in_window, busy);
        }
        if self.wish.up > from && rates.is_growing && rates.settled < rates.lasting_arrivals {
            let until = rates.sample.at + OVERLOAD_MEMORY;
            self.overload = Some(Overload { until, pods: from, arrivals: rates.lasting_arrivals });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        partitions::sharing::{HolderWork, PartitionHolder},
        scaling::{
            figures::{Part, Sample},
            simulation::scaling,
            spec::Useful,
        },
    };

    /// A pod is lost and not missed yet, and what it had of two partitions comes again.
    #[test]
    fn what_is_delivered_again_to_the_next_process_is_nothing_that_a_pod_can_do() {
        let scaling = scaling();
        let present = Present { scaling: &scaling, useful: Some(Useful { partitions: 4 }), replicas: 2 };
        let mut consumer = Consumer { capacity: Capacity::of(Some(6.0)), ..Consumer::default() };
        for second in (0..=60).step_by(2) {
            let part = |number: u64| {
                let is_moved = number >= 2 && second >= 20;
                let again = if is_moved && second >= 22 { 256 } else { 0 };
                let process = if number < 2 || is_moved { "a" } else { "b" };
                let work = Some(HolderWork { is_busy: true, running: 16, queued: 200 });
                Part {
                    sample: Sample {
                        at: Duration::from_secs(second),
                        delivered: 256 + 3 * second + again,
                        pending: 1_000,
                        ack_pending: 256,
                        max_ack_pending: Some(256),
                        ..Sample::default()
                    },
                    holder: Some(PartitionHolder { process: process.to_owned(), work }),
                }
            };
            let reading = Reading { parts: (0..4).map(part).collect(), unknown: None, partitions: Some(4) };
            let _ = consumer.add(&reading, 2, present);
        }
        let learnt = consumer.capacity.learnt().unwrap();
        assert!((5.0..13.0).contains(&learnt), "{learnt}");
        assert!(consumer.rates.unwrap().arrivals < 13.0);
    }

    #[test]
    fn pods_that_were_too_few_are_so_again_until_that_is_forgotten_or_the_declaration_changes() {
        let scaling = scaling();
        let present = Present { scaling: &scaling, useful: None, replicas: 4 };
        let overload = Overload { until: Duration::from_secs(100), pods: 3, arrivals: 80.0 };
        let down = |arrivals: u64, seconds: u64, is_redeclared: bool| {
            let mut consumer = Consumer::new(Capacity::default(), Some(overload));
            if is_redeclared {
                consumer.redeclared();
            }
            let wishes = (0..=seconds).step_by(2).map(|second| {
                let at = Duration::from_secs(second);
                let sample =
                    Sample { at, delivered: arrivals * second, waiting_pulls: 1, ..Sample::default() };
                consumer.add(&sample.into(), 4, present)
            });
            wishes.last().unwrap().unwrap().down
        };
        assert_eq!((down(73, 98, false), down(73, 100, false)), (4, 1));
        assert_eq!((down(70, 98, false), down(73, 98, true)), (1, 1));
    }
}
