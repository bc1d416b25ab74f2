//! Runs the controllers: what surrounds a reconcile, and when it is tried again. [`triggers`] says what wakes one, and each kind has a folder
//! with its pipeline.

mod declarations;
mod event_consumer;
mod event_stream;
mod finalize;
mod follow;
mod queue;
mod report;
mod triggers;

use std::{convert::Infallible, error::Error as StdError, future::Future, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future, stream};
use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Resource, ResourceExt,
    core::error_boundary::InvalidObject,
    runtime::{
        controller::{self, Action, applier},
        reflector::{ObjectRef, Store},
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use self::declarations::Declared;
use self::{follow::Queues, queue::Waiting, report::report_summary};
use crate::{
    context::Context,
    error::{ErrorClass, ReconcileError, error_chain},
    jetstream::asset::Stream,
    kubernetes::{
        invalid_object,
        kinds::Kind,
        reduced::{self, Reduced},
        scopes::Scope,
        status::{ConditionSummary, resource_version},
        stores::{Name, name_of},
        watched::Watched,
    },
    object_state::ObjectKey,
};

/// Longest time that one reconcile may take: the Kubernetes client alone would try for many minutes.
const RECONCILE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long Kubernetes may take to write that it took longer.
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay before an object is reconciled whose watch has not brought what was written last.
const STALE_DELAY: Duration = Duration::from_millis(100);

/// Runs every controller until `stop`, with at most `concurrency` reconciles of each at once.
pub async fn run(context: &Arc<Context>, concurrency: u16, stop: &CancellationToken) {
    let scopes = context.scopes.all().map(|scope| run_scope(scope, context, concurrency, stop));
    future::join_all(scopes).await;
}

async fn run_scope(scope: &Arc<Scope>, context: &Arc<Context>, concurrency: u16, stop: &CancellationToken) {
    let (streams, stream_queue, waiting_streams) = queue::queue("stream", &context.metrics);
    let (consumers, consumer_queue, waiting_consumers) = queue::queue("consumer", &context.metrics);
    // The queues end with it, and the controllers when they have done what they began.
    let following = stop.run_until_cancelled(follow::follow(scope, context, Queues { streams, consumers }));
    let run = Run { context, concurrency };
    let streams = run.controller(
        ("stream", scope.event_streams.reader()),
        (stream_queue, waiting_streams),
        event_stream::reconcile,
        seen_of_stream,
    );
    let consumers = run.controller(
        ("consumer", scope.event_consumers.reader()),
        (consumer_queue, waiting_consumers),
        event_consumer::reconcile,
        seen_of_consumer,
    );
    future::join3(following, streams, consumers).await;
}

/// What an object's stream was seen to be.
fn seen_of_stream(object: &EventStream, context: &Context) -> Option<u64> {
    let namespace = object.namespace().unwrap_or_default();
    context.connections.for_namespace(&namespace).ok()?.cache.seen::<Stream>(&object.stream_name())
}

/// What an object's consumers were seen to be.
fn seen_of_consumer(object: &EventConsumer, context: &Context) -> Option<u64> {
    let namespace = object.namespace().unwrap_or_default();
    let connection = context.connections.for_namespace(&namespace).ok()?;
    declarations::seen(object, context.scopes.of(&namespace)?, &connection.cache)
}

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileFailure {
    #[error("{}", error_chain(source.as_ref()))]
    Failed { class: ErrorClass, source: Box<dyn StdError + Send + Sync> },
    #[error("the reconcile took longer than {RECONCILE_TIMEOUT:?}")]
    TimedOut,
}

impl ReconcileFailure {
    fn of(error: impl ReconcileError) -> Self {
        Self::Failed { class: error.class(), source: Box::new(error) }
    }

    fn of_kubernetes(error: kube::Error) -> Self {
        Self::Failed { class: ErrorClass::of_kubernetes(&error), source: Box::new(error) }
    }

    fn class(&self) -> ErrorClass {
        match self {
            Self::Failed { class, .. } => *class,
            Self::TimedOut => ErrorClass::Transient,
        }
    }
}

/// What all controllers have in common.
struct Run<'a> {
    context: &'a Arc<Context>,
    concurrency: u16,
}

impl Run<'_> {
    /// Reconciles the objects of a kind whose names are queued, until the queue ends.
    async fn controller<K, F, E>(
        &self,
        (name, objects): (&'static str, Store<Watched<K>>),
        (queue, waiting): (mpsc::Receiver<Name>, Waiting),
        reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
        seen: fn(&K, &Context) -> Option<u64>,
    ) where
        K: Kind + Reduced + Send + Sync + 'static,
        F: Future<Output = Result<Action, E>> + Send + 'static,
        E: ReconcileError,
    {
        let queue = stream::unfold(queue, |mut queue| async move {
            let (namespace, name) = queue.recv().await?;
            Some((Ok::<_, Infallible>(ObjectRef::new(&name).within(&namespace)), queue))
        });
        let config = controller::Config::default().concurrency(self.concurrency);
        let error_policy =
            move |object: Arc<Watched<K>>, failure: &ReconcileFailure, context: Arc<Context>| {
                error_policy(&object, failure, &context, seen)
            };
        let begun = waiting.clone();
        let reconcile = move |object: Arc<Watched<K>>, context: Arc<Context>| {
            begun.ended(&name_of(object.as_ref()));
            instrument(name, object, context, reconcile.clone()).boxed()
        };
        applier(reconcile, error_policy, self.context.clone(), objects, queue, config)
            .for_each(|result| log_result(name, result, &waiting))
            .await;
    }
}

/// Puts what every reconcile needs around it: a span, a deadline, metrics, and an answer for objects that cannot be read.
async fn instrument<K, F, E>(
    controller: &'static str,
    object: Arc<Watched<K>>,
    context: Arc<Context>,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, ReconcileFailure>
where
    K: Kind + Reduced,
    F: Future<Output = Result<Action, E>>,
    E: ReconcileError,
{
    let span = tracing::info_span!(
        "reconcile",
        controller,
        namespace = object.namespace(),
        name = object.name_any(),
        generation = object.meta().generation,
    );
    let work = async {
        if context.states.is_stale(&key(&object), resource_version(object.as_ref())) {
            return Ok(Action::requeue(STALE_DELAY));
        }
        let _running = context.running.token();
        let started = Instant::now();
        let result = run_once(&object, &context, reconcile).await;
        let outcome = result.as_ref().map_or_else(|failure| failure.class().into(), |_| "ok");
        context.metrics.reconciled(controller, outcome, started.elapsed());
        match &result {
            Ok(_) => context.states.succeeded(&key(&object)),
            Err(failure) if failure.class() == ErrorClass::Conflict => {
                tracing::info!(error = %failure, "reconcile conflicted with another writer; trying again");
            }
            Err(failure) => tracing::warn!(error = %failure, outcome, "reconcile failed"),
        }
        result
    };
    work.instrument(span).await
}

/// One reconcile, bounded, or what is said of an object that cannot be read.
async fn run_once<K, F, E>(
    object: &Watched<K>,
    context: &Arc<Context>,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
) -> Result<Action, ReconcileFailure>
where
    K: Kind + Reduced,
    F: Future<Output = Result<Action, E>>,
    E: ReconcileError,
{
    let readable = match object {
        Watched::Valid(object) => object.clone(),
        Watched::Invalid(invalid) => {
            let Some(deleted) = deleted(invalid, context).await? else {
                let reported = invalid_object::report::<K>(invalid, &context.client, &context.events);
                return reported.await.map_err(ReconcileFailure::of_kubernetes);
            };
            Arc::new(deleted)
        }
    };
    let limited = tokio::time::timeout(RECONCILE_TIMEOUT, reconcile(readable.clone(), context.clone()));
    if let Ok(result) = limited.await {
        return result.map_err(ReconcileFailure::of);
    }
    report_timeout(readable.as_ref(), context).await;
    Err(ReconcileFailure::TimedOut)
}

/// What can be read of an object that is being deleted: enough to find what it has in JetStream, whose mark says whether it is its own.
async fn deleted<K>(invalid: &InvalidObject, context: &Context) -> Result<Option<K>, ReconcileFailure>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Reduced,
{
    let ObjectMeta { namespace, name, deletion_timestamp, .. } = &invalid.metadata;
    let (Some(namespace), Some(name), Some(_)) = (namespace, name, deletion_timestamp) else {
        return Ok(None);
    };
    match reduced::get(&context.client, namespace, name).await {
        Err(kube::Error::SerdeError(_)) => Ok(None),
        found => found.map_err(ReconcileFailure::of_kubernetes),
    }
}

/// Says in an object's status that its reconcile took too long, which its pipeline does at its end alone.
async fn report_timeout<K>(object: &K, context: &Context)
where
    K: Kind,
{
    let api = Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let message = format!("{}; it is tried again", ReconcileFailure::TimedOut);
    let summary = ConditionSummary::reconciling(Reason::Failed, message);
    match tokio::time::timeout(STATUS_TIMEOUT, report_summary(&api, object, &summary, context)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(
                error = error_chain(&error),
                "failed to write the status; the next reconcile does"
            );
        }
        Err(_) => {
            tracing::warn!("failed to write the status: Kubernetes does not answer; the next reconcile does");
        }
    }
}

fn error_policy<K>(
    object: &Watched<K>,
    failure: &ReconcileFailure,
    context: &Context,
    seen: fn(&K, &Context) -> Option<u64>,
) -> Action
where
    K: Resource<DynamicType = ()> + Clone,
{
    let seen = object.valid().and_then(|object| seen(object, context));
    Action::requeue(context.states.failed(&key(object), failure.class(), seen))
}

fn key<K: Resource<DynamicType = ()> + Clone>(object: &Watched<K>) -> ObjectKey {
    ObjectKey::new::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// Logs what the queue complains of; failures of reconciles were logged where they ended.
fn log_result<K: Resource<DynamicType = ()>>(
    controller: &'static str,
    result: Result<(ObjectRef<K>, Action), controller::Error<ReconcileFailure, Infallible>>,
    waiting: &Waiting,
) -> future::Ready<()> {
    match result {
        // An object that went while it waited is no error.
        Err(controller::Error::ObjectNotFound(gone)) => {
            waiting.ended(&(gone.namespace.unwrap_or_default(), gone.name));
        }
        Err(controller::Error::RunnerError(error)) => {
            tracing::error!(controller, %error, "the queue failed");
        }
        Err(_) | Ok(_) => {}
    }
    future::ready(())
}
