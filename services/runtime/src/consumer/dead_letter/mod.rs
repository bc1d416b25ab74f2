//! Stores events that cannot be processed. Builds the dead letter (pure), and writes it: after that it exists, once.

pub(super) mod breaker;
pub(super) mod redelivery;

use async_nats::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use jetwright_crds::{
    dead_letter::{
        ATTEMPTS, CONSUMER, ERROR, FAILED_AT, FIRST_DELIVERED, HEADER_BLOCK, OMITTED, ORIGINAL, PAYLOAD,
        PAYLOAD_SHA256, PAYLOAD_SIZE, REASON, REPLAYS, SEQUENCE, STREAM, SUBJECT, SUBJECT_LOSSY, stream,
        subject,
    },
    environment::DeadLetters,
};
use jetwright_partitions::subjects::Partitions;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::retry::Reason;
use crate::{
    Error, ErrorKind, Metadata, Publisher, Source, metrics::WriteKind, publish::Write, store::RawEvent, trace,
};

/// Header that says how long a message is kept (NATS ADR-43); its stream has to allow it.
const TTL_HEADER: &str = "Nats-TTL";
/// Maximum length of a dead letter's error, in bytes.
const MAX_ERROR_BYTES: usize = 1024;
/// JetStream stores no message with more bytes of headers (server/stream.go of nats-server, error 10097).
const MAX_HEADER_BYTES: usize = 65_535;
/// What a message needs beside its headers' names and values: the version line, its subjects, and the lengths.
const MESSAGE_OVERHEAD: usize = 512;

/// Why and when an event failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FailureDetails {
    pub(super) reason: Reason,
    pub(super) error: String,
    /// Absent if unknown.
    pub(super) first_delivered: Option<Timestamp>,
    pub(super) failed_at: Timestamp,
}

/// The original event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Original<'a> {
    pub(super) stream: &'a str,
    pub(super) consumer: &'a str,
    pub(super) subject: &'a str,
    pub(super) sequence: u64,
    pub(super) time: Timestamp,
    pub(super) attempts: u32,
    pub(super) headers: Headers<'a>,
    pub(super) payload: &'a Bytes,
}

/// The headers of an event.
#[derive(Clone, Copy, Debug)]
pub(super) enum Headers<'a> {
    /// As the client parsed them.
    Parsed(&'a HeaderMap),
    /// As the stream stores them, from the version line on.
    Block(Option<&'a Bytes>),
}

impl<'a> Original<'a> {
    pub(super) fn parsed(metadata: &'a Metadata, payload: &'a Bytes) -> Self {
        Self {
            stream: &metadata.source.stream,
            consumer: &metadata.source.consumer,
            subject: &metadata.subject,
            sequence: metadata.sequence,
            time: metadata.time,
            attempts: metadata.attempt,
            headers: Headers::Parsed(&metadata.headers),
            payload,
        }
    }

    /// An event that no handler was called with.
    pub(super) fn raw(source: &'a Source, partitions: Option<&Partitions>, event: &'a RawEvent) -> Self {
        let RawEvent { subject, sequence, time, header_block, payload } = event;
        Self {
            stream: &source.stream,
            consumer: &source.consumer,
            subject: partitions.map_or(subject, |partitions| partitions.published(subject).0),
            sequence: *sequence,
            time: *time,
            attempts: 0,
            headers: Headers::Block(header_block.as_ref()),
            payload,
        }
    }
}

/// Writes the dead letter. Repeated by any process, it still exists once: the write expects that none exists yet.
pub(super) async fn keep(
    publisher: &Publisher,
    dead_letters: &DeadLetters,
    original: Original<'_>,
    details: &FailureDetails,
) -> Result<(), Error> {
    let subject = subject(&dead_letters.prefix, original.sequence, original.time.as_nanosecond());
    // The last two tokens are another event's each time.
    let template = format!("{}.*.*", dead_letters.prefix);
    let (span, trace) = trace::of_publish(&subject, Some(&template), None);
    let mut instructions = HeaderMap::new();
    trace::inject(&trace, &mut instructions);
    instructions.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(0_u64));
    if let Some(max_age) = dead_letters.max_age {
        instructions.insert(TTL_HEADER, format!("{}s", max_age.0.as_secs().max(1)).as_str());
    }
    let (headers, payload) = letter(original, details, &instructions, publisher.max_payload());
    let (kind, stream) = (WriteKind::DeadLetter, stream(original.stream));
    let write = Write { kind, stream: &stream, subject: subject.clone(), headers };
    let writing = async {
        match publisher.append(write, payload).await {
            // Without a message id nothing is taken for a duplicate; if a server says so nevertheless, nothing was stored.
            Ok(stored) if stored.duplicate => Err(Error::new(
                ErrorKind::Unavailable,
                subject,
                "JetStream took it for a duplicate and did not store it",
            )),
            Ok(_) => Ok(()),
            // Another process wrote it.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            Err(error) => Err(error),
        }
    };
    trace::publishing(span, writing).await
}

/// The headers and the payload of a dead letter of at most so many bytes. A payload that does not fit is omitted, and so is a header
/// block that does not fit alone; the original is in its stream for as long as the stream keeps it.
fn letter(
    original: Original<'_>,
    details: &FailureDetails,
    instructions: &HeaderMap,
    max_payload: usize,
) -> (HeaderMap, Bytes) {
    let room = max_payload.saturating_sub(MESSAGE_OVERHEAD);
    let mut headers = described(original, details, instructions);
    add_original_headers(&mut headers, original.headers);
    if size(&headers) > room.min(MAX_HEADER_BYTES - MESSAGE_OVERHEAD) {
        headers = described(original, details, instructions);
        headers.insert(HEADER_BLOCK, OMITTED);
    }
    let payload = original.payload;
    if size(&headers) + payload.len() <= room {
        return (headers, payload.clone());
    }
    headers.insert(PAYLOAD, OMITTED);
    headers.insert(PAYLOAD_SIZE, payload.len().to_string().as_str());
    headers.insert(PAYLOAD_SHA256, HEXLOWER.encode(&Sha256::digest(payload)).as_str());
    (headers, Bytes::new())
}

/// How much of the original is in the dead letter.
fn described(original: Original<'_>, details: &FailureDetails, instructions: &HeaderMap) -> HeaderMap {
    let Original { stream, consumer, subject, sequence, attempts, .. } = original;
    let FailureDetails { reason, error, first_delivered, failed_at } = details;
    let mut headers = instructions.clone();
    headers.insert(STREAM, stream);
    headers.insert(CONSUMER, consumer);
    let written_subject = one_line(subject);
    headers.insert(SUBJECT, written_subject.as_str());
    if written_subject != subject || subject.contains(char::REPLACEMENT_CHARACTER) {
        headers.insert(SUBJECT_LOSSY, "true");
    }
    headers.insert(SEQUENCE, HeaderValue::from(sequence));
    headers.insert(ATTEMPTS, attempts.to_string().as_str());
    headers.insert(REASON, reason.as_str());
    headers.insert(ERROR, one_line(error).as_str());
    if let Some(first_delivered) = first_delivered {
        headers.insert(FIRST_DELIVERED, first_delivered.to_string().as_str());
    }
    headers.insert(FAILED_AT, failed_at.to_string().as_str());
    headers.insert(REPLAYS, "0");
    headers
}

/// The original's headers, those with a meaning to the server under other names; an unparsed block as one value.
fn add_original_headers(headers: &mut HeaderMap, original: Headers<'_>) {
    let parsed = match original {
        Headers::Parsed(parsed) => parsed,
        Headers::Block(block) => {
            if let Some(block) = block {
                headers.insert(HEADER_BLOCK, BASE64.encode(block).as_str());
            }
            return;
        }
    };
    for (name, values) in parsed.iter() {
        let own: &str = name.as_ref();
        // Those of a dead letter that is consumed in its turn are about another event.
        if own.starts_with("Dead-Letter-") {
            continue;
        }
        let is_for_the_server = own.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        // The dead letter has a trace context of its own: that of its publish, which is part of the event's trace.
        let is_taken = headers.get(own).is_some();
        let name = if is_for_the_server || is_taken { format!("{ORIGINAL}{own}") } else { own.to_owned() };
        for value in values {
            headers.append(name.as_str(), value.clone());
        }
    }
}

/// The bytes that headers take.
fn size(headers: &HeaderMap) -> usize {
    let line = |name: &str, value: &HeaderValue| name.len() + value.as_str().len() + ": \r\n".len();
    headers.iter().flat_map(|(name, values)| values.iter().map(move |value| line(name.as_ref(), value))).sum()
}

/// An error as a header value: headers are lines, and errors may have several.
pub(super) fn one_line(error: &str) -> String {
    let mut end = error.len().min(MAX_ERROR_BYTES);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error[..end].replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_PAYLOAD: usize = 1 << 20;

    fn details(error: &str) -> FailureDetails {
        let failed_at = "2026-11-21T09:00:05Z".parse().unwrap();
        FailureDetails {
            reason: Reason::LastAttempt,
            error: error.to_owned(),
            first_delivered: None,
            failed_at,
        }
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let line = |name: &str, value: &HeaderValue| format!("{name}: {}", value.as_str());
        let lines = headers
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| line(name.as_ref(), value)));
        let mut lines: Vec<_> = lines.collect();
        lines.sort();
        lines
    }

    fn raw(subject: &str, block: &'static [u8], payload: usize) -> RawEvent {
        let (time, payload) = (Timestamp::UNIX_EPOCH, vec![b'x'; payload].into());
        RawEvent { subject: subject.to_owned(), sequence: 9, time, header_block: Some(block.into()), payload }
    }

    #[test]
    fn a_dead_letter_has_the_originals_headers_and_what_became_of_it() {
        let mut before = HeaderMap::new();
        before.insert("Event-Type", "events.v1.OrderPlaced");
        before.insert("Nats-Msg-Id", "users/1/orders/0");
        before.insert("nats-expected-stream", "orders");
        before.append("Color", "red");
        before.append("Color", "blue");
        before.insert("traceparent", "00-0000000000000000000000000000000b-0000000000000001-01");
        let time = "2026-11-21T09:00:00.000000001Z".parse().unwrap();
        let metadata = Metadata { time, headers: before, attempt: 3, ..Metadata::example(7) };
        let payload = Bytes::from_static(b"event");
        let original = Original::parsed(&metadata, &payload);
        let mut instructions = HeaderMap::new();
        instructions.insert("traceparent", "00-0000000000000000000000000000000b-0000000000000002-01");
        let (headers, kept) =
            letter(original, &details("first line\r\nNats-Rollup: all"), &instructions, MAX_PAYLOAD);
        let expected = [
            "Color: blue",
            "Color: red",
            "Dead-Letter-Attempts: 3",
            "Dead-Letter-Consumer: fulfilment",
            "Dead-Letter-Error: first line  Nats-Rollup: all",
            "Dead-Letter-Failed-At: 2026-11-21T09:00:05Z",
            "Dead-Letter-Original-Nats-Msg-Id: users/1/orders/0",
            "Dead-Letter-Original-nats-expected-stream: orders",
            "Dead-Letter-Original-traceparent: 00-0000000000000000000000000000000b-0000000000000001-01",
            "Dead-Letter-Reason: last-attempt",
            "Dead-Letter-Replays: 0",
            "Dead-Letter-Sequence: 7",
            "Dead-Letter-Stream: orders",
            "Dead-Letter-Subject: orders.42.placed",
            "Event-Type: events.v1.OrderPlaced",
            "traceparent: 00-0000000000000000000000000000000b-0000000000000002-01",
        ];
        assert_eq!((lines(&headers), kept), (expected.map(str::to_owned).to_vec(), payload));
    }

    #[test]
    fn a_header_block_that_was_not_parsed_is_kept_whole() {
        let source = Metadata::example(9).source;
        let event = raw("orders.caf\u{fffd}.placed", b"NATS/1.0\r\nX Trace: 1\r\n\r\n", 5);
        let original = Original::raw(&source, None, &event);
        let (headers, kept) =
            letter(original, &details("its header name is not allowed"), &HeaderMap::new(), MAX_PAYLOAD);
        let headers = lines(&headers);
        for expected in [
            "Dead-Letter-Original-Header-Block: TkFUUy8xLjANClggVHJhY2U6IDENCg0K",
            "Dead-Letter-Subject: orders.caf\u{fffd}.placed",
            "Dead-Letter-Subject-Lossy: true",
            "Dead-Letter-Attempts: 0",
        ] {
            assert!(headers.iter().any(|line| line == expected), "{expected}: {headers:?}");
        }
        assert_eq!(kept, "xxxxx");
    }

    #[test]
    fn a_dead_letter_names_the_subject_without_the_number_of_a_partition() {
        let partitions = Partitions::new("orders.*.*", &[2], 8).unwrap();
        let source = Metadata::example(9).source;
        let event = raw("orders.caf\u{fffd}.placed.3", b"NATS/1.0\r\n\r\n", 5);
        let original = Original::raw(&source, Some(&partitions), &event);
        let (headers, _) = letter(original, &details("no"), &HeaderMap::new(), MAX_PAYLOAD);
        assert_eq!(headers.get(SUBJECT).map(HeaderValue::as_str), Some("orders.caf\u{fffd}.placed"));
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said_so() {
        let source = Metadata::example(9).source;
        let event = raw("a", b"NATS/1.0\r\nX Trace: 1\r\n\r\n", 2000);
        let original = Original::raw(&source, None, &event);
        let (headers, kept) = letter(original, &details("no"), &HeaderMap::new(), 2048);
        let headers = lines(&headers);
        assert!(kept.is_empty());
        for expected in ["Dead-Letter-Payload: omitted", "Dead-Letter-Payload-Size: 2000"] {
            assert!(headers.iter().any(|line| line == expected), "{expected}: {headers:?}");
        }
        let digest = headers.iter().find_map(|line| line.strip_prefix("Dead-Letter-Payload-SHA256: "));
        assert_eq!(digest.map(str::len), Some(64));
        let large = Box::leak(vec![b'y'; 4000].into_boxed_slice());
        let event = raw("a", large, 10);
        let (headers, kept) =
            letter(Original::raw(&source, None, &event), &details("no"), &HeaderMap::new(), 2048);
        assert_eq!(headers.get(HEADER_BLOCK).map(HeaderValue::as_str), Some(OMITTED));
        assert_eq!(kept.len(), 10);
        // JetStream bounds headers apart from messages.
        let large = Box::leak(vec![b'y'; 60_000].into_boxed_slice());
        let event = raw("a", large, 10);
        let (headers, _) =
            letter(Original::raw(&source, None, &event), &details("no"), &HeaderMap::new(), MAX_PAYLOAD);
        assert_eq!(headers.get(HEADER_BLOCK).map(HeaderValue::as_str), Some(OMITTED));
    }

    #[test]
    fn an_error_is_cut_between_two_characters() {
        let long = format!("{}\u{fc}", "a".repeat(MAX_ERROR_BYTES - 1));
        assert_eq!(one_line(&long).len(), MAX_ERROR_BYTES - 1);
        assert_eq!(one_line("a\tb"), "a b");
    }
}
