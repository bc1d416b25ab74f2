//! In: what is read of one consumer, look by look. Out: how many pods it asks for. Pure.

use super::{
    capacity::{Capacity, Work},
    figures::{Reading, Unknown},
    partition_loads::{Movement, PartitionLoads},
    rates::{Rates, Series},
    wish::{Present, Wish, wish},
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
        if movement == Movement::Moved {
            self.capacity.restart();
        }
        let rates = self.series.add(total, movement);
        self.rates = rates.ok();
        match (rates, self.series.so_far()) {
            // Measured from the first look, what a pod can do is known by the first step.
            (Ok(_) | Err(Unknown::New), Some(so_far)) => {
                if self.series.begins() {
                    self.capacity.interrupt();
                }
                self.capacity.add(Work {
                    sample: so_far.sample,
                    is_saturated: so_far.is_saturated(),
                    ready,
                    busy: reading.busy_processes(),
                });
            }
            (Err(Unknown::Unanswered), _) => {}
            _ => self.capacity.interrupt(),
        }
        let wish = wish(&rates?, &self.loads, &self.capacity, present);
        if wish.pods <= present.replicas {
            self.capacity.forget_no_gain();
        }
        Ok(wish)
    }

    /// Pods are added.
    pub fn scaled_up(&mut self, from: u32, to: u32) {
        let Some(rates) = self.rates else { return };
        if rates.sample.all_pods_busy() {
            self.capacity.assume_recent_rate();
        }
        if rates.is_saturated() {
            self.capacity.scaled_up(from, to, rates.settled);
        }
    }
}
