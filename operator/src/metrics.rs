//! The operator's metrics. Labels are few: a controller, an outcome, a verb of the API.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use jetwright_nats::ApiError;

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
struct KubernetesRequest {
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Scope {
    scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Orphaned {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Named {
    namespace: String,
    stream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connection {
    connection: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// What JetStream's availability follows from.
#[derive(Debug, Default)]
struct Availability {
    connected: bool,
    /// It does not answer for some streams.
    outage: bool,
}

/// All metrics. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    reconciles: Family<Reconciled, Counter>,
    durations: Family<Controller, Histogram, fn() -> Histogram>,
    drift_corrections: Family<Controller, Counter>,
    stream_recreations: Family<Named, Counter>,
    orphaned: Family<Orphaned, Counter>,
    api_requests: Family<Requested, Counter>,
    kubernetes_requests: Family<KubernetesRequest, Counter>,
    connected: Gauge,
    available: Family<Connection, Gauge>,
    availability: Arc<Mutex<Availability>>,
    probes: Family<Outcome, Counter>,
    leader: Gauge,
    scopes_ready: Family<Scope, Gauge>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            drift_corrections: Family::default(),
            stream_recreations: Family::default(),
            orphaned: Family::default(),
            api_requests: Family::default(),
            kubernetes_requests: Family::default(),
            connected: Gauge::default(),
            available: Family::default(),
            availability: Arc::default(),
            probes: Family::default(),
            leader: Gauge::default(),
            scopes_ready: Family::default(),
        };
        metrics.register_with(registry.sub_registry_with_prefix("jetwright_operator"));
        metrics
    }

    fn register_with(&self, registry: &mut Registry) {
        registry.register("reconciles", "Reconciles by controller and outcome", self.reconciles.clone());
        registry.register("reconcile_duration_seconds", "Time that reconciles took", self.durations.clone());
        registry.register(
            "drift_corrections",
            "Changes by other writers that were corrected",
            self.drift_corrections.clone(),
        );
        registry.register(
            "stream_recreations",
            "Streams that were gone and were recreated, empty",
            self.stream_recreations.clone(),
        );
        registry.register(
            "orphaned",
            "Streams, consumers and pods that were left behind when their object went",
            self.orphaned.clone(),
        );
        registry.register("jetstream_api_requests", "Requests to JetStream's API", self.api_requests.clone());
        registry.register(
            "kubernetes_requests",
            "Requests to the API server of Kubernetes",
            self.kubernetes_requests.clone(),
        );
        registry.register("nats_connected", "1 while NATS is connected", self.connected.clone());
        registry.register(
            "jetstream_available",
            "1 while NATS is connected and JetStream answers for every stream that is looked after",
            self.available.clone(),
        );
        registry.register(
            "jetstream_probes",
            "Requests to JetStream that only find out whether it answers",
            self.probes.clone(),
        );
        registry.register("leader", "1 while this process is the one that acts", self.leader.clone());
        registry.register(
            "scope_ready",
            "1 while all watches of a scope (a namespace, or * for all) work and have brought everything once",
            self.scopes_ready.clone(),
        );
    }

    /// A reconcile ended.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Reconciled { controller, outcome }).inc();
        self.durations.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }

    /// Something that another writer changed was corrected.
    pub fn drift_corrected(&self, controller: &'static str) {
        self.drift_corrections.get_or_create(&Controller { controller }).inc();
    }

    /// A stream that was gone was recreated, empty.
    pub fn stream_recreated(&self, namespace: &str, stream: &str) {
        let labels = Named { namespace: namespace.to_owned(), stream: stream.to_owned() };
        self.stream_recreations.get_or_create(&labels).inc();
    }

    /// Something of this kind was left behind when its object went.
    pub fn orphaned(&self, kind: &'static str) {
        self.orphaned.get_or_create(&Orphaned { kind }).inc();
    }

    /// A request to JetStream ended.
    pub fn api_request(&self, verb: &'static str, error: Option<&ApiError>) {
        self.api_requests.get_or_create(&Requested { verb, outcome: outcome(error) }).inc();
    }

    /// A request to Kubernetes is sent.
    pub fn kubernetes_request<T>(&self, request: &http::Request<T>) {
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let verb = match *request.method() {
            http::Method::GET if watches => "watch",
            http::Method::GET => "get",
            http::Method::POST => "create",
            http::Method::PATCH => "patch",
            http::Method::DELETE => "delete",
            _ => "other",
        };
        self.kubernetes_requests.get_or_create(&KubernetesRequest { verb }).inc();
    }

    /// Whether the watches of a scope work and have brought everything.
    pub fn scope_ready(&self, scope: &str, ready: bool) {
        self.scopes_ready.get_or_create(&Scope { scope: scope.to_owned() }).set(ready.into());
    }

    /// The connection came or went.
    pub fn nats_connected(&self, connected: bool) {
        self.connected.set(connected.into());
        self.set_available(|availability| availability.connected = connected);
    }

    /// Whether JetStream does not answer for some streams.
    pub fn jetstream_outage(&self, outage: bool) {
        self.set_available(|availability| availability.outage = outage);
    }

    fn set_available(&self, change: impl FnOnce(&mut Availability)) {
        let mut availability = self.availability.lock();
        change(&mut availability);
        let available = availability.connected && !availability.outage;
        self.available.get_or_create(&Connection { connection: "default" }).set(available.into());
    }

    /// A request that only finds out whether JetStream answers ended.
    pub fn probed(&self, error: Option<&ApiError>) {
        self.probes.get_or_create(&Outcome { outcome: outcome(error) }).inc();
    }

    /// Whether this process acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

/// How a request to JetStream ended.
fn outcome(error: Option<&ApiError>) -> &'static str {
    match error {
        None => "ok",
        Some(error) if error.is_absence() => "not_found",
        Some(ApiError::Refused { .. } | ApiError::InvalidName { .. } | ApiError::NotPermitted { .. }) => {
            "refused"
        }
        Some(ApiError::Unanswered { .. }) => "unanswered",
        Some(ApiError::Malformed { .. }) => "malformed",
    }
}
