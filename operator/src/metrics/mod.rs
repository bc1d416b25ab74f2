//! The operator's metrics about itself. [`catalogue`] has what there is.

pub mod catalogue;

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

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
struct Drifted {
    controller: &'static str,
    namespace: String,
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Written {
    kind: &'static str,
    action: &'static str,
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
    queue_depth: Family<Controller, Gauge>,
    drift_corrections: Family<Drifted, Counter>,
    stream_recreations: Family<Named, Counter>,
    orphaned: Family<Orphaned, Counter>,
    api_requests: Family<Requested, Counter>,
    writes: Family<Written, Counter>,
    kubernetes_requests: Family<KubernetesRequest, Counter>,
    connected: Gauge,
    available: Family<Connection, Gauge>,
    availability: Arc<Mutex<Availability>>,
    probes: Family<Outcome, Counter>,
    leader: Gauge,
    scopes_ready: Family<Scope, Gauge>,
    stats_interval: Gauge<f64, AtomicU64>,
    stats_requests: Family<Outcome, Counter>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            queue_depth: Family::default(),
            drift_corrections: Family::default(),
            stream_recreations: Family::default(),
            orphaned: Family::default(),
            api_requests: Family::default(),
            writes: Family::default(),
            kubernetes_requests: Family::default(),
            connected: Gauge::default(),
            available: Family::default(),
            availability: Arc::default(),
            probes: Family::default(),
            leader: Gauge::default(),
            scopes_ready: Family::default(),
            stats_interval: Gauge::default(),
            stats_requests: Family::default(),
        };
        metrics.register_with(registry);
        metrics
    }

    fn register_with(&self, registry: &mut Registry) {
        catalogue::RECONCILES.register(registry, self.reconciles.clone());
        catalogue::RECONCILE_DURATION.register(registry, self.durations.clone());
        catalogue::QUEUE_DEPTH.register(registry, self.queue_depth.clone());
        catalogue::DRIFT_CORRECTIONS.register(registry, self.drift_corrections.clone());
        catalogue::STREAM_RECREATIONS.register(registry, self.stream_recreations.clone());
        catalogue::ORPHANED.register(registry, self.orphaned.clone());
        catalogue::JETSTREAM_API_REQUESTS.register(registry, self.api_requests.clone());
        catalogue::JETSTREAM_WRITES.register(registry, self.writes.clone());
        catalogue::KUBERNETES_REQUESTS.register(registry, self.kubernetes_requests.clone());
        catalogue::NATS_CONNECTED.register(registry, self.connected.clone());
        catalogue::JETSTREAM_AVAILABLE.register(registry, self.available.clone());
        catalogue::JETSTREAM_PROBES.register(registry, self.probes.clone());
        catalogue::LEADER.register(registry, self.leader.clone());
        catalogue::SCOPE_READY.register(registry, self.scopes_ready.clone());
        catalogue::STATS_INTERVAL.register(registry, self.stats_interval.clone());
        catalogue::STATS_REQUESTS.register(registry, self.stats_requests.clone());
    }

    /// A reconcile ended.
    pub fn reconciled(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Reconciled { controller, outcome }).inc();
        self.durations.get_or_create(&Controller { controller }).observe(took.as_secs_f64());
    }

    /// So many more objects were woken whose reconcile did not begin yet.
    pub fn queue_changed(&self, controller: &'static str, by: i64) {
        self.queue_depth.get_or_create(&Controller { controller }).inc_by(by);
    }

    /// Something of an object that another writer changed was corrected.
    pub fn drift_corrected(&self, controller: &'static str, namespace: &str, name: &str) {
        let labels = Drifted { controller, namespace: namespace.to_owned(), name: name.to_owned() };
        self.drift_corrections.get_or_create(&labels).inc();
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
        self.api_requests.get_or_create(&Requested { verb, outcome: ApiError::outcome(error) }).inc();
        if let (None, Some((kind, action))) = (error, written(verb)) {
            self.writes.get_or_create(&Written { kind, action }).inc();
        }
    }

    /// A request to Kubernetes is sent.
    pub fn kubernetes_request(&self, verb: &'static str) {
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
        self.probes.get_or_create(&Outcome { outcome: ApiError::outcome(error) }).inc();
    }

    /// A request that samples figures ended.
    pub fn sampled(&self, error: Option<&ApiError>) {
        self.stats_requests.get_or_create(&Outcome { outcome: ApiError::outcome(error) }).inc();
    }

    /// Everything is sampled once in this time.
    pub fn stats_interval(&self, interval: Duration) {
        self.stats_interval.set(interval.as_secs_f64());
    }

    /// Whether this process acts.
    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }
}

/// What a request changes, and how.
fn written(verb: &str) -> Option<(&'static str, &'static str)> {
    Some(match verb {
        "STREAM.CREATE" => ("stream", "created"),
        "STREAM.UPDATE" => ("stream", "updated"),
        "STREAM.DELETE" => ("stream", "deleted"),
        "CONSUMER.CREATE" => ("consumer", "created"),
        "CONSUMER.UPDATE" | "CONSUMER.PAUSE" => ("consumer", "updated"),
        "CONSUMER.DELETE" => ("consumer", "deleted"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jetwright_process::metrics::{catalogue as rules, exposition::deviations, page};
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn the_page_has_the_metrics_of_the_operator() {
        assert_eq!(rules::problems(catalogue::CATALOGUE), [""; 0]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        page::check(&file, "operator", catalogue::CATALOGUE).unwrap();
    }

    #[test]
    fn what_is_counted_has_the_labels_of_the_catalogue() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.reconciled("stream", "ok", Duration::from_millis(3));
        metrics.queue_changed("consumer", 7);
        metrics.drift_corrected("stream", "shop", "orders");
        metrics.stream_recreated("shop", "orders");
        metrics.orphaned("pods");
        let unanswered = ApiError::Unanswered { subject: String::new(), why: String::new() };
        for verb in [
            "STREAM.CREATE",
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "CONSUMER.CREATE",
            "CONSUMER.UPDATE",
            "CONSUMER.PAUSE",
            "CONSUMER.DELETE",
        ] {
            metrics.api_request(verb, None);
            metrics.api_request(verb, Some(&unanswered));
        }
        metrics.kubernetes_request("get");
        metrics.scope_ready("*", true);
        metrics.nats_connected(true);
        metrics.probed(Some(&unanswered));
        metrics.sampled(None);
        metrics.stats_interval(Duration::from_secs(30));
        metrics.leads(true);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(deviations(&text, &[catalogue::CATALOGUE]), [""; 0]);
        let rows = catalogue::CATALOGUE.iter().map(|row| row.name);
        let missing: Vec<_> = rows.filter(|name| !text.contains(&format!("# TYPE {name} "))).collect();
        assert_eq!(missing, [""; 0]);
        assert!(
            text.contains(
                "jetwright_operator_jetstream_writes_total{kind=\"consumer\",action=\"updated\"} 2\n"
            ),
            "{text}"
        );
    }
}
