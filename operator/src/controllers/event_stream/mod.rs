//! EventStream: keeps a JetStream stream as declared.
//!
//! One reconcile is inputs → validate → plan → apply → status. Its only input is the object; [`crate::jetstream::reconcile`] plans and
//! applies.

mod durable;
mod status;
mod validate;

use std::sync::Arc;

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use kube::{Api, Resource, ResourceExt, runtime::controller::Action};

use super::finalize::{self, Step};
use crate::{
    context::Context,
    error::{ErrorClass, ReconcileError},
    jetstream::{
        asset::{Asset as _, Stream},
        info::StreamInfo,
        ownership::Owner,
        reconcile::{self, SCALING_INTERVAL, Situation},
    },
    kubernetes::{age, finalizer, list, stores::IndexKey},
    object_state::ObjectKey,
    outcome::{Outcome, Recorded},
};

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Stream(#[from] reconcile::Error),
    #[error("failed to list the EventConsumers of namespace {namespace}")]
    Consumers { namespace: String, source: kube::Error },
    #[error("failed to change the finalizer")]
    Finalizer(#[source] kube::Error),
    #[error("failed to remove the finalizer")]
    Release(#[source] kube::Error),
    #[error("failed to write the status")]
    Status(#[source] kube::Error),
}

impl ReconcileError for Error {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Stream(error) => error.class(),
            Self::Consumers { source, .. }
            | Self::Finalizer(source)
            | Self::Release(source)
            | Self::Status(source) => ErrorClass::of_kubernetes(source),
        }
    }
}

/// Brings one EventStream's stream to what it declares, and says so in its status.
///
/// # Errors
///
/// When a step fails; the status says so already.
pub async fn reconcile(object: Arc<EventStream>, context: Arc<Context>) -> Result<Action, Error> {
    let owner = Owner::new(&context.cluster, object.as_ref());
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &owner.namespace);
    if object.metadata.deletion_timestamp.is_some() {
        return delete(&object, &api, &owner, &context).await;
    }
    if finalizer::set(&api, object.as_ref(), object.spec.deletes()).await.map_err(Error::Finalizer)? {
        // The change wakes the next reconcile.
        return Ok(Action::await_change());
    }
    let result = ensure(&object, owner, &context).await.map_err(Error::Stream);
    // Recorded first: what was done is not done again if the status cannot be written.
    let report_after = status::record_events(&object, &result, &context);
    let written = status::write(&api, &object, &result, &context).await.map_err(Error::Status)?;
    let scaling = status::is_scaling(&object, &result).then_some(SCALING_INTERVAL);
    let part = [report_after, scaling].into_iter().flatten().min();
    result.map(|outcome| context.requeue(&outcome, written, part))
}

/// Everything but the status.
async fn ensure(
    object: &EventStream,
    owner: Owner,
    context: &Context,
) -> Result<Outcome<StreamInfo>, reconcile::Error> {
    let connection = match context.connections.for_namespace(&owner.namespace) {
        Ok(connection) => connection,
        Err(pending) => return Ok(Outcome::Pending(pending)),
    };
    let desired = match validate::validate(object, owner) {
        Ok(desired) => desired,
        Err(errors) => return Ok(Outcome::Invalid(errors)),
    };
    if status::was_scaling(object) {
        // No advisory tells that a copy has caught up.
        let failed = |source| reconcile::Error::reading::<Stream>(&desired.key, source);
        connection.cache.refresh::<Stream>(&desired.key).await.map_err(failed)?;
    }
    let situation = Situation {
        recorded: &Recorded::of_stream(object),
        age: age(object),
        refusal_ttl: context.settings.resync,
    };
    let key = ObjectKey::of(object);
    reconcile::ensure(&connection.cache, &desired, situation, |plan| {
        context.throttle_repair(&key, Stream::KIND, plan)
    })
    .await
}

/// Deletes the stream where the policy says so, and removes the finalizer. Bounded: the finalizer goes in the end even if NATS never comes
/// back, so that no namespace is stuck.
async fn delete(
    object: &EventStream,
    api: &Api<EventStream>,
    owner: &Owner,
    context: &Context,
) -> Result<Action, Error> {
    if finalizer::is_set(object) && object.spec.deletes() {
        let waits = |reason, message| async move {
            let told = finalize::set_deleting_condition(api, object, reason, message).await;
            told.map(|()| finalize::requeue()).map_err(Error::Status)
        };
        let users = users(object, owner, context).await?;
        if !users.is_empty() {
            let message =
                format!("EventConsumers still refer to it: {}; delete them first", users.join(", "));
            return waits(Reason::InUse, message).await;
        }
        let stream = object.stream_name();
        match finalize::delete_asset::<Stream>(&stream, owner, &ObjectKey::of(object), context).await {
            Step::Done => {}
            Step::Retry(Some(error)) => return Err(Error::Stream(error)),
            Step::Retry(None) => return waits(Reason::Deleting, "NATS is away".to_owned()).await,
            Step::GiveUp => {
                let note = finalize::orphaned::<Stream>(&stream, context);
                context.events.orphaned(&object.object_ref(&()), Stream::KIND, &note);
            }
            Step::Unmarked => {
                let note = finalize::unmarked::<Stream>(&stream);
                context.events.orphaned(&object.object_ref(&()), Stream::KIND, &note);
            }
        }
    }
    finalize::release(api, object, context).await.map_err(Error::Release)
}

/// Names of the EventConsumers that refer to the object: what they consume is not taken from under them. That there are none is read
/// from the API server, since a store may lag.
async fn users(object: &EventStream, owner: &Owner, context: &Context) -> Result<Vec<String>, Error> {
    let key = IndexKey::Stream((owner.namespace.clone(), owner.name.clone()));
    let scope = context.scopes.of(&owner.namespace);
    let known = scope.map(|scope| scope.event_consumers.names_by(&key)).unwrap_or_default();
    if !known.is_empty() {
        return Ok(known.into_iter().map(|(_, name)| name).collect());
    }
    let consumers: Vec<EventConsumer> = list::readable(&context.client, &owner.namespace)
        .await
        .map_err(|source| Error::Consumers { namespace: owner.namespace.clone(), source })?;
    let name = object.name_any();
    let users = consumers.into_iter().filter(|user| user.spec.stream_ref.name == name);
    Ok(users.map(|user| user.name_any()).collect())
}
