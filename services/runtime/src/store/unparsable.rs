//! Events that cost the client its connection, remembered so that none of them does so twice. Pure.

use std::collections::VecDeque;

use super::StoredEvent;
use crate::subject::matches;
use parking_lot::{Mutex, MutexGuard};

/// Maximum events that a process remembers; beyond that the oldest is forgotten, and may cost its connection once more.
const MAX_EVENTS: usize = 4096;

/// The events that are known by now.
#[derive(Debug, Default)]
pub(super) struct Unparsable(Mutex<VecDeque<Known>>);

#[derive(Debug)]
struct Known {
    stream: String,
    subject: String,
    sequence: u64,
}

impl Unparsable {
    /// Whether one of them is under this filter, at this sequence or after it.
    pub(super) fn is_ahead(&self, stream: &str, filter: &str, from: u64) -> bool {
        self.known().iter().any(|known| known.is_under(stream, filter) && known.sequence >= from)
    }

    /// Learns from an event that was read as the first one under this filter from this sequence on.
    pub(super) fn learn(&self, stream: &str, filter: &str, from: u64, event: &StoredEvent) {
        let StoredEvent { subject, sequence, .. } = event;
        let mut known = self.known();
        // In a recreated stream other events may have their sequences, or none.
        let passed = |known: &Known| (from..=*sequence).contains(&known.sequence);
        known.retain(|known| !(known.is_under(stream, filter) && passed(known)));
        if !event.is_unparsable() {
            return;
        }
        tracing::warn!(
            stream,
            subject,
            sequence,
            "reading as JSON an event that the NATS client cannot parse"
        );
        if known.len() >= MAX_EVENTS {
            known.pop_front();
        }
        known.push_back(Known { stream: stream.to_owned(), subject: subject.clone(), sequence: *sequence });
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.0.lock()
    }
}

impl Known {
    fn is_under(&self, stream: &str, filter: &str) -> bool {
        self.stream == stream && matches(filter, &self.subject)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;

    use super::{super::RawEvent, *};

    fn event(subject: &str, sequence: u64, block: &'static [u8]) -> StoredEvent {
        let (time, header_block) = (Timestamp::UNIX_EPOCH, Some(Bytes::from_static(block)));
        RawEvent { subject: subject.to_owned(), sequence, time, header_block, payload: Bytes::new() }.into()
    }

    #[test]
    fn an_event_is_known_until_something_else_is_read_in_its_place() {
        let unparsable = Unparsable::default();
        let (bad, good) = (b"NATS/1.0\r\nX Trace: 1\r\n\r\n", b"NATS/1.0\r\n\r\n");
        unparsable.learn("users", "users.ann.>", 1, &event("users.ann.created", 7, bad));
        let ahead = |stream, filter, from| unparsable.is_ahead(stream, filter, from);
        assert!(ahead("users", "users.ann.>", 1) && ahead("users", ">", 7));
        assert!(
            !ahead("users", "users.ann.>", 8)
                && !ahead("orders", ">", 1)
                && !ahead("users", "users.bob.>", 1)
        );
        unparsable.learn("users", "users.ann.>", 1, &event("users.ann.created", 6, good));
        assert!(ahead("users", ">", 1));
        unparsable.learn("users", "users.ann.>", 7, &event("users.ann.renamed", 9, good));
        assert!(!ahead("users", ">", 1));
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let unparsable = Unparsable::default();
        for sequence in 1..=MAX_EVENTS as u64 + 5 {
            unparsable.learn("users", ">", sequence, &event("users.ann", sequence, b"no version"));
        }
        assert_eq!(unparsable.known().len(), MAX_EVENTS);
        assert_eq!(unparsable.known()[0].sequence, 6);
    }
}
