//! An event as its stream stores it, and its readable parts. Pure.

use async_nats::{HeaderMap, HeaderValue, jetstream::message::StreamMessage};
use bytes::Bytes;
use jetwright_partitions::subjects::Partitions;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::RawEvent;
use crate::{DecodeError, Event, event::EVENT_TYPE};

/// An event as its stream stores it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Subject under which it was published; bytes that are not UTF-8 are U+FFFD. A stream with partitions stores it with one more token,
    /// the number of the partition.
    pub subject: String,
    /// Number of its partition; `None` if its stream has none, or had none when it stored the event.
    pub partition: Option<u32>,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub time: Timestamp,
    headers: HeaderMap,
    payload: Bytes,
    /// Why no NATS client can receive it.
    unparsable: Option<String>,
}

/// Position of an event: the sequence alone may be another event's, since the sequences of a stream that was deleted and recreated
/// begin at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// When JetStream stored it.
    pub time: Timestamp,
    /// Its sequence in the stream.
    pub sequence: u64,
}

impl StoredEvent {
    /// The full name of its protobuf message; empty if the event has none, or its headers are unreadable.
    #[must_use]
    pub fn event_type(&self) -> &str {
        match self.unparsable {
            None => self.header(EVENT_TYPE).unwrap_or_default(),
            Some(_) => "",
        }
    }

    /// The event itself.
    ///
    /// # Errors
    ///
    /// It is of another type, or unreadable.
    pub fn decode<E: Event>(&self) -> Result<E, DecodeError> {
        match &self.unparsable {
            None => E::decode(self.event_type(), self.payload.clone()),
            Some(why) => Err(DecodeError::malformed(why)),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { time: self.time, sequence: self.sequence }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(HeaderValue::as_str)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn into_payload(self) -> Bytes {
        self.payload
    }

    /// Whether the client loses its connection when it receives this.
    pub(super) fn is_unparsable(&self) -> bool {
        self.unparsable.is_some()
    }

    /// The approximate bytes that it takes in memory.
    pub(super) fn size(&self) -> usize {
        self.subject.len() + self.payload.len()
    }

    /// One that is in no stream.
    pub(crate) fn new(
        subject: String,
        Position { time, sequence }: Position,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Self {
        Self { subject, partition: None, sequence, time, headers, payload, unparsable: None }
    }

    /// What was read of a stream with these partitions, as it was published.
    pub(super) fn published(mut self, partitions: &Partitions) -> Self {
        if let (subject, Some(number)) = partitions.published(&self.subject) {
            let length = subject.len();
            self.subject.truncate(length);
            self.partition = Some(number);
        }
        self
    }

    pub(super) fn from_message(message: StreamMessage) -> Result<Self, String> {
        let nanoseconds = message.time.unix_timestamp_nanos();
        Ok(Self {
            subject: message.subject.to_string(),
            partition: None,
            sequence: message.sequence,
            time: Timestamp::from_nanosecond(nanoseconds).map_err(|error| error.to_string())?,
            headers: message.headers,
            payload: message.payload,
            unparsable: None,
        })
    }
}

impl From<RawEvent> for StoredEvent {
    fn from(raw: RawEvent) -> Self {
        let (headers, unparsable) = (raw.readable_headers(), raw.unparsable_as_answer());
        let RawEvent { subject, sequence, time, payload, .. } = raw;
        Self { subject, partition: None, sequence, time, headers, payload, unparsable }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_a_partition_is_not_in_the_subject() {
        let partitions = Partitions::new("orders.*.*", &[2], 8).unwrap();
        for (stored, partition) in [("orders.42.placed.5", Some(5)), ("orders.42.placed", None)] {
            let position = Position { time: Timestamp::UNIX_EPOCH, sequence: 7 };
            let event = StoredEvent::new(stored.to_owned(), position, HeaderMap::new(), Bytes::new());
            let event = event.published(&partitions);
            assert_eq!((event.subject.as_str(), event.partition), ("orders.42.placed", partition));
        }
    }

    #[test]
    fn an_event_whose_headers_cannot_be_read_has_no_type_and_says_why_it_is_not_decoded() {
        let block = b"NATS/1.0\r\nEvent-Type: tests.v1.Number\r\nX Trace: 1\r\n\r\n";
        let raw = RawEvent {
            subject: "numbers.7".to_owned(),
            sequence: 7,
            time: Timestamp::UNIX_EPOCH,
            header_block: Some(Bytes::from_static(block)),
            payload: Bytes::new(),
        };
        let stored = StoredEvent::from(raw);
        assert_eq!(stored.event_type(), "");
        assert_eq!(
            stored.decode::<()>().unwrap_err().to_string(),
            "its header name \"X Trace\" is not allowed"
        );
    }
}
