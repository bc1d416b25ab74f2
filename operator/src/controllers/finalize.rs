//! How a deletion that has to reach JetStream goes on, waits, and is given up in the end.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{conditions::Reason, marks::OWNER};
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt as _, runtime::controller::Action};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::{
    context::Context,
    deletion::{Clock, Deletion},
    error::error_chain,
    jetstream::{
        asset::Asset,
        cache::Cached,
        connections::Connection,
        finalize::{self, Finalized},
        ownership::Owner,
        reconcile,
    },
    kubernetes::{finalizer, status::ConditionSummary},
    object_state::ObjectKey,
};

/// Longest delay before a deletion that waits is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(3);
/// Time that JetStream has for a deletion which is nearly given up.
const MIN_TRY: Duration = Duration::from_secs(1);

/// What the deletion of a stream or consumer comes to.
#[derive(Debug)]
pub enum Step {
    /// Nothing of the object is left in JetStream.
    Done,
    Wait(Wait),
    /// It stays behind: what an event says of it.
    Left(String),
}

/// A deletion that goes on later.
#[derive(Debug)]
pub struct Wait {
    /// What it waits for, and since when.
    pub summary: ConditionSummary,
    /// When it is given up.
    pub left: Duration,
    /// Why the last try failed, where it did.
    pub error: Option<reconcile::Error>,
}

impl Wait {
    /// A deletion that waits for something that ends by itself.
    #[must_use]
    pub fn for_end(message: String, left: Duration) -> Self {
        Self { summary: ConditionSummary::reconciling(Reason::Deleting, message), left, error: None }
    }

    /// A deletion that waits for as long as other objects are there.
    #[must_use]
    pub fn without_end(summary: ConditionSummary) -> Self {
        Self { summary, left: Duration::MAX, error: None }
    }

    /// When it is tried again.
    #[must_use]
    pub fn requeue(&self) -> Action {
        Action::requeue(self.left.min(RETRY_DELAY))
    }
}

/// Deletes what a reconcile created for an object that went meanwhile without a deletion: an API server that is told to delete an object
/// while it gets its finalizer may lose that (`Store.Delete` in registry/generic/registry/store.go of Kubernetes looks at finalizers once, and
/// tries again where the object changed). What was there before is left alone.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn withdraw<A: Cached>(
    asset: &A::Key,
    owner: &Owner,
    context: &Context,
) -> Result<(), reconcile::Error> {
    if let Ok(connection) = context.connections.for_namespace(&owner.namespace) {
        tracing::info!(asset = A::describe(asset), "deleting what was created for an object that is gone");
        finalize::finalize::<A>(&connection.cache, asset, owner).await?;
    }
    Ok(())
}

/// What a deletion asks of JetStream, and did not get.
pub struct Unfinished {
    /// How it goes on; without time left it is given up.
    pub wait: Wait,
    pub why: String,
}

/// Asks JetStream for something that a deletion needs, for at most the deletion timeout from the first try of this process. `what` is what is
/// being deleted.
///
/// # Errors
///
/// When there is no answer, or not the one that is needed.
pub async fn attempt<T>(
    what: &str,
    (owner, object): (&Owner, &ObjectKey),
    context: &Context,
    work: impl AsyncFnOnce(&Connection) -> Result<T, reconcile::Error>,
) -> Result<T, Unfinished> {
    let bound = context.settings.deletion_timeout;
    let clock = context.states.deletion(object, &owner.uid, |deletion| deletion.of_nats(bound));
    let (summary, why, error) = match context.connections.for_namespace(&owner.namespace) {
        Ok(connection) => match timeout(clock.left_of(bound).max(MIN_TRY), work(connection)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => (ConditionSummary::failed(&error), error_chain(&error), Some(error)),
            Err(_) => {
                let why = "JetStream does not answer".to_owned();
                (ConditionSummary::reconciling(Reason::Deleting, &why), why, None)
            }
        },
        Err(away) => {
            let summary = ConditionSummary::reconciling(Reason::Deleting, &away.message);
            (summary, away.message, None)
        }
    };
    let message = format!("{}; {}", tried_since(what, clock, bound), summary.message);
    let left = clock.left_of(bound);
    Err(Unfinished { wait: Wait { summary: ConditionSummary { message, ..summary }, left, error }, why })
}

/// Deletes a stream or a consumer that is the owner's, for at most the deletion timeout from the first try of this process.
pub async fn delete_asset<A: Cached>(
    asset: &A::Key,
    owner: &Owner,
    object: &ObjectKey,
    context: &Context,
) -> Step {
    let finalize =
        async |connection: &Connection| finalize::finalize::<A>(&connection.cache, asset, owner).await;
    match attempt(&A::describe(asset), (owner, object), context, finalize).await {
        Ok(finalized) => step::<A>(finalized, asset, owner),
        Err(Unfinished { wait, why }) if wait.left.is_zero() => {
            Step::Left(orphaned::<A>(asset, context.settings.deletion_timeout, &why))
        }
        Err(Unfinished { wait, .. }) => Step::Wait(wait),
    }
}

fn step<A: Asset>(finalized: Finalized, asset: &A::Key, owner: &Owner) -> Step {
    match finalized {
        Finalized::Gone | Finalized::NotOurs => Step::Done,
        Finalized::Settling(left) => Step::Wait(Wait::for_end(settling::<A>(asset), left)),
        Finalized::Unmarked => Step::Left(unmarked::<A>(asset)),
        Finalized::Newer(applied) => Step::Left(newer::<A>(asset, applied, owner)),
        Finalized::Elsewhere(other) => Step::Left(renamed::<A>(asset, &other)),
    }
}

fn tried_since(asset: &str, clock: Clock, bound: Duration) -> String {
    let end = clock.since.saturating_add(bound).unwrap_or(Timestamp::MAX);
    format!("trying to delete {asset} since {:.0}, until {end:.0} at the latest", clock.since)
}

fn orphaned<A: Asset>(asset: &A::Key, tried: Duration, why: &str) -> String {
    let tried = jetwright_crds::Duration(tried);
    format!(
        "gave up deleting {} after {tried}: {why}. Delete the {} in NATS if it is still there and nothing needs it",
        A::describe(asset),
        A::KIND
    )
}

fn unmarked<A: Asset>(asset: &A::Key) -> String {
    format!(
        "{} has no {OWNER} in its metadata any more and was not deleted: another tool has taken it. Delete the {} in NATS if nothing \
         needs it",
        A::describe(asset),
        A::KIND
    )
}

fn settling<A: Asset>(asset: &A::Key) -> String {
    format!(
        "{} does not exist, but JetStream has not answered every request about it, and may make it yet: waiting a moment",
        A::describe(asset)
    )
}

fn newer<A: Asset>(asset: &A::Key, applied: i64, owner: &Owner) -> String {
    format!(
        "{} was last applied at generation {applied}, but this object was at generation {}, and it was not deleted. Delete the {} in NATS \
         if nothing needs it",
        A::describe(asset),
        owner.generation,
        A::KIND
    )
}

fn renamed<A: Asset>(asset: &A::Key, other: &str) -> String {
    let kind = A::KIND;
    format!(
        "{kind} {other} was created for this object, which named {} in the end, and was not deleted. Delete the {kind} in NATS if nothing \
         needs it",
        A::name(asset)
    )
}

/// Whether nothing holds the object any more, which its watch has not said yet.
#[must_use]
pub fn is_released(owner: &Owner, object: &ObjectKey, context: &Context) -> bool {
    context.states.deletion(object, &owner.uid, |deletion| deletion.is_released())
}

/// Reports once that something of this kind is left behind.
pub fn report_orphan<K: Resource<DynamicType = ()>>(
    object: &K,
    owner: &Owner,
    kind: &'static str,
    note: &str,
    context: &Context,
) {
    let first = |deletion: &mut Deletion| deletion.first_report(note);
    if context.states.deletion(&ObjectKey::of(object), &owner.uid, first) {
        context.events.orphaned(&object.object_ref(&()), kind, note);
    }
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
    context.states.released(&ObjectKey::of(object), &object.uid().unwrap_or_default());
    Ok(Action::await_change())
}
