//! What is known of redelivered events: their first delivery, how often this process called the handler with them, and, if an event failed
//! for good and its dead letter could not be written, why. Then it is not handled once more, and its dead letter says what went wrong.
//! Bounded; a forgotten event is tried like any other delivery.

use std::collections::BTreeMap;

use jiff::Timestamp;
use opentelemetry::trace::SpanContext;
use parking_lot::Mutex;

use super::super::retry::Reason;
use crate::Metadata;

/// Maximum events that are remembered; beyond that the earliest stored are forgotten, which other processes may have had since.
const MAX_EVENTS: usize = 10_000;

/// What is known of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::consumer) struct PriorAttempts {
    pub(in crate::consumer) first_delivered: Option<Timestamp>,
    /// How often this process called the handler.
    pub(in crate::consumer) calls: u32,
    /// Why it failed for good, and the error.
    pub(in crate::consumer) given_up: Option<(Reason, String)>,
    /// The span of the last attempt, if it is recorded.
    pub(in crate::consumer) previous: Option<SpanContext>,
}

/// By time and sequence: sequences begin again if a stream is recreated.
#[derive(Debug, Default)]
pub(in crate::consumer) struct RedeliveryCache(Mutex<BTreeMap<(Timestamp, u64), PriorAttempts>>);

impl RedeliveryCache {
    /// Remembers an event that is redelivered.
    pub(in crate::consumer) fn put(&self, metadata: &Metadata, prior: PriorAttempts) {
        if prior == PriorAttempts::default() {
            return;
        }
        let mut events = self.0.lock();
        events.insert(key(metadata), prior);
        if events.len() > MAX_EVENTS {
            events.pop_first();
        }
    }

    /// What is known of a redelivered event.
    pub(in crate::consumer) fn take(&self, metadata: &Metadata) -> PriorAttempts {
        self.0.lock().remove(&key(metadata)).unwrap_or_default()
    }
}

fn key(metadata: &Metadata) -> (Timestamp, u64) {
    (metadata.time, metadata.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_once() {
        let cache = RedeliveryCache::default();
        let given_up = |sequence: u64| {
            let given_up = Some((Reason::Permanent, sequence.to_string()));
            PriorAttempts { first_delivered: None, calls: 1, given_up, previous: None }
        };
        let most = u64::try_from(MAX_EVENTS).unwrap();
        for sequence in 0..=most {
            cache.put(&Metadata::example(sequence), given_up(sequence));
        }
        assert_eq!(cache.take(&Metadata::example(0)), PriorAttempts::default());
        assert_eq!(cache.take(&Metadata::example(most)), given_up(most));
        assert_eq!(cache.take(&Metadata::example(most)), PriorAttempts::default());
        let made_again = Metadata { time: Timestamp::MAX, ..Metadata::example(7) };
        assert_eq!(cache.take(&made_again), PriorAttempts::default());
    }
}
