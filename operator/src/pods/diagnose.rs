//! In: a workload that is not ready. Out: what is wrong with its pods, as far as they say. Reads from Kubernetes the events of a pod that
//! its node has been preparing for a while; all else is known from the watch.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::{Api, Client, api::ListParams};

use super::{
    cache::{InitializingPod, PodCache, Summary},
    state::{PodFailure, setup_failure},
};
use crate::{error::error_chain, kubernetes::stores::Name};

/// Time that a node has for a pod's volumes and network before anybody asks what keeps it.
const EVENT_GRACE: Duration = Duration::from_secs(2);
/// Longest time between two reads of the events of such a pod.
const MAX_EVENT_POLL: Duration = Duration::from_secs(30);
/// Most events of a pod that are read.
const MAX_EVENTS: u32 = 50;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// Why pods do not come up.
    pub failure: Option<PodFailure>,
    /// When to diagnose again, since events wake no reconcile.
    pub requeue_after: Option<Duration>,
}

/// Finds out why the pods of a workload do not come up.
pub async fn diagnose(workload: &Name, pods: &PodCache, client: &Client) -> Diagnosis {
    match pods.summary(workload) {
        Summary { failure: Some(failure), .. } => Diagnosis { failure: Some(failure), requeue_after: None },
        Summary { initializing: None, .. } => Diagnosis::default(),
        Summary { initializing: Some(pod), .. } => diagnose_initializing(&pod, &workload.0, client).await,
    }
}

async fn diagnose_initializing(pod: &InitializingPod, namespace: &str, client: &Client) -> Diagnosis {
    let waited = pod.since.elapsed();
    if let Some(left) = EVENT_GRACE.checked_sub(waited).filter(|left| !left.is_zero()) {
        return Diagnosis { failure: None, requeue_after: Some(left) };
    }
    let requeue_after = Some((waited / 4).clamp(EVENT_GRACE, MAX_EVENT_POLL));
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let warnings = format!("involvedObject.uid={},type=Warning", pod.uid);
    match api.list(&ListParams::default().fields(&warnings).limit(MAX_EVENTS)).await {
        Ok(events) => Diagnosis { failure: setup_failure(&pod.name, &events.items), requeue_after },
        // They would only explain what the counts of pods say anyway.
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(
                pod = pod.name,
                error,
                "failed to list the events of a pod; the condition goes without"
            );
            Diagnosis { failure: None, requeue_after }
        }
    }
}
