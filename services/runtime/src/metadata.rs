//! What is known of an event beside its content. No I/O.

use std::sync::Arc;

use jetwright_process::telemetry::Work;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Where an event comes from and how often it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Subject under which the event is stored.
    pub subject: String,
    /// JetStream stream that holds it.
    pub stream: Arc<str>,
    /// JetStream consumer that delivered it.
    pub consumer: Arc<str>,
    /// EventConsumer that this one is, or is a part of.
    pub event_consumer: Arc<str>,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub time: Timestamp,
    /// Which attempt it is, from 1: how often the event was delivered by now, which a hand-over to another process raises too; or where
    /// the binding keeps order, how often the handler was called since it was delivered.
    pub attempt: u32,
    /// Whether the event becomes a dead letter if this attempt fails, whatever it fails with. An event that was only handed over from
    /// process to process is not at its last attempt before this process has called the handler with it.
    pub is_last_attempt: bool,
}

/// The stream and the consumer whose deliveries are read.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) stream: Arc<str>,
    pub(crate) consumer: Arc<str>,
    pub(crate) event_consumer: Arc<str>,
}

impl Metadata {
    /// The id for the message of this index (from 0) among those that a handler publishes because of this event.
    ///
    /// It is the same at every attempt, so JetStream stores each message once within the stream's duplicate window. It is another one
    /// for every other event, also where a stream was made again and its sequences begin again, and for every other EventConsumer.
    #[must_use]
    pub fn message_id(&self, index: u32) -> String {
        let Self { stream, sequence, time, event_consumer, .. } = self;
        format!("{stream}/{sequence}-{}/{event_consumer}/{index}", time.as_nanosecond())
    }

    /// Reads the reply subject of a delivery: `$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream
    /// sequence>.<consumer sequence>.<nanoseconds>.<pending>[.<token>]`, or the older form without domain and account
    /// (NATS ADR-15). With it comes the consumer sequence: the number of the delivery.
    pub(crate) fn parse(origin: &Origin, subject: &str, reply: &str) -> Option<(Self, u64)> {
        let mut tokens = [""; LONGEST_REPLY];
        let mut count = 0;
        for (place, token) in tokens.iter_mut().zip(reply.strip_prefix("$JS.ACK.")?.split('.')) {
            (*place, count) = (token, count + 1);
        }
        let tail = match count {
            7 => &tokens[..7],
            9.. => &tokens[2..count],
            _ => return None,
        };
        let [stream, consumer, delivered, sequence, consumer_sequence, nanoseconds, ..] = tail else {
            return None;
        };
        if **stream != *origin.stream || **consumer != *origin.consumer {
            return None;
        }
        let Origin { stream, consumer, event_consumer } = origin.clone();
        let metadata = Self {
            subject: subject.to_owned(),
            stream,
            consumer,
            event_consumer,
            sequence: sequence.parse().ok()?,
            time: Timestamp::from_nanosecond(nanoseconds.parse::<i64>().ok()?.into()).ok()?,
            attempt: delivered.parse::<u64>().ok()?.try_into().unwrap_or(u32::MAX),
            is_last_attempt: false,
        };
        Some((metadata, consumer_sequence.parse().ok()?))
    }
}

/// Most tokens of a reply subject after its beginning that are looked at (NATS ADR-15 has ten, and leaves room for more).
const LONGEST_REPLY: usize = 12;

impl Work for Metadata {
    fn fields(&self) -> Map<String, Value> {
        let Self { subject, stream, consumer, sequence, attempt, .. } = self;
        let field = |name: &str, value: Value| (name.to_owned(), value);
        Map::from_iter([
            field("name", "handle".into()),
            field("stream", (**stream).into()),
            field("consumer", (**consumer).into()),
            field("sequence", (*sequence).into()),
            field("attempt", (*attempt).into()),
            field("messaging.destination.name", subject.as_str().into()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            event_consumer: "order-fulfilment".into(),
        }
    }

    fn third_delivery() -> Metadata {
        Metadata {
            subject: "orders.42.placed".to_owned(),
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            event_consumer: "order-fulfilment".into(),
            sequence: 7,
            time: "2026-11-21T09:00:00.000000001Z".parse().unwrap(),
            attempt: 3,
            is_last_attempt: false,
        }
    }

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        for reply in [
            "$JS.ACK.orders.fulfilment.3.7.9.1795251600000000001.0",
            "$JS.ACK._.hash.orders.fulfilment.3.7.9.1795251600000000001.0",
            "$JS.ACK.hub.hash.orders.fulfilment.3.7.9.1795251600000000001.0.token",
        ] {
            assert_eq!(
                Metadata::parse(&origin(), "orders.42.placed", reply),
                Some((third_delivery(), 9)),
                "{reply}"
            );
        }
    }

    #[test]
    fn what_is_no_delivery_is_not_taken_for_one() {
        for reply in [
            "",
            "_INBOX.1.2",
            "$JS.ACK.orders.fulfilment.3.7",
            "$JS.ACK.a.b.x.7.9.1.0",
            "$JS.ACK.orders.other.3.7.9.1795251600000000001.0",
        ] {
            assert_eq!(Metadata::parse(&origin(), "orders.42.placed", reply), None, "{reply}");
        }
    }

    #[test]
    fn a_message_id_names_its_cause_and_its_place() {
        assert_eq!(third_delivery().message_id(1), "orders/7-1795251600000000001/order-fulfilment/1");
    }
}
