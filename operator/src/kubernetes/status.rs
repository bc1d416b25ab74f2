//! Statuses: the conditions that every kind has, and the write.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::conditions::{self, READY, RECONCILING, Reason, STALLED, State};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::outcome::{Applied, Category, Done, Failure, Told, chain, listed};

/// Field manager of everything that the operator applies.
pub const FIELD_MANAGER: &str = "jetwright";

/// Now, in whole seconds as Kubernetes writes times.
#[must_use]
pub fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// What an object's conditions are to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether all is as declared; None where nobody knows.
    pub ready: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// Why in words.
    pub message: String,
    /// Whether work goes on, nothing more happens, or neither.
    pub phase: Phase,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing needs to.
    Settled,
    /// Work goes on.
    Reconciling,
    /// Nothing, until somebody changes something.
    Stalled,
}

impl Verdict {
    /// All is as declared.
    #[must_use]
    pub fn ready(message: impl Into<String>) -> Self {
        Self { ready: Some(true), reason: Reason::Reconciled, message: message.into(), phase: Phase::Settled }
    }

    /// Something waits for somebody's change.
    #[must_use]
    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self { ready: Some(false), reason, message: message.into(), phase: Phase::Stalled }
    }

    /// Work goes on.
    #[must_use]
    pub fn reconciling(reason: Reason, message: impl Into<String>) -> Self {
        Self { ready: Some(false), reason, message: message.into(), phase: Phase::Reconciling }
    }

    /// A reconcile failed.
    pub fn failed(error: &impl Failure) -> Self {
        match error.category() {
            Category::Refused => Self::stalled(Reason::Refused, chain(error)),
            Category::Conflict | Category::Retry => Self::reconciling(Reason::Failed, chain(error)),
        }
    }

    /// The condition by itself, as a part of a larger verdict.
    #[must_use]
    pub fn state(&self) -> State {
        State { status: self.ready, reason: self.reason, message: self.message.clone() }
    }
}

/// What a reconcile of something in JetStream means for its conditions.
pub fn verdict<I, E: Failure>(result: &Result<Told<I>, E>, when_ready: &str) -> Verdict {
    match result {
        Ok(Told::Applied(Applied { done: Done::Blocked(blocked), .. })) => {
            Verdict::stalled(blocked.reason, &blocked.message)
        }
        Ok(Told::Applied(_)) => Verdict::ready(when_ready),
        Ok(Told::Invalid(problems)) => Verdict::stalled(Reason::Invalid, listed(problems)),
        Ok(Told::Waiting(waiting)) if waiting.stalled => Verdict::stalled(waiting.reason, &waiting.message),
        Ok(Told::Waiting(waiting)) if waiting.reason == Reason::Disconnected => {
            Verdict { ready: None, ..Verdict::reconciling(waiting.reason, &waiting.message) }
        }
        Ok(Told::Waiting(waiting)) => Verdict::reconciling(waiting.reason, &waiting.message),
        Err(error) => Verdict::failed(error),
    }
}

/// A time of JetStream's as Kubernetes writes times; anything finer would differ from what is read back.
#[must_use]
pub fn whole_seconds(time: &str) -> Option<Time> {
    let time: Timestamp = time.parse().ok()?;
    Timestamp::from_second(time.as_second()).ok().map(Time)
}

/// Sets Ready, Reconciling and Stalled.
pub fn conclude(list: &mut Vec<Condition>, verdict: &Verdict, generation: Option<i64>, now: &Time) {
    conditions::set(list, READY, verdict.state(), generation, now);
    for (type_, holds) in
        [(RECONCILING, verdict.phase == Phase::Reconciling), (STALLED, verdict.phase == Phase::Stalled)]
    {
        // A condition that does not hold says nothing of its own.
        let state = if holds {
            State { status: Some(true), ..verdict.state() }
        } else {
            State { status: Some(false), reason: Reason::Reconciled, message: String::new() }
        };
        conditions::set(list, type_, state, generation, now);
    }
}

/// A status of any kind, as JSON, with Ready, Reconciling and Stalled set.
#[must_use]
pub fn concluded(mut status: Value, verdict: &Verdict, generation: Option<i64>) -> Value {
    let known = status.get("conditions").cloned().unwrap_or_else(|| json!([]));
    let mut conditions: Vec<Condition> = serde_json::from_value(known).unwrap_or_default();
    conclude(&mut conditions, verdict, generation, &now());
    status["conditions"] = json!(conditions);
    status["observedGeneration"] = json!(generation);
    status
}

/// Times that a status is decided anew because its object changed meanwhile.
const TRIES: usize = 4;
/// Pause where an object is written by others all the time.
const BUSY: Duration = Duration::from_secs(1);

/// What is to become of a status.
#[derive(Clone, Debug, PartialEq)]
pub enum Next<S> {
    /// It stays as it is.
    Same,
    /// It is to be this.
    Write(S),
    /// It is to change, but not before this time has passed.
    Later(Duration),
}

/// What became of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// It was written.
    Now,
    /// It stays as it is.
    Nothing,
    /// It is to be written after this time.
    Later(Duration),
}

/// Writes the status that `next` makes of an object, whole. It is decided on the newest object: one that was read from a cache may be
/// older than the last write, whose news would get lost.
///
/// # Errors
///
/// When Kubernetes refuses; an object that is gone, or was declared anew, is no error: it has a reconcile of its own.
pub async fn write<K, S>(
    api: &Api<K>,
    object: &K,
    kind: &K::DynamicType,
    next: impl Fn(&K) -> Next<S>,
) -> Result<Wrote, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    S: Serialize,
{
    let mut newest = None;
    for _ in 0..TRIES {
        let seen = newest.as_ref().unwrap_or(object);
        let status = match next(seen) {
            Next::Same => return Ok(Wrote::Nothing),
            Next::Later(pause) => return Ok(Wrote::Later(pause)),
            Next::Write(status) => status,
        };
        match write_once(api, seen, kind, &status).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Wrote::Nothing),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            written => return written.map(|()| Wrote::Now),
        }
        let Some(found) = api.get_opt(&object.name_any()).await? else { return Ok(Wrote::Nothing) };
        let (before, now) = (object.meta(), found.meta());
        if now.uid != before.uid || now.generation != before.generation {
            return Ok(Wrote::Nothing);
        }
        newest = Some(found);
    }
    Ok(Wrote::Later(BUSY))
}

async fn write_once<K>(
    api: &Api<K>,
    object: &K,
    kind: &K::DynamicType,
    status: &impl Serialize,
) -> Result<(), kube::Error>
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
    api.patch_status(&object.name_any(), &params, &Patch::Apply(patch)).await.map(drop)
}
