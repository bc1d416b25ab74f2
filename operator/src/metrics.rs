//! The operator's metrics. Labels are few: a controller, an outcome, a verb of the API.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::jetstream::ApiError;

/// Upper bounds of the buckets of a reconcile's duration, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciled {
    controller: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Requested {
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    namespace: String,
    stream: String,
}

/// All metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<Reconciled, Counter>,
    durations: Family<Controller, Histogram, fn() -> Histogram>,
    repairs: Family<Controller, Counter>,
    remade: Family<Named, Counter>,
    requests: Family<Requested, Counter>,
    connected: Gauge,
    leader: Gauge,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            repairs: Family::default(),
            remade: Family::default(),
            requests: Family::default(),
            connected: Gauge::default(),
            leader: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("jetwright_operator");
        registry.register("reconciles", "Reconciles by controller and outcome", metrics.reconciles.clone());
        registry.register(
            "reconcile_duration_seconds",
            "Time that reconciles took",
            metrics.durations.clone(),
        );
        registry.register("drift_repairs", "Changes by others that were put right", metrics.repairs.clone());
        registry.register(
            "streams_remade",
            "Streams that were gone and are made again, empty",
            metrics.remade.clone(),
        );
        registry.register("jetstream_requests", "Requests to JetStream's API", metrics.requests.clone());
        registry.register("nats_connected", "1 while NATS is connected", metrics.connected.clone());
        registry.register("leader", "1 while this process is the one that acts", metrics.leader.clone());
        metrics
    }

    /// A reconcile ended.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Reconciled { controller, outcome }).inc();
        self.durations.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }

    /// Something that others changed was put right.
    pub fn repaired(&self, controller: &'static str) {
        self.repairs.get_or_create(&Controller { controller }).inc();
    }

    /// A stream that had data was made again, empty.
    pub fn stream_remade(&self, namespace: &str, stream: &str) {
        let labels = Named { namespace: namespace.to_owned(), stream: stream.to_owned() };
        self.remade.get_or_create(&labels).inc();
    }

    /// A request to JetStream ended.
    pub fn api_request(&self, verb: &'static str, error: Option<&ApiError>) {
        let outcome = match error {
            None => "ok",
            Some(error) if error.is_absence() => "not_found",
            Some(ApiError::Refused { .. }) => "refused",
            Some(ApiError::Unanswered { .. }) => "unanswered",
            Some(ApiError::Malformed { .. }) => "malformed",
        };
        self.requests.get_or_create(&Requested { verb, outcome }).inc();
    }

    /// The connection came or went.
    pub fn nats_connected(&self, connected: bool) {
        self.connected.set(connected.into());
    }

    /// Whether this process acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}
