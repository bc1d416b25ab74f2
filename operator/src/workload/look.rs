//! In: a workload that is not ready. Out: what is wrong with its pods, as far as they tell. Reads from Kubernetes the events of a pod
//! that its node has been preparing for a while; all else is known from the watch.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::{Api, api::ListParams};

use super::{
    pods::{SettingUp, Summary},
    sighting::{Trouble, setup_trouble},
    validate::Desired,
};
use crate::context::Context;

/// Time that a node has for a pod's volumes and network before anybody asks what keeps it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest time between two looks at the events of such a pod.
const RARELY: Duration = Duration::from_secs(30);
/// Most events of a pod that are read.
const EVENTS: u32 = 50;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Why pods do not come up.
    pub trouble: Option<Trouble>,
    /// When to look again, since events wake nobody.
    pub again: Option<Duration>,
}

/// Looks at the pods.
pub async fn look(desired: &Desired, context: &Context) -> Look {
    let summary = context.pods.summary(&(desired.namespace.clone(), desired.names.workload.clone()));
    match summary {
        Summary { trouble: Some(trouble), .. } => Look { trouble: Some(trouble), again: None },
        Summary { setting_up: None, .. } => Look::default(),
        Summary { setting_up: Some(pod), .. } => look_at(&pod, &desired.namespace, context).await,
    }
}

async fn look_at(pod: &SettingUp, namespace: &str, context: &Context) -> Look {
    let waited = pod.since.elapsed();
    if let Some(left) = PATIENCE.checked_sub(waited).filter(|left| !left.is_zero()) {
        return Look { trouble: None, again: Some(left) };
    }
    let again = Some((waited / 4).clamp(PATIENCE, RARELY));
    let api: Api<Event> = Api::namespaced(context.client.clone(), namespace);
    let warnings = format!("involvedObject.uid={},type=Warning", pod.uid);
    match api.list(&ListParams::default().fields(&warnings).limit(EVENTS)).await {
        Ok(events) => Look { trouble: setup_trouble(&pod.name, &events.items), again },
        // They would only explain what the counts of pods say anyway.
        Err(error) => {
            tracing::warn!(pod = pod.name, %error, "the events of a pod cannot be listed");
            Look { trouble: None, again }
        }
    }
}
