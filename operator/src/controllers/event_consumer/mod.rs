//! EventConsumer: keeps a durable JetStream consumer as declared, the EventStream of its dead letters, and the pods that consume.
//!
//! One reconcile is inputs → validate → plan → apply → status. The three parts end in one status, and none waits for another: pods wait for
//! a missing consumer by themselves, and a NATS that is away does not hold up a rollout.

mod clash;
mod dead_letter;
mod delete;
mod division;
mod inputs;
mod per_key;
mod physical;
mod search;
mod status;
mod validate;
mod work_queue;
mod workload;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use jetwright_crds::{EventConsumer, EventStream, conditions::Reason, names::partition_consumer};
use kube::{Api, ResourceExt as _, runtime::controller::Action};

use self::{
    inputs::{Inputs, Source},
    physical::Physical,
    work_queue::WorkQueue,
};
use super::{declarations, finalize};
use crate::{
    context::Context,
    error::{ErrorClass, ReconcileError},
    field_error::join,
    jetstream::{
        asset::{Asset as _, Consumer, ConsumerKey, Desired, Stream},
        connections::Connection,
        info::{ConsumerInfo, StreamInfo},
        ownership::{Owner, Ownership},
        partitions,
        reconcile::{self, Situation},
    },
    kubernetes::{
        apply::{self, Applier},
        finalizer,
        status::{ConditionSummary, StatusWrite},
        stores::name_of,
    },
    outcome::{CreationTime as _, OperationResult, Outcome, Pending, Reconciled, Recorded},
    partitions::{
        declared::{is_scaled_to_zero, workload_of},
        published::{View, view},
    },
};

/// How soon an object asks again for partitions that its stream does not have.
const STREAM_RETRY: Duration = Duration::from_secs(5);
/// Consumers of one object that are looked at at once.
const MAX_CONCURRENT_PARTITIONS: usize = 16;

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
        sharing: sharing(&object, &context),
    };
    // Recorded first: what was done is not done again if the status cannot be written.
    let report_after = status::record_events(&object, &results, &context);
    let written = status::write(&api, &object, &results, &context).await.map_err(Error::Status)?;
    let creates = results.consumer.as_ref().is_ok_and(Outcome::is_creation);
    if written == StatusWrite::Gone && object.spec.deletes() && creates {
        for key in inputs.stream.iter().flat_map(|stream| declarations::keys_on(&object, stream)) {
            finalize::withdraw::<Consumer>(&key, &owner, &context).await?;
        }
        return Ok(Action::await_change());
    }
    let workload_after = results.workload?.and_then(|workload| workload.requeue_after);
    results.dead_letters?;
    let requeue_after = workload_after.into_iter().chain(report_after).min();
    results.consumer.map(|outcome| context.requeue(&outcome, written, requeue_after))
}

/// How the partitions of an object's consumer are shared out, as far as this process knows.
fn sharing(object: &EventConsumer, context: &Context) -> Option<View> {
    let known = context.partitions.tell(&name_of(object))?;
    let namespace = object.namespace().unwrap_or_default();
    let workload = workload_of(object).map(|workload| (namespace, workload));
    let is_scaled_to_zero = workload.is_some_and(|workload| is_scaled_to_zero(context, &workload));
    Some(view(&known, is_scaled_to_zero))
}

async fn ensure_consumer(
    object: &EventConsumer,
    owner: &Owner,
    inputs: &Inputs,
    context: &Context,
) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
    let reference = &object.spec.stream_ref.name;
    let Some(source) = inputs.source() else {
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
    let work = ensure_on_stream(object, owner, (source, connection), context);
    connection.while_available(&source.stream.stream_name(), work).await
}

async fn ensure_on_stream(
    object: &EventConsumer,
    owner: &Owner,
    (source, connection): (Source<'_>, &Connection),
    context: &Context,
) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
    let stream = source.stream;
    let Some(there) = own_stream(stream, connection, context).await? else {
        return Ok(Outcome::Pending(waiting_for(stream, "its stream does not exist yet")));
    };
    let consumers = match validate::validate(object, owner, source, None) {
        Ok(validated) => validated.consumers,
        Err(errors) => return Ok(Outcome::Invalid(errors)),
    };
    if stream.spec.partitions.is_none() && partitions::count(&there.config).is_some() {
        return Ok(Outcome::Pending(other_partitions(stream)));
    }
    let work = Work { object, owner, source, connection, there: &there, context };
    if object.spec.is_per_key() {
        return per_key::ensure(&work).await;
    }
    if let Some(found) = work.of_other_order().await? {
        let result = OperationResult::Blocked(physical::of_other_order(object, &found));
        return Ok(Outcome::Reconciled(Reconciled::new(result, None, &Recorded::default())));
    }
    work.ensure_all(consumers).await
}

/// What the consumers of an object are brought about with.
struct Work<'a> {
    object: &'a EventConsumer,
    owner: &'a Owner,
    source: Source<'a>,
    connection: &'a Connection,
    /// The stream as JetStream has it.
    there: &'a StreamInfo,
    context: &'a Context,
}

impl Work<'_> {
    async fn ensure_all(
        &self,
        desired: Vec<(Physical, Desired<Consumer>)>,
    ) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
        let ensured = desired.into_iter().map(|(consumer, desired)| {
            let ensuring = async move {
                let outcome = self.ensure_one((&consumer, &desired)).await?;
                Ok((consumer, outcome))
            };
            ensuring.boxed()
        });
        Ok(physical::combined(self.object, all(ensured.collect()).await?))
    }

    async fn ensure_one(
        &self,
        consumer: (&Physical, &Desired<Consumer>),
    ) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
        let stream = (self.source.stream, self.connection);
        ensure_physical(self.object, consumer, stream, self.context).await
    }

    async fn of_other_order(&self) -> Result<Option<String>, reconcile::Error> {
        of_other_order(self.object, self.owner, (self.source.stream, self.connection)).await
    }
}

/// Does something for each of many consumers, for some of them at once. All are tried: what is in the way of one is not in the way of the
/// others.
async fn all<T>(work: Vec<BoxFuture<'_, Result<T, reconcile::Error>>>) -> Result<Vec<T>, reconcile::Error> {
    let results: Vec<_> = stream::iter(work).buffered(MAX_CONCURRENT_PARTITIONS).collect().await;
    let (mut done, mut errors, count) = (Vec::new(), Vec::new(), results.len());
    for result in results {
        match result {
            Ok(one) => done.push(one),
            Err(error) => errors.push(error),
        }
    }
    reconcile::Error::together(errors, count).map_or(Ok(done), Err)
}

/// Brings one consumer of an object to what it is to be.
async fn ensure_physical(
    object: &EventConsumer,
    (consumer, desired): (&Physical, &Desired<Consumer>),
    (stream, connection): (&EventStream, &Connection),
    context: &Context,
) -> Result<Outcome<ConsumerInfo>, reconcile::Error> {
    let consumers = context.scopes.of(&desired.owner.namespace).map(|scope| &scope.event_consumers);
    let queue = match consumers {
        Some(consumers) => WorkQueue::of(object, consumer, (stream, consumers), &connection.cache).await?,
        None => None,
    };
    // The status describes all partitions as one.
    let recorded = match consumer.partition {
        None => Recorded::of_consumer(object),
        Some(_) => Recorded::default(),
    };
    let situation = Situation {
        recorded: &recorded,
        age: Duration::ZERO,
        refusal_ttl: context.settings.resync,
        forbids: &|plan, _| queue.as_ref()?.forbids(plan),
    };
    let gate = context.write_gate(object, Consumer::KIND).of_partition(consumer.partition);
    reconcile::ensure(&connection.cache, desired, situation, &gate).await
}

/// The name of a consumer that was made for the object while it declared the other order. A status may be lost with which the API server
/// would have refused the change; on a stream without partitions there is but one order.
async fn of_other_order(
    object: &EventConsumer,
    owner: &Owner,
    (stream, connection): (&EventStream, &Connection),
) -> Result<Option<String>, reconcile::Error> {
    if stream.spec.partitions.is_none() {
        return Ok(None);
    }
    let logical = object.consumer_name();
    let name = if object.spec.is_per_key() { logical } else { partition_consumer(&logical, 0) };
    let key = ConsumerKey { stream: stream.stream_name(), name };
    let failed = |source| reconcile::Error::reading::<Consumer>(&key, source);
    let entry = connection.cache.lock::<Consumer>(&key).await.map_err(failed)?;
    let Some(info) = entry.present() else { return Ok(None) };
    let ownership = owner.ownership(&info.config, info.created(), entry.history());
    Ok(matches!(ownership, Ownership::Ours(_)).then_some(key.name))
}

fn other_partitions(stream: &EventStream) -> Pending {
    let pending = waiting_for(stream, "its stream has other partitions than it declares");
    // They may come back without a change of its conditions.
    Pending { requeue_after: Some(STREAM_RETRY), ..pending }
}

fn waiting_for(stream: &EventStream, what: &str) -> Pending {
    Pending {
        reason: Reason::StreamNotReady,
        message: format!("waiting for EventStream {}: {what} (see its conditions)", stream.name_any()),
        stalled: false,
        requeue_after: None,
    }
}

/// The EventStream's stream, if it exists and is its own: a consumer on a stream that the EventStream merely names would read what belongs
/// to others.
async fn own_stream(
    object: &EventStream,
    connection: &Connection,
    context: &Context,
) -> Result<Option<StreamInfo>, reconcile::Error> {
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let name = object.stream_name();
    let failed = |source| reconcile::Error::reading::<Stream>(&name, source);
    let entry = connection.cache.lock::<Stream>(&name).await.map_err(failed)?;
    let Some(info) = entry.present() else { return Ok(None) };
    let owner = Owner::new(&context.cluster, object);
    let ownership = owner.ownership(&info.config, info.created(), entry.history());
    Ok(matches!(ownership, Ownership::Ours(_)).then_some(info))
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
