//! The values of the bucket: JSON in which unknown fields are ignored. Pure.
//!
//! In: a key and bytes. Out: what they say, or an error that names the key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::keys::{BUCKET, ConsumerId, Key, MAX_PARTITIONS, MemberId};

/// Why a value says nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "the value of {key} in the bucket {BUCKET} cannot be read: nothing but Jetwright may write to this bucket"
)]
pub struct RecordError {
    /// Its key.
    pub key: Key,
    /// What is wrong with it.
    pub source: serde_json::Error,
}

/// A value of the bucket.
pub trait Record: Serialize + DeserializeOwned {
    /// What cannot be, although each field is of its type.
    fn problem(&self) -> Option<String> {
        None
    }

    /// Reads the value of a key.
    ///
    /// # Errors
    ///
    /// The bytes are no such value; the error names the key.
    fn read(key: &Key, bytes: &[u8]) -> Result<Self, RecordError> {
        serde_json::from_slice(bytes)
            .and_then(|record: Self| match record.problem() {
                None => Ok(record),
                Some(problem) => Err(serde::de::Error::custom(problem)),
            })
            .map_err(|source| RecordError { key: key.clone(), source })
    }

    /// The value as it is written.
    fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Value of `operator` and of `operator.<cluster>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorRecord {
    /// Which operator leads, for people to read.
    pub identity: String,
}

impl Record for OperatorRecord {}

/// Value of `member.<namespace>.<process id>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberRecord {
    /// Name of its pod; absent outside Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// UID of its pod; absent outside Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// When its process joined first, by its own clock in seconds since 1970. A container that ended after that was its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<u64>,
    /// Number of this write among those of the process to its key, from 1. Absent in what another process wrote; only its own process needs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<u64>,
    /// The consumers that it can handle, and the figures of the partitions that it holds.
    #[serde(default)]
    pub consumers: BTreeMap<ConsumerId, Participation>,
    /// It finishes what it has begun, and takes nothing more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Another process found it dead: it may not be renewed any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<Dead>,
}

impl MemberRecord {
    /// Whether partitions of this consumer may be given to it.
    #[must_use]
    pub fn is_candidate(&self, consumer: &ConsumerId) -> bool {
        self.dead.is_none() && !self.leaving && self.consumers.contains_key(consumer)
    }
}

impl Record for MemberRecord {}

/// What a member reports of one consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participation {
    /// Figures of the partitions that it holds, by number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub partitions: BTreeMap<u32, Figures>,
}

/// What is known of a partition where it is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Figures {
    /// Stream sequence of the newest delivery.
    pub delivered: u64,
    /// Stream sequence up to which everything is acknowledged.
    pub ack_floor: u64,
    /// Events that are not delivered yet.
    pub pending: u64,
    /// Events that are delivered and not acknowledged.
    pub ack_pending: u64,
    /// Whether it had events for which it had no room, at each look since the last report. Absent where it does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy: Option<bool>,
    /// Events that it works at. Absent where it does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
    /// Events that it could begin, and has no room for. Absent where it does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
}

/// Who found a member dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dead {
    /// Member or operator.
    pub by: String,
    /// How.
    pub reason: DeathReason,
}

/// How a member was found dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeathReason {
    /// Kubernetes reports that its container ended.
    ContainerEnded,
    /// It did not renew its membership in time.
    Silent,
    /// It stopped, and says so itself.
    Left,
}

/// Value of `map.<stream>.<consumer>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapRecord {
    /// Grows with every change.
    pub generation: u64,
    /// Number of partitions.
    pub count: u32,
    /// The cluster of the operator that writes it. Absent where that is of a version that names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Where each partition belongs, by its number. One that is missing stays where it is.
    #[serde(default)]
    pub partitions: BTreeMap<u32, MapEntry>,
}

impl Record for MapRecord {
    fn problem(&self) -> Option<String> {
        let Self { count, partitions, .. } = self;
        if *count > MAX_PARTITIONS {
            return Some(format!("count must be at most {MAX_PARTITIONS}, and is {count}"));
        }
        let beyond = partitions.keys().find(|partition| *partition >= count)?;
        Some(format!("partition {beyond} must be less than count, which is {count}"))
    }
}

/// Where a partition belongs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// Who is to handle it.
    pub to: MemberId,
    /// Who handles it until then, if another member does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<MemberId>,
    /// Until when that one should have finished what it has begun, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
}

/// Value of `held.<stream>.<consumer>.<partition>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRecord {
    /// Who wrote it.
    pub member: MemberId,
    /// What it does with the partition.
    pub state: HeldState,
    /// The epoch: the revision by which the member took the partition. Absent in the write that takes it, whose own revision it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}

impl Record for HeldRecord {}

/// What a member does with a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HeldState {
    /// It handles events of the partition.
    Held,
    /// It finishes what it has begun.
    Draining,
    /// Nothing: another member may take it.
    Free,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(process: &str) -> MemberId {
        MemberId::new("shop", process).unwrap()
    }

    fn fulfilment() -> ConsumerId {
        "orders.order-fulfilment".parse().unwrap()
    }

    fn check<R: Record + PartialEq + std::fmt::Debug>(record: &R, json: &str) {
        assert_eq!(record.to_json(), json);
        assert_eq!(R::read(&Key::Operator, json.as_bytes()).unwrap(), *record);
    }

    #[test]
    fn values_are_written_as_other_programs_read_them() {
        check(&OperatorRecord { identity: "operator-0".into() }, r#"{"identity":"operator-0"}"#);
        let figures = Figures {
            delivered: 90,
            ack_floor: 80,
            pending: 7,
            ack_pending: 3,
            busy: Some(true),
            running: None,
            queued: None,
        };
        let record = MemberRecord {
            pod: Some("shop-0".into()),
            uid: Some("5f".into()),
            joined: Some(1_795_251_500),
            renewal: Some(7),
            consumers: [(fulfilment(), Participation { partitions: [(3, figures)].into() })].into(),
            ..MemberRecord::default()
        };
        check(
            &record,
            r#"{"pod":"shop-0","uid":"5f","joined":1795251500,"renewal":7,"consumers":{"orders.order-fulfilment":{"partitions":{"3":{"delivered":90,"ackFloor":80,"pending":7,"ackPending":3,"busy":true}}}}}"#,
        );
        let dead = Dead { by: "shop.b".into(), reason: DeathReason::Silent };
        let record = MemberRecord { dead: Some(dead), ..MemberRecord::default() };
        check(&record, r#"{"consumers":{},"dead":{"by":"shop.b","reason":"Silent"}}"#);
        let entry = MapEntry { to: member("b"), from: Some(member("a")), deadline: Some(1_795_251_600) };
        let cluster = Some("east".into());
        let record = MapRecord { generation: 4, count: 8, cluster, partitions: [(7, entry)].into() };
        check(
            &record,
            r#"{"generation":4,"count":8,"cluster":"east","partitions":{"7":{"to":"shop.b","from":"shop.a","deadline":1795251600}}}"#,
        );
        let record = HeldRecord { member: member("a"), state: HeldState::Draining, epoch: Some(9) };
        check(&record, r#"{"member":"shop.a","state":"draining","epoch":9}"#);
    }

    #[test]
    fn fields_of_a_newer_version_are_ignored() {
        let json = br#"{"member":"shop.a","state":"held","since":{"x":[1]}}"#;
        let expected = HeldRecord { member: member("a"), state: HeldState::Held, epoch: None };
        assert_eq!(HeldRecord::read(&Key::Operator, json).unwrap(), expected);
    }

    #[test]
    fn foreign_bytes_are_an_error_that_names_the_key() {
        let key: Key = "held.orders.order-fulfilment.7".parse().unwrap();
        let error = |bytes: &[u8]| HeldRecord::read(&key, bytes).unwrap_err();
        for bytes in [
            &b""[..],
            b"\xff\x00",
            b"null",
            b"[]",
            b"{}",
            br#"{"member":"shop","state":"held"}"#,
            br#"{"member":"shop.a","state":"taken"}"#,
            br#"{"member":"shop.a","state":"held","epoch":-1}"#,
            br#"{"member":"shop.a","state":"held"} x"#,
        ] {
            let message = error(bytes).to_string();
            assert!(message.contains("held.orders.order-fulfilment.7"), "{message}");
        }
        let map = |json: &str| MapRecord::read(&key, json.as_bytes()).unwrap_err().source.to_string();
        let beyond = map(r#"{"generation":1,"count":2,"partitions":{"2":{"to":"shop.a"}}}"#);
        assert!(beyond.contains("partition 2 must be less than count"), "{beyond}");
        let many = map(r#"{"generation":1,"count":4000000000}"#);
        assert!(many.contains("at most 1024"), "{many}");
        assert!(map(r#"{"generation":1,"count":2,"partitions":{"x":{"to":"shop.a"}}}"#).contains("number"));
    }

    #[test]
    fn who_leaves_or_is_dead_or_does_not_handle_the_consumer_gets_none_of_its_partitions() {
        let here = MemberRecord {
            consumers: [(fulfilment(), Participation::default())].into(),
            ..MemberRecord::default()
        };
        assert!(here.is_candidate(&fulfilment()));
        let dead = Dead { by: "shop.b".into(), reason: DeathReason::ContainerEnded };
        for record in [
            MemberRecord { leaving: true, ..here.clone() },
            MemberRecord { dead: Some(dead), ..here },
            MemberRecord::default(),
        ] {
            assert!(!record.is_candidate(&fulfilment()), "{record:?}");
        }
    }
}
