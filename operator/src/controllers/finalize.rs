//! How a deletion that has to reach JetStream goes on, waits, and is given up in the end.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{conditions::Reason, marks::OWNER};
use kube::{Api, Resource, runtime::controller::Action};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::{
    context::Context,
    jetstream::{
        cache::Cached,
        ownership::Owner,
        reconcile::{self, Finalized},
    },
    kubernetes::{
        finalizer,
        status::{self, ConditionSummary, StatusUpdate, StatusWrite},
    },
    object_state::ObjectKey,
};

/// Delay before a deletion that waits is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(3);

/// How far a deletion is.
#[derive(Debug)]
pub enum Step {
    /// Nothing of the object is left in JetStream.
    Done,
    /// It is tried again: because of an error, or because NATS is away.
    Retry(Option<reconcile::Error>),
    /// It was tried for long enough.
    GiveUp,
    /// Nothing says any more that it is the object's.
    Unmarked,
}

/// When a deletion that waits is tried again.
#[must_use]
pub fn requeue() -> Action {
    Action::requeue(RETRY_DELAY)
}

/// Whether a deletion was tried for long enough: what does not end by then, is not waited for.
#[must_use]
pub fn is_overdue(key: &ObjectKey, context: &Context) -> bool {
    context.states.deleting_for(key) >= context.settings.deletion_timeout
}

/// Deletes a stream or a consumer that is the owner's.
pub async fn delete_asset<A: Cached>(
    asset: &A::Key,
    owner: &Owner,
    object: &ObjectKey,
    context: &Context,
) -> Step {
    let tried = match context.connections.for_namespace(&owner.namespace) {
        Ok(connection) => Some(reconcile::finalize::<A>(&connection.cache, asset, owner).await),
        Err(_) => None,
    };
    match tried {
        Some(Ok(Finalized::Gone | Finalized::NotOurs)) => Step::Done,
        Some(Ok(Finalized::Unmarked)) => Step::Unmarked,
        _ if is_overdue(object, context) => Step::GiveUp,
        Some(Err(error)) => Step::Retry(Some(error)),
        None => Step::Retry(None),
    }
}

/// What a Warning event says of something that could not be deleted.
#[must_use]
pub fn orphaned<A: Cached>(asset: &A::Key, context: &Context) -> String {
    let tried = jetwright_crds::Duration(context.settings.deletion_timeout);
    let asset = A::describe(asset);
    format!(
        "gave up deleting {asset}: NATS was unreachable for {tried}. The {} still exists in NATS",
        A::KIND
    )
}

/// What a Warning event says of something that lost its mark.
#[must_use]
pub fn unmarked<A: Cached>(asset: &A::Key) -> String {
    format!(
        "{} has no {OWNER} in its metadata any more and was not deleted: another tool has taken it. Delete the {} in NATS if nothing \
         needs it",
        A::describe(asset),
        A::KIND
    )
}

/// Removes the finalizer, and what is remembered of the object.
///
/// # Errors
///
/// When Kubernetes refuses.
pub async fn release<K>(api: &Api<K>, object: &K, context: &Context) -> Result<Action, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    finalizer::set(api, object, false).await?;
    context.states.remove(&ObjectKey::of(object));
    Ok(Action::await_change())
}

/// Says in the object's status why it still exists.
///
/// # Errors
///
/// When the status cannot be written.
pub async fn set_deleting_condition<K>(
    api: &Api<K>,
    object: &K,
    reason: Reason,
    message: String,
) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let summary = ConditionSummary::reconciling(reason, message);
    let update = |object: &K| {
        let object_json = json!(object);
        let before = object_json.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status::with_summary_conditions(before.clone(), &summary, object.meta().generation);
        if after == before { StatusUpdate::Unchanged } else { StatusUpdate::Write(after) }
    };
    if let StatusWrite::Written(_) = status::write(api, object, &(), update).await? {
        tracing::info!(reason = reason.as_str(), message = summary.message, "deletion waits");
    }
    Ok(())
}
