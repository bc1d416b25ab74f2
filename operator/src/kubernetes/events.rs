//! Kubernetes events: what `kubectl describe` shows of what the operator did. Writes to Kubernetes.

use jetwright_crds::conditions::{self, STALLED};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::runtime::events::{Event, EventType, Recorder};

use super::status::{Phase, Verdict};
use crate::outcome::{Applied, Done};

/// Longest note that Kubernetes takes.
const LONGEST_NOTE: usize = 1024;

/// Tells of something that the operator did.
pub async fn normal(recorder: &Recorder, object: &ObjectReference, reason: &str, note: String) {
    publish(recorder, object, EventType::Normal, reason, note).await;
}

/// Tells of something that somebody should look at.
pub async fn warning(recorder: &Recorder, object: &ObjectReference, reason: &str, note: String) {
    publish(recorder, object, EventType::Warning, reason, note).await;
}

/// An event that cannot be written is logged and no error: it would only repeat what is done already.
async fn publish(
    recorder: &Recorder,
    object: &ObjectReference,
    type_: EventType,
    reason: &str,
    note: String,
) {
    tracing::info!(reason, note, "event");
    let note = note.chars().take(LONGEST_NOTE).collect();
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, object).await {
        tracing::warn!(reason, %error, "the event could not be written");
    }
}

/// Tells what was done in JetStream; `lost` is what was lost with a thing that had to be made again.
pub async fn done<I>(
    recorder: &Recorder,
    object: &ObjectReference,
    kind: &str,
    applied: &Applied<I>,
    lost: &str,
) {
    match &applied.done {
        _ if applied.remade => {
            let note = format!("the {kind} was gone and is made again: {lost}");
            warning(recorder, object, "Remade", note).await;
        }
        Done::Created => normal(recorder, object, "Created", format!("made the {kind}")).await,
        Done::Updated(fields) => {
            normal(recorder, object, "Updated", format!("changed {}", fields.join(", "))).await;
        }
        Done::Repaired(fields) => {
            let note = format!("put right what somebody else had changed: {}", fields.join(", "));
            warning(recorder, object, "DriftRepaired", note).await;
        }
        Done::Nothing | Done::Blocked(_) => {}
    }
}

/// Tells once, when it begins, that something waits for somebody's change.
pub async fn stalled(recorder: &Recorder, object: &ObjectReference, before: &[Condition], verdict: &Verdict) {
    let known = conditions::get(before, STALLED)
        .is_some_and(|stalled| stalled.status == "True" && stalled.reason == verdict.reason.as_str());
    if verdict.phase == Phase::Stalled && !known {
        warning(recorder, object, verdict.reason.as_str(), verdict.message.clone()).await;
    }
}
