//! EventStream: keeps a JetStream stream as declared.
//!
//! One reconcile is inputs → validate → plan → apply → status. [`crate::jetstream::reconcile`] plans and applies.

mod delete;
mod durable;
mod inputs;
mod repartition;
mod reserved;
mod status;
mod validate;

use std::sync::Arc;

use jetwright_crds::EventStream;
use jiff::Timestamp;
use kube::{Api, runtime::controller::Action};

use super::finalize;
use crate::{
    context::Context,
    error::{ErrorClass, ReconcileError},
    jetstream::{
        asset::{Asset as _, Stream},
        connections::Connection,
        data_loss::{self, Consent},
        info::StreamInfo,
        ownership::Owner,
        reconcile::{self, SCALING_INTERVAL, Situation},
    },
    kubernetes::{age, finalizer, status::StatusWrite},
    outcome::{Outcome, Reconciled, Recorded},
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

    fn is_unavailable(&self) -> bool {
        matches!(self, Self::Stream(error) if error.is_unavailable())
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
        return delete::delete(&object, &api, &owner, &context).await;
    }
    if finalizer::set(&api, object.as_ref(), object.spec.deletes()).await.map_err(Error::Finalizer)? {
        // The change wakes the next reconcile.
        return Ok(Action::await_change());
    }
    let result = ensure(&object, owner.clone(), &context).await.map_err(Error::Stream);
    // Recorded first: what was done is not done again if the status cannot be written.
    let report_after = status::record_events(&object, &result, &context);
    let written = status::write(&api, &object, &result, &context).await.map_err(Error::Status)?;
    if written == StatusWrite::Gone
        && object.spec.deletes()
        && result.as_ref().is_ok_and(Outcome::is_creation)
    {
        finalize::withdraw::<Stream>(&object.stream_name(), &owner, &context).await?;
        return Ok(Action::await_change());
    }
    let scaling = status::is_catching_up(&object, &result).then_some(SCALING_INTERVAL);
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
    let work = ensure_on(connection, object, owner, context);
    connection.while_available(&object.stream_name(), work).await
}

async fn ensure_on(
    connection: &Connection,
    object: &EventStream,
    owner: Owner,
    context: &Context,
) -> Result<Outcome<StreamInfo>, reconcile::Error> {
    let grants = match inputs::read(object, &owner, &connection.cache, context).await? {
        Ok(grants) => grants,
        Err(pending) => return Ok(Outcome::Pending(pending)),
    };
    let desired = match validate::validate(object, owner, &grants) {
        Ok(desired) => desired,
        Err(errors) => return Ok(Outcome::Invalid(errors)),
    };
    if status::was_not_current(object) {
        let failed = |source| reconcile::Error::reading::<Stream>(&desired.key, source);
        connection.cache.refresh::<Stream>(&desired.key).await.map_err(failed)?;
    }
    let step = repartition::step(object, desired, &connection.cache, context).await?;
    let desired = &step.desired;
    let consent = Consent::of(object);
    let situation = Situation {
        recorded: &Recorded::of_stream(object),
        age: age(object),
        refusal_ttl: context.settings.resync,
        forbids: &|plan, info| {
            let partitions = || step.forbids(plan, info);
            data_loss::refusal(plan, info, &consent, Timestamp::now()).or_else(partitions)
        },
    };
    let gate = context.write_gate(object, Stream::KIND);
    let mut outcome = reconcile::ensure(&connection.cache, desired, situation, &gate).await?;
    if let Outcome::Reconciled(Reconciled { info: Some(info), .. }) = &mut outcome {
        connection.cache.mark_missed(info);
    }
    step.tell(&mut outcome);
    Ok(outcome)
}
