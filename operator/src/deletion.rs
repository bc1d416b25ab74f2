//! How deletions that have to reach JetStream go on, wait, and are given up in the end.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::conditions::Reason;
use kube::{Api, Resource, runtime::controller::Action};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    context::Context,
    jetstream::ApiError,
    kubernetes::status::{self, Next, Verdict, Wrote},
    memory::Key,
};

/// Delay before a deletion that waits is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

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

/// Whether a deletion was tried for long enough: what does not end by then, is not waited for.
#[must_use]
pub fn is_overdue(key: Key, context: &Context) -> bool {
    context.deletions.tried_for(key) >= context.settings.deletion_timeout
}

/// What follows from a try; None stands for a NATS that is away.
#[must_use]
pub fn judge(key: Key, tried: Option<Result<(), ApiError>>, context: &Context) -> Progress {
    match tried {
        Some(Ok(())) => Progress::Done,
        _ if is_overdue(key, context) => Progress::GiveUp,
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
    let next = |object: &K| {
        let object_json = json!(object);
        let before = object_json.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status::concluded(before.clone(), &verdict, object.meta().generation);
        if after == before { Next::Same } else { Next::Write(after) }
    };
    if status::write(api, object, &(), next).await? == Wrote::Now {
        tracing::info!(reason = reason.as_str(), message = verdict.message, "the deletion waits");
    }
    Ok(())
}
