//! What is known of an event beside its content. No I/O.

use jiff::Timestamp;

/// Where an event comes from and how often it was delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Subject under which the event is stored.
    pub subject: String,
    /// JetStream stream that holds it.
    pub stream: String,
    /// JetStream consumer that delivered it.
    pub consumer: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub time: Timestamp,
    /// How often it was delivered by now; 1 the first time.
    pub attempt: u32,
}

impl Metadata {
    /// The id for the message of this index (from 0) among those that a handler publishes because of this event.
    ///
    /// It is the same at every attempt, so JetStream stores each message once within the stream's duplicate window.
    #[must_use]
    pub fn message_id(&self, index: u32) -> String {
        format!("{}/{}/{}/{index}", self.stream, self.sequence, self.consumer)
    }

    /// Reads the reply subject of a delivery: `$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<stream
    /// sequence>.<consumer sequence>.<nanoseconds>.<pending>[.<token>]`, or the older form without domain and account
    /// (NATS ADR-15).
    pub(crate) fn parse(subject: &str, reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let tail = match tokens.len() {
            7 => &tokens[..],
            9.. => &tokens[2..],
            _ => return None,
        };
        let [stream, consumer, delivered, sequence, _, nanoseconds, ..] = tail else { return None };
        Some(Self {
            subject: subject.to_owned(),
            stream: (*stream).to_owned(),
            consumer: (*consumer).to_owned(),
            sequence: sequence.parse().ok()?,
            time: Timestamp::from_nanosecond(nanoseconds.parse().ok()?).ok()?,
            attempt: delivered.parse::<u64>().ok()?.try_into().unwrap_or(u32::MAX),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn third_delivery() -> Metadata {
        Metadata {
            subject: "orders.42.placed".to_owned(),
            stream: "orders".to_owned(),
            consumer: "fulfilment".to_owned(),
            sequence: 7,
            time: "2026-11-21T09:00:00.000000001Z".parse().unwrap(),
            attempt: 3,
        }
    }

    #[test]
    fn both_forms_of_the_reply_subject_are_read() {
        for reply in [
            "$JS.ACK.orders.fulfilment.3.7.9.1795251600000000001.0",
            "$JS.ACK._.hash.orders.fulfilment.3.7.9.1795251600000000001.0",
            "$JS.ACK.hub.hash.orders.fulfilment.3.7.9.1795251600000000001.0.token",
        ] {
            assert_eq!(Metadata::parse("orders.42.placed", reply), Some(third_delivery()), "{reply}");
        }
    }

    #[test]
    fn what_is_no_delivery_is_not_taken_for_one() {
        for reply in ["", "_INBOX.1.2", "$JS.ACK.orders.fulfilment.3.7", "$JS.ACK.a.b.x.7.9.1.0"] {
            assert_eq!(Metadata::parse("orders.42.placed", reply), None, "{reply}");
        }
    }

    #[test]
    fn a_message_id_names_its_cause_and_its_place() {
        assert_eq!(third_delivery().message_id(1), "orders/7/fulfilment/1");
    }
}
