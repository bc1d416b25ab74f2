//! The fields of a stream's and a consumer's configuration: their defaults, and what the server lets change.
//!
//! The server's error for a change that it does not allow (10052, 10012) is the same as for a value that makes no sense,
//! so the operator needs this table to tell the one from the other. It follows nats-server 2.12 to 2.15
//! (`configUpdateCheck` in server/stream.go, `checkNewConsumerConfig` in server/consumer.go).

use serde_json::{Value, json};

/// What the server lets become of a field once it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutability {
    /// It may take any value.
    Free,
    /// It stays as it was made.
    Never,
    /// It may be switched on, but not off.
    OneWay,
    /// Between limits and interest only.
    Retention,
    /// It matters only when the thing is made: it is not compared, and an update carries what there is. A server takes another
    /// `first_seq` in an update without a word, and purges the stream up to it at its next start (`newFileStoreWithCreated` in
    /// server/filestore.go).
    AtCreation,
    /// It is not compared: the server chooses it.
    Unowned,
}

/// The value that the server takes a field to have where it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// None at all.
    Nothing,
    /// False.
    False,
    /// This number.
    Number(i64),
    /// This text.
    Text(&'static str),
}

impl Absence {
    /// The default as JSON.
    #[must_use]
    pub fn value(self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::False => json!(false),
            Self::Number(number) => json!(number),
            Self::Text(text) => json!(text),
        }
    }
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in `$JS.API`.
    pub name: &'static str,
    /// What it is where it is absent.
    pub default: Absence,
    /// What may become of it.
    pub mutability: Mutability,
}

const fn field(name: &'static str, default: Absence, mutability: Mutability) -> Field {
    Field { name, default, mutability }
}

use Absence::{False, Nothing, Number, Text};
use Mutability::{AtCreation, Free, Never, OneWay, Retention, Unowned};

/// The sequence of a stream's first message, given when it is made.
pub const FIRST_SEQ: &str = "first_seq";

/// A stream's fields, but for its metadata.
pub const STREAM: &[Field] = &[
    field("name", Nothing, Never),
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
    field("storage", Text("file"), Never),
    field("num_replicas", Number(1), Free),
    field("no_ack", False, Free),
    field("duplicate_window", Number(0), Free),
    field("placement", Nothing, Free),
    field("mirror", Nothing, Never),
    field("sources", Nothing, Free),
    field("compression", Text("none"), Free),
    field(FIRST_SEQ, Number(0), AtCreation),
    field("subject_transform", Nothing, Free),
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
    field("allow_msg_counter", False, Never),
    field("allow_atomic", False, Free),
    field("allow_msg_schedules", False, OneWay),
    field("allow_batched", False, Free),
    field("persist_mode", Text("default"), Never),
];

/// A consumer's fields, but for its metadata and for `pause_until`: a pause is an administrator's, and stays.
pub const CONSUMER: &[Field] = &[
    // The server compares neither with the name in the subject of the request, and older clients leave one of them out.
    field("durable_name", Nothing, Unowned),
    field("name", Nothing, Unowned),
    field("description", Nothing, Free),
    field("deliver_policy", Text("all"), Never),
    field("opt_start_seq", Number(0), Never),
    field("opt_start_time", Nothing, Never),
    field("ack_policy", Text("none"), Never),
    field("ack_wait", Number(0), Free),
    field("max_deliver", Number(-1), Free),
    field("backoff", Nothing, Free),
    field("filter_subject", Nothing, Free),
    field("filter_subjects", Nothing, Free),
    field("replay_policy", Text("instant"), Never),
    field("rate_limit_bps", Number(0), Free),
    field("sample_freq", Nothing, Free),
    field("max_waiting", Number(512), Never),
    field("max_ack_pending", Number(1000), Free),
    field("flow_control", False, Never),
    field("headers_only", False, Free),
    // A server with a limit (max_request_batch) fills it in.
    field("max_batch", Number(0), Unowned),
    field("max_expires", Number(0), Free),
    field("max_bytes", Number(0), Free),
    field("deliver_subject", Nothing, Never),
    field("deliver_group", Nothing, Free),
    field("idle_heartbeat", Number(0), Never),
    field("inactive_threshold", Number(0), Free),
    field("num_replicas", Number(0), Free),
    field("mem_storage", False, Never),
    field("priority_groups", Nothing, Free),
    field("priority_policy", Text("none"), Free),
    field("priority_timeout", Number(0), Free),
];
