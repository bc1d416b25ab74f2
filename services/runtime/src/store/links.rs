//! A short history backwards, event by event, without a search for any of them.
//!
//! For a filter with wildcards the server searches the stream, and the longer the stream, the longer that takes. A message of a
//! known sequence costs no search. An event that was appended with an expected sequence names, in headers that the server compared
//! before it stored them, the newest event under the filter at that time: its predecessor. From the newest event these names lead
//! to the first. Servers remove the headers in a stream that has its messages from other streams.

use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;

use super::{
    direct_get::{PAGE_BYTES, PAGE_EVENTS},
    reader::Reader,
    stored_event::StoredEvent,
};
use crate::{Error, event::EXPECTED_SUBJECT, subject::matches};

/// Events that are always read this way.
const MIN_LINKED_EVENTS: usize = 4;
/// Messages of the stream per event from which on a search takes the server longer than one more request.
const MIN_MESSAGES_PER_EVENT: u64 = 1000;

/// The events under a filter that have at least the sequence `from`, if names lead from the newest one to the first and following
/// them is worth it.
pub(super) async fn follow(
    reader: &Reader,
    stream: &str,
    filter: &str,
    from: u64,
    newest: StoredEvent,
) -> Result<Option<Vec<StoredEvent>>, Error> {
    let (mut bytes, mut backwards) = (newest.size(), vec![newest]);
    loop {
        let Some(before) = backwards.last().and_then(|event| named(event, filter)) else { return Ok(None) };
        if before < from {
            backwards.reverse();
            return Ok(Some(backwards));
        }
        if bytes > PAGE_BYTES || !is_worth_following(&backwards) {
            return Ok(None);
        }
        match reader.at(stream, before).await? {
            Some(event) if matches(filter, &event.subject) => {
                bytes += event.size();
                backwards.push(event);
            }
            // It was removed from the stream.
            _ => return Ok(None),
        }
    }
}

/// The sequence of the event before this one under the filter; 0 if it was the first.
fn named(event: &StoredEvent, filter: &str) -> Option<u64> {
    if event.is_unparsable() || event.header(EXPECTED_SUBJECT) != Some(filter) {
        return None;
    }
    let before = event.header(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE.as_ref())?.parse().ok()?;
    (before < event.sequence).then_some(before)
}

fn is_worth_following(backwards: &[StoredEvent]) -> bool {
    let (Some(newest), Some(oldest)) = (backwards.first(), backwards.last()) else { return false };
    let messages = newest.sequence.saturating_sub(oldest.sequence);
    let events = u64::try_from(backwards.len()).unwrap_or(u64::MAX);
    backwards.len() < MIN_LINKED_EVENTS
        || (backwards.len() < PAGE_EVENTS && messages / events >= MIN_MESSAGES_PER_EVENT)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;

    use super::{super::RawEvent, *};

    fn event(sequence: u64, block: &str) -> StoredEvent {
        let (time, header_block) = (Timestamp::UNIX_EPOCH, Some(Bytes::from(block.to_owned())));
        RawEvent { subject: "a.b.c".to_owned(), sequence, time, header_block, payload: Bytes::new() }.into()
    }

    fn appended(sequence: u64, before: &str, filter: &str) -> StoredEvent {
        let headers = [NATS_EXPECTED_LAST_SUBJECT_SEQUENCE.as_ref(), EXPECTED_SUBJECT];
        let [last, subject] = headers;
        event(sequence, &format!("NATS/1.0\r\n{last}: {before}\r\n{subject}: {filter}\r\n\r\n"))
    }

    #[test]
    fn only_what_was_compared_over_this_filter_names_the_event_before() {
        assert_eq!(named(&appended(7, "3", "a.b.>"), "a.b.>"), Some(3));
        assert_eq!(named(&appended(7, "0", "a.b.>"), "a.b.>"), Some(0));
        for other in [
            appended(7, "3", "a.b.c"),
            appended(7, "7", "a.b.>"),
            appended(7, "x", "a.b.>"),
            event(7, "NATS/1.0\r\n\r\n"),
            event(7, "NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: 3\r\n\r\n"),
            appended(7, "3", "a.b.>\r\nX Trace: 1"),
        ] {
            assert_eq!(named(&other, "a.b.>"), None, "{other:?}");
        }
    }

    #[test]
    fn few_events_are_followed_and_more_of_them_while_they_are_far_apart() {
        let backwards = |apart: u64, events: u64| -> Vec<_> {
            (0..events).map(|event| self::event(10_000_000 - event * apart, "NATS/1.0\r\n\r\n")).collect()
        };
        assert!(is_worth_following(&backwards(1, 3)) && !is_worth_following(&backwards(1, 4)));
        assert!(is_worth_following(&backwards(2000, 999)) && !is_worth_following(&backwards(2000, 1000)));
        assert!(!is_worth_following(&backwards(500, 50)));
    }
}
