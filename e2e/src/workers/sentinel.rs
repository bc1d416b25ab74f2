//! What the sentinels of the order counted in each process.

use std::ops::Add;

use super::Workers;
use crate::metrics::sum;

/// What the sentinel of a process counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sentinel {
    /// Attempts that it looked at.
    pub checked: u64,
    /// Those that were out of order.
    pub violations: u64,
    /// Partitions whose order was recovered.
    pub recoveries: u64,
}

impl Sentinel {
    /// As the metrics of a process tell it.
    #[must_use]
    pub fn read(metrics: &str) -> Self {
        Self {
            checked: sum(metrics, "jetwright_order_checked_total"),
            violations: sum(metrics, "jetwright_order_violations_total"),
            recoveries: sum(metrics, "jetwright_order_recoveries_total"),
        }
    }
}

impl Add for Sentinel {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            checked: self.checked + more.checked,
            violations: self.violations + more.violations,
            recoveries: self.recoveries + more.recoveries,
        }
    }
}

impl Workers {
    /// Asks the sentinel of each process that runs, by its place among all.
    ///
    /// # Panics
    ///
    /// When one does not answer.
    pub async fn sentinels(&mut self) -> Vec<(usize, Sentinel)> {
        let mut sentinels = Vec::new();
        for index in self.running() {
            let url = format!("http://{}:9090/metrics", self.processes[index].address);
            let answer = async { reqwest::get(url).await?.error_for_status()?.text().await };
            let metrics =
                answer.await.unwrap_or_else(|error| panic!("process {index} tells no metrics: {error}"));
            sentinels.push((index, Sentinel::read(&metrics)));
        }
        sentinels
    }
}
