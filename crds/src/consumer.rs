//! EventConsumer: a durable JetStream consumer, and the Deployment that consumes. What its fields are where they are left out is in
//! `defaults`.

mod autoscaling;
mod defaults;
mod partitions;
mod template;

use k8s_openapi::{
    api::core::v1::ServicePort,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    AdoptionPolicy, DeletionPolicy, Duration, NameRef,
    monitoring::ConsumerMonitoring,
    stream::{Drift, NAME_PATTERN, SUBJECT_PATTERN},
};

pub use autoscaling::{Autoscaling, AutoscalingMode, AutoscalingStatus, ConsumerFigures, OverloadFigures};
pub use partitions::{EmptyingPod, PartitionsStatus, WaitingPartition};
pub use template::PodTemplate;

/// An EventConsumer is a durable JetStream consumer and, where it has a workload, the Deployment that consumes.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "jetwright.dev",
    version = "v1alpha1",
    kind = "EventConsumer",
    namespaced,
    status = "EventConsumerStatus",
    derive = "PartialEq",
    shortname = "ec",
    category = "jetwright",
    selectable = ".spec.streamRef.name",
    doc = "A durable JetStream consumer, and the Deployment that consumes.",
    scale(
        spec_replicas_path = ".spec.workload.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Lag", type_ = "integer", json_path = ".status.lag"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.ackPending"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.replicas"),
    printcolumn(name = "Owned", type_ = "integer", json_path = ".status.partitions.owned", priority = 1),
    printcolumn(name = "Draining", type_ = "integer", json_path = ".status.partitions.draining", priority = 1),
    printcolumn(name = "Unowned", type_ = "integer", json_path = ".status.partitions.unowned", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Stream", type_ = "string", json_path = ".spec.streamRef.name", priority = 1),
    validation = Rule::new("has(self.spec.consumerName) || !self.metadata.name.contains('.')")
        .message("metadata.name has a dot, which a JetStream name cannot have: set spec.consumerName"),
    validation = Rule::new(
        "(has(self.spec.consumerName) ? self.spec.consumerName : self.metadata.name) == \
         (has(oldSelf.spec.consumerName) ? oldSelf.spec.consumerName : oldSelf.metadata.name)"
    )
    .message("spec.consumerName never changes: a renamed consumer would begin again. Make another EventConsumer"),
    // Free until there is a consumer, as a wrong first value could never be corrected otherwise.
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.consumer) || \
         (has(self.spec.deliverPolicy) ? self.spec.deliverPolicy : 'All') == \
         (has(oldSelf.spec.deliverPolicy) ? oldSelf.spec.deliverPolicy : 'All')"
    )
    .message("spec.deliverPolicy cannot change once the consumer exists: make another EventConsumer"),
    validation = Rule::new(
        "!has(oldSelf.status) || !has(oldSelf.status.consumer) || \
         (has(self.spec.ordering) ? self.spec.ordering : 'Unordered') == (has(oldSelf.spec.ordering) ? oldSelf.spec.ordering : 'Unordered') || \
         (has(self.spec.ordering) && self.spec.ordering == 'PerKey')"
    )
    .message("spec.ordering cannot change back to Unordered once the consumer exists, which knows what was handled: make another EventConsumer"),
    validation = Rule::new(
        "!has(self.spec.workload) || self.metadata.name.matches('^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')"
    )
    .message("with spec.workload, metadata.name is also the name of a Service: at most 63 of a-z, 0-9 and -, a letter first"),
    validation = Rule::new(
        "!has(self.spec.workloadRef) || self.spec.workloadRef.name != self.metadata.name || \
         (oldSelf.hasValue() && has(oldSelf.value().spec.workloadRef) && oldSelf.value().spec.workloadRef.name == self.spec.workloadRef.name)"
    )
    .optional_old_self(true)
    .message("spec.workloadRef names this object itself: declare its pods in spec.workload, or name the EventConsumer that does")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.workload) && has(self.workloadRef))")
        .message("spec.workload and spec.workloadRef exclude each other: declare the pods here, or name the EventConsumer that does"),
    validation = Rule::new(
        "!has(self.ordering) || self.ordering != 'PerKey' || !has(self.deliverPolicy) || self.deliverPolicy in ['All', 'New']"
    )
    .message("spec.ordering: PerKey begins with All messages or with New ones: the last ones alone have no order to keep. Set spec.deliverPolicy to All or New"),
    validation = Rule::new("!has(self.deadLetter) || has(self.workload) || has(self.workloadRef)")
        .message("spec.deadLetter: dead letters are written by pods, and this object has none: declare spec.workload, name one by spec.workloadRef, or leave the field out")
)]
pub struct EventConsumerSpec {
    /// EventStream of this namespace to consume from. Never changes.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.streamRef never changes: make another EventConsumer"))]
    pub stream_ref: NameRef,

    /// Durable name of the consumer in JetStream. Default: metadata.name. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255), regex(pattern = NAME_PATTERN))]
    pub consumer_name: Option<String>,

    /// Subjects of the stream to consume; none may cover another, and servers before 2.14 let none overlap. In a WorkQueue they may not
    /// overlap with those of other consumers either. Default: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 255), regex(pattern = SUBJECT_PATTERN)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub filter_subjects: Vec<String>,

    /// In which order events are handled. Unordered: in any, several of one key at once. PerKey: those of one key one after another, in
    /// the order in which the stream keeps them; it needs spec.partitions of the EventStream, and has one JetStream consumer for each
    /// partition, `<consumerName>-p<number>`. Default: Unordered. Once the consumer exists it changes from Unordered to PerKey only, with retention
    /// Limits of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordering: Option<Ordering>,

    /// Where a new consumer begins: with All messages, the Last one, the last of every subject (LastPerSubject), or what comes
    /// after it was made (New). A consumer of a WorkQueue has All; one with ordering PerKey has All or New. Default: All. Never changes once the consumer
    /// exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliver_policy: Option<DeliverPolicy>,

    /// How long JetStream waits for an acknowledgement before it delivers again. Default: 30s; with ordering PerKey 10s, since the next
    /// owner of a partition waits for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_wait: Option<Duration>,

    /// How long a handler of the workload may take for one attempt, from 1s to 1h; then it counts as failed. A pod that is to stop
    /// is given as long, and ten seconds more. Only workloads on Jetwright's runtime know it. Default: 20s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('1h')"
    )
    .message("spec.handlerDeadline is from 1s to 1h"))]
    pub handler_deadline: Option<Duration>,

    /// Most messages that may be unacknowledged at once, over all pods, those that failed and wait for their next attempt included.
    /// Default: with pods 10000, or the limit of the server or account where that is lower; without, the server's choice (1000). With
    /// ordering PerKey it is for each partition, default: 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_ack_pending: Option<u32>,

    /// How often, and after what delays, a message that failed is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetrySpec>,

    /// What becomes of an event that the workload cannot process. Only workloads on Jetwright's runtime write dead letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetterSpec>,

    /// The pods that consume. Excludes workloadRef; with neither there is only the consumer in JetStream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,

    /// Another EventConsumer of this namespace whose workload's pods consume from this consumer too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ref: Option<NameRef>,

    /// When something is wrong with the consumer, for the alerts, and as metadata for NATS' own tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<ConsumerMonitoring>,

    /// What becomes of the consumer in JetStream when this object is deleted. Default: Delete, since a forgotten consumer
    /// keeps the messages of WorkQueue and Interest streams for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,

    /// What to do where JetStream has a consumer of this name that is not this object's. Refuse: leave it alone. AdoptUnowned: take it
    /// if it has no owner. TakeOver: take it from its owner, once; that one no longer changes it. Default: Refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
}

/// In which order events are handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::common::described_by_field)]
pub enum Ordering {
    /// In any.
    #[default]
    Unordered,
    /// Those of one key one after another, as the stream keeps them.
    PerKey,
}

/// Where a new consumer begins.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::IntoStaticStr,
)]
#[strum(serialize_all = "snake_case")]
#[schemars(transform = crate::common::described_by_field)]
pub enum DeliverPolicy {
    /// With the first message that the stream has.
    #[default]
    All,
    /// With the last message that the stream has.
    Last,
    /// With the last message of every subject.
    LastPerSubject,
    /// With the first message after the consumer was made.
    New,
}

/// How often, and after what delays, a message that failed is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetrySpec {
    /// Attempts at one message. With a workload: calls of its handler, default: 6. Without one: JetStream's deliveries
    /// altogether, default: without end. With ordering PerKey JetStream delivers without end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: Option<u32>,
    /// Delays between the attempts. Only workloads on Jetwright's runtime know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffSpec>,
}

/// Delays that grow by a factor from `initial` to `max`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackoffSpec {
    /// Delay after the first failure, at most `max`. Default: 500ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Duration>,
    /// Growth from one delay to the next. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub factor: Option<u32>,
    /// Longest delay. Default: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

/// What becomes of an event that the workload cannot process.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.policy) && self.policy == 'Drop' && has(self.maxAge))")
    .message("spec.deadLetter.maxAge: with policy Drop nothing is kept that could have an age: take one of the two out"))]
pub struct DeadLetterSpec {
    /// Keep: it becomes a dead letter in the stream `<stream>-dlq`, an EventStream that the operator makes. Drop: it is logged,
    /// counted and given up. Default: Keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<DeadLetterPolicy>,
    /// How long each dead letter is kept: whole seconds, at least one. Default: 90d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+(s|m|h|d|w|y))+$') && self.matches('[1-9]')")
        .message("spec.deadLetter.maxAge is in whole seconds, without ms, and at least 1s"))]
    pub max_age: Option<Duration>,
}

/// Whether an event that cannot be processed is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::common::described_by_field)]
pub enum DeadLetterPolicy {
    /// It becomes a dead letter.
    #[default]
    Keep,
    /// It is given up.
    Drop,
}

/// The pods that consume, as a Deployment named like the EventConsumer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
// The scale subresource obeys it too. What comes with another template or other bounds is a declaration, and no attempt to scale.
#[x_kube(validation = Rule::new(
    "!has(self.autoscaling) || !has(oldSelf.autoscaling) || self.replicas == oldSelf.replicas || \
     (has(self.autoscaling.mode) && self.autoscaling.mode == 'Observe') || \
     self.autoscaling != oldSelf.autoscaling || self.template != oldSelf.template"
)
.message("spec.workload.replicas: autoscaling decides how many pods there are. To have more or fewer, change spec.workload.autoscaling \
    (minReplicas, maxReplicas); to scale by hand or by a HorizontalPodAutoscaler, set its mode to Observe"))]
pub struct Workload {
    /// Pods. Default: 1. `kubectl scale` sets it. With active autoscaling, those that a new workload begins with.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// How many pods there are, by what waits for them. Default: as many as `replicas` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,

    /// The pod, as in a Deployment. Its first container gets the environment that Jetwright's runtime reads
    /// (JETWRIGHT_BINDINGS, NATS_URL, OTEL_…) and, where it has none, probes; every container without a security context gets a
    /// restricted one. What is set here wins, but for the labels app.kubernetes.io/name, app.kubernetes.io/managed-by and jetwright.dev/workload.
    pub template: PodTemplate,

    /// A Service in front of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<WorkloadService>,

    /// What identifies the pods to NATS. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<WorkloadCredentials>,
}

fn one_replica() -> i32 {
    1
}

/// What identifies the pods to NATS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadCredentials {
    /// Secret of this namespace with the pods' own NATS credentials; never the operator's. It is mounted as files, whose folder
    /// the variable NATS_CREDENTIALS names.
    pub secret_ref: NameRef,
}

/// A Service named like the EventConsumer.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadService {
    /// Ports, as in a Service: one for each number and protocol.
    // Whole, since a list by number alone cannot have two protocols, and one by both would lose track of who applied the ports of before.
    #[schemars(length(min = 1, max = 32), transform = with_protocols)]
    #[x_kube(
        merge_strategy = ListMerge::Atomic,
        validation = Rule::new(
            "self.all(one, self.exists_one(other, one.port == other.port && \
             (has(one.protocol) ? one.protocol : 'TCP') == (has(other.protocol) ? other.protocol : 'TCP')))"
        )
        .message("spec.workload.service.ports: each number is there once for each protocol")
    )]
    pub ports: Vec<ServicePort>,
}

/// Names the protocols that a port may have, which also bounds what it costs to compare them.
fn with_protocols(schema: &mut Schema) {
    if let Some(protocol) = schema.pointer_mut("/items/properties/protocol").and_then(Value::as_object_mut) {
        protocol.insert("enum".to_owned(), vec!["TCP", "UDP", "SCTP"].into());
    }
}

/// What the operator found and did.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventConsumerStatus {
    /// metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, ConsumerReady, DeadLettersReady, WorkloadReady, PartitionsOwned, ScalingActive, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
    /// The consumer in JetStream. Figures of one with ordering PerKey are sums over its partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<ConsumerState>,
    /// Messages of the stream that were not delivered yet, as the operator read them last: at most a --jetstream-resync-interval and a
    /// --status-stats-interval old while NATS is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Messages delivered and not acknowledged yet; a figure as old as lag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack_pending: Option<u64>,
    /// Messages that were delivered more than once and are not acknowledged yet; a figure as old as lag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redelivered: Option<u64>,
    /// Pods of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Label selector of those pods, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// With ordering PerKey: how the partitions are shared out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<PartitionsStatus>,
    /// What autoscaling decided last, and by which figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,
    /// What another client changed, and the operator corrected last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
}

/// A consumer in JetStream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConsumerState {
    /// Stream that it consumes from.
    pub stream: String,
    /// Durable name; with ordering PerKey what the names of its JetStream consumers begin with, one for each partition.
    pub name: String,
    /// When JetStream made it; with ordering PerKey the last one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// With ordering PerKey, its partitions: as many JetStream consumers it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u32>,
}
