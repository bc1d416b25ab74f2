//! How deletions that have to reach JetStream go on, wait, and are given up in the end.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::conditions::Reason;
use jiff::Timestamp;
use kube::{Api, Resource, runtime::controller::Action};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    context::Context,
    jetstream::ApiError,
    kubernetes::status::{self, Verdict},
};

/// Delay before a deletion that waits is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How far a deletion is.
#[derive(Debug)]
pub enum Progress {
    /// Nothing of the object is left in JetStream.
    Done,
    /// It is to be tried again, because of an error or because NATS is away.
    Later(Option<ApiError>),
    /// It was tried for long enough.
    GiveUp,
}

/// When a deletion that waits is looked at again.
#[must_use]
pub fn look_again() -> Action {
    Action::requeue(LOOK_AGAIN)
}

/// What follows from a try; None stands for a NATS that is away.
pub fn judge<K: Resource>(object: &K, tried: Option<Result<(), ApiError>>, context: &Context) -> Progress {
    let since = object.meta().deletion_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    let spent = Timestamp::now().duration_since(since).unsigned_abs();
    match tried {
        Some(Ok(())) => Progress::Done,
        _ if spent >= context.settings.deletion_timeout => Progress::GiveUp,
        Some(Err(error)) => Progress::Later(Some(error)),
        None => Progress::Later(None),
    }
}

/// Says in the object's status why it is still there.
///
/// # Errors
///
/// When the status cannot be written.
pub async fn tell<K>(api: &Api<K>, object: &K, reason: Reason, message: String) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let verdict = Verdict::reconciling(reason, message);
    tracing::info!(reason = reason.as_str(), message = verdict.message, "the deletion waits");
    let next = |object: &K| {
        let before = serde_json::to_value(object).ok()?.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status::concluded(before.clone(), &verdict, object.meta().generation);
        (after != before).then_some(after)
    };
    status::write(api, object, &(), next).await.map(drop)
}
