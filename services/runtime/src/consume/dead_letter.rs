//! Keeps what cannot be processed. Makes the dead letter (pure), and writes it: after that it is there, once.

use async_nats::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use jetwright_crds::{
    dead_letter::{
        ATTEMPTS, CONSUMER, ERROR, FAILED_AT, FIRST_DELIVERED, ORIGINAL, REASON, REPLAYS, SEQUENCE, STREAM,
        SUBJECT, stream, subject,
    },
    environment::DeadLetters,
};
use jiff::Timestamp;

use super::settle::Reason;
use crate::{Error, ErrorKind, Metadata, Publisher, metrics::WriteKind, publish::Write, trace};

/// Header that says how long a message is kept (NATS ADR-43); its stream has to allow it.
const TIME_TO_LIVE: &str = "Nats-TTL";

/// Longest error that a dead letter tells, in bytes.
const LONGEST_ERROR: usize = 1024;

/// Why and when an event was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) reason: Reason,
    pub(super) error: String,
    /// Where it is known.
    pub(super) first_delivered: Option<Timestamp>,
    pub(super) failed_at: Timestamp,
}

/// What is kept of an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Original<'a> {
    pub(super) metadata: &'a Metadata,
    pub(super) headers: Option<&'a HeaderMap>,
    pub(super) payload: &'a Bytes,
}

/// Writes the dead letter. Done again, by whoever, it is still there once: that none is there yet is what the write expects.
pub(super) async fn keep(
    publisher: &Publisher,
    dead_letters: &DeadLetters,
    original: Original<'_>,
    verdict: &Verdict,
) -> Result<(), Error> {
    let Original { metadata, payload, .. } = original;
    let subject = subject(&dead_letters.prefix, metadata.sequence, metadata.time.as_nanosecond());
    let mut headers = headers(original, verdict);
    trace::inject_current(&mut headers);
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(0_u64));
    if let Some(max_age) = dead_letters.max_age {
        headers.insert(TIME_TO_LIVE, format!("{}s", max_age.0.as_secs().max(1)).as_str());
    }
    let (kind, stream) = (WriteKind::DeadLetter, stream(&metadata.stream));
    let write = Write { kind, stream: &stream, subject: subject.clone(), headers };
    match publisher.append(write, payload.clone()).await {
        // Without a message id nothing is taken for a duplicate; where a server says so nevertheless, nothing was stored.
        Ok(stored) if stored.duplicate => {
            Err(Error::new(ErrorKind::Unavailable, subject, "taken for a duplicate, and not stored"))
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        Err(error) => Err(error),
    }
}

/// The original's headers, those for the server under other names, and what became of it.
fn headers(original: Original<'_>, verdict: &Verdict) -> HeaderMap {
    let Original { metadata, headers: before, .. } = original;
    let Verdict { reason, error, first_delivered, failed_at } = verdict;
    let mut headers = HeaderMap::new();
    for (name, values) in before.into_iter().flat_map(HeaderMap::iter) {
        let own: &str = name.as_ref();
        // Those of a dead letter that is consumed in its turn are about another event.
        if own.starts_with("Dead-Letter-") {
            continue;
        }
        let renamed = own.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        let name = if renamed { format!("{ORIGINAL}{own}") } else { own.to_owned() };
        for value in values {
            headers.append(name.as_str(), value.clone());
        }
    }
    headers.insert(STREAM, &*metadata.stream);
    headers.insert(CONSUMER, &*metadata.consumer);
    headers.insert(SUBJECT, metadata.subject.as_str());
    headers.insert(SEQUENCE, HeaderValue::from(metadata.sequence));
    headers.insert(ATTEMPTS, metadata.attempt.to_string().as_str());
    headers.insert(REASON, reason.as_str());
    headers.insert(ERROR, one_line(error).as_str());
    if let Some(first_delivered) = first_delivered {
        headers.insert(FIRST_DELIVERED, first_delivered.to_string().as_str());
    }
    headers.insert(FAILED_AT, failed_at.to_string().as_str());
    headers.insert(REPLAYS, "0");
    headers
}

/// An error as a header tells it: those are lines, and errors may have several.
pub(super) fn one_line(error: &str) -> String {
    let mut end = error.len().min(LONGEST_ERROR);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        Metadata {
            subject: "orders.42.placed".to_owned(),
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            sequence: 7,
            time: "2026-11-21T09:00:00.000000001Z".parse().unwrap(),
            attempt: 3,
        }
    }

    #[test]
    fn a_dead_letter_has_the_originals_headers_and_what_became_of_it() {
        let mut before = HeaderMap::new();
        before.insert("Event-Type", "events.v1.OrderPlaced");
        before.insert("Nats-Msg-Id", "users/1/orders/0");
        before.insert("nats-expected-stream", "orders");
        before.append("Color", "red");
        before.append("Color", "blue");
        let metadata = metadata();
        let verdict = Verdict {
            reason: Reason::LastAttempt,
            error: "first line\r\nNats-Rollup: all".to_owned(),
            first_delivered: None,
            failed_at: "2026-11-21T09:00:05Z".parse().unwrap(),
        };
        let payload = Bytes::new();
        let original = Original { metadata: &metadata, headers: Some(&before), payload: &payload };
        let headers = headers(original, &verdict);
        let mut told: Vec<_> = headers
            .iter()
            .flat_map(|(name, values)| {
                let name: &str = name.as_ref();
                values.iter().map(move |value| format!("{name}: {}", value.as_str()))
            })
            .collect();
        told.sort();
        let expected = [
            "Color: blue",
            "Color: red",
            "Dead-Letter-Attempts: 3",
            "Dead-Letter-Consumer: fulfilment",
            "Dead-Letter-Error: first line  Nats-Rollup: all",
            "Dead-Letter-Failed-At: 2026-11-21T09:00:05Z",
            "Dead-Letter-Original-Nats-Msg-Id: users/1/orders/0",
            "Dead-Letter-Original-nats-expected-stream: orders",
            "Dead-Letter-Reason: last-attempt",
            "Dead-Letter-Replays: 0",
            "Dead-Letter-Sequence: 7",
            "Dead-Letter-Stream: orders",
            "Dead-Letter-Subject: orders.42.placed",
            "Event-Type: events.v1.OrderPlaced",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn an_error_is_cut_between_two_characters() {
        let long = format!("{}ü", "a".repeat(LONGEST_ERROR - 1));
        assert_eq!(one_line(&long).len(), LONGEST_ERROR - 1);
        assert_eq!(one_line("a\tb"), "a b");
    }
}
