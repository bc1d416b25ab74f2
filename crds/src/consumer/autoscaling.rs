//! How many pods a workload has, by what waits for them. What the fields are where they are left out is in `defaults`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// How many pods there are, by the lag of all consumers whose messages they handle.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.minReplicas) ? self.minReplicas : 1) <= self.maxReplicas")
    .message("spec.workload.autoscaling.minReplicas (default: 1) must be at most maxReplicas"))]
pub struct Autoscaling {
    /// Fewest pods. With 0, the workload has none while nothing arrives. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: Option<i32>,

    /// Most pods.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,

    /// Time in which what waits should be worked off, from 1s to 24h. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')"
    )
    .message("spec.workload.autoscaling.targetDrainTime is from 1s to 24h"))]
    pub target_drain_time: Option<Duration>,

    /// Messages that are not settled for each pod, while the operator has not learnt yet what a pod can do. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub lag_per_replica: Option<u32>,

    /// How long fewer pods must have been enough before there are fewer, from 10s to 24h. Longer than the longest silence in which the last pod
    /// should stay. Default: 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "self.matches('^([0-9]+(ms|s|m|h))+$') && duration(self) >= duration('10s') && duration(self) <= duration('24h')"
    )
    .message("spec.workload.autoscaling.scaleDownAfter is from 10s to 24h"))]
    pub scale_down_after: Option<Duration>,

    /// Active: there are as many pods as the operator decides, and spec.workload.replicas is only what it begins with. Observe: what it would
    /// decide is in the status, and spec.workload.replicas counts. Default: Active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AutoscalingMode>,
}

/// Whether the operator scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = crate::common::described_by_field)]
pub enum AutoscalingMode {
    /// It scales.
    #[default]
    Active,
    /// It says what it would do.
    Observe,
}

/// What autoscaling decided last.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingStatus {
    /// Pods that the operator decided on; with mode Observe, those that it would have next.
    pub desired_replicas: i32,
    /// When it decided on another number last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<Time>,
    /// What it knows of each consumer whose messages the pods handle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = AutoscalingStatus::MAX_CONSUMERS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub consumers: Vec<ConsumerFigures>,
}

impl AutoscalingStatus {
    /// Most consumers that it has figures of.
    pub const MAX_CONSUMERS: usize = 256;
}

/// What autoscaling knows of a consumer. Rates are decimal numbers of messages a second; one that is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerFigures {
    /// The EventConsumer.
    pub name: String,
    /// Messages that are not settled: those that no pod has, and those that pods work at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Messages that arrive in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrivals: Option<String>,
    /// Messages that all pods settle in a second, failed attempts included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
    /// Messages that one pod can settle in a second, as learnt while pods were busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<String>,
    /// The last pods brought too little: no others are added while all settle fewer messages in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_gain_below: Option<String>,
    /// What was too much for some pods in the last hours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<OverloadFigures>,
}

/// A load with which the lag grew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OverloadFigures {
    /// Pods that there were.
    pub replicas: i32,
    /// Messages that arrived in a second.
    pub arrivals: String,
    /// Hours until it is forgotten.
    pub hours_left: i32,
}
