//! A service: one connection, its handlers, and their publishers.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use jetwright_crds::environment::{Binding, NATS_CREDENTIALS};
use jetwright_nats::{Connection, ConnectionConfig};
use jetwright_process::health::Health;
use prometheus_client::registry::Registry;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Aggregate, Aggregates, Environment, Handler, HandlerOptions, KeyValue, Projection, Publisher, Reader,
    Rebuilt, View,
    consumer::{ByteBudget, ConsumerDeps, ConsumerLoop, HandlerRunner, consume},
    metrics::Metrics,
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
    loops: Vec<(&'static str, Loop)>,
}

/// Consumes until the token is cancelled, and then finishes what it has.
type Loop = Box<dyn FnOnce(CancellationToken) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

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
        let deps = ConsumerDeps {
            binding: binding.clone(),
            connection: self.connection.clone(),
            reader: self.reader.clone(),
            budget: self.budget.clone(),
            gate: self.health.gate(&format!("consumer {name}"), "not found yet"),
        };
        let consumer = ConsumerLoop::new(Arc::new(runner), deps);
        self.loops.push((name, Box::new(move |stop| Box::pin(consume(consumer, stop)))));
        Ok(self)
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
        let Self { connection, health, loops, .. } = self;
        let stop = shutdown.child_token();
        let mut tasks = JoinSet::new();
        for (binding, consuming) in loops {
            let consuming = tokio::spawn(consuming(stop.clone()));
            tasks.spawn(async move { (binding, consuming.await) });
        }
        let failed = tokio::select! {
            () = shutdown.cancelled() => None,
            Some(ended) = tasks.join_next() => ended.ok(),
        };
        health.stop("shutting down");
        stop.cancel();
        tasks.join_all().await;
        flush(&connection).await;
        connection.ending();
        match failed {
            Some((binding, ended)) if !shutdown.is_cancelled() => {
                let reason =
                    ended.err().map_or_else(|| "without a reason".to_owned(), |error| error.to_string());
                Err(ServiceError::LoopEnded { binding, reason })
            }
            _ => Ok(()),
        }
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
    use crate::consumer::SETTLE_TIMEOUT;

    const TELEMETRY: Duration = Duration::from_secs(5);

    #[test]
    fn a_stop_fits_into_what_a_pod_is_given_beyond_its_slowest_handler() {
        let beyond = SETTLE_TIMEOUT + FLUSH_TIMEOUT + TELEMETRY;
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
