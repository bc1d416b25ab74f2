//! The configuration of a consumer: its fields, what the server lets change, and what an EventConsumer's spec makes of them. A new field
//! of the spec is described and defaulted in crds, and gets its line here. Pure.
//!
//! The server's error for a change that it does not allow (10012) is the same as for a value that makes no sense, so the operator
//! needs this table to distinguish the two. It follows nats-server 2.12 to 2.15 (`checkNewConsumerConfig` in server/consumer.go).

use jetwright_crds::{EventConsumerSpec, consumer::DeliverPolicy};
use serde_json::{Value, json};

use super::config::{
    Config,
    DefaultValue::{False, Nothing, Number, ServersChoice, Text},
    Field,
    Mutability::{Free, Ignored, Immutable},
    field,
};

/// Fields that say which messages a consumer gets.
pub const FILTERS: [&str; 2] = ["filter_subject", "filter_subjects"];

/// How many messages may be unacknowledged at once.
pub const MAX_ACK_PENDING: &str = "max_ack_pending";

/// A consumer's fields, but for its metadata and for `pause_until`: a pause is an administrator's, and stays.
pub const FIELDS: &[Field] = &[
    // The server compares neither with the name in the subject of the request, and older clients leave one of them out.
    field("durable_name", Nothing, Ignored),
    field("name", Nothing, Ignored),
    field("description", Nothing, Free),
    field("deliver_policy", Text("all"), Immutable),
    field("opt_start_seq", Number(0), Immutable),
    field("opt_start_time", Nothing, Immutable),
    field("ack_policy", Text("none"), Immutable),
    field("ack_wait", Number(0), Free),
    field("max_deliver", Number(-1), Free),
    field("backoff", Nothing, Free),
    field("filter_subject", Nothing, Free),
    field("filter_subjects", Nothing, Free),
    field("replay_policy", Text("instant"), Immutable),
    field("rate_limit_bps", Number(0), Free),
    field("sample_freq", Nothing, Free),
    field("max_waiting", ServersChoice, Immutable),
    field(MAX_ACK_PENDING, ServersChoice, Free),
    field("flow_control", False, Immutable),
    field("headers_only", False, Free),
    // A server with a limit (max_request_batch) fills it in.
    field("max_batch", Number(0), Ignored),
    field("max_expires", Number(0), Free),
    field("max_bytes", Number(0), Free),
    field("deliver_subject", Nothing, Immutable),
    field("deliver_group", Nothing, Free),
    field("idle_heartbeat", Number(0), Immutable),
    field("inactive_threshold", Number(0), Free),
    field("num_replicas", Number(0), Free),
    field("mem_storage", False, Immutable),
    field("priority_groups", Nothing, Free),
    field("priority_policy", Text("none"), Free),
    field("priority_timeout", Number(0), Free),
];

/// The whole configuration that a spec declares for a consumer with these filters; fields that are left out have JetStream's default, or are
/// the server's choice.
#[must_use]
pub fn config(name: &str, filters: &[String], spec: &EventConsumerSpec) -> Config {
    let EventConsumerSpec {
        stream_ref: _,
        consumer_name: _,
        // As its stream stores them, they are others.
        filter_subjects: _,
        ordering: _,
        deliver_policy: _,
        ack_wait: _,
        handler_deadline: _,
        max_ack_pending,
        retry: _,
        dead_letter: _,
        workload: _,
        workload_ref: _,
        monitoring: _,
        deletion_policy: _,
        adoption_policy: _,
    } = spec;
    let deliver_policy = spec.effective_deliver_policy();
    let config = Config::default()
        .with("durable_name", name)
        .with("name", name)
        .with("deliver_policy", Into::<&str>::into(deliver_policy))
        .with("ack_policy", "explicit")
        .with("replay_policy", "instant")
        .with("ack_wait", spec.effective_ack_wait().as_nanos())
        .with("max_deliver", spec.effective_max_deliver());
    let config = match max_ack_pending {
        Some(most) => config.with(MAX_ACK_PENDING, *most),
        None => config,
    };
    let config = config.with_thresholds(spec.thresholds());
    match filters {
        // The server wants a filter to know the subjects by.
        [] if deliver_policy == DeliverPolicy::LastPerSubject => config.with("filter_subject", ">"),
        [] => config,
        [one] => config.with("filter_subject", one.clone()),
        several => config.with("filter_subjects", json!(several)),
    }
}

/// The subjects that a consumer gets: all, where it has no filter.
#[must_use]
pub fn filters(config: &Config) -> Vec<String> {
    let texts = |value: &Value| match value {
        Value::String(one) if !one.is_empty() => vec![one.clone()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    let found: Vec<_> = FILTERS.iter().filter_map(|field| config.get(field)).flat_map(texts).collect();
    if found.is_empty() { vec![">".to_owned()] } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(rest: &str) -> Value {
        let spec = format!("{{streamRef: {{name: orders}}{rest}}}");
        let spec: EventConsumerSpec = serde_saphyr::from_str(&spec).unwrap();
        json!(config("fulfilment", &spec.filter_subjects, &spec))
    }

    fn field_of(rest: &str, name: &str) -> Value {
        json_of(rest)[name].clone()
    }

    #[test]
    fn a_minimal_spec_is_whole() {
        assert_eq!(
            json_of(""),
            json!({
                "durable_name": "fulfilment", "name": "fulfilment", "deliver_policy": "all", "ack_policy": "explicit",
                "replay_policy": "instant", "ack_wait": 30_000_000_000_i64, "max_deliver": -1,
            })
        );
    }

    #[test]
    fn one_filter_and_several_are_different_fields() {
        let filters = |rest: &str| (field_of(rest, "filter_subject"), field_of(rest, "filter_subjects"));
        assert_eq!(filters(", filterSubjects: [a.*]"), (json!("a.*"), Value::Null));
        assert_eq!(filters(", filterSubjects: [a.*, b.*]"), (Value::Null, json!(["a.*", "b.*"])));
        assert_eq!(filters(", deliverPolicy: LastPerSubject"), (json!(">"), Value::Null));
    }

    #[test]
    fn thresholds_that_nats_tools_know_are_metadata() {
        assert_eq!(field_of("", "metadata"), Value::Null);
        let all =
            ", monitoring: {lagWarning: 1, lagCritical: 2, ackPendingCritical: 3, lastDeliveryCritical: 4m,
            lastAckCritical: 500ms, deliveryDelay: 6s}";
        assert_eq!(
            field_of(all, "metadata"),
            json!({
                "io.nats.monitor.enabled": "true", "io.nats.monitor.unprocessed-critical": "2",
                "io.nats.monitor.outstanding-ack-critical": "3", "io.nats.monitor.last-delivery-critical": "4m",
                "io.nats.monitor.last-ack-critical": "500ms",
            })
        );
    }

    #[test]
    fn what_the_spec_says_of_deliveries_is_in_the_configuration() {
        assert_eq!(field_of(", deliverPolicy: LastPerSubject", "deliver_policy"), json!("last_per_subject"));
        assert_eq!(field_of(", ackWait: 1s, maxAckPending: 7", "ack_wait"), json!(1_000_000_000));
        assert_eq!(field_of(", retry: {maxAttempts: 4}", "max_deliver"), json!(4));
        assert_eq!(
            field_of(", retry: {maxAttempts: 4}, workloadRef: {name: other}", "max_deliver"),
            json!(-1)
        );
        assert_eq!(field_of(", maxAckPending: 7", "max_ack_pending"), json!(7));
        assert_eq!(field_of(", workloadRef: {name: other}", "max_ack_pending"), Value::Null);
    }

    #[test]
    fn a_consumer_without_filters_gets_every_subject() {
        let of = |value: Value| filters(&serde_json::from_value(value).unwrap());
        assert_eq!(of(json!({})), [">"]);
        assert_eq!(of(json!({"filter_subject": ""})), [">"]);
        assert_eq!(of(json!({"filter_subject": "a.*"})), ["a.*"]);
        assert_eq!(of(json!({"filter_subjects": ["a", "b"]})), ["a", "b"]);
    }
}
