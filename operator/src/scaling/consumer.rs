//! In: what is read of one consumer, look by look. Out: how many pods it asks for. Pure.

use std::time::Duration;

use super::{
    capacity::{Capacity, Work},
    figures::{Reading, Unknown},
    partition_loads::{FIRST_REPORT, Movement, PartitionLoads},
    rates::{Rates, Saturation, Series, WINDOW},
    wish::{Known, Present, Wish, wish},
};

/// What is known of one consumer.
#[derive(Clone, Debug, Default)]
pub struct Consumer {
    series: Series,
    loads: PartitionLoads,
    pub capacity: Capacity,
    /// The rates at the last look, if they were known then.
    pub rates: Option<Rates>,
}

impl Consumer {
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
                    if saturation == Saturation::Partial && !self.loads.can_be_relieved() {
                        self.capacity.drop_trial();
                    }
                    let is_partial = saturation == Saturation::Partial;
                    let busy = is_partial.then(|| reading.busy_processes()).flatten();
                    self.capacity.add(Work { sample: so_far.sample, saturation, ready, busy });
                } else {
                    self.capacity.restart(so_far.sample.at);
                }
            }
            (Err(Unknown::Unanswered), _) => {}
            _ => self.capacity.interrupt(),
        }
        let loads = reading.partitions.map(|_| &self.loads);
        let wish = wish(Known { rates: &rates?, capacity: &self.capacity, loads }, present);
        if wish.pods <= present.replicas {
            self.capacity.forget_no_gain();
        }
        Ok(wish)
    }

    /// Whether pods that came last have shown what they bring, where that is to be seen: what they do with the partitions that they took.
    #[must_use]
    pub fn is_watched(&self, at: Duration) -> bool {
        let judged = |moved| at >= moved + FIRST_REPORT + WINDOW;
        !self.capacity.has_trial() || self.loads.moved_at().is_none_or(judged)
    }

    /// Pods are added.
    pub fn scaled_up(&mut self, from: u32, to: u32) {
        let Some(rates) = self.rates else { return };
        if rates.sample.all_pods_busy() {
            self.capacity.assume_recent_rate();
        }
        if rates.is_partly_saturated() {
            self.capacity.scaled_up(from, to, rates.settled);
        }
    }
}
