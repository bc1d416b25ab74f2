//! What is known of an event beside its content. No I/O.

use std::sync::Arc;

use async_nats::{HeaderMap, Subject};
use jetwright_nats::ACK_PREFIX;
use jetwright_partitions::subjects::Partitions;
use jetwright_process::telemetry::LogFields;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What is known of an event beside its content: where it is, what delivered it, and which attempt this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Subject under which the event was published. A stream with partitions stores it with one more token, the number of the partition.
    pub subject: Subject,
    /// Number of the event's partition; `None` if its stream has none, or had none when it stored the event.
    pub partition: Option<u32>,
    /// The event's headers; empty if it has none.
    pub headers: HeaderMap,
    /// The source of the delivery.
    pub source: Arc<Source>,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub time: Timestamp,
    /// Number of the attempt, from 1: how often the event was delivered by now, which a hand-over to another process raises too; or if
    /// the binding keeps order, how often the handler was called since it was delivered.
    pub attempt: u32,
    /// Whether the event becomes a dead letter if this attempt fails, with any error. For an event that was only handed over from
    /// process to process, no attempt is the last before this process has called the handler with it.
    pub is_last_attempt: bool,
    /// Events that the consumer had not delivered yet when it delivered this one.
    pub lag: u64,
}

/// The stream and the consumer whose deliveries are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// JetStream stream that holds the events.
    pub stream: String,
    /// JetStream consumer that delivers them. Of one for each partition, it is the name without the number, which
    /// [`Metadata::partition`] is.
    pub consumer: String,
    /// EventConsumer that this consumer belongs to.
    pub event_consumer: String,
    /// Grows whenever another process takes over a part of the EventConsumer that one process at a time handles; 0 if its processes
    /// share all events.
    pub epoch: u64,
}

impl Metadata {
    /// The id for the message of this index (from 0) among those that a handler publishes because of this event.
    ///
    /// It is the same at every attempt, so JetStream stores each message once within the stream's duplicate window. It is another one
    /// for every other event, also if a stream was recreated and its sequences begin again, and for every other EventConsumer.
    #[must_use]
    pub fn message_id(&self, index: u32) -> String {
        let Self { source, sequence, time, .. } = self;
        let Source { stream, event_consumer, .. } = &**source;
        format!("{stream}/{sequence}-{}/{event_consumer}/{index}", time.as_nanosecond())
    }

    /// Reads the reply subject of a delivery: `$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream
    /// sequence>.<consumer sequence>.<nanoseconds>.<pending>[.<token>]`, or the older form without domain and account
    /// (NATS ADR-15). With it comes the consumer sequence: the number of the delivery. `durable` is the consumer there, and `stored` the subject
    /// in the stream, which has these partitions.
    pub(crate) fn parse(
        (source, durable): (&Arc<Source>, &str),
        partitions: Option<&Partitions>,
        stored: Subject,
        headers: Option<HeaderMap>,
        reply: &str,
    ) -> Option<(Self, u64)> {
        let mut tokens = [""; MAX_REPLY_TOKENS];
        let mut count = 0;
        for (place, token) in tokens.iter_mut().zip(reply.strip_prefix(ACK_PREFIX)?.split('.')) {
            *place = token;
            count += 1;
        }
        let tail = match count {
            7 => &tokens[..7],
            9.. => &tokens[2..count],
            _ => return None,
        };
        let [stream, consumer, delivered, sequence, consumer_sequence, nanoseconds, pending, ..] = tail
        else {
            return None;
        };
        if *stream != source.stream || *consumer != durable {
            return None;
        }
        let (subject, partition) = published(partitions, stored);
        let metadata = Self {
            subject,
            partition,
            headers: headers.unwrap_or_default(),
            source: Arc::clone(source),
            sequence: sequence.parse().ok()?,
            time: Timestamp::from_nanosecond(nanoseconds.parse::<i64>().ok()?.into()).ok()?,
            attempt: delivered.parse::<u64>().ok()?.try_into().unwrap_or(u32::MAX),
            is_last_attempt: false,
            lag: pending.parse().ok()?,
        };
        Some((metadata, consumer_sequence.parse().ok()?))
    }
}

/// The subject of an event as it was published, and its partition.
fn published(partitions: Option<&Partitions>, stored: Subject) -> (Subject, Option<u32>) {
    match partitions.map(|partitions| partitions.published(&stored)) {
        Some((subject, Some(number))) => (subject.into(), Some(number)),
        _ => (stored, None),
    }
}

/// Maximum tokens of a reply subject after its prefix that are read (NATS ADR-15 has ten, and leaves room for more).
const MAX_REPLY_TOKENS: usize = 12;

impl LogFields for Metadata {
    fn fields(&self) -> Map<String, Value> {
        let Self { subject, partition, source, sequence, attempt, .. } = self;
        let field = |name: &str, value: Value| (name.to_owned(), value);
        let mut fields = Map::from_iter([
            field("name", "handle".into()),
            field("stream", source.stream.as_str().into()),
            field("consumer", source.consumer.as_str().into()),
            field("sequence", (*sequence).into()),
            field("attempt", (*attempt).into()),
            field("subject", subject.as_str().into()),
        ]);
        fields.extend(partition.map(|number| field("partition", number.into())));
        fields
    }
}

#[cfg(test)]
impl Metadata {
    /// Of the first delivery of an event.
    pub(crate) fn example(sequence: u64) -> Self {
        let source = Source {
            stream: "orders".to_owned(),
            consumer: "fulfilment".to_owned(),
            event_consumer: "order-fulfilment".to_owned(),
            epoch: 0,
        };
        Self {
            subject: "orders.42.placed".into(),
            partition: None,
            headers: HeaderMap::new(),
            source: Arc::new(source),
            sequence,
            time: Timestamp::UNIX_EPOCH,
            attempt: 1,
            is_last_attempt: false,
            lag: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn third_delivery() -> Metadata {
        let time = "2026-11-21T09:00:00.000000001Z".parse().unwrap();
        Metadata { time, attempt: 3, lag: 12, ..Metadata::example(7) }
    }

    fn parse(partitions: Option<&Partitions>, stored: &str, reply: &str) -> Option<(Metadata, u64)> {
        let source = &Metadata::example(7).source;
        Metadata::parse((source, "fulfilment"), partitions, stored.into(), None, reply)
    }

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        for reply in [
            "$JS.ACK.orders.fulfilment.3.7.9.1795251600000000001.12",
            "$JS.ACK._.hash.orders.fulfilment.3.7.9.1795251600000000001.12",
            "$JS.ACK.hub.hash.orders.fulfilment.3.7.9.1795251600000000001.12.token",
        ] {
            assert_eq!(parse(None, "orders.42.placed", reply), Some((third_delivery(), 9)), "{reply}");
        }
    }

    #[test]
    fn of_a_partitions_consumer_the_name_is_that_of_all_of_them() {
        let source = &Metadata::example(7).source;
        let parse =
            |reply| Metadata::parse((source, "fulfilment-p3"), None, "orders.42.placed".into(), None, reply);
        let (parsed, _) = parse("$JS.ACK.orders.fulfilment-p3.3.7.9.1795251600000000001.12").unwrap();
        let parsed = Metadata { partition: Some(3), ..parsed };
        let fields = parsed.fields();
        assert_eq!((&fields["consumer"], &fields["partition"]), (&"fulfilment".into(), &3.into()));
        assert_eq!(parse("$JS.ACK.orders.fulfilment.3.7.9.1795251600000000001.12"), None);
    }

    #[test]
    fn the_number_of_a_partition_is_not_in_the_subject() {
        let partitions = Partitions::new("orders.*.*", &[2], 8).unwrap();
        let reply = "$JS.ACK.orders.fulfilment.3.7.9.1795251600000000001.12";
        for (stored, partition) in [("orders.42.placed.5", Some(5)), ("orders.42.placed", None)] {
            let parsed = parse(Some(&partitions), stored, reply);
            assert_eq!(parsed, Some((Metadata { partition, ..third_delivery() }, 9)), "{stored}");
        }
        // A stream without partitions may have subjects that end in a number.
        let (parsed, _) = parse(None, "orders.42.placed.5", reply).unwrap();
        assert_eq!((parsed.subject.as_str(), parsed.partition), ("orders.42.placed.5", None));
    }

    #[test]
    fn what_is_no_delivery_is_not_taken_for_one() {
        for reply in [
            "",
            "_INBOX.1.2",
            "$JS.ACK.orders.fulfilment.3.7",
            "$JS.ACK.a.b.x.7.9.1.0",
            "$JS.ACK.orders.other.3.7.9.1795251600000000001.12",
        ] {
            assert_eq!(parse(None, "orders.42.placed", reply), None, "{reply}");
        }
    }

    #[test]
    fn a_message_id_names_its_cause_and_its_place() {
        assert_eq!(third_delivery().message_id(1), "orders/7-1795251600000000001/order-fulfilment/1");
    }
}
