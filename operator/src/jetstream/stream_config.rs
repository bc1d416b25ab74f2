//! The configuration of a stream: its fields, what the server lets change, and what an EventStream's spec makes of them. A new field of
//! the spec is described and defaulted in crds, and gets its line here. Pure.
//!
//! The server's error for a change that it does not allow (10052) is the same as for a value that makes no sense, so the operator
//! needs this table to distinguish the two. It follows nats-server 2.12 to 2.15 (`configUpdateCheck` in server/stream.go).

use jetwright_crds::{Duration, EventStreamSpec, Size, stream::Limits};
use serde_json::json;

use super::{
    config::{
        Config,
        DefaultValue::{False, Nothing, Number, ServersChoice, Text},
        Field,
        Mutability::{AtCreation, Free, Immutable, OneWay, Retention},
        field,
    },
    partitions,
};

/// The sequence of a stream's first message, given when it is created.
pub const FIRST_SEQ: &str = "first_seq";
/// How many servers keep a copy.
pub const REPLICAS: &str = "num_replicas";
/// How the subject of an event becomes the one that it is stored under.
pub const SUBJECT_TRANSFORM: &str = "subject_transform";
/// A stream that this one copies.
pub const MIRROR: &str = "mirror";

/// A stream's fields, but for its metadata.
pub const FIELDS: &[Field] = &[
    field("name", Nothing, Immutable),
    field("description", Nothing, Free),
    field("subjects", Nothing, Free),
    field("retention", Text("limits"), Retention),
    field("max_consumers", Number(-1), Free),
    field("max_msgs", Number(-1), Free),
    field("max_bytes", Number(-1), Free),
    field("max_age", Number(0), Free),
    field("max_msgs_per_subject", Number(-1), Free),
    field("max_msg_size", Number(-1), Free),
    field("discard", Text("old"), Free),
    field("discard_new_per_subject", False, Free),
    field("storage", Text("file"), Immutable),
    field(REPLICAS, Number(1), Free),
    field("no_ack", False, Free),
    field("duplicate_window", ServersChoice, Free),
    field("placement", Nothing, Free),
    field(MIRROR, Nothing, Immutable),
    field("sources", Nothing, Free),
    field("compression", Text("none"), Free),
    field(FIRST_SEQ, Number(0), AtCreation),
    field(SUBJECT_TRANSFORM, Nothing, Free),
    field("republish", Nothing, Free),
    field("allow_direct", False, Free),
    field("mirror_direct", False, Free),
    field("sealed", False, OneWay),
    field("deny_delete", False, OneWay),
    field("deny_purge", False, OneWay),
    field("allow_rollup_hdrs", False, Free),
    field("consumer_limits", Nothing, Free),
    field("allow_msg_ttl", False, OneWay),
    field("subject_delete_marker_ttl", Number(0), Free),
    field("allow_msg_counter", False, Immutable),
    field("allow_atomic", False, Free),
    field("allow_msg_schedules", False, OneWay),
    field("allow_batched", False, Free),
    field("persist_mode", Text("default"), Immutable),
];

/// The whole configuration that a spec declares, but for the replicas, which depend on the servers that there are; fields that are left
/// out have JetStream's default, or are the server's choice.
#[must_use]
pub fn config(name: &str, spec: &EventStreamSpec) -> Config {
    let EventStreamSpec {
        stream_name: _,
        profile: _,
        subjects,
        // What its subject cannot have is an error of the spec, and has no transform.
        partitions: _,
        retention: _,
        storage: _,
        replicas: _,
        limits,
        discard: _,
        duplicate_window,
        allow_direct,
        allow_message_ttl,
        monitoring: _,
        deletion_policy: _,
        adoption_policy: _,
    } = spec;
    let Limits { max_age: _, max_bytes, max_messages, max_messages_per_subject, max_message_size } =
        limits.clone().unwrap_or_default();
    let (retention, storage): (&str, &str) =
        (spec.effective_retention().into(), spec.effective_storage().into());
    let discard: &str = spec.effective_discard().into();
    let config = Config::default()
        .with("name", name)
        .with("subjects", json!(subjects))
        .with("retention", retention)
        .with("storage", storage)
        .with("discard", discard)
        .with("max_age", spec.effective_max_age().map_or(0, Duration::as_nanos))
        .with("max_bytes", max_bytes.map_or(-1, Size::as_i64))
        .with("max_msgs", count(max_messages))
        .with("max_msgs_per_subject", count(max_messages_per_subject))
        .with("max_msg_size", max_message_size.map_or(-1, Size::as_i64))
        .with("allow_direct", allow_direct.unwrap_or_default())
        .with("allow_msg_ttl", allow_message_ttl.unwrap_or_default());
    let config = match duplicate_window {
        Some(window) => config.with("duplicate_window", window.as_nanos()),
        None => config,
    };
    let config = match partitions::declared(spec) {
        Ok(Some(partitions)) => config.with(SUBJECT_TRANSFORM, partitions::transform(&partitions)),
        Ok(None) | Err(_) => config,
    };
    config.with_thresholds(spec.thresholds())
}

fn count(limit: Option<u64>) -> i64 {
    limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(spec: &str) -> serde_json::Value {
        json!(config("orders", &serde_saphyr::from_str(spec).unwrap()))
    }

    #[test]
    fn a_minimal_spec_is_whole_with_jetstreams_defaults() {
        assert_eq!(
            json_of("subjects: [orders.>]"),
            json!({
                "name": "orders", "subjects": ["orders.>"], "retention": "limits", "storage": "file", "discard": "old",
                "max_age": 0, "max_bytes": -1, "max_msgs": -1, "max_msgs_per_subject": -1, "max_msg_size": -1,
                "allow_direct": false, "allow_msg_ttl": false,
            })
        );
    }

    #[test]
    fn partitions_are_a_transform_of_the_subject_and_without_them_there_is_none() {
        assert_eq!(
            json_of("{subjects: ['orders.*.*'], partitions: {count: 4, keyTokens: [3, 2]}}")["subject_transform"],
            json!({"src": "orders.*.*", "dest": "orders.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(4,2,1)}}"})
        );
        assert!(json_of("subjects: ['orders.*.*']").get("subject_transform").is_none());
    }

    #[test]
    fn thresholds_are_metadata_that_nats_tools_read_and_a_replicated_stream_expects_its_peers() {
        let metadata = |rest: &str| json_of(&format!("{{subjects: [a]{rest}}}"))["metadata"].clone();
        assert_eq!(metadata(""), serde_json::Value::Null);
        assert_eq!(metadata(", replicas: 3"), serde_json::Value::Null);
        assert_eq!(metadata(", monitoring: {}"), json!({"io.nats.monitor.enabled": "true"}));
        assert_eq!(metadata(", replicas: 3, monitoring: {}")["io.nats.monitor.peer-expect"], "3");
        let all =
            ", replicas: 3, monitoring: {peersExpected: 2, peerLagCritical: 50, peerSeenCritical: 1m30s,
            minMessagesWarning: 20, minMessagesCritical: 10}";
        assert_eq!(
            metadata(all),
            json!({
                "io.nats.monitor.enabled": "true", "io.nats.monitor.peer-expect": "2", "io.nats.monitor.peer-lag-critical": "50",
                "io.nats.monitor.peer-seen-critical": "1m30s", "io.nats.monitor.msgs-warn": "20",
                "io.nats.monitor.msgs-critical": "10",
            })
        );
    }

    #[test]
    fn what_a_profile_or_the_spec_says_is_in_the_configuration() {
        let spec = "{subjects: [a], profile: Ephemeral, retention: WorkQueue, discard: New, allowDirect: true, allowMessageTtl: true,
            limits: {maxBytes: 1Ki, maxMessages: 2, maxMessagesPerSubject: 3, maxMessageSize: 4}, duplicateWindow: 1s}";
        assert_eq!(
            json_of(spec),
            json!({
                "name": "orders", "subjects": ["a"], "retention": "workqueue", "storage": "memory", "discard": "new",
                "max_age": 3_600_000_000_000_i64, "max_bytes": 1024, "max_msgs": 2, "max_msgs_per_subject": 3, "max_msg_size": 4,
                "duplicate_window": 1_000_000_000, "allow_direct": true, "allow_msg_ttl": true,
            })
        );
    }
}
