//! EventStream: a JetStream stream. What its fields are where they are left out is in `defaults`.

mod defaults;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AdoptionPolicy, DeletionPolicy, Duration, Size, monitoring::StreamMonitoring};

pub use defaults::Replicas;

/// What a subject that a stream listens to must look like: tokens between dots, `*` for one token, `>` for the rest.
pub const SUBJECT_PATTERN: &str = r"^(>|(\*|[^\s.*>]+)(\.(\*|[^\s.*>]+))*(\.>)?)$";
/// What a JetStream name must look like: no dots, wildcards, blanks or path separators.
pub const NAME_PATTERN: &str = r"^[^\s.*>/\\]+$";

/// An EventStream is a JetStream stream, kept exactly as declared here: what is left out has JetStream's default, or
/// its profile's.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "jetwright.dev",
    version = "v1alpha1",
    kind = "EventStream",
    namespaced,
    status = "EventStreamStatus",
    derive = "PartialEq",
    shortname = "es",
    category = "jetwright",
    doc = "A JetStream stream, kept exactly as declared: what is left out has JetStream's default, or its profile's.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Messages", type_ = "integer", json_path = ".status.stream.messages"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.stream.bytes"),
    printcolumn(name = "Consumers", type_ = "integer", json_path = ".status.stream.consumers"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Stream", type_ = "string", json_path = ".status.stream.name", priority = 1),
    validation = Rule::new("has(self.spec.streamName) || !self.metadata.name.contains('.')")
        .message("metadata.name has a dot, which a JetStream name cannot have: set spec.streamName"),
    // What the stream never changes is free until there is one: a wrong first value could never be corrected otherwise. An operator that
    // finds another one all the same writes nothing.
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.stream) || \
         (has(self.spec.streamName) ? self.spec.streamName : self.metadata.name) == \
         (has(oldSelf.spec.streamName) ? oldSelf.spec.streamName : oldSelf.metadata.name)"
    )
    .message("spec.streamName never changes once the stream exists: a renamed stream would leave its events behind. Make another EventStream"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.stream) || \
         (has(self.spec.storage) ? self.spec.storage : has(self.spec.profile) && self.spec.profile == 'Ephemeral' ? 'Memory' : 'File') == \
         (has(oldSelf.spec.storage) ? oldSelf.spec.storage : has(oldSelf.spec.profile) && oldSelf.spec.profile == 'Ephemeral' ? 'Memory' : 'File')"
    )
    .message("spec.storage (or the storage of spec.profile) cannot change once the stream exists: make another EventStream, or set spec.storage to what it was"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.stream) || \
         ((has(self.spec.retention) ? self.spec.retention : 'Limits') == 'WorkQueue') == \
         ((has(oldSelf.spec.retention) ? oldSelf.spec.retention : 'Limits') == 'WorkQueue')"
    )
    .message("spec.retention cannot change to or from WorkQueue once the stream exists: make another EventStream"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.stream) || !has(oldSelf.status.stream.partitions) || \
         !has(oldSelf.spec.partitions) || (has(self.spec.partitions) && self.spec.subjects == oldSelf.spec.subjects && \
         self.spec.partitions.keyTokens == oldSelf.spec.partitions.keyTokens && \
         ((has(self.spec.partitions.count) ? self.spec.partitions.count : 8) == \
         (has(oldSelf.spec.partitions.count) ? oldSelf.spec.partitions.count : 8) || \
         (has(self.spec.partitions.count) ? self.spec.partitions.count : 8) % oldSelf.status.stream.partitions == 0 && \
         (has(self.spec.retention) ? self.spec.retention : 'Limits') == 'Limits'))"
    )
    .message("spec.partitions, and spec.subjects with it, cannot change once the stream has partitions, but for a count that is a multiple, with retention Limits: events of one key would be in two partitions. Make another EventStream"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.partitions) || (size(self.subjects) == 1 && !self.subjects[0].endsWith('>'))")
        .message("spec.partitions needs exactly one subject, without a '>', since the number of the partition is added as its last token: write a '*' for each token, and make an EventStream for each of the other subjects"),
    validation = Rule::new(
        "!has(self.partitions) || self.partitions.keyTokens.all(token, \
         token <= size(self.subjects[0].split('.')) && self.subjects[0].split('.')[token - 1] == '*')"
    )
    .message("spec.partitions.keyTokens: each must be the number of a token of the subject that is '*', counted from 1"),
    validation = Rule::new(
        "!(has(oldSelf.allowMessageTtl) && oldSelf.allowMessageTtl) || (has(self.allowMessageTtl) && self.allowMessageTtl)"
    )
    .message("spec.allowMessageTtl cannot be switched off once it is on: leave it, or make another EventStream")
)]
pub struct EventStreamSpec {
    /// Name of the stream in JetStream. Default: metadata.name. Never changes once the stream exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = NAME_PATTERN))]
    pub stream_name: Option<String>,

    /// Defaults by how much the events matter; a field that is set wins. Critical: File, 3 replicas, kept for ever, a full stream
    /// refuses new messages. Standard: File, 3 replicas, 7 days. Ephemeral: Memory, 1 replica, 1 hour. Default: JetStream's own
    /// defaults (File, 1 replica, kept for ever).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,

    /// Subjects whose messages the stream keeps, such as `orders.*.*`. No other stream of the account may overlap.
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 255), regex(pattern = SUBJECT_PATTERN)))]
    // At the field, where the API server leaves alone what it took before.
    #[x_kube(
        merge_strategy = ListMerge::Set,
        validation = Rule::new(
            "self.all(s, !s.startsWith('$JS') && !s.startsWith('$SYS') && !s.startsWith('$NRG') && \
             !s.startsWith('_INBOX') && !s.startsWith('_R_') && !s.startsWith('*') && !s.startsWith('>'))"
        )
        .message("the servers' own subjects ($JS, $SYS, $NRG, _INBOX, _R_), and * or > in the first place, would keep what belongs to others: begin with a word of your own")
    )]
    pub subjects: Vec<String>,

    /// Partitions of the events by their key, so that consumers with ordering PerKey handle the events of each key in their order, in
    /// several pods at once. JetStream adds the number of an event's partition as the last token to the subject under which it keeps the
    /// event. Needs exactly one subject, without a `>`. Default: none. With retention Limits, a stream that exists can get them, and later a
    /// multiple of their count, each while its publishers stand still; nothing else of them ever changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<PartitionsSpec>,

    /// Retention policy. Limits: messages are removed only by limits. Interest: removed once every consumer has acknowledged them.
    /// WorkQueue: removed once acknowledged. Default: Limits. Changes between Limits and Interest only once the stream
    /// exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,

    /// Where messages are kept. Default: File, or what the profile says. Never changes once the stream exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// Servers that keep a copy, 1 to 5; odd numbers make sense. Default: 1, or 3 with the profiles Critical and Standard where there
    /// are as many servers. Without a number, a stream keeps the copies that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 5))]
    pub replicas: Option<u8>,

    /// How much is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,

    /// What happens when a limit is reached: Old removes the oldest message, New refuses the new one. Default: Old, or New
    /// with profile Critical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discard: Option<Discard>,

    /// How long a message id (Nats-Msg-Id) is remembered to drop duplicates; at least 100ms and at most limits.maxAge.
    /// Default: the server's choice: 2m, or limits.maxAge or the server's limit where one is shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_window: Option<Duration>,

    /// Whether any server that keeps a copy may answer who asks for a message (`$JS.API.DIRECT.GET`): faster, several messages at
    /// once, and perhaps a moment older than what was written last. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_direct: Option<bool>,

    /// Whether a message may say itself how long it is kept (header `Nats-TTL`). Default: false. Never goes back to false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_message_ttl: Option<bool>,

    /// When something is wrong with the stream, for the alerts, and as metadata for NATS' own tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<StreamMonitoring>,

    /// What becomes of the stream when this object is deleted. Default: Retain. Delete waits until no EventConsumer refers to
    /// this object any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,

    /// What to do where JetStream has a stream of this name that is not this object's. Refuse: leave it alone. AdoptUnowned: take it
    /// with what is in it if it has no owner. TakeOver: take it from its owner, once; that one no longer changes it. Default: Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
}

/// Partitions of a stream.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionsSpec {
    /// Partitions, 1 to 1024: as many pods at most share the events of a consumer with ordering PerKey, which has a JetStream consumer
    /// for each partition. Default: 8. Changes to a multiple only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub count: Option<u32>,
    /// Tokens of the subject that are the key, counted from 1; each must be `*`. With the subject `orders.*.*` and the key tokens [2],
    /// all events of one order are in one partition.
    // A list and no set: the server hashes the tokens in this order.
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 128)))]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new("self.all(one, self.exists_one(other, one == other))")
            .message("spec.partitions.keyTokens: each token is there once")
    )]
    pub key_tokens: Vec<u32>,
}

/// How much the events matter: each profile is a set of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::common::described_by_field)]
pub enum Profile {
    /// File storage, 3 replicas, kept for ever, and a full stream refuses new messages.
    Critical,
    /// File storage, 3 replicas, 7 days.
    Standard,
    /// Memory, 1 replica, 1 hour.
    Ephemeral,
}

/// What lets JetStream remove a message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[strum(serialize_all = "lowercase")]
#[schemars(transform = crate::common::described_by_field)]
pub enum Retention {
    /// The limits alone.
    #[default]
    Limits,
    /// Acknowledgement by every consumer that there is.
    Interest,
    /// Acknowledgement by the one consumer that may have it.
    WorkQueue,
}

/// Where messages are kept.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[strum(serialize_all = "lowercase")]
#[schemars(transform = crate::common::described_by_field)]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: lost when the servers that hold it restart.
    Memory,
}

/// What happens when a limit is reached.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[strum(serialize_all = "lowercase")]
#[schemars(transform = crate::common::described_by_field)]
pub enum Discard {
    /// The oldest message goes.
    #[default]
    Old,
    /// The new message is refused, and its publisher is told.
    New,
}

/// How much a stream keeps; what is left out has no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Longest time that a message is kept, at least 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Duration>,
    /// Most bytes in the stream, over all messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
    /// Most messages in the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub max_messages: Option<u64>,
    /// Most messages of one subject. 1 keeps the last only, as a key-value bucket does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    pub max_messages_per_subject: Option<u64>,
    /// Largest message, headers included, that the stream takes; at most 2Gi - 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_message_size: Option<Size>,
}

/// What the operator found and did.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventStreamStatus {
    /// metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Durable, PartitionsChanging, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The stream as the operator read it last; its figures are at most a --jetstream-resync-interval and a --status-stats-interval old
    /// while NATS is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamState>,
    /// Highest sequence that the operator read of the stream, or of one that it replaced. A stream that is gone is recreated with
    /// sequences far beyond it, so that no sequence ever means two messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_sequence: Option<u64>,
    /// What another client changed, and the operator corrected last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// A stream in JetStream, as the operator read it last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamState {
    /// Name in JetStream.
    pub name: String,
    /// When JetStream made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// Servers that keep a copy.
    pub replicas: u8,
    /// Messages in it.
    pub messages: u64,
    /// Bytes in it.
    pub bytes: u64,
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// Sequence of the last message.
    pub last_sequence: u64,
    /// Consumers that it has, those that no EventConsumer declares included.
    pub consumers: u64,
    /// Partitions that JetStream puts its events into; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
    /// Server that leads it; absent where the servers are not clustered, and while none leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
}

/// The last correction of what another client changed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// When the operator corrected it.
    pub last_repaired: Time,
    /// Fields that it corrected, by JetStream's names; `*` where the whole stream or consumer had been deleted.
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub fields: Vec<String>,
}
