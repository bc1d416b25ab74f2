//! The form of a dead letter: what a consumer could not process, kept in a stream beside its own. The operator makes the
//! stream, the runtime writes into it, and whoever reads it finds these subjects and headers.

/// Name of the stream that keeps the dead letters of this one.
#[must_use]
pub fn stream(stream: &str) -> String {
    format!("{stream}-dlq")
}

/// The subjects of that stream.
#[must_use]
pub fn subjects(stream: &str) -> String {
    format!("jetwright.dlq.{stream}.>")
}

/// What the subjects of one consumer's dead letters begin with.
#[must_use]
pub fn prefix(stream: &str, consumer: &str) -> String {
    format!("jetwright.dlq.{stream}.{consumer}")
}

/// The subject of one dead letter. `timestamp` is the message's own, in nanoseconds since 1970: sequences begin again where
/// a stream is made again.
#[must_use]
pub fn subject(prefix: &str, sequence: u64, timestamp: i128) -> String {
    format!("{prefix}.{sequence}.{timestamp}")
}

/// Stream that holds, or held, the original.
pub const STREAM: &str = "Dead-Letter-Stream";
/// Consumer that could not process it.
pub const CONSUMER: &str = "Dead-Letter-Consumer";
/// Subject under which the original was published. Published under it again, an event is stored in the same partition; a stream with
/// partitions stores it with one more token, which is not part of this.
pub const SUBJECT: &str = "Dead-Letter-Subject";
/// `true` where the original's subject is not told exactly: bytes that are not UTF-8 are U+FFFD in [`SUBJECT`].
pub const SUBJECT_LOSSY: &str = "Dead-Letter-Subject-Lossy";
/// Sequence of the original in its stream.
pub const SEQUENCE: &str = "Dead-Letter-Sequence";
/// How often it was delivered, or tried where its consumer keeps order.
pub const ATTEMPTS: &str = "Dead-Letter-Attempts";
/// Which rule gave it up: `permanent`, `undecodable`, `last-attempt` or `delivered-too-often`.
pub const REASON: &str = "Dead-Letter-Reason";
/// What went wrong the last time.
pub const ERROR: &str = "Dead-Letter-Error";
/// When it was delivered for the first time (RFC 3339); absent where JetStream had delivered it before.
pub const FIRST_DELIVERED: &str = "Dead-Letter-First-Delivered";
/// When it was given up (RFC 3339).
pub const FAILED_AT: &str = "Dead-Letter-Failed-At";
/// How often it was replayed before.
pub const REPLAYS: &str = "Dead-Letter-Replays";
/// What the original's own `Nats-*` headers begin with here. As themselves they would be instructions to the server, and a
/// message id would have it drop the dead letter of a second consumer.
pub const ORIGINAL: &str = "Dead-Letter-Original-";

/// The original's whole header block in base64, where the NATS client cannot parse the original; [`OMITTED`] where it is too large.
pub const HEADER_BLOCK: &str = "Dead-Letter-Original-Header-Block";
/// [`OMITTED`] where the original's payload is too large for the dead letter.
pub const PAYLOAD: &str = "Dead-Letter-Payload";
/// Size of a payload that was left out, in bytes.
pub const PAYLOAD_SIZE: &str = "Dead-Letter-Payload-Size";
/// SHA-256 of a payload that was left out, in hexadecimal digits.
pub const PAYLOAD_SHA256: &str = "Dead-Letter-Payload-SHA256";
/// What did not fit: the original is in its stream for as long as that keeps it.
pub const OMITTED: &str = "omitted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letters_subject_names_one_delivery_of_one_event_for_ever() {
        let prefix = prefix("orders", "fulfilment");
        let subject = subject(&prefix, 7, 1_795_251_600_000_000_001);
        assert_eq!(subject, "jetwright.dlq.orders.fulfilment.7.1795251600000000001");
        assert!(subject.starts_with(subjects("orders").trim_end_matches('>')));
    }
}
