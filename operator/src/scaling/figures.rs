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
