//! What is known of events that come again: when they came first, and where an event was given up and its dead letter could not be
//! kept, why. Then it is not handled once more, and its dead letter says what went wrong. Bounded; what is forgotten is tried as any
//! other delivery.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;

use super::settle::Reason;
use crate::Metadata;

/// Events that are remembered; beyond that those are forgotten that were stored first, which others may have had since.
const MOST: usize = 10_000;

/// What is known of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) first_delivered: Option<Timestamp>,
    /// Why it was given up, and the error.
    pub(super) given_up: Option<(Reason, String)>,
}

/// By time and sequence: sequences begin again where a stream is made again.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<BTreeMap<(Timestamp, u64), Known>>);

impl Memory {
    /// Remembers an event that comes again.
    pub(super) fn put(&self, metadata: &Metadata, known: Known) {
        if known == Known::default() {
            return;
        }
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.insert(key(metadata), known);
        if events.len() > MOST {
            events.pop_first();
        }
    }

    /// What is known of an event that came again.
    pub(super) fn take(&self, metadata: &Metadata) -> Known {
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
        let memory = Memory::default();
        let metadata = |sequence| Metadata {
            subject: "orders.42.placed".to_owned(),
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            sequence,
            time: Timestamp::UNIX_EPOCH,
            attempt: 1,
            is_last_attempt: false,
        };
        let given_up = |sequence: u64| {
            let given_up = Some((Reason::Permanent, sequence.to_string()));
            Known { first_delivered: None, given_up }
        };
        let most = u64::try_from(MOST).unwrap();
        for sequence in 0..=most {
            memory.put(&metadata(sequence), given_up(sequence));
        }
        assert_eq!(memory.take(&metadata(0)), Known::default());
        assert_eq!(memory.take(&metadata(most)), given_up(most));
        assert_eq!(memory.take(&metadata(most)), Known::default());
        let made_again = Metadata { time: Timestamp::MAX, ..metadata(7) };
        assert_eq!(memory.take(&made_again), Known::default());
    }
}
