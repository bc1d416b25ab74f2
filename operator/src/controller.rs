//! Runs the controllers: what wakes a reconcile, what surrounds it, and when it is tried again.
//!
//! A reconcile is woken by its object (not by writes of its status), by the mirror when JetStream has something else than before,
//! by objects that it depends on, and at an interval.

use std::{
    error::Error as StdError,
    fmt::Debug,
    future::Future,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use jetwright_crds::{
    EventConsumer, EventStream,
    conditions::{self, READY},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{
        Controller, Predicate, PredicateConfig, WatchStreamExt, controller,
        controller::Action,
        predicates,
        reflector::{self, ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    consumer,
    context::{Context, Namespaces},
    deadletter::names::{self, LABEL},
    jetstream::Change,
    kubernetes::status,
    memory::Key,
    outcome::{Category, Failure, chain},
    stream as streams, undecodable,
};

/// Longest time that one reconcile may take: the Kubernetes client alone would try for many minutes.
const DEADLINE: Duration = Duration::from_mins(1);

type Guard<K> = DeserializeGuard<K>;

/// Runs every controller until `stop`, with at most `concurrency` reconciles of each at once.
pub async fn run(context: Arc<Context>, namespaces: &Namespaces, concurrency: u16, stop: CancellationToken) {
    let scopes: Vec<Option<String>> = match namespaces {
        Namespaces::All => vec![None],
        Namespaces::Only(names) => names.iter().cloned().map(Some).collect(),
    };
    let controllers = scopes.into_iter().map(|namespace| {
        let scope = Scope { client: context.client.clone(), namespace, concurrency, stop: stop.clone() };
        let context = context.clone();
        async move { future::join(run_streams(&scope, context.clone()), run_consumers(&scope, context)).await }
    });
    future::join_all(controllers).await;
}

/// Where a controller looks, and for how long.
struct Scope {
    client: Client,
    /// None for all namespaces.
    namespace: Option<String>,
    concurrency: u16,
    stop: CancellationToken,
}

impl Scope {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// A controller of one kind, woken by its objects but not by their statuses.
    fn controller<K>(&self) -> Controller<Guard<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let (reader, writer) = reflector::store::<Guard<K>>();
        let declared = predicates::generation.combine(predicates::finalizers);
        let objects = watcher(self.api::<Guard<K>>(), watcher::Config::default())
            .default_backoff()
            .reflect(writer)
            .applied_objects()
            .predicate_filter(declared, PredicateConfig::default());
        Controller::for_stream(objects, reader)
            .with_config(controller::Config::default().concurrency(self.concurrency))
            .graceful_shutdown_on(self.stop.clone().cancelled_owned())
    }
}

async fn run_streams(scope: &Scope, context: Arc<Context>) {
    let controller = scope.controller::<EventStream>();
    let named = |change: &Change, object: &EventStream| matches!(change, Change::Stream(name) if *name == streams::stream_name(object));
    let changes = woken(context.mirror.changes(), controller.store(), named);
    controller
        .reconcile_on(changes)
        .run(surrounded("stream", streams::reconcile), retry, context)
        .for_each(|ended| told("stream", ended))
        .await;
}

async fn run_consumers(scope: &Scope, context: Arc<Context>) {
    let controller = scope.controller::<EventConsumer>();
    let named = |change: &Change, object: &EventConsumer| matches!(change, Change::Consumer(name) if *name == consumer::consumer_name(object));
    let changes = woken(context.mirror.changes(), controller.store(), named);
    let pods = context.pods.watch(scope.api(), scope.namespace.clone());
    let pods = pods.map(|(namespace, name)| ObjectRef::new(&name).within(&namespace));
    let (of_streams, of_workloads) = (controller.store(), controller.store());
    // A consumer waits for its stream to be ready, and for that of its dead letters; the figures in their statuses are nothing to it.
    let declared_streams = watcher(scope.api::<Guard<EventStream>>(), watcher::Config::default())
        .default_backoff()
        .map_ok(deleted_as_such)
        .touched_objects()
        .predicate_filter(is_usable, PredicateConfig::default());
    let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=jetwright");
    controller
        .owns(scope.api::<Deployment>(), ours.clone())
        .owns(scope.api::<Service>(), ours.clone())
        .owns(scope.api::<ServiceAccount>(), ours.clone())
        .owns(scope.api::<PodDisruptionBudget>(), ours.clone())
        .owns(scope.api::<ConfigMap>(), ours)
        .watches_stream(declared_streams, move |stream| {
            let name = stream.name_any();
            referring(&of_streams, stream.namespace().as_deref(), |consumer| {
                let reference = &consumer.spec.stream_ref.name;
                *reference == name || names::object_name(reference) == name
            })
        })
        .watches(scope.api::<Guard<EventConsumer>>(), watcher::Config::default(), move |other| {
            workload_neighbours(&of_workloads, &other)
        })
        .reconcile_on(changes)
        .reconcile_on(pods)
        .run(surrounded("consumer", consumer::reconcile), retry, context)
        .for_each(|ended| told("consumer", ended))
        .await;
}

/// What is gone had perhaps never been marked as deleted, and would pass for what it was before.
fn deleted_as_such(event: watcher::Event<Guard<EventStream>>) -> watcher::Event<Guard<EventStream>> {
    match event {
        watcher::Event::Delete(mut stream) => {
            stream.meta_mut().deletion_timestamp.get_or_insert_with(status::now);
            watcher::Event::Delete(stream)
        }
        event => event,
    }
}

/// Changes when an EventStream is declared anew, becomes ready, stops being so, or goes; and with its replicas, which those of its
/// dead letters follow.
#[allow(clippy::unnecessary_wraps, reason = "a predicate is so")]
fn is_usable(stream: &Guard<EventStream>) -> Option<u64> {
    let ready = stream.0.as_ref().ok().and_then(|stream| {
        let status = stream.status.as_ref()?;
        conditions::get(&status.conditions, READY).map(|ready| (ready.status.clone(), ready.reason.clone()))
    });
    let remembered = stream.0.as_ref().ok().map(streams::remembered).unwrap_or_default();
    let kept_for = stream.labels().get(LABEL);
    let mut hasher = DefaultHasher::new();
    let deleted = stream.meta().deletion_timestamp.is_some();
    (stream.meta().generation, deleted, ready, remembered.created, remembered.replicas, kept_for)
        .hash(&mut hasher);
    Some(hasher.finish())
}

/// Says what the watches complain of; what reconciles complain of was told where they ended.
fn told<K: Resource>(
    controller: &'static str,
    ended: Result<(ObjectRef<K>, Action), controller::Error<Ended, watcher::Error>>,
) -> future::Ready<()>
where
    K::DynamicType: Debug,
{
    match ended {
        Err(controller::Error::QueueError(error)) => {
            tracing::warn!(controller, error = chain(&error), "a watch failed; it is begun anew");
        }
        Err(controller::Error::RunnerError(error)) => tracing::error!(controller, %error, "the queue failed"),
        // An object that went while it waited, or a reconcile that was told.
        Err(_) | Ok(_) => {}
    }
    future::ready(())
}

/// The objects that a change of the mirror is about.
fn woken<K>(
    changes: impl Stream<Item = Change> + Send + 'static,
    store: Store<Guard<K>>,
    named: impl Fn(&Change, &K) -> bool + Send + 'static,
) -> impl Stream<Item = ObjectRef<Guard<K>>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    changes.flat_map(move |change| {
        let about = |object: &K| change == Change::Everything || named(&change, object);
        stream::iter(matching(&store, about))
    })
}

/// The consumers of a namespace that refer to something.
fn referring(
    store: &Store<Guard<EventConsumer>>,
    namespace: Option<&str>,
    refers: impl Fn(&EventConsumer) -> bool,
) -> Vec<ObjectRef<Guard<EventConsumer>>> {
    matching(store, |consumer| consumer.metadata.namespace.as_deref() == namespace && refers(consumer))
}

/// The consumer whose pods this one uses, and those that use this one's.
fn workload_neighbours(
    store: &Store<Guard<EventConsumer>>,
    other: &Guard<EventConsumer>,
) -> Vec<ObjectRef<Guard<EventConsumer>>> {
    let name = other.name_any();
    let host = other.0.as_ref().ok().and_then(|other| other.spec.workload_ref.clone());
    referring(store, other.namespace().as_deref(), |consumer| {
        let guest = consumer.spec.workload_ref.as_ref().is_some_and(|reference| reference.name == name);
        guest || host.as_ref().is_some_and(|host| host.name == consumer.name_any())
    })
}

fn matching<K>(store: &Store<Guard<K>>, wanted: impl Fn(&K) -> bool) -> Vec<ObjectRef<Guard<K>>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + 'static,
    <K as Resource>::DynamicType: Eq + Hash + Clone,
{
    let objects = store.state();
    let wanted = objects.iter().filter(|guard| guard.0.as_ref().is_ok_and(&wanted));
    wanted.map(|guard| ObjectRef::from_obj(guard.as_ref())).collect()
}

/// How a reconcile ended that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// A step failed.
    #[error("{}", chain(source.as_ref()))]
    Failed {
        /// What it means for the next try.
        category: Category,
        /// The step's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It took too long and was given up.
    #[error("the reconcile took longer than {DEADLINE:?}")]
    TimedOut,
}

impl Ended {
    fn category(&self) -> Category {
        match self {
            Self::Failed { category, .. } => *category,
            Self::TimedOut => Category::Retry,
        }
    }
}

/// Puts what every reconcile needs around it: a span, a deadline, metrics, and an answer for objects that cannot be read.
fn surrounded<K, F, E>(
    controller: &'static str,
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Clone + Send + Sync + 'static,
) -> impl FnMut(Arc<Guard<K>>, Arc<Context>) -> future::BoxFuture<'static, Result<Action, Ended>>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
    F: Future<Output = Result<Action, E>> + Send + 'static,
    E: Failure,
{
    move |guard: Arc<Guard<K>>, context: Arc<Context>| {
        let reconcile = reconcile.clone();
        let span = tracing::info_span!(
            "reconcile",
            controller,
            namespace = guard.namespace(),
            name = guard.name_any(),
            generation = guard.meta().generation,
        );
        let work = async move {
            let _running = context.running.token();
            let started = Instant::now();
            let result = match &guard.0 {
                Ok(object) => {
                    tokio::time::timeout(DEADLINE, reconcile(Arc::new(object.clone()), context.clone()))
                        .await
                        .map_err(|_| Ended::TimedOut)
                        .and_then(|result| {
                            result.map_err(|error| Ended::Failed {
                                category: error.category(),
                                source: Box::new(error),
                            })
                        })
                }
                Err(invalid) => undecodable::tell::<K>(invalid, &context).await.map_err(|error| {
                    Ended::Failed { category: Category::of_kubernetes(&error), source: Box::new(error) }
                }),
            };
            let outcome = result.as_ref().map_or_else(|ended| ended.category().as_str(), |_| "ok");
            context.metrics.reconciled(controller, outcome, started.elapsed());
            match &result {
                Ok(_) => context.failures.clear(&key(guard.as_ref())),
                Err(ended) if ended.category() == Category::Conflict => {
                    tracing::info!(error = %ended, "somebody else was faster; looking again");
                }
                Err(ended) => tracing::warn!(error = %ended, outcome, "the reconcile failed"),
            }
            result
        };
        Box::pin(work.instrument(span))
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the controller calls it so")]
fn retry<K>(guard: Arc<Guard<K>>, ended: &Ended, context: Arc<Context>) -> Action
where
    K: Resource<DynamicType = ()> + Clone + Debug,
{
    Action::requeue(context.failures.delay(key(guard.as_ref()), ended.category()))
}

fn key<K: Resource<DynamicType = ()> + Clone + Debug>(guard: &Guard<K>) -> Key {
    let kind = if K::kind(&()) == EventStream::kind(&()) { "EventStream" } else { "EventConsumer" };
    (kind, guard.namespace().unwrap_or_default(), guard.name_any())
}
