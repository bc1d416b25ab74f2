//! The hint for Kubernetes which pods to remove: the least deletion cost on those that are emptied. In: a plan. Writes to Kubernetes.
//!
//! It is a hint only: pods that are not ready go first, and any pod that is told to stop hands over what it has. So a hint that cannot be
//! written is no failure. It is not forced on pods whose cost is another's.

use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    decision::{Plan, PodRef},
    registry::ScaleDowns,
};
use crate::{error::error_chain, kubernetes::field_manager::FIELD_MANAGER, pods::processes::DELETION_COST};

/// How long Kubernetes may take for one: its client alone would try for many minutes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes and removes the hints of a plan.
pub async fn write(plan: &Plan, namespace: &str, client: &Client, scale_downs: &ScaleDowns) {
    let api = &Api::namespaced(client.clone(), namespace);
    let least = json!({"annotations": {DELETION_COST: i32::MIN.to_string()}});
    let marked = plan.mark.iter().map(|pod| apply(api, pod, least.clone()));
    // What was applied before and is not named any more is removed.
    let writes: Vec<_> = marked.chain(plan.unmark.iter().map(|pod| apply(api, pod, json!({})))).collect();
    for result in join_all(writes).await {
        match result {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                if scale_downs.refused() {
                    tracing::warn!(
                        namespace,
                        "pods are emptied without the pod-deletion-cost that makes Kubernetes remove them first: the operator may not patch pods \
                         (the chart's value autoscaling.enabled)"
                    );
                }
            }
            // It is gone, or its cost is another's.
            Err(error) => {
                tracing::debug!(
                    namespace,
                    error = error_chain(&error),
                    "failed to patch the pod-deletion-cost of a pod"
                );
            }
        }
    }
}

/// Applies this metadata of a pod, which is all that the operator sets of one.
async fn apply(api: &Api<Pod>, pod: &PodRef, mut metadata: Value) -> Result<(), kube::Error> {
    metadata["name"] = json!(pod.name);
    metadata["uid"] = json!(pod.uid);
    let desired = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
    let params = PatchParams::apply(FIELD_MANAGER);
    if let Ok(patched) = timeout(WRITE_TIMEOUT, api.patch(&pod.name, &params, &Patch::Apply(desired))).await {
        return patched.map(drop);
    }
    tracing::debug!(pod = pod.name, "Kubernetes did not answer the patch of the pod-deletion-cost");
    Ok(())
}
