//! How the partitions of a consumer with ordering PerKey are shared out, as status says it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the partitions of a consumer are shared out among the programs that handle it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionsStatus {
    /// Partitions that there are.
    pub count: u32,
    /// Those that are handled where they belong.
    pub owned: u32,
    /// Those that are on their way to another owner, while the one before finishes what it has begun.
    pub draining: u32,
    /// Those that nobody handles.
    pub unowned: u32,
    /// What those wait for that are not owned, the longest first; at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["partition".to_owned()]))]
    pub waiting: Vec<WaitingPartition>,
    /// The pods that a scale-down empties before they are removed; at most 10.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pod".to_owned()]))]
    pub emptying: Vec<EmptyingPod>,
}

impl PartitionsStatus {
    /// Most pods in `emptying`.
    pub const MAX_EMPTYING: usize = 10;
}

/// A pod that hands over its partitions before it is removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmptyingPod {
    /// Its name.
    pub pod: String,
    /// Partitions that it still has.
    pub partitions: u32,
}

/// A partition that waits for an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WaitingPartition {
    /// Its number, from 0.
    pub partition: u32,
    /// The pod or program that has to finish what it has begun, or to take it; absent where it waits for any that joins.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub awaited: Option<String>,
    /// Since when.
    pub since: Time,
}
