//! EventConsumer: keeps a durable JetStream consumer as declared, the EventStream of its dead letters, and the pods that consume.
//!
//! One reconcile is inputs → validate → plan → apply → status. The three parts end in one status, and none waits for another: pods wait for
//! a missing consumer by themselves, and a NATS that is away does not hold up a rollout.

mod dead_letter;
mod delete;
mod inputs;
mod status;
mod validate;
mod work_queue;
mod workload;

use std::{sync::Arc, time::Duration};

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use kube::{Api, ResourceExt as _, runtime::controller::Action};

use self::{inputs::Inputs, work_queue::WorkQueue};
use super::finalize;
use crate::{
    context::Context,
    error::{ErrorClass, ReconcileError},
    field_error::join,
    jetstream::{
        asset::{Asset as _, Consumer, ConsumerKey, Stream},
        connections::Connection,
        info::ConsumerInfo,
        ownership::{Owner, Ownership},
        reconcile::{self, Situation},
    },
    kubernetes::{
        apply::{self, Applier},
        finalizer,
        status::{ConditionSummary, StatusWrite},
    },
    outcome::{CreationTime as _, Outcome, Pending, Recorded},
};

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to read what the object refers to")]
    Inputs(#[source] apply::Error),
    #[error(transparent)]
    Consumer(#[from] reconcile::Error),
    #[error("failed to apply the EventStream of the dead letters")]
    DeadLetters(#[source] apply::Error),
    #[error("failed to write the bindings as YAML")]
    Bindings(#[source] serde_saphyr::ser::Error),
    #[error("failed to apply the workload")]
    Workload(#[source] apply::Error),
    #[error("failed to list the pods")]
    Pods(#[source] kube::Error),
    #[error("failed to read the EventStream")]
    EventStream(#[source] kube::Error),
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
            Self::Consumer(error) => error.class(),
            Self::Inputs(error) | Self::DeadLetters(error) | Self::Workload(error) => error.class(),
            Self::Bindings(_) => ErrorClass::Terminal,
            Self::Pods(error)
            | Self::EventStream(error)
            | Self::Finalizer(error)
            | Self::Release(error)
            | Self::Status(error) => ErrorClass::of_kubernetes(error),
        }
    }

    fn is_unavailable(&self) -> bool {
        matches!(self, Self::Consumer(error) if error.is_unavailable())
    }
}

/// Brings one EventConsumer's consumer, dead letters and workload to what it declares, and says so in its status.
///
/// # Errors
///
/// When a step fails; the status says so already.
pub async fn reconcile(object: Arc<EventConsumer>, context: Arc<Context>) -> Result<Action, Error> {
    let owner = Owner::new(&context.cluster, object.as_ref());
    let api: Api<EventConsumer> = Api::namespaced(context.client.clone(), &owner.namespace);
    if object.metadata.deletion_timestamp.is_some() {
        return delete::delete(&object, &api, &owner, &context).await;
    }
    if finalizer::set(&api, object.as_ref(), object.spec.deletes()).await.map_err(Error::Finalizer)? {
        // The change wakes the next reconcile.
        return Ok(Action::await_change());
    }
    let Some(scope) = context.scopes.of(&owner.namespace) else { return Ok(Action::await_change()) };
    let inputs = inputs::read(&object, scope, &context).await.map_err(Error::Inputs)?;
    let applier = Applier::new(&context.applying, &context.states, object.as_ref());
    let results = status::Results {
        consumer: ensure_consumer(&object, &owner, &inputs, &context).await.map_err(Error::Consumer),
        dead_letters: ensure_dead_letters(&object, &inputs, &applier).await,
        workload: workload::ensure(&object, &inputs, &applier, &context).await,
        scaling: status::Scaling::of(&object, &context),
    };
    // Recorded first: what was done is not done again if the status cannot be written.
    let report_after = status::record_events(&object, &results, &context);
    let written = status::write(&api, &object, &results, &context).await.map_err(Error::Status)?;
    let creates = results.consumer.as_ref().is_ok_and(Outcome::is_creation);
    if written == StatusWrite::Gone && object.spec.deletes() && creates {
        if let Some(stream) = &inputs.stream {
            let key = ConsumerKey { stream: stream.stream_name(), name: object.consumer_name() };
            finalize::withdraw::<Consumer>(&key, &owner, &context).await?;
        }
        return Ok(Action::await_change());
    }
    let workload_after = results.workload?.and_then(|workload| workload.requeue_after);
    results.dead_letters?;
    let requeue_after = workload_after.into_iter().chain(report_after).min();
    results.consumer.map(|outcome| context.requeue(&outcome, written, requeue_after))
}

async fn ensure_consumer(
    object: &EventConsumer,
    owner: &Owner,
    inputs: &Inputs,
    context: &Context,
) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
    let reference = &object.spec.stream_ref.name;
    let Some(stream) = &inputs.stream else {
        return Ok(Outcome::Pending(Pending {
            reason: Reason::NotFound,
            message: dead_letter::missing_stream(reference),
            stalled: true,
            requeue_after: None,
        }));
    };
    let connection = match context.connections.for_namespace(&owner.namespace) {
        Ok(connection) => connection,
        Err(pending) => return Ok(Outcome::Pending(pending)),
    };
    let work = ensure_on_stream(object, owner, (stream, connection), context);
    connection.while_available(&stream.stream_name(), work).await
}

async fn ensure_on_stream(
    object: &EventConsumer,
    owner: &Owner,
    (stream, connection): (&EventStream, &Connection),
    context: &Context,
) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
    if !owns_its_stream(stream, connection, context).await? {
        return Ok(Outcome::Pending(Pending {
            reason: Reason::StreamNotReady,
            message: format!(
                "waiting for EventStream {}: its stream does not exist yet (see its conditions)",
                stream.name_any()
            ),
            stalled: false,
            requeue_after: None,
        }));
    }
    let desired = match validate::validate(object, owner.clone(), stream) {
        Ok(validated) => validated.consumer,
        Err(errors) => return Ok(Outcome::Invalid(errors)),
    };
    let consumers = context.scopes.of(&owner.namespace).map(|scope| &scope.event_consumers);
    let queue = match consumers {
        Some(consumers) => WorkQueue::of(object, stream, consumers, &connection.cache).await?,
        None => None,
    };
    let situation = Situation {
        recorded: &Recorded::of_consumer(object),
        age: Duration::ZERO,
        refusal_ttl: context.settings.resync,
        forbids: &|plan, _| queue.as_ref()?.forbids(plan),
    };
    let gate = context.write_gate(object, Consumer::KIND);
    reconcile::ensure(&connection.cache, &desired, situation, &gate).await
}

/// Whether the EventStream's stream exists and is its own: a consumer on a stream that the EventStream merely names would read what
/// belongs to others.
async fn owns_its_stream(
    object: &EventStream,
    connection: &Connection,
    context: &Context,
) -> Result<bool, reconcile::Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let name = object.stream_name();
    let failed = |source| reconcile::Error::reading::<Stream>(&name, source);
    let entry = connection.cache.lock::<Stream>(&name).await.map_err(failed)?;
    let Some(info) = entry.present() else { return Ok(false) };
    let owner = Owner::new(&context.cluster, object);
    let ownership = owner.ownership(&info.config, info.created(), entry.history());
    Ok(matches!(ownership, Ownership::Ours(_)))
}

/// Keeps the EventStream of the dead letters, and says whether they are kept; None where there are none.
async fn ensure_dead_letters(
    object: &EventConsumer,
    inputs: &Inputs,
    applier: &Applier<'_>,
) -> Result<Option<ConditionSummary>, Error> {
    if let Err(error) = validate::dead_letter_max_age(&object.spec) {
        return Ok(Some(ConditionSummary::stalled(Reason::Invalid, join(&[error]))));
    }
    if object.spec.dead_letter_max_age().is_none() {
        return Ok(None);
    }
    let found = inputs.dead_letter_stream.as_ref();
    let (reference, current) = (&object.spec.stream_ref.name, inputs.dead_letter_stream.as_deref());
    match dead_letter::plan(reference, inputs.stream.as_deref(), current) {
        dead_letter::Plan::Blocked(why) => Ok(Some(why)),
        dead_letter::Plan::Apply(desired) => {
            let kept = applier.apply_unowned(desired.as_ref(), found).await.map_err(Error::DeadLetters)?;
            Ok(Some(dead_letter::summarize(&kept)))
        }
    }
}
