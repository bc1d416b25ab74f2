//! EventStream: keeps a JetStream stream as declared.
//!
//! The driver. One reconcile is dereference → validate → plan → apply → status, each a file of its own; deletion is
//! [`delete`].

mod apply;
mod delete;
mod dereference;
mod plan;
mod status;
mod validate;

use std::sync::Arc;

use jetwright_crds::{DeletionPolicy, EventStream};
use kube::{Api, ResourceExt, runtime::controller::Action};

use crate::{
    context::Context,
    identity::Identity,
    jetstream::StreamInfo,
    kubernetes::finalizer,
    outcome::{Category, Failure, Told},
};

pub use dereference::remembered;
pub use validate::effective_storage;

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
            Self::Finalizer(error) | Self::Status(error) => Category::of_kubernetes(error),
        }
    }
}

/// Brings one EventStream's stream to what it declares, and says so in its status.
///
/// # Errors
///
/// When a step fails; the status says so already.
pub async fn reconcile(object: Arc<EventStream>, context: Arc<Context>) -> Result<Action, Error> {
    let identity = Identity::of(&context.cluster_name, object.as_ref());
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &identity.namespace);
    if object.metadata.deletion_timestamp.is_some() {
        return delete::delete(&object, &identity, &context).await.map_err(Error::Delete);
    }
    let wants_finalizer = object.spec.deletion_policy == Some(DeletionPolicy::Delete);
    if finalizer::set(&api, object.as_ref(), wants_finalizer).await.map_err(Error::Finalizer)? {
        // The change wakes the next reconcile.
        return Ok(Action::await_change());
    }

    let result = declare(&object, &identity, &context).await;
    // Told first: what was done is not done again if the status cannot be written.
    status::tell(&object, &result, &context).await;
    let wrote = status::write(&api, &object, &result, &context).await.map_err(Error::Status)?;
    result.map(|told| context.next_look(&told, wrote, None))
}

/// The steps up to the status.
async fn declare(
    object: &EventStream,
    identity: &Identity,
    context: &Context,
) -> Result<Told<StreamInfo>, Error> {
    let mut found = match dereference::dereference(object, context).await.map_err(Error::Dereference)? {
        dereference::Found::Waiting(why) => return Ok(Told::Waiting(why)),
        dereference::Found::Stream(found) => found,
    };
    let desired = match validate::validate(&object.spec, identity) {
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

/// The name of the stream in JetStream that an EventStream declares.
#[must_use]
pub fn stream_name(object: &EventStream) -> String {
    object.spec.stream_name.clone().unwrap_or_else(|| object.name_any())
}
