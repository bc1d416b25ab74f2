//! What JetStream says of one consumer, and why its figures may be unknown. Pure.

use std::time::Duration;

/// What the leader of a consumer said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When, since the process began to sample.
    pub at: Duration,
    /// Deliveries since the consumer was made, redeliveries included.
    pub delivered: u64,
    /// Messages that no pod has.
    pub pending: u64,
    /// Messages that were delivered and are not settled.
    pub ack_pending: u64,
    /// Most messages that may be so; None without a limit.
    pub max_ack_pending: Option<u64>,
    /// Pull requests that wait for messages.
    pub waiting_pulls: u64,
}

impl Sample {
    /// What was said of the partitions of one consumer, as one; None of none.
    #[must_use]
    pub fn sum(partitions: &[Self]) -> Option<Self> {
        let last = partitions.iter().max_by_key(|one| one.at)?;
        let sum = |figure: fn(&Self) -> u64| partitions.iter().map(figure).sum();
        let limits: Option<Vec<_>> = partitions.iter().map(|one| one.max_ack_pending).collect();
        Some(Self {
            at: last.at,
            delivered: sum(|one| one.delivered),
            pending: sum(|one| one.pending),
            ack_pending: sum(|one| one.ack_pending),
            max_ack_pending: limits.map(|limits| limits.iter().sum()),
            waiting_pulls: sum(|one| one.waiting_pulls),
        })
    }

    /// Deliveries that were settled: each attempt counts.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.delivered.saturating_sub(self.ack_pending)
    }

    /// Messages that are not settled.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.pending + self.ack_pending
    }

    /// What came so far, redeliveries included: it grows with each arrival alone.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.delivered + self.pending
    }

    /// Whether JetStream delivers no more until something is settled, however many pods there are.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.max_ack_pending.is_some_and(|limit| self.ack_pending >= limit)
    }

    /// Whether something waits that no pod asks for: JetStream delivers at once where a pull waits.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.pending > 0 && self.waiting_pulls == 0 && !self.is_limited()
    }
}

/// Why the figures of a consumer are unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Sampling began a moment ago.
    New,
    /// JetStream did not answer.
    Unanswered,
    /// JetStream has no such consumer, or not this object's.
    Missing,
    /// The consumer delivers nothing, on purpose.
    Paused,
    /// The figures fell back a moment ago: another leader, or another consumer of the name.
    Reset,
}

impl Unknown {
    /// In words, after the consumer's name.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::New => "has been sampled for less than 10s",
            Self::Unanswered => "does not answer",
            Self::Missing => "does not exist",
            Self::Paused => "is paused",
            Self::Reset => "counts from an earlier point: it has another leader, or was recreated",
        }
    }
}

/// One look at a consumer.
pub type Reading = Result<Sample, Unknown>;

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, pending: u64, limit: Option<u64>) -> Sample {
        let at = Duration::from_secs(at);
        Sample { at, delivered: 5, pending, ack_pending: 2, max_ack_pending: limit, waiting_pulls: 1 }
    }

    #[test]
    fn partitions_are_one_consumer_with_all_that_waits_in_them() {
        let sum = Sample::sum(&[sample(1, 3, Some(256)), sample(2, 0, Some(256))]);
        let expected = Sample {
            at: Duration::from_secs(2),
            delivered: 10,
            pending: 3,
            ack_pending: 4,
            max_ack_pending: Some(512),
            waiting_pulls: 2,
        };
        assert_eq!(sum, Some(expected));
        assert_eq!(Sample::sum(&[sample(1, 3, None), sample(2, 0, Some(1))]).unwrap().max_ack_pending, None);
        assert_eq!(Sample::sum(&[sample(1, 3, Some(1))]), Some(sample(1, 3, Some(1))));
        assert_eq!(Sample::sum(&[]), None);
    }
}
