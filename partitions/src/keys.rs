//! The bucket of the protocol, and its keys. Pure.
//!
//! In: text of a key. Out: what it is about, or why it is none. The names of streams and consumers may hold characters that keys of
//! a bucket may not: each byte other than `A-Z`, `a-z`, `0-9`, `-` and `_` is written as `=` and two upper-case hexadecimal digits.

use std::{
    fmt::{self, Display, Write},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Name of the key-value bucket, one per connection.
pub const BUCKET: &str = "jetwright";
/// Name of the JetStream stream that holds the bucket.
pub const BUCKET_STREAM: &str = "KV_jetwright";
/// What the subject of each key begins with.
pub const SUBJECT_PREFIX: &str = "$KV.jetwright.";
/// Maximum partitions of a consumer.
pub const MAX_PARTITIONS: u32 = 1_024;

/// Why a text is no key of the protocol, or no part of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} in the bucket {BUCKET} {problem}: nothing but Jetwright may write to this bucket")]
pub struct KeyError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl KeyError {
    fn new(text: &str, problem: &'static str) -> Self {
        Self { text: text.to_owned(), problem }
    }
}

/// A key of the bucket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `operator`: moves every five seconds while an operator of any cluster leads.
    Operator,
    /// `operator.<cluster>`: moves every five seconds while an operator of this cluster leads. Clusters may share an account.
    OperatorOf(String),
    /// `member.<namespace>.<process id>`: moves every five seconds while the process lives.
    Member(MemberId),
    /// `map.<stream>.<consumer>`: which process each partition is meant for.
    Map(ConsumerId),
    /// `held.<stream>.<consumer>.<partition>`: which process handles a partition.
    Held(PartitionId),
}

impl Key {
    /// The subject of this key's messages.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{SUBJECT_PREFIX}{self}")
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::OperatorOf(cluster) => {
                f.write_str("operator.")?;
                escape(f, cluster)
            }
            Self::Member(member) => write!(f, "member.{member}"),
            Self::Map(consumer) => write!(f, "map.{consumer}"),
            Self::Held(partition) => write!(f, "held.{partition}"),
        }
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.split_once('.') {
            None if text == "operator" => Ok(Self::Operator),
            Some(("operator", cluster)) => {
                let no_cluster =
                    || KeyError::new(text, "is no key of an operator: it must have the name of a cluster");
                unescape(cluster).map(Self::OperatorOf).ok_or_else(no_cluster)
            }
            Some(("member", member)) => member.parse().map(Self::Member),
            Some(("map", consumer)) => consumer.parse().map(Self::Map),
            Some(("held", partition)) => partition.parse().map(Self::Held),
            _ => Err(KeyError::new(text, "is no key of the protocol")),
        }
    }
}

/// A process that takes part, `<namespace>.<process id>`. A process draws its id at random when it joins and never uses one twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(String);

impl MemberId {
    /// # Errors
    ///
    /// Namespace or process id is empty, or has other characters than `A-Z`, `a-z`, `0-9`, `-` and `_`.
    pub fn new(namespace: &str, process: &str) -> Result<Self, KeyError> {
        let text = format!("{namespace}.{process}");
        if is_plain(namespace) && is_plain(process) {
            return Ok(Self(text));
        }
        Err(KeyError::new(
            &text,
            "is no member: it must be a namespace and a process id of A-Z, a-z, 0-9, - and _",
        ))
    }

    /// `<namespace>.<process id>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The namespace of its objects.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once('.').map_or("", |(namespace, _)| namespace)
    }
}

impl Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for MemberId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (namespace, process) = text.split_once('.').unwrap_or((text, ""));
        Self::new(namespace, process).map_err(|error| KeyError { text: text.to_owned(), ..error })
    }
}

/// A consumer whose partitions are shared out: its stream in JetStream, and its own name without a partition's number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerId {
    /// Name of the JetStream stream.
    pub stream: String,
    /// Name of the consumer.
    pub consumer: String,
}

impl Display for ConsumerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, &self.stream)?;
        f.write_char('.')?;
        escape(f, &self.consumer)
    }
}

impl FromStr for ConsumerId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let no_consumer =
            || KeyError::new(text, "is no consumer: it must be the names of a stream and a consumer");
        let (stream, consumer) = text.split_once('.').ok_or_else(no_consumer)?;
        let stream = unescape(stream).ok_or_else(no_consumer)?;
        let consumer = unescape(consumer).ok_or_else(no_consumer)?;
        Ok(Self { stream, consumer })
    }
}

/// One partition of a consumer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId {
    /// The consumer.
    pub consumer: ConsumerId,
    /// The partition's number, from 0.
    pub partition: u32,
}

impl Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.consumer, self.partition)
    }
}

impl FromStr for PartitionId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let no_partition = || KeyError::new(text, "is no partition: its last token must be a number");
        let (consumer, number) = text.rsplit_once('.').ok_or_else(no_partition)?;
        let partition = parse_number(number).ok_or_else(no_partition)?;
        Ok(Self { consumer: consumer.parse()?, partition })
    }
}

/// The number of a partition, as it is written: decimal digits without a sign or leading zeros.
pub(crate) fn parse_number(text: &str) -> Option<u32> {
    let is_canonical =
        text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = text.parse().ok().filter(|_| is_canonical)?;
    (number < MAX_PARTITIONS).then_some(number)
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_plain_byte)
}

fn escape(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    for byte in name.bytes() {
        if is_plain_byte(byte) {
            f.write_char(byte.into())?;
        } else {
            write!(f, "={byte:02X}")?;
        }
    }
    Ok(())
}

fn unescape(text: &str) -> Option<String> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if is_plain_byte(byte) {
            name.push(byte);
            continue;
        }
        let (high, low) = (hexadecimal(rest.next()?)?, hexadecimal(rest.next()?)?);
        let escaped = high << 4 | low;
        if byte != b'=' || is_plain_byte(escaped) {
            return None;
        }
        name.push(escaped);
    }
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

fn hexadecimal(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Values hold members and consumers as their text.
macro_rules! as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    )*};
}

as_text!(MemberId, ConsumerId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn consumer(stream: &str, consumer: &str) -> ConsumerId {
        ConsumerId { stream: stream.to_owned(), consumer: consumer.to_owned() }
    }

    #[test]
    fn keys_are_written_as_other_programs_read_them() {
        let member = MemberId::new("shop", "9x2-k").unwrap();
        let fulfilment = consumer("orders", "order-fulfilment");
        let held = PartitionId { consumer: fulfilment.clone(), partition: 7 };
        for (key, text) in [
            (Key::Operator, "operator"),
            (Key::OperatorOf("east.1".into()), "operator.east=2E1"),
            (Key::Member(member), "member.shop.9x2-k"),
            (Key::Map(fulfilment), "map.orders.order-fulfilment"),
            (Key::Held(held), "held.orders.order-fulfilment.7"),
            (Key::Map(consumer("bestellungen-für", "a:b")), "map.bestellungen-f=C3=BCr.a=3Ab"),
        ] {
            assert_eq!(key.to_string(), text);
            assert_eq!(text.parse(), Ok(key.clone()));
            assert_eq!(key.subject(), format!("$KV.jetwright.{text}"));
        }
    }

    #[test]
    fn what_is_no_key_is_named_in_the_error() {
        for text in [
            "",
            "operators",
            "operator.",
            "operator.x.y",
            "member",
            "member.shop",
            "member.shop.",
            "member.shop.a.b",
            "member.shop.a=",
            "map.orders",
            "map.orders.",
            "map.orders.a.b",
            "map.orders.=4",
            "map.orders.=41",
            "map.orders.=c3=bc",
            "map.orders.=FF",
            "held.orders.fulfilment",
            "held.orders.fulfilment.-1",
            "held.orders.fulfilment.+1",
            "held.orders.fulfilment.07",
            "held.orders.fulfilment.1024",
            "held.orders.fulfilment.x",
        ] {
            let message = text.parse::<Key>().unwrap_err().to_string();
            let named = text.split_once('.').map_or(text, |(_, rest)| rest);
            assert!(message.contains(&format!("{named:?}")) || message.contains(named), "{text}: {message}");
            assert!(message.contains("nothing but Jetwright may write"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn every_pair_of_names_has_a_key_of_its_own_that_a_bucket_takes(
            stream in "[^\\s.*>/\\\\]{1,8}", name in "[^\\s.*>/\\\\]{1,8}", partition in 0..MAX_PARTITIONS,
        ) {
            let key = Key::Held(PartitionId { consumer: consumer(&stream, &name), partition });
            let text = key.to_string();
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=.".contains(&byte)), "{text}");
            prop_assert_eq!(text.split('.').count(), 4);
            prop_assert_eq!(text.parse(), Ok(key));
        }

        #[test]
        fn no_text_has_two_spellings(text in "(member|map|held)(\\.[a-c=0-9A-F_-]{0,6}){0,4}") {
            if let Ok(key) = text.parse::<Key>() {
                prop_assert_eq!(key.to_string(), text);
            }
        }
    }
}
