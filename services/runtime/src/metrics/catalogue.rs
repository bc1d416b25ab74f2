//! The runtime's metrics.

use jetwright_process::metrics::catalogue::{Label, name_of, words};

const EVENT_CONSUMER: Label = name_of("event_consumer", "the EventConsumer");
const REASON: Label = words("reason", &["permanent", "undecodable", "last-attempt", "delivered-too-often"]);

jetwright_process::catalogue! {
    ATTEMPTS: Counter "jetwright_attempts" [
        EVENT_CONSUMER,
        words("outcome", &["done", "ignored", "retried", "permanent", "undecodable", "last-attempt", "delivered-too-often"]),
        words("attempt", &["1", "2", "3+"])
    ] "Attempts at events by how they ended, and the number of the attempt; ignored are types that a handler ignores, and the outcomes after retried give an event up";
    PROCESS_DURATION: Histogram "jetwright_process_duration_seconds" [EVENT_CONSUMER] "Time that a handler took for one attempt; exemplars have the trace";
    DELIVERY_DELAY: Histogram "jetwright_delivery_delay_seconds" [EVENT_CONSUMER] "Time from when JetStream stored an event to the beginning of its first attempt; exemplars have the trace";
    HANDLERS_IN_FLIGHT: Gauge "jetwright_handlers_in_flight" [EVENT_CONSUMER] "Events that are being handled now";
    HELD: Gauge "jetwright_held_bytes" [] "Bytes of events that the process has in memory, over all of its consumers";
    SETTLEMENTS_UNCONFIRMED: Counter "jetwright_settlements_unconfirmed" [EVENT_CONSUMER] "Acknowledgements and the like that JetStream did not confirm: such an event may come again";
    DEAD_LETTERS: Counter "jetwright_dead_letters" [EVENT_CONSUMER, REASON] "Events that were stored as dead letters";
    ORDER_CHECKED: Counter "jetwright_order_checked" [EVENT_CONSUMER] "Attempts of ordered consumers that were checked against the order of their key";
    ORDER_VIOLATIONS: Counter "jetwright_order_violations" [
        EVENT_CONSUMER, words("kind", &["gap", "overlap", "back"])
    ] "Attempts of ordered consumers that began out of the order of their key, which should not be there";
    ORDER_RECOVERIES: Counter "jetwright_order_recoveries" [
        EVENT_CONSUMER, words("cause", &["reconnect", "sequence-gap", "sequence-back", "unanswered-ack", "denied-ack", "lease-over"])
    ] "Recoveries of ordered consumers, which wait until no delivery is unacknowledged elsewhere";
    HELD_PARTITIONS: Gauge "jetwright_held_partitions" [
        EVENT_CONSUMER, words("state", &["waiting", "recovering", "serving", "suspended", "draining"])
    ] "Partitions that the process handles, or waits for until another process has finished";
    PARTITION_CHANGES: Counter "jetwright_partition_changes" [
        EVENT_CONSUMER, words("change", &["taken", "handed-over", "lost"])
    ] "Partitions that the process took, gave up after it had finished what had begun, and lost since others took it for dead";
    MEMBERSHIPS_LOST: Counter "jetwright_memberships_lost" [] "Times that the others took the process for dead, or its membership was removed; it joins again";
    PUBLISHES: Counter "jetwright_publishes" [
        words("kind", &["event", "state", "dead-letter"]),
        words("outcome", &["stored", "duplicate", "conflict", "unavailable", "refused"])
    ] "Writes by how they ended; conflicts of state are everyday business, and a dead letter that is refused or unavailable cannot be kept now";
    PUBLISH_DURATION: Histogram "jetwright_publish_duration_seconds" [] "Time until a write was stored or failed";
    NATS_CONNECTED: Gauge "jetwright_nats_connected" [] "1 while NATS is connected";
    NATS_CONNECTIONS: Counter "jetwright_nats_connections" [] "Connections to NATS that were made";
}
