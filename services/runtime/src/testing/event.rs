//! An event that a test delivers. In: a message or bytes, and what a consumer would say of them. Out: what a handler and a projection are
//! called with. No I/O.

use std::sync::Arc;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use prost::{Message, Name};

use crate::{CONTENT_TYPE, EVENT_TYPE, Metadata, PROTOBUF, Position, Source, StoredEvent};

/// When an event is stored where a test does not say: 2026-01-01T00:00:00Z.
const DEFAULT_TIME: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// An event, with the headers that a [`Publisher`](crate::Publisher) gives it.
pub fn event<E: Message + Name>(subject: &str, event: &E) -> TestEvent {
    raw_event(subject, &E::full_name(), event.encode_to_vec())
}

/// An event of this type with these bytes, whatever they are.
pub fn raw_event(subject: &str, event_type: &str, payload: impl Into<Bytes>) -> TestEvent {
    untyped_event(subject, payload).header(EVENT_TYPE, event_type).header(CONTENT_TYPE, PROTOBUF)
}

/// An event without headers, as of a publisher that knows nothing of these.
pub fn untyped_event(subject: &str, payload: impl Into<Bytes>) -> TestEvent {
    TestEvent {
        subject: subject.to_owned(),
        partition: None,
        headers: HeaderMap::new(),
        payload: payload.into(),
        sequence: None,
        time: DEFAULT_TIME,
        deliveries: 1,
        calls: 0,
        lag: 0,
    }
}

/// An event to deliver. Where a test does not say, it is delivered for the first time, nothing is behind it, and its sequence is the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct TestEvent {
    subject: String,
    partition: Option<u32>,
    headers: HeaderMap,
    payload: Bytes,
    sequence: Option<u64>,
    time: Timestamp,
    deliveries: u32,
    calls: u32,
    lag: u64,
}

impl TestEvent {
    /// With this header, and no other value of it. A value is one line; the end of one becomes a space.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let line = value.replace(['\r', '\n'], " ");
        self.headers.insert(name, HeaderValue::from(line));
        self
    }

    /// In this partition of its stream. Where a test does not say, the stream has no partitions.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// With this sequence in its stream.
    pub fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Stored at this time.
    pub fn time(mut self, time: Timestamp) -> Self {
        self.time = time;
        self
    }

    /// Delivered for the so many-th time (from 1), before to other processes: one that was only handed over is not at its
    /// [last attempt](Metadata::is_last_attempt).
    pub fn deliveries(mut self, deliveries: u32) -> Self {
        self.deliveries = deliveries.max(1);
        self
    }

    /// At this attempt (from 1), after this process called the handler with it for those before.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.calls = attempt.saturating_sub(1);
        self
    }

    /// With so many events behind it in the consumer.
    pub fn lag(mut self, lag: u64) -> Self {
        self.lag = lag;
        self
    }

    /// How often this process called the handler with it before.
    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    pub(super) fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    /// Its next sequence is this one, where it has none.
    pub(super) fn or_sequence(mut self, next: u64) -> Self {
        self.sequence.get_or_insert(next);
        self
    }

    /// What is delivered with it.
    pub(super) fn metadata(&self, source: &Arc<Source>) -> Metadata {
        Metadata {
            subject: self.subject.as_str().into(),
            partition: self.partition,
            headers: self.headers.clone(),
            source: Arc::clone(source),
            sequence: self.sequence.unwrap_or(1),
            time: self.time,
            attempt: self.deliveries,
            is_last_attempt: false,
            lag: self.lag,
        }
    }
}

/// As its stream has it; with sequence 1 where it has none.
impl From<TestEvent> for StoredEvent {
    fn from(event: TestEvent) -> Self {
        let TestEvent { subject, partition, headers, payload, sequence, time, .. } = event;
        let position = Position { time, sequence: sequence.unwrap_or(1) };
        let mut stored = Self::new(subject, position, headers, payload);
        stored.partition = partition;
        stored
    }
}
