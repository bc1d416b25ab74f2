//! In: the object, what it depends on, and the pods that it has. Out: its pods as it declares them; or why they stay as they are. Writes to
//! Kubernetes.
//!
//! Where pods are held back, nothing is created or changed, and what runs goes on: it can still be scaled.

use std::{sync::Arc, time::Duration};

use jetwright_crds::{EventConsumer, conditions::Reason, names::WorkloadNames};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Resource as _, ResourceExt};

use super::{
    Error,
    inputs::{Guest, Inputs, Pods, missing_streams},
    validate,
};
use crate::{
    context::Context,
    field_error::join,
    kubernetes::{age, apply::Applier, owned::Owned, status::ConditionSummary},
    pods::diagnose::{Diagnosis, diagnose},
    workload::{
        apply::{apply, delete_workload},
        build::build,
        desired::desired,
        kept::runs_as,
        pod_security::{self, violations},
        status::{WorkloadStatus, held, is_rolled_out, running, shared},
        template::{Helpers, has_bare_helpers},
    },
};

/// How long after its creation an object's pods wait for EventStreams that do not exist: what is applied together is created one after
/// another, and each stream that came later would roll the pods out once more.
const STREAM_GRACE: Duration = Duration::from_secs(5);

/// Brings the pods to what the object declares; None where it declares none.
pub async fn ensure(
    object: &EventConsumer,
    inputs: &Inputs,
    applier: &Applier<'_>,
    context: &Context,
) -> Result<Option<WorkloadStatus>, Error> {
    let (Some(workload), Pods::Own(guests)) = (&object.spec.workload, &inputs.pods) else {
        // A workload that was taken out of the spec takes its pods with it. Under a name that cannot be, there is nothing.
        if let Ok(names) = WorkloadNames::of(&object.name_any()) {
            delete_workload(&names, applier).await.map_err(Error::Workload)?;
        }
        return Ok(match &inputs.pods {
            Pods::Elsewhere(other) => Some(shared(&object.spec, other.as_deref())),
            Pods::None | Pods::Own(_) => None,
        });
    };
    let name = object.name_any();
    let deployed = deployed(&name, applier);
    let replicas = context.autoscalers.replicas(object, deployed);
    report_scaling(object, deployed, replicas, context);
    let hold = |why: Hold| hold(why, &name, replicas, applier);
    if let Some(why) = no_connection(object, context).or_else(|| awaited_stream(object, inputs, guests)) {
        return hold(why).await.map(Some);
    }
    let desired = match desired(object, workload, replicas, validate::bindings(object, inputs, guests)) {
        Ok(desired) => desired,
        Err(errors) => return hold(Hold::stalled(Reason::Invalid, join(&errors))).await.map(Some),
    };
    let build = |helpers| build(&desired, &context.settings.workloads, helpers).map_err(Error::Bindings);
    let mut objects = build(Helpers::Hardened)?;
    let level = context.settings.pod_security;
    let forbidden = violations(&objects.deployment["spec"]["template"], level);
    if !forbidden.is_empty() {
        return hold(insecure(level, &forbidden)).await.map(Some);
    }
    if has_bare_helpers(&desired.template) {
        let as_written = build(Helpers::AsWritten)?;
        if runs_as(&name, &as_written.deployment, applier).await.map_err(Error::Workload)? {
            objects = as_written;
        }
    }
    let owned = apply(objects, &desired.names, applier).await.map_err(Error::Workload)?;
    let deployment = owned.deployment.as_deref().cloned().unwrap_or_default();
    let diagnosis = if is_rolled_out(&deployment) {
        Diagnosis::default()
    } else {
        let pods_of = (desired.namespace.clone(), desired.names.workload.clone());
        diagnose(&pods_of, &context.pods, &context.client).await
    };
    Ok(Some(running(&desired, &deployment, &diagnosis)))
}

/// The number of pods in the Deployment's spec.
fn deployed(name: &str, applier: &Applier<'_>) -> Option<i32> {
    let known = applier.known::<Deployment>(name)?;
    known.deployment.as_deref()?.spec.as_ref()?.replicas
}

/// Reports a new number of pods that a new generation declares, or that autoscaling decided. The correction of a Deployment that another client
/// scaled is not reported here.
fn report_scaling(object: &EventConsumer, deployed: Option<i32>, replicas: i32, context: &Context) {
    let decided = context.autoscalers.take_step(object);
    let observed = object.status.as_ref().and_then(|status| status.observed_generation);
    let Some(before) = deployed.filter(|before| *before != replicas) else { return };
    let note = match decided {
        Some(decided) => decided,
        None if observed != object.metadata.generation => {
            format!("scaled the pods from {before} to {replicas}")
        }
        None => return,
    };
    context.events.normal(&object.object_ref(&()), "Scaled", &note);
}

/// Why pods stay as they are.
struct Hold {
    summary: ConditionSummary,
    /// When to reconcile next, where nothing else wakes the object.
    requeue_after: Option<Duration>,
}

impl Hold {
    fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self { summary: ConditionSummary::stalled(reason, message), requeue_after: None }
    }
}

/// Nothing in JetStream is the namespace's: pods would only be a way to run programs.
fn no_connection(object: &EventConsumer, context: &Context) -> Option<Hold> {
    let pending = context.connections.serving(&object.namespace().unwrap_or_default()).err()?;
    Some(Hold::stalled(pending.reason, pending.message))
}

/// Pods begin with the first EventStream of those that they consume from, and stay as they are where the last one goes: they wait for it by
/// themselves. Where others exist, they are not held back for one that does not come.
fn awaited_stream(object: &EventConsumer, inputs: &Inputs, guests: &[Guest]) -> Option<Hold> {
    let missing = missing_streams(object, inputs, guests);
    let reference = missing.first()?;
    let left = STREAM_GRACE.checked_sub(age(object));
    if missing.len() <= guests.len() && left.is_none() {
        return None;
    }
    let message = format!("waiting for EventStream {reference}, which does not exist yet: make it");
    Some(Hold {
        summary: ConditionSummary::reconciling(Reason::StreamNotReady, message),
        requeue_after: left,
    })
}

fn insecure(level: pod_security::Level, forbidden: &[String]) -> Hold {
    let message = format!(
        "the pods are more than Pod Security level {level} allows: {}. Correct spec.workload.template, or let an administrator raise the \
         operator's --workload-pod-security (the chart's value workloads.podSecurity)",
        forbidden.join("; ")
    );
    Hold::stalled(Reason::PodSecurity, message)
}

async fn hold(why: Hold, name: &str, replicas: i32, applier: &Applier<'_>) -> Result<WorkloadStatus, Error> {
    let found: Option<Arc<Owned>> = match applier.known::<Deployment>(name) {
        Some(known) => Some(applier.scale(name, known, replicas).await.map_err(Error::Workload)?),
        None => None,
    };
    let deployment = found.as_deref().and_then(|owned| owned.deployment.as_deref());
    Ok(held(name, deployment, why.summary, why.requeue_after))
}
