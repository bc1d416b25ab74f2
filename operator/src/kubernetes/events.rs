//! Kubernetes events: what `kubectl describe` shows of what the operator did. Writes to Kubernetes.

use jetwright_crds::conditions::{self, STALLED};
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::runtime::events::{Event, EventType, Recorder};

use super::status::{ConditionSummary, Progress};
use crate::outcome::{OperationResult, Reconciled};

/// Longest note that Kubernetes takes.
const MAX_NOTE_LENGTH: usize = 1024;

/// Reports something that the operator did.
pub async fn normal(recorder: &Recorder, object: &ObjectReference, reason: &str, note: String) {
    publish(recorder, object, EventType::Normal, reason, note).await;
}

/// Reports something that a user should look at.
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
    tracing::info!(reason, note, "recording an event");
    let note = note.chars().take(MAX_NOTE_LENGTH).collect();
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, object).await {
        tracing::warn!(reason, %error, "failed to write an event");
    }
}

/// Reports what was done in JetStream; `lost` is what was lost with a thing that had to be recreated.
pub async fn reconciled<I>(
    recorder: &Recorder,
    object: &ObjectReference,
    kind: &str,
    reconciled: &Reconciled<I>,
    lost: &str,
) {
    match &reconciled.result {
        _ if reconciled.recreated => {
            let note = format!("the {kind} was gone and was recreated: {lost}");
            warning(recorder, object, "Recreated", note).await;
        }
        OperationResult::Created => normal(recorder, object, "Created", format!("created the {kind}")).await,
        OperationResult::Updated(fields) => {
            normal(recorder, object, "Updated", format!("updated {}", fields.join(", "))).await;
        }
        OperationResult::Corrected(fields) => {
            let note = format!("corrected what another writer had changed: {}", fields.join(", "));
            warning(recorder, object, "DriftRepaired", note).await;
        }
        OperationResult::Unchanged | OperationResult::Blocked(_) => {}
    }
}

/// Reports once, when it begins, that something waits for a change by a user.
pub async fn stalled(
    recorder: &Recorder,
    object: &ObjectReference,
    before: &[Condition],
    summary: &ConditionSummary,
) {
    let known = conditions::get(before, STALLED)
        .is_some_and(|stalled| stalled.status == "True" && stalled.reason == summary.reason.as_str());
    if summary.progress == Progress::Stalled && !known {
        warning(recorder, object, summary.reason.as_str(), summary.message.clone()).await;
    }
}
