//! The operator's metrics about itself.

use jetwright_process::metrics::catalogue::{Label, name_of, words};

const CONTROLLER: Label = words("controller", &["stream", "consumer"]);
const KIND: Label = words("kind", &["stream", "consumer"]);
const OUTCOME: Label = words("outcome", &["ok", "not_found", "refused", "unanswered", "malformed"]);
const NAMESPACE: Label = name_of("namespace", "of the object");

jetwright_process::catalogue! {
    /// Counted at the end of each.
    RECONCILES: Counter "jetwright_operator_reconciles" [
        CONTROLLER, words("outcome", &["ok", "conflict", "transient", "terminal"])
    ] "Reconciles by how they ended";
    RECONCILE_DURATION: Histogram "jetwright_operator_reconcile_duration_seconds" [CONTROLLER] "Time that reconciles took";
    QUEUE_DEPTH: Gauge "jetwright_operator_queue_depth" [CONTROLLER] "Objects that were woken and whose reconcile did not begin yet";
    DRIFT_CORRECTIONS: Counter "jetwright_operator_drift_corrections" [
        CONTROLLER, NAMESPACE, name_of("name", "the object")
    ] "Changes by other writers that were corrected";
    STREAM_RECREATIONS: Counter "jetwright_operator_stream_recreations" [
        NAMESPACE, name_of("stream", "the EventStream")
    ] "Streams that were gone and were recreated, empty; also those that were empty, and those in memory after a restart of NATS";
    ORPHANED: Counter "jetwright_operator_orphaned" [
        words("kind", &["stream", "consumer", "pods", "object"])
    ] "What was left behind when its object went; object is all that one has that cannot be read";
    JETSTREAM_API_REQUESTS: Counter "jetwright_operator_jetstream_api_requests" [
        words("verb", &[
            "STREAM.INFO", "STREAM.LIST", "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "CONSUMER.INFO", "CONSUMER.LIST",
            "CONSUMER.CREATE", "CONSUMER.UPDATE", "CONSUMER.PAUSE", "CONSUMER.DELETE"
        ]), OUTCOME
    ] "Requests to JetStream's API, but for probes and samples";
    JETSTREAM_WRITES: Counter "jetwright_operator_jetstream_writes" [
        KIND, words("action", &["created", "updated", "deleted"])
    ] "Streams and consumers that the operator changed in JetStream";
    KUBERNETES_REQUESTS: Counter "jetwright_operator_kubernetes_requests" [
        words("verb", &["get", "watch", "create", "patch", "delete", "other"])
    ] "Requests to the API server of Kubernetes; a list is a get";
    NATS_CONNECTED: Gauge "jetwright_operator_nats_connected" [] "1 while NATS is connected";
    JETSTREAM_AVAILABLE: Gauge "jetwright_operator_jetstream_available" [
        words("connection", &["default"])
    ] "1 while NATS is connected and JetStream answers for every stream that is looked after; 0 as soon as a server does not";
    JETSTREAM_PROBES: Counter "jetwright_operator_jetstream_probes" [OUTCOME] "Requests to JetStream that only find out whether it answers";
    LEADER: Gauge "jetwright_operator_leader" [] "1 while this process is the one that acts";
    SCOPE_READY: Gauge "jetwright_operator_scope_ready" [
        name_of("scope", "a namespace, or `*` for all")
    ] "1 while all watches of the scope work and have brought everything once: no object of it is reconciled before; 0 while one has been failing for 30 s";
    STATS_INTERVAL: Gauge "jetwright_operator_stats_interval_seconds" [] "Time in which everything in JetStream is sampled once, at present";
    STATS_REQUESTS: Counter "jetwright_operator_stats_requests" [OUTCOME] "Requests to JetStream's API that sample figures";
}
