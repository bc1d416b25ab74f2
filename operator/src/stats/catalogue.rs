//! The operator's metrics about objects, which the leader exports.

use jetwright_process::metrics::catalogue::{Label, name_of, words};

const NAMESPACE: Label = name_of("namespace", "of the object");
const EVENT_STREAM: Label = name_of("event_stream", "the EventStream");
const EVENT_CONSUMER: Label = name_of("event_consumer", "the EventConsumer");
const STREAM: Label = name_of("stream", "in JetStream");
const CONSUMER: Label = name_of("consumer", "in JetStream");
const WORKLOAD: Label = name_of("workload", "the EventConsumer that declares the pods");
const THRESHOLD: Label = name_of("threshold", "a field of `spec.monitoring`, in snake case");
const SERVER: Label = name_of("server", "a NATS server");

jetwright_process::catalogue! {
    OBJECT_CONDITION: Gauge "jetwright_object_condition" [
        words("kind", &["EventStream", "EventConsumer"]), NAMESPACE, name_of("name", "of the object"),
        words("condition", &["Ready", "Durable", "ConsumerReady", "DeadLettersReady", "WorkloadReady", "PartitionsOwned", "ScalingActive"]),
        words("status", &["True", "False", "Unknown"]), name_of("reason", "as in [conditions.md](conditions.md)")
    ] "1 for what a condition of the object's status says now";

    STREAM_MESSAGES: Gauge "jetwright_stream_messages" [NAMESPACE, EVENT_STREAM, STREAM] "Messages in the stream";
    STREAM_BYTES: Gauge "jetwright_stream_bytes" [NAMESPACE, EVENT_STREAM, STREAM] "Bytes in the stream";
    STREAM_FIRST_TIMESTAMP: Gauge "jetwright_stream_first_timestamp_seconds" [NAMESPACE, EVENT_STREAM, STREAM] "When the oldest message in the stream was stored, in Unix time; absent while there is none";
    STREAM_LAST_SEQUENCE: Gauge "jetwright_stream_last_sequence" [NAMESPACE, EVENT_STREAM, STREAM] "Sequence of the last message; its growth is the rate of messages";
    STREAM_MAX_MESSAGES: Gauge "jetwright_stream_max_messages" [NAMESPACE, EVENT_STREAM, STREAM] "Most messages that the stream keeps; absent without a limit";
    STREAM_MAX_BYTES: Gauge "jetwright_stream_max_bytes" [NAMESPACE, EVENT_STREAM, STREAM] "Most bytes that the stream keeps; absent without a limit";
    STREAM_CONSUMERS: Gauge "jetwright_stream_consumers" [NAMESPACE, EVENT_STREAM, STREAM] "Consumers of the stream, also those that no object declares";
    STREAM_REPLICAS_WANTED: Gauge "jetwright_stream_replicas_wanted" [NAMESPACE, EVENT_STREAM, STREAM] "Servers that are to keep a copy";
    STREAM_REPLICAS_CURRENT: Gauge "jetwright_stream_replicas_current" [NAMESPACE, EVENT_STREAM, STREAM] "Servers whose copy has all that is acknowledged";
    STREAM_HAS_LEADER: Gauge "jetwright_stream_has_leader" [NAMESPACE, EVENT_STREAM, STREAM] "1 where the stream has a leader with most of its servers; 0 also where none of them answers, and the other figures are absent";
    STREAM_LEADER: Info "jetwright_stream_leader" [NAMESPACE, EVENT_STREAM, STREAM, SERVER] "Which server leads the stream, in a cluster";
    STREAM_DISCARD_NEW: Gauge "jetwright_stream_discard_new" [NAMESPACE, EVENT_STREAM, STREAM] "1 where the stream refuses messages beyond its limits, 0 where it drops the oldest";
    STREAM_PEER_LAG: Gauge "jetwright_stream_peer_lag" [NAMESPACE, EVENT_STREAM, STREAM, SERVER] "Operations that a server's copy is behind the leader; with `--peer-metrics`";
    STREAM_MONITORING: Gauge "jetwright_stream_monitoring" [NAMESPACE, EVENT_STREAM, STREAM, THRESHOLD] "Thresholds that the object sets in `spec.monitoring`, times in seconds; alerts judge by them";
    STREAM_SAMPLED: Gauge "jetwright_stream_sampled_timestamp_seconds" [NAMESPACE, EVENT_STREAM, STREAM] "When the figures of the stream were read, in Unix time";

    SERVER_REPLICATED_ASSETS: Gauge "jetwright_server_replicated_assets" [SERVER] "Streams of the account that the server and others keep copies of, with their consumers, those that no object declares too: each is a Raft group";

    CONSUMER_PENDING: Gauge "jetwright_consumer_pending" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Messages that were not delivered yet: the lag";
    CONSUMER_ACK_PENDING: Gauge "jetwright_consumer_ack_pending" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Messages that were delivered and not acknowledged yet";
    CONSUMER_MAX_ACK_PENDING: Gauge "jetwright_consumer_max_ack_pending" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Most messages that may be unacknowledged at once; absent without a limit";
    CONSUMER_REDELIVERED: Gauge "jetwright_consumer_redelivered" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Messages that were delivered more than once and are not acknowledged yet";
    CONSUMER_DELIVERED_SEQUENCE: Gauge "jetwright_consumer_delivered_stream_sequence" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Sequence in the stream of the last message that was delivered";
    CONSUMER_DELIVERED_TIMESTAMP: Gauge "jetwright_consumer_delivered_timestamp_seconds" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "When a message was delivered last, in Unix time; absent before the first since the consumer's leader was elected";
    CONSUMER_ACK_FLOOR_SEQUENCE: Gauge "jetwright_consumer_ack_floor_stream_sequence" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Sequence in the stream up to which everything is acknowledged";
    CONSUMER_ACK_FLOOR_TIMESTAMP: Gauge "jetwright_consumer_ack_floor_timestamp_seconds" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "When a message was acknowledged last, in Unix time; absent before the first since the consumer's leader was elected";
    CONSUMER_WAITING_PULLS: Gauge "jetwright_consumer_waiting_pulls" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Pull requests that wait for messages; 0 where nobody consumes";
    CONSUMER_PAUSED: Gauge "jetwright_consumer_paused" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "1 while the consumer is paused";
    CONSUMER_HAS_LEADER: Gauge "jetwright_consumer_has_leader" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "1 where the consumer has a leader; 0 also where none of its servers answers, and the other figures are absent";
    CONSUMER_REPLICAS_WANTED: Gauge "jetwright_consumer_replicas_wanted" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Pods that the Deployment that consumes is to have, its own or that of `workloadRef`; absent without a workload";
    CONSUMER_REPLICAS_READY: Gauge "jetwright_consumer_replicas_ready" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Pods of that Deployment that are ready";
    CONSUMER_ARRIVALS: Gauge "jetwright_consumer_arrivals_per_second" [NAMESPACE, EVENT_CONSUMER, WORKLOAD] "Messages that arrive in a second, by which autoscaling decides; absent without autoscaling, and while it is unknown";
    CONSUMER_SETTLED: Gauge "jetwright_consumer_settled_per_second" [NAMESPACE, EVENT_CONSUMER, WORKLOAD] "Messages that all pods settle in a second, failed attempts included; absent as the arrivals";
    CONSUMER_POD_CAPACITY: Gauge "jetwright_consumer_pod_capacity_per_second" [NAMESPACE, EVENT_CONSUMER, WORKLOAD] "Messages that one pod can settle in a second, as learnt while pods were busy; absent before";

    WORKLOAD_REPLICAS_DECIDED: Gauge "jetwright_workload_replicas_decided" [NAMESPACE, EVENT_CONSUMER] "Pods that autoscaling decided on; with mode Observe, those that it would have next";
    WORKLOAD_REPLICAS_WISHED: Gauge "jetwright_workload_replicas_wished" [NAMESPACE, EVENT_CONSUMER] "Pods that the load takes, without bounds and steps";
    WORKLOAD_REPLICAS_MIN: Gauge "jetwright_workload_replicas_min" [NAMESPACE, EVENT_CONSUMER] "Fewest pods that autoscaling may have";
    WORKLOAD_REPLICAS_MAX: Gauge "jetwright_workload_replicas_max" [NAMESPACE, EVENT_CONSUMER] "Most pods that autoscaling may have";
    CONSUMER_PARTITIONS: Gauge "jetwright_consumer_partitions" [NAMESPACE, EVENT_CONSUMER, words("state", &["owned", "draining", "unowned"])] "Partitions of a consumer with ordering PerKey: handled where they belong, on their way to another owner, or nobody's";
    CONSUMER_HANDOVERS: Counter "jetwright_consumer_partition_handovers" [NAMESPACE, EVENT_CONSUMER] "Partitions that came to another owner";
    PARTITIONS_MEMBER_DEATHS: Counter "jetwright_partitions_member_deaths" [words("reason", &["ContainerEnded", "Silent", "Left"])] "Programs that share partitions and are over: their container ended, they were silent for longer than their lease, or they stopped themselves";
    PARTITIONS_HEARTBEAT: Gauge "jetwright_partitions_heartbeat_timestamp_seconds" [] "When the operator last wrote that it shares partitions out, in Unix time; absent while no consumer has ordering PerKey";
    CONSUMER_DEAD_LETTERS: Gauge "jetwright_consumer_dead_letters" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "Dead letters of the consumer that wait in `<stream>-dlq`; absent where they are not kept";
    CONSUMER_MONITORING: Gauge "jetwright_consumer_monitoring" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER, THRESHOLD] "Thresholds that the object sets in `spec.monitoring`, times in seconds; alerts judge by them";
    CONSUMER_SAMPLED: Gauge "jetwright_consumer_sampled_timestamp_seconds" [NAMESPACE, EVENT_CONSUMER, STREAM, CONSUMER] "When the figures of the consumer were read, in Unix time";
}
