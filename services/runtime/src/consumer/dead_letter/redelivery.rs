//! What is known of events that come again: when they came first, how often this process called the handler with them, and where an event
//! was given up and its dead letter could not be kept, why. Then it is not handled once more, and its dead letter says what went wrong.
//! Bounded; what is forgotten is tried as any other delivery.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;

use super::super::retry::Reason;
use crate::Metadata;

/// Events that are remembered; beyond that those are forgotten that were stored first, which others may have had since.
const MAX_EVENTS: usize = 10_000;

/// What is known of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::consumer) struct PriorAttempts {
    pub(in crate::consumer) first_delivered: Option<Timestamp>,
    /// How often this process called the handler.
    pub(in crate::consumer) calls: u32,
    /// Why it was given up, and the error.
    pub(in crate::consumer) given_up: Option<(Reason, String)>,
}

/// By time and sequence: sequences begin again where a stream is made again.
#[derive(Debug, Default)]
pub(in crate::consumer) struct RedeliveryCache(Mutex<BTreeMap<(Timestamp, u64), PriorAttempts>>);

impl RedeliveryCache {
    /// Remembers an event that comes again.
    pub(in crate::consumer) fn put(&self, metadata: &Metadata, prior: PriorAttempts) {
        if prior == PriorAttempts::default() {
            return;
        }
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.insert(key(metadata), prior);
        if events.len() > MAX_EVENTS {
            events.pop_first();
        }
    }

    /// What is known of an event that came again.
    pub(in crate::consumer) fn take(&self, metadata: &Metadata) -> PriorAttempts {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(metadata)).unwrap_or_default()
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
            PriorAttempts { first_delivered: None, calls: 1, given_up }
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
