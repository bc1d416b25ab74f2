//! In: what the object declares. Out: the load in pods, and the numbers of pods that are of use. Pure.

use std::time::Duration;

/// Fraction of a pod's capacity to plan with: the rest absorbs bursts.
pub const UTILIZATION: f64 = 0.8;

/// How a workload is scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Fewest and most pods.
    pub min: u32,
    pub max: u32,
    /// Time in which the lag should be worked off.
    pub target_drain_time: Duration,
    /// Unsettled messages for each pod while the capacity of a pod is unknown.
    pub lag_per_replica: u64,
    /// How long fewer pods must have been enough before pods are removed.
    pub scale_down_after: Duration,
}

impl Scaling {
    /// The replicas between the bounds.
    #[must_use]
    pub fn bound(&self, replicas: u32) -> u32 {
        replicas.clamp(self.min, self.max.max(self.min))
    }

    /// Pods that settle what arrives and work off the lag in time, as a fraction.
    #[must_use]
    pub fn load(&self, arrivals: f64, lag: f64, capacity: Option<f64>) -> f64 {
        match capacity {
            Some(capacity) => {
                (arrivals + lag / self.target_drain_time.as_secs_f64()) / (UTILIZATION * capacity)
            }
            None => lag / as_f64(self.lag_per_replica.max(1)),
        }
    }
}

/// Which numbers of pods are of use where a pod has whole partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Useful {
    pub partitions: u32,
}

impl Useful {
    /// Of a workload with these consumers: one without partitions takes any number of pods.
    #[must_use]
    pub fn of_all(consumers: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        let all: Vec<_> = consumers.into_iter().collect::<Option<_>>()?;
        Some(Self { partitions: all.iter().map(|one| one.partitions).max()? })
    }

    /// The smallest useful number of pods that is at least `replicas`. A number is useful where the busiest pod has fewer partitions than with
    /// one pod less; pods beyond the number of partitions never are.
    #[must_use]
    pub fn round_up(self, replicas: u32) -> u32 {
        let useful = (replicas..self.partitions).find(|count| self.round_down(*count) == *count);
        useful.unwrap_or(self.partitions)
    }

    /// The largest useful number of pods that is at most `replicas`.
    #[must_use]
    pub fn round_down(self, replicas: u32) -> u32 {
        if replicas == 0 {
            return 0;
        }
        let largest_share = self.partitions.div_ceil(replicas).max(1);
        self.partitions.div_ceil(largest_share)
    }
}

/// A count as a number to divide; exact up to 2^52.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "figures are no more exact than that")]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The whole number at or above a load, bounded.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded before")]
pub fn ceil(load: f64) -> u32 {
    // Rounding errors of the rates must not add a pod.
    (load - 1e-6).ceil().clamp(0.0, f64::from(u16::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_without_partitions_takes_any_number_of_pods_and_of_several_the_largest_counts() {
        let of = |partitions| Some(Useful { partitions });
        assert_eq!(Useful::of_all([of(8), of(4)]), of(8));
        assert_eq!(Useful::of_all([of(8), None]), None);
        assert_eq!(Useful::of_all([]), None);
    }

    #[test]
    fn only_counts_at_which_the_largest_share_falls_are_of_use() {
        let useful = Useful { partitions: 8 };
        let counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20].map(|count| useful.round_up(count));
        assert_eq!(counts, [0, 1, 2, 3, 4, 8, 8, 8, 8, 8, 8]);
        let counts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20].map(|count| useful.round_down(count));
        assert_eq!(counts, [0, 1, 2, 3, 4, 4, 4, 4, 8, 8, 8]);
        let sixteen = Useful { partitions: 16 };
        let counts: Vec<_> = (1..=16).map(|count| sixteen.round_up(count)).collect();
        assert_eq!(counts, [1, 2, 3, 4, 6, 6, 8, 8, 16, 16, 16, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn the_formula_is_that_of_rates_and_before_the_capacity_is_known_that_of_the_lag() {
        let scaling = Scaling {
            min: 0,
            max: 20,
            target_drain_time: Duration::from_secs(30),
            lag_per_replica: 100,
            scale_down_after: Duration::from_mins(1),
        };
        assert_eq!(ceil(scaling.load(100.0, 6000.0, Some(100.0))), 4);
        assert_eq!(ceil(scaling.load(80.0, 0.0, Some(100.0))), 1);
        assert_eq!(ceil(scaling.load(1000.0, 301.0, None)), 4);
    }
}
