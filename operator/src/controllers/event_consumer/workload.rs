//! In: the object, what it depends on, and the pods that it has. Out: its pods as it declares them; or why they stay as they are. Writes to
//! Kubernetes.
//!
//! Where pods are held back, nothing is created or changed, and what runs goes on: it can still be scaled.

use std::{fmt::Write as _, sync::Arc, time::Duration};

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
    kubernetes::{
        age,
        apply::Applier,
        owned::Owned,
        status::ConditionSummary,
        stores::{Name, name_of},
    },
    partitions::declared::{shared_out, template},
    pods::diagnose::{Diagnosis, diagnose},
    scale_down::{Plan, intended, marks, partitions, registry::Wanted, words},
    scaling::registry::count,
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
/// Most pods that a message names.
const MAX_NAMED: usize = 3;

/// Brings the pods to what the object declares; None where it declares none.
pub async fn ensure(
    object: &EventConsumer,
    inputs: &Inputs,
    applier: &Applier<'_>,
    context: &Context,
) -> Result<Option<WorkloadStatus>, Error> {
    let (Some(workload), Pods::Own(guests)) = (&object.spec.workload, &inputs.pods) else {
        context.scale_downs.forget(&name_of(object));
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
    let plan = scale(object, guests, deployed(&name, applier), context).await;
    let scaled = Scaled::of(&plan);
    let hold = |why: Hold| hold(why, &name, &scaled, applier);
    if let Some(why) = no_connection(object, context).or_else(|| awaited_stream(object, inputs, guests)) {
        return hold(why).await.map(Some);
    }
    let desired = match desired(object, workload, scaled.replicas, validate::bindings(object, inputs, guests))
    {
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
    Ok(Some(scaled.said_in(running(&desired, &deployment, &diagnosis))))
}

/// Decides how many pods the Deployment gets, and writes the hint which of them go. With order, those that go are emptied before.
async fn scale(object: &EventConsumer, guests: &[Guest], deployed: Option<i32>, context: &Context) -> Plan {
    let workload = name_of(object);
    if object.spec.workload.as_ref().is_none_or(|declared| declared.autoscaling.is_none()) {
        context.autoscalers.forget(&workload);
    }
    let pods = context.pods.processes(&workload);
    let known = deployed.map(count);
    let intended = known.map(|deployed| intended(deployed, &pods));
    let wanted = context.autoscalers.replicas(object, intended.and_then(|pods| pods.try_into().ok()));
    report_scaling(object, deployed, wanted, context);
    let (consumers, drain) = ordered(object, guests, context);
    let plan = context.scale_downs.plan(
        &workload,
        &Wanted {
            replicas: count(wanted),
            deployed: known.unwrap_or_default(),
            pods: &pods,
            template: template(context, &workload).as_deref(),
            ordered: drain.map(|drain| (consumers.as_slice(), drain)),
        },
    );
    for pod in &plan.overdue {
        let left = pod.left.map_or_else(|| "an unknown number of partitions".to_owned(), partitions);
        let note = format!(
            "pod {} is removed with {left} left, after {} s: it hands them over as it stops. Its log says what takes so long",
            pod.pod.name,
            drain.unwrap_or_default().as_secs(),
        );
        context.events.warning(&object.object_ref(&()), "NotEmptied", &note);
    }
    marks::write(&plan, &workload.0, &context.client, &context.scale_downs).await;
    plan
}

/// The consumers with order whose events the pods handle, and how long a hand-over takes at most; None where there are none. Of one that has no
/// partitions yet, pods have nothing to hand over, and nobody says how much.
fn ordered(object: &EventConsumer, guests: &[Guest], context: &Context) -> (Vec<Name>, Option<Duration>) {
    let scope = context.scopes.of(&object.namespace().unwrap_or_default());
    let consumers = std::iter::once(object).chain(guests.iter().map(|guest| guest.consumer.as_ref()));
    let shared = consumers.filter_map(|consumer| shared_out(consumer, scope?));
    let ordered: Vec<_> = shared.map(|consumer| (consumer.object, consumer.drain)).collect();
    let drain = ordered.iter().map(|(_, drain)| *drain).max();
    (ordered.into_iter().map(|(consumer, _)| consumer).collect(), drain)
}

/// How many pods the Deployment gets, and which it waits for.
struct Scaled {
    replicas: i32,
    said: Option<String>,
    requeue_after: Option<Duration>,
}

impl Scaled {
    fn of(plan: &Plan) -> Self {
        let pods = plan.emptying.iter().map(|emptying| (emptying.pod.name.as_str(), emptying.left));
        Self {
            replicas: i32::try_from(plan.replicas).unwrap_or(i32::MAX),
            said: words(pods.take(MAX_NAMED)),
            requeue_after: plan.requeue_after,
        }
    }

    fn said_in(&self, mut status: WorkloadStatus) -> WorkloadStatus {
        if let Some(said) = &self.said {
            let _ = write!(status.summary.message, "; {said}");
        }
        status.requeue_after = status.requeue_after.into_iter().chain(self.requeue_after).min();
        WorkloadStatus { emptying: self.said.clone(), ..status }
    }
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

async fn hold(
    why: Hold,
    name: &str,
    scaled: &Scaled,
    applier: &Applier<'_>,
) -> Result<WorkloadStatus, Error> {
    let found: Option<Arc<Owned>> = match applier.known::<Deployment>(name) {
        Some(known) => Some(applier.scale(name, known, scaled.replicas).await.map_err(Error::Workload)?),
        None => None,
    };
    let deployment = found.as_deref().and_then(|owned| owned.deployment.as_deref());
    Ok(scaled.said_in(held(name, deployment, why.summary, why.requeue_after)))
}
