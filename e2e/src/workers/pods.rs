//! How many pods there are to be, and those that there are.

use std::collections::BTreeSet;

use jetwright_crds::{EventConsumer, labels::WORKLOAD};
use jetwright_testing::await_until;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{CONSUMER, SETTLED, Workers};

impl Workers {
    /// Asks for so many pods, as `kubectl scale` does.
    pub async fn scale(&self, pods: usize) {
        let patch = Patch::Merge(json!({"spec": {"replicas": pods}}));
        await_until("the scale to be written", SETTLED, async || {
            self.api::<EventConsumer>().patch_scale(CONSUMER, &PatchParams::default(), &patch).await
        })
        .await;
    }

    /// All pods, also those that end.
    ///
    /// # Errors
    ///
    /// When the API server does not list them.
    pub async fn pods(&self) -> kube::Result<Vec<Pod>> {
        Ok(self.api::<Pod>().list(&ListParams::default().labels(WORKLOAD)).await?.items)
    }

    /// Waits until there are so many pods, all ready, and none that ends; their UIDs.
    pub async fn await_pods(&self, count: usize) -> BTreeSet<String> {
        await_until(&format!("{count} pods that are ready"), SETTLED, async || {
            let pods = self.pods().await?;
            let states: Vec<_> = pods.iter().map(|pod| (pod.name_any(), is_ready(pod))).collect();
            anyhow::ensure!(pods.len() == count && states.iter().all(|(_, ready)| *ready), "{states:?}");
            anyhow::Ok(pods.iter().filter_map(Pod::uid).collect())
        })
        .await
    }
}

/// Whether a pod is ready, and does not end.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let is_ready =
        conditions.filter(|condition| condition.type_ == "Ready").any(|condition| condition.status == "True");
    is_ready && pod.metadata.deletion_timestamp.is_none()
}
