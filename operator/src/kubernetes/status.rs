//! Statuses: the conditions that every kind has, and the write.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::conditions::{self, READY, RECONCILING, Reason, STALLED, State};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Resource, ResourceExt,
    api::{PartialObjectMeta, Patch, PatchParams, Request},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::field_manager::FIELD_MANAGER;
use crate::{
    error::{ErrorClass, ReconcileError, error_chain},
    field_error::join,
    outcome::{OperationResult, Outcome, Reconciled},
};

/// Now, in whole seconds as Kubernetes writes times.
#[must_use]
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// What an object's conditions are to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionSummary {
    /// Whether all is as declared; None where nobody knows.
    pub ready: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// Why in words.
    pub message: String,
    /// Whether work goes on, nothing more happens, or neither.
    pub progress: Progress,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing needs to.
    Settled,
    /// Work goes on.
    Reconciling,
    /// Nothing, until a user changes something.
    Stalled,
}

impl ConditionSummary {
    /// All is as declared.
    #[must_use]
    pub fn ready(message: impl Into<String>) -> Self {
        Self {
            ready: Some(true),
            reason: Reason::Reconciled,
            message: message.into(),
            progress: Progress::Settled,
        }
    }

    /// Something waits for a change by a user.
    #[must_use]
    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self { ready: Some(false), reason, message: message.into(), progress: Progress::Stalled }
    }

    /// Work goes on.
    #[must_use]
    pub fn reconciling(reason: Reason, message: impl Into<String>) -> Self {
        Self { ready: Some(false), reason, message: message.into(), progress: Progress::Reconciling }
    }

    /// Work goes on, and nobody knows what there is.
    #[must_use]
    pub fn unknown(reason: Reason, message: impl Into<String>) -> Self {
        Self { ready: None, ..Self::reconciling(reason, message) }
    }

    /// A reconcile failed.
    pub fn failed(error: &impl ReconcileError) -> Self {
        if error.is_unavailable() {
            return Self::unknown(Reason::JetStreamUnavailable, error_chain(error));
        }
        match error.class() {
            ErrorClass::Terminal => Self::stalled(Reason::Refused, error_chain(error)),
            ErrorClass::Conflict | ErrorClass::Transient => {
                Self::reconciling(Reason::Failed, error_chain(error))
            }
        }
    }

    /// The condition by itself, as a part of a larger summary.
    #[must_use]
    pub fn state(&self) -> State {
        State { status: self.ready, reason: self.reason, message: self.message.clone() }
    }
}

/// While it is so, nobody knows what JetStream has.
const AWAY: [Reason; 2] = [Reason::Disconnected, Reason::JetStreamUnavailable];

/// What a reconcile of something in JetStream means for its conditions.
pub fn summarize<I, E: ReconcileError>(result: &Result<Outcome<I>, E>, when_ready: &str) -> ConditionSummary {
    match result {
        Ok(Outcome::Reconciled(Reconciled { result: OperationResult::Blocked(blocked), .. })) => {
            ConditionSummary::stalled(blocked.reason, &blocked.message)
        }
        Ok(Outcome::Reconciled(Reconciled { contested: Some(contested), .. })) => {
            ConditionSummary::reconciling(contested.reason, &contested.message)
        }
        Ok(Outcome::Reconciled(_)) => ConditionSummary::ready(when_ready),
        Ok(Outcome::Invalid(errors)) => ConditionSummary::stalled(Reason::Invalid, join(errors)),
        Ok(Outcome::Pending(pending)) if pending.stalled => {
            ConditionSummary::stalled(pending.reason, &pending.message)
        }
        Ok(Outcome::Pending(pending)) if AWAY.contains(&pending.reason) => {
            ConditionSummary::unknown(pending.reason, &pending.message)
        }
        Ok(Outcome::Pending(pending)) => ConditionSummary::reconciling(pending.reason, &pending.message),
        Err(error) => ConditionSummary::failed(error),
    }
}

/// A time of JetStream's as Kubernetes writes times; anything finer would differ from what is read back.
#[must_use]
pub fn whole_seconds(time: &str) -> Option<Time> {
    let time: Timestamp = time.parse().ok()?;
    Timestamp::from_second(time.as_second()).ok().map(Time)
}

/// Sets Ready, Reconciling and Stalled.
pub fn set_summary_conditions(
    list: &mut Vec<Condition>,
    summary: &ConditionSummary,
    generation: Option<i64>,
    now: &Time,
) {
    conditions::set(list, READY, summary.state(), generation, now);
    for (type_, holds) in [
        (RECONCILING, summary.progress == Progress::Reconciling),
        (STALLED, summary.progress == Progress::Stalled),
    ] {
        // A condition that does not hold says nothing of its own.
        let state = if holds {
            State { status: Some(true), ..summary.state() }
        } else {
            State { status: Some(false), reason: Reason::Reconciled, message: String::new() }
        };
        conditions::set(list, type_, state, generation, now);
    }
}

/// A status of any kind, as JSON, with Ready, Reconciling and Stalled set.
#[must_use]
pub fn with_summary_conditions(
    mut status: Value,
    summary: &ConditionSummary,
    generation: Option<i64>,
) -> Value {
    let known = status.get("conditions").cloned().unwrap_or_else(|| json!([]));
    let mut conditions: Vec<Condition> = serde_json::from_value(known).unwrap_or_default();
    set_summary_conditions(&mut conditions, summary, generation, &now());
    status["conditions"] = json!(conditions);
    status["observedGeneration"] = json!(generation);
    status
}

/// Times that a status is decided again because its object changed meanwhile.
const MAX_TRIES: usize = 4;
/// Pause where an object is written by others all the time.
const BUSY_DELAY: Duration = Duration::from_secs(1);

/// What becomes of a status.
#[derive(Clone, Debug, PartialEq)]
pub enum StatusUpdate<S> {
    Unchanged,
    Write(S),
    /// It changes, but not before this time has passed.
    Defer(Duration),
}

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusWrite {
    /// The object has this resource version since.
    Written(Option<u64>),
    Unchanged,
    /// It has to be written after this time.
    Deferred(Duration),
    /// The object does not exist any more.
    Gone,
}

/// Writes the status that `update` makes of an object, whole. It is decided on the newest object: one that was read from a store may be
/// older than the last write, whose news would get lost.
///
/// # Errors
///
/// When Kubernetes refuses; an object that is gone, or was declared again, is no error: it has a reconcile of its own.
pub async fn write<K, S>(
    api: &Api<K>,
    object: &K,
    kind: &K::DynamicType,
    update: impl Fn(&K) -> StatusUpdate<S>,
) -> Result<StatusWrite, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let mut newest = None;
    for _ in 0..MAX_TRIES {
        let seen = newest.as_ref().unwrap_or(object);
        let status = match update(seen) {
            StatusUpdate::Unchanged => return Ok(StatusWrite::Unchanged),
            StatusUpdate::Defer(delay) => return Ok(StatusWrite::Deferred(delay)),
            StatusUpdate::Write(status) => status,
        };
        match write_once(api, seen, kind, &status).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(StatusWrite::Gone),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            written => return written.map(StatusWrite::Written),
        }
        let Some(found) = api.get_opt(&object.name_any()).await? else { return Ok(StatusWrite::Gone) };
        let (before, now) = (object.meta(), found.meta());
        if now.uid != before.uid || now.generation != before.generation {
            return Ok(StatusWrite::Unchanged);
        }
        newest = Some(found);
    }
    Ok(StatusWrite::Deferred(BUSY_DELAY))
}

async fn write_once<K>(
    api: &Api<K>,
    object: &K,
    kind: &K::DynamicType,
    status: &impl Serialize,
) -> Result<Option<u64>, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let patch = json!({
        "apiVersion": K::api_version(kind), "kind": K::kind(kind),
        "metadata": {
            "name": object.name_any(), "uid": object.uid(), "resourceVersion": object.resource_version(),
        },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    // The answer is read no further than its metadata: the object may be one that cannot be read.
    let mut request = Request::new(api.resource_url())
        .patch_subresource("status", &object.name_any(), &params, &Patch::Apply(patch))
        .map_err(kube::Error::BuildRequest)?;
    request.extensions_mut().insert("patch_status");
    let written: PartialObjectMeta = api.clone().into_client().request(request).await?;
    Ok(written.metadata.resource_version.and_then(|version| version.parse().ok()))
}

/// An object's resource version as a number, by which of two copies the newer is told, as the API server's own clients do.
pub fn resource_version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}
