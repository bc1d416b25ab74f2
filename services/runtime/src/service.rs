//! A service: one connection, its handlers, and their publishers.

use std::{future::Future, io, pin::Pin, sync::Arc, time::Duration};

use futures::FutureExt;
use jetwright_crds::environment::{Binding, NATS_CREDENTIALS};
use jetwright_nats::{Connection, ConnectionConfig};
use jetwright_partitions::keys::ConsumerId;
use jetwright_process::health::{Gate, Health};
use prometheus_client::registry::Registry;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Aggregate, Aggregates, Environment, Handler, HandlerOptions, KeyValue, Pod, Projection, Publisher,
    Reader, Rebuilt, View,
    consumer::{ByteBudget, ConsumerDeps, ConsumerLoop, HandlerPool, HandlerRunner, SETTLE_TIMEOUT, consume},
    metrics::Metrics,
    partitions::{Member, PartitionStart, PartitionedHandler, Sharing},
    projection::{self, Projector},
    readiness,
    subject::{PartitionedStreams, PartitionsError},
};

/// A service on NATS.
pub struct Service {
    environment: Environment,
    connection: Connection,
    publisher: Publisher,
    reader: Reader,
    health: Health,
    metrics: Metrics,
    budget: ByteBudget,
    loops: Vec<(&'static str, Source)>,
}

/// Consumes until the token is cancelled, and then finishes what it has.
type Loop = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where the events of a handler come from, to be started with the token that ends the program.
enum Source {
    /// From one consumer.
    Consumer(Box<dyn FnOnce(CancellationToken) -> io::Result<Loop> + Send>),
    /// From the partitions of one, which processes share.
    Partitions(Box<dyn FnOnce(CancellationToken) -> io::Result<PartitionedHandler> + Send>),
}

/// Where a handler without a pod belongs.
const DEFAULT_NAMESPACE: &str = "default";
/// How long a stop may take beyond the last event to give up the partitions.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a service fails.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The connection's options are refused before any attempt.
    #[error("failed to connect to NATS")]
    Connect(#[from] async_nats::ConnectError),
    /// A binding has partitions that a stream cannot have.
    #[error(transparent)]
    Partitions(#[from] PartitionsError),
    /// A handler's EventConsumer is not in the bindings file.
    #[error("binding {binding:?} must be in JETWRIGHT_BINDINGS, which has {}", list(.known))]
    UnknownBinding {
        /// The missing binding.
        binding: &'static str,
        /// The existing bindings.
        known: Vec<String>,
    },
    /// Two handlers have the same EventConsumer.
    #[error("binding {0:?} must have one handler, and has two")]
    TwoHandlers(&'static str),
    /// The rebuild of a projection failed.
    #[error("rebuild of bucket {bucket} failed")]
    Rebuild {
        /// Bucket of the projection.
        bucket: &'static str,
        /// What failed.
        source: crate::Error,
    },
    /// A consuming task ended although it never should.
    #[error("the consumer loop of binding {binding:?} ended: {reason}")]
    LoopEnded {
        /// The binding of the loop.
        binding: &'static str,
        /// How it ended.
        reason: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

impl Service {
    /// Begins to connect. NATS may be down: the connection comes up when NATS does, and until then the readiness gate `nats` says
    /// why not.
    ///
    /// # Errors
    ///
    /// The connection's options are refused.
    pub async fn connect(
        environment: Environment,
        health: &Health,
        registry: &mut Registry,
    ) -> Result<Self, ServiceError> {
        environment.warn_of_unknown_fields();
        let streams = PartitionedStreams::of(&environment.bindings)?;
        let metrics = Metrics::register(registry);
        let gate = health.gate("nats", readiness::INITIAL_REASON);
        let connection = Connection::open(ConnectionConfig {
            name: environment.name.clone(),
            servers: environment.servers.clone(),
            credentials: environment.credentials.clone(),
            credentials_setting: NATS_CREDENTIALS,
            domain: None,
        })
        .await?;
        tokio::spawn(readiness::follow(&connection, gate, metrics.clone()));
        let publisher = Publisher::new(connection.clone(), streams.clone(), metrics.clone());
        let (reader, health) = (Reader::new(connection.clone(), streams), health.clone());
        let budget = ByteBudget::shown_by(metrics.held());
        Ok(Self { environment, connection, publisher, reader, health, metrics, budget, loops: Vec::new() })
    }

    /// Publishes events.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Reads streams.
    #[must_use]
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// The aggregates whose events are in this stream, under `<prefix>.<id>.<event>`.
    #[must_use]
    pub fn aggregates<A: Aggregate>(&self, stream: &str, prefix: &str) -> Aggregates<A> {
        Aggregates::new(stream, prefix, self.publisher(), self.reader())
    }

    /// The stream whose events an EventConsumer delivers.
    ///
    /// # Errors
    ///
    /// The bindings file does not name the EventConsumer.
    pub fn stream_of(&self, name: &'static str) -> Result<&str, ServiceError> {
        Ok(&self.binding(name)?.stream)
    }

    /// How long its handler may take for one attempt.
    ///
    /// # Errors
    ///
    /// The bindings file does not name the EventConsumer.
    pub fn handler_deadline_of(&self, name: &'static str) -> Result<Duration, ServiceError> {
        Ok(self.binding(name)?.handler_deadline.0)
    }

    /// State by key. The bucket need not exist yet; requests fail until it does.
    #[must_use]
    pub fn key_value(&self, bucket: &str) -> KeyValue {
        KeyValue::new(bucket, self.publisher(), self.reader())
    }

    /// Adds a projection, which the EventConsumer of this name delivers for. It is kept from [`run`](Self::run) on.
    ///
    /// # Errors
    ///
    /// The bindings file does not name this EventConsumer, or a handler has it.
    pub fn project<P: Projection>(&mut self, name: &'static str) -> Result<&mut Self, ServiceError> {
        let projector = self.projector::<P>(name)?;
        self.handle(name, projector)
    }

    /// Reads a projection, which this program or another one keeps.
    #[must_use]
    pub fn view<P: Projection>(&self) -> View<P> {
        View::new(self.key_value(P::BUCKET))
    }

    /// Makes all entries of a projection again from its stream, while programs go on keeping it: each key from its whole history, so
    /// that a reader sees the entry as it was before or as it will be. Keys without events are removed. It may be interrupted, and
    /// run again from the beginning. The log says how far it is.
    ///
    /// # Errors
    ///
    /// The bindings file does not name this EventConsumer, or NATS was away for so long that a key could not be made.
    pub async fn rebuild<P: Projection>(&self, name: &'static str) -> Result<Rebuilt, ServiceError> {
        let rebuilt = projection::rebuild(&self.projector::<P>(name)?).await;
        rebuilt.map_err(|source| ServiceError::Rebuild { bucket: P::BUCKET, source })
    }

    fn projector<P: Projection>(&self, name: &'static str) -> Result<Projector<P>, ServiceError> {
        let stream = self.binding(name)?.stream.clone();
        Ok(Projector::new(self.key_value(P::BUCKET), self.reader(), stream))
    }

    fn binding(&self, binding: &'static str) -> Result<&Binding, ServiceError> {
        let bindings = &self.environment.bindings.bindings;
        bindings.get(binding).ok_or_else(|| {
            let known = bindings.keys().cloned().collect();
            ServiceError::UnknownBinding { binding, known }
        })
    }

    /// Adds the handler of the EventConsumer of this name. It begins its work in [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// The bindings file does not name the EventConsumer, or another handler has it.
    pub fn handle<H: Handler>(&mut self, name: &'static str, handler: H) -> Result<&mut Self, ServiceError> {
        self.handle_with(name, handler, HandlerOptions::default())
    }

    /// Adds a handler with options of its own.
    ///
    /// # Errors
    ///
    /// The bindings file does not name its EventConsumer, or another handler has it.
    pub fn handle_with<H: Handler>(
        &mut self,
        name: &'static str,
        handler: H,
        options: HandlerOptions,
    ) -> Result<&mut Self, ServiceError> {
        let binding = self.binding(name)?;
        if self.loops.iter().any(|(other, _)| *other == name) {
            return Err(ServiceError::TwoHandlers(name));
        }
        let tools = (self.publisher.clone(), self.metrics.handler(name));
        let runner = HandlerRunner::new((name, handler), options, binding, tools);
        runner.watchdog().watch(&self.health);
        let (runner, binding) = (Arc::new(runner), binding.clone());
        let count = binding.partitions.as_ref().map(|partitions| partitions.count);
        let source = match count.filter(|_| binding.ordering.is_some()) {
            None => self.of_consumer(name, runner, binding),
            Some(count) => self.of_partitions(name, runner, binding, count),
        };
        self.loops.push((name, source));
        Ok(self)
    }

    fn of_consumer<H: Handler>(
        &self,
        name: &'static str,
        runner: Arc<HandlerRunner<H>>,
        binding: Binding,
    ) -> Source {
        let gate = self.health.gate(&format!("consumer {name}"), "not found yet");
        let deps = self.deps(binding)(gate);
        Source::Consumer(Box::new(move |stop| {
            let pool = Arc::new(HandlerPool::start(&runner, false)?);
            let consumer = ConsumerLoop::new(runner, deps);
            let consuming = async move {
                consume(consumer, pool, stop.clone(), stop).await;
            };
            Ok(Box::pin(consuming))
        }))
    }

    fn of_partitions<H: Handler>(
        &self,
        name: &'static str,
        runner: Arc<HandlerRunner<H>>,
        binding: Binding,
        count: u32,
    ) -> Source {
        let consumer = ConsumerId { stream: binding.stream.clone(), consumer: binding.consumer.clone() };
        let deps = self.deps(binding);
        Source::Partitions(Box::new(move |program| {
            let pool = Arc::new(HandlerPool::start(&runner, true)?);
            let start = move |PartitionStart { tenure, gate, stop }| {
                let deps = ConsumerDeps { tenure: Some(tenure), ..deps(gate) };
                let consumer = ConsumerLoop::new(Arc::clone(&runner), deps);
                let (pool, program) = (Arc::clone(&pool), program.clone());
                let consuming = async move { consume(consumer, pool, stop, program).await };
                Box::pin(consuming) as Pin<Box<dyn Future<Output = bool> + Send>>
            };
            Ok(PartitionedHandler { name, consumer, count, start: Box::new(start) })
        }))
    }

    /// The parts of a consumer's loop, beside its gate.
    fn deps(&self, binding: Binding) -> impl Fn(Gate) -> ConsumerDeps + Send + Sync + use<> {
        let (connection, reader, budget) =
            (self.connection.clone(), self.reader.clone(), self.budget.clone());
        move |gate| ConsumerDeps {
            binding: binding.clone(),
            connection: connection.clone(),
            reader: reader.clone(),
            budget: budget.clone(),
            gate,
            tenure: None,
        }
    }

    /// Consumes until `shutdown` is cancelled. Then readiness ends, no more is pulled, delivered events are handled and settled, and
    /// writes are flushed: within three seconds beyond the longest `handlerDeadline` of the
    /// bindings. With five seconds for telemetry that is within [`Bindings::grace_period`], which the operator gives its pods.
    ///
    /// [`Bindings::grace_period`]: jetwright_crds::environment::Bindings::grace_period
    ///
    /// # Errors
    ///
    /// A consuming task ended too early, which only a restart repairs; the others are stopped first.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServiceError> {
        let Self { environment, connection, health, metrics, loops, .. } = self;
        let stop = shutdown.child_token();
        let (mut tasks, mut shared) = (JoinSet::new(), Vec::new());
        for (binding, source) in loops {
            let no_threads = |error: io::Error| ServiceError::LoopEnded {
                binding,
                reason: format!("failed to start the handler's threads: {error}"),
            };
            match source {
                Source::Consumer(start) => {
                    let consuming = tokio::spawn(start(stop.clone()).map_err(no_threads)?);
                    tasks.spawn(async move { (binding, consuming.await.map_err(|error| error.to_string())) });
                }
                Source::Partitions(start) => shared.push(start(stop.clone()).map_err(no_threads)?),
            }
        }
        if let Some(first) = shared.first() {
            let binding = first.name;
            let sharing = Sharing::new(member_of(&environment), &connection, shared, &health, &metrics);
            let sharing = tokio::spawn(share(sharing, &environment, stop.clone()));
            let ended = sharing.map(|ended| ended.unwrap_or_else(|error| Err(error.to_string())));
            tasks.spawn(async move { (binding, ended.await) });
        }
        let failed = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            Some(ended) = tasks.join_next() => ended.ok(),
            // By the sharing of partitions, which gives up the others before it ends with an error.
            () = stop.cancelled() => None,
        };
        health.stop("shutting down");
        stop.cancel();
        let rest = tasks.join_all().await;
        flush(&connection).await;
        connection.ending();
        match failed.or_else(|| rest.into_iter().find(|(_, ended)| ended.is_err())) {
            Some((binding, ended)) if !shutdown.is_cancelled() => {
                let reason = ended.err().unwrap_or_else(|| "without a reason".to_owned());
                Err(ServiceError::LoopEnded { binding, reason })
            }
            _ => Ok(()),
        }
    }
}

/// Shares partitions until `stop`, and then gives them up, if that is possible in time. Fails with what could not be given up.
fn share(
    sharing: Sharing,
    environment: &Environment,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), String>> + use<> {
    let deadlines = environment.bindings.bindings.values().map(|binding| binding.handler_deadline.0);
    let longest = deadlines.max().unwrap_or_default() + SETTLE_TIMEOUT + RELEASE_TIMEOUT;
    async move {
        let overdue = async {
            stop.cancelled().await;
            sleep(longest).await;
        };
        tokio::select! {
            ended = sharing.run(stop.clone()) => {
                ended.inspect_err(|error| tracing::error!(%error, "stopped sharing partitions"))
                    .map_err(|error| error.to_string())
            }
            () = overdue => {
                tracing::warn!("stopped before all partitions were given up; others take them in time");
                Ok(())
            }
        }
    }
}

/// Who this process is for those that share partitions with it.
fn member_of(environment: &Environment) -> Member {
    match &environment.pod {
        Some(Pod { namespace, name, uid }) => {
            Member { namespace: namespace.clone(), pod: Some((name.clone(), uid.clone())) }
        }
        None => Member { namespace: DEFAULT_NAMESPACE.to_owned(), pod: None },
    }
}

/// How long the connection may take to write its buffer out.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

async fn flush(connection: &Connection) {
    if !matches!(timeout(FLUSH_TIMEOUT, connection.client().flush()).await, Ok(Ok(()))) {
        tracing::warn!("stopped before NATS had taken all writes");
    }
}

#[cfg(test)]
mod tests {
    use jetwright_crds::environment::{SHORTEST_GRACE_PERIOD, STOP_MARGIN};
    use jetwright_process::http::Drain;

    use super::*;

    const TELEMETRY: Duration = Duration::from_secs(5);

    #[test]
    fn a_stop_fits_into_what_a_pod_is_given_beyond_its_slowest_handler() {
        let beyond = SETTLE_TIMEOUT + RELEASE_TIMEOUT + FLUSH_TIMEOUT + TELEMETRY;
        assert!(beyond < STOP_MARGIN.0, "{beyond:?}");
    }

    #[test]
    fn an_http_interface_drains_beside_the_handlers_within_the_shortest_grace_period() {
        let Drain { accept, finish } = Drain::BEHIND_SERVICE;
        let probes = Duration::from_secs(1);
        let longest = accept + finish + probes + TELEMETRY;
        assert!(longest < SHORTEST_GRACE_PERIOD.0, "{longest:?}");
    }
}
