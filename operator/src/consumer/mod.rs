//! EventConsumer: keeps a durable JetStream consumer as declared, and the workload that consumes.
//!
//! The driver. The consumer goes through dereference → validate → plan → apply here, its dead letters through the steps of
//! [`crate::deadletter`], the workload through those of [`crate::workload`]; all end in one status. None waits for another: pods wait
//! for a missing consumer by themselves, and a NATS that is away does not hold a rollout up.

mod apply;
mod delete;
mod dereference;
mod plan;
mod status;
pub mod validate;

use std::sync::Arc;

use jetwright_crds::{DeletionPolicy, EventConsumer};
use kube::{Api, ResourceExt, runtime::controller::Action};

use crate::{
    context::Context,
    deadletter,
    identity::Identity,
    jetstream::ConsumerInfo,
    kubernetes::finalizer,
    outcome::{Category, Failure, Told},
    workload,
};

/// Why a reconcile did not come to its end: one variant a step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the object is about could not be looked at.
    #[error(transparent)]
    Dereference(dereference::Error),
    /// What was planned could not be done.
    #[error(transparent)]
    Apply(apply::Error),
    /// What belongs to the object could not be cleaned up.
    #[error(transparent)]
    Delete(delete::Error),
    /// It could not be seen to it that dead letters are kept.
    #[error(transparent)]
    DeadLetters(deadletter::Error),
    /// The workload could not be brought to what is declared.
    #[error(transparent)]
    Workload(workload::Error),
    /// The finalizer could not be set or removed.
    #[error("cannot change the finalizer")]
    Finalizer(#[source] kube::Error),
    /// The status could not be written.
    #[error("cannot write the status")]
    Status(#[source] kube::Error),
}

impl Failure for Error {
    fn category(&self) -> Category {
        match self {
            Self::Dereference(error) => error.category(),
            Self::Apply(error) => error.category(),
            Self::Delete(error) => error.category(),
            Self::DeadLetters(error) => error.category(),
            Self::Workload(error) => error.category(),
            Self::Finalizer(error) | Self::Status(error) => Category::of_kubernetes(error),
        }
    }
}

/// Brings one EventConsumer's consumer, dead letters and workload to what it declares, and says so in its status.
///
/// # Errors
///
/// When a step fails; the status says so already.
pub async fn reconcile(object: Arc<EventConsumer>, context: Arc<Context>) -> Result<Action, Error> {
    let identity = Identity::of(&context.cluster_name, object.as_ref());
    let api: Api<EventConsumer> = Api::namespaced(context.client.clone(), &identity.namespace);
    if object.metadata.deletion_timestamp.is_some() {
        return delete::delete(&object, &identity, &context).await.map_err(Error::Delete);
    }
    if finalizer::set(&api, object.as_ref(), deletes(&object)).await.map_err(Error::Finalizer)? {
        // The change wakes the next reconcile.
        return Ok(Action::await_change());
    }

    let parts = status::Parts {
        consumer: declare(&object, &identity, &context).await,
        dead_letters: deadletter::reconcile(&object, &context).await.map_err(Error::DeadLetters),
        workload: workload::reconcile(&object, &context).await.map_err(Error::Workload),
    };
    // Told first: what was done is not done again if the status cannot be written.
    status::tell(&object, &parts, &context).await;
    let wrote = status::write(&api, &object, &parts, &context).await.map_err(Error::Status)?;
    let again = parts.workload?.and_then(|running| running.again);
    parts.dead_letters?;
    parts.consumer.map(|told| context.next_look(&told, wrote, again))
}

/// The steps of the consumer up to the status.
async fn declare(
    object: &EventConsumer,
    identity: &Identity,
    context: &Context,
) -> Result<Told<ConsumerInfo>, Error> {
    let mut found = match dereference::dereference(object, context).await.map_err(Error::Dereference)? {
        dereference::Found::Waiting(why) => return Ok(Told::Waiting(why)),
        dereference::Found::Consumer(found) => found,
    };
    let desired = match validate::validate(&object.spec, identity, &found.stream) {
        Ok(desired) => desired,
        Err(problems) => return Ok(Told::Invalid(problems)),
    };
    let mut plan = plan::plan(&desired, found.held.present(), &found.remembered);
    if plan.writes() {
        // What is written is decided on what JetStream has now, not on what it had when it was last looked at.
        found.look_again(context).await.map_err(Error::Dereference)?;
        plan = plan::plan(&desired, found.held.present(), &found.remembered);
        if let Some(waiting) = context.contested(status::key(object), &plan) {
            return Ok(Told::Waiting(waiting));
        }
    }
    let applied = apply::apply(plan, found, context).await.map_err(Error::Apply)?;
    Ok(Told::Applied(applied))
}

/// Whether deleting the object deletes the consumer: unless it says otherwise, since a forgotten durable pins messages.
fn deletes(object: &EventConsumer) -> bool {
    object.spec.deletion_policy != Some(DeletionPolicy::Retain)
}

/// The durable name in JetStream that an EventConsumer declares.
#[must_use]
pub fn consumer_name(object: &EventConsumer) -> String {
    object.spec.consumer_name.clone().unwrap_or_else(|| object.name_any())
}
