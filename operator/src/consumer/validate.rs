//! In: a raw spec, and what is known of its stream. Out: the consumer that it declares, whole, or everything that is wrong with
//! it. Pure.
//!
//! What the API server refuses by the schema is not judged again here.

use std::time::Duration;

use jetwright_crds::{
    EventConsumerSpec, EventStream,
    consumer::DeliverPolicy,
    dead_letter,
    environment::{Backoff, Binding, DeadLetters, HANDLER_DEADLINE, HANDLER_DEADLINES, Retry},
    stream::Retention,
};
use serde_json::json;

use crate::{
    deadletter,
    identity::Identity,
    jetstream::{Config, subjects},
    outcome::{Problem, problem},
    stream::stream_name,
};

/// How long JetStream waits for an acknowledgement where nothing is set (its own default).
const ACK_WAIT: Duration = Duration::from_secs(30);
/// Messages that may be unacknowledged where nothing is set (JetStream's own default).
const MAX_ACK_PENDING: u32 = 1000;
/// The same where the runtime consumes. It takes only what it has room for, and what failed and waits for its next attempt counts too: as
/// many may fail at once before they hold up others.
const MAX_ACK_PENDING_OF_PODS: u32 = 10_000;
/// max_deliver of a consumer that delivers without end: Jetwright's runtime counts the attempts itself.
const WITHOUT_END: i64 = -1;

/// What a consumer's declaration depends on in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// Name in JetStream.
    pub name: String,
    /// What lets JetStream remove a message.
    pub retention: Retention,
    /// What it keeps.
    pub subjects: Vec<String>,
}

impl StreamFacts {
    /// The facts of an EventStream.
    #[must_use]
    pub fn of(object: &EventStream) -> Self {
        let retention = object.spec.retention.unwrap_or_default();
        Self { name: stream_name(object), retention, subjects: object.spec.subjects.clone() }
    }
}

/// A consumer as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Stream in JetStream.
    pub stream: String,
    /// Durable name.
    pub name: String,
    /// Whose it is.
    pub identity: Identity,
    /// The whole configuration: fields that are left out have JetStream's default.
    pub config: Config,
    /// What a workload's handler needs.
    pub binding: Binding,
}

/// Makes the desired consumer of a spec.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn validate(
    spec: &EventConsumerSpec,
    identity: &Identity,
    stream: &StreamFacts,
) -> Result<Desired, Vec<Problem>> {
    let EventConsumerSpec {
        stream_ref: _,
        consumer_name,
        filter_subjects,
        deliver_policy,
        ack_wait,
        handler_deadline,
        max_ack_pending,
        retry: _,
        dead_letter: _,
        workload,
        workload_ref,
        deletion_policy: _,
    } = spec;
    let deliver_policy = deliver_policy.unwrap_or_default();
    let ack_wait = ack_wait.map_or(ACK_WAIT, |wait| wait.0);
    let runtime_counts = workload.is_some() || workload_ref.is_some();
    let usual = if runtime_counts { MAX_ACK_PENDING_OF_PODS } else { MAX_ACK_PENDING };
    let max_ack_pending = max_ack_pending.unwrap_or(usual);
    let handler_deadline = handler_deadline.unwrap_or(HANDLER_DEADLINE);
    let retry = retry(spec);

    let mut problems = Vec::new();
    if !HANDLER_DEADLINES.contains(&handler_deadline) {
        let (least, most) = HANDLER_DEADLINES.into_inner();
        let message = format!(
            "{handler_deadline} is not from {least} to {most}: change it, or leave it out for {HANDLER_DEADLINE}"
        );
        problems.push(problem("spec.handlerDeadline", message));
    }
    if ack_wait.is_zero() {
        problems.push(problem("spec.ackWait", "0 is no time to acknowledge in; leave it out for 30s"));
    }
    if retry.backoff.max < retry.backoff.initial {
        let message = format!(
            "{} is less than the first delay ({}): raise it, or lower spec.retry.backoff.initial",
            retry.backoff.max, retry.backoff.initial
        );
        problems.push(problem("spec.retry.backoff.max", message));
    }
    if stream.retention == Retention::WorkQueue && deliver_policy != DeliverPolicy::All {
        problems
            .push(problem("spec.deliverPolicy", "the stream is a WorkQueue, whose consumers begin with All"));
    }
    let misses = |filter: &&String| !stream.subjects.iter().any(|subject| subjects::overlap(filter, subject));
    if let Some(filter) = filter_subjects.iter().find(misses) {
        let kept = stream.subjects.join(", ");
        problems.push(problem(
            "spec.filterSubjects",
            format!("{filter} matches nothing that the stream keeps ({kept})"),
        ));
    }
    let kept_for = deadletter::validate::kept_for(spec).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    if !problems.is_empty() {
        return Err(problems);
    }

    let name = consumer_name.clone().unwrap_or_else(|| identity.name.clone());
    let limit = spec.retry.as_ref().and_then(|retry| retry.max_attempts).filter(|_| !runtime_counts);
    let config = Config::default()
        .with("durable_name", name.clone())
        .with("name", name.clone())
        .with("deliver_policy", deliver_policy_text(deliver_policy))
        .with("ack_policy", "explicit")
        .with("replay_policy", "instant")
        .with("ack_wait", jetwright_crds::Duration(ack_wait).as_nanos())
        .with("max_deliver", limit.map_or(WITHOUT_END, i64::from))
        .with("max_ack_pending", max_ack_pending);
    let config = match filter_subjects.as_slice() {
        // The server wants a filter to know the subjects by.
        [] if deliver_policy == DeliverPolicy::LastPerSubject => config.with("filter_subject", ">"),
        [] => config,
        [one] => config.with("filter_subject", one.clone()),
        several => config.with("filter_subjects", json!(several)),
    };
    let binding = Binding {
        stream: stream.name.clone(),
        consumer: name.clone(),
        ack_wait: jetwright_crds::Duration(ack_wait),
        max_ack_pending,
        retry,
        handler_deadline,
        ordering: None,
        dead_letters: kept_for
            .map(|age| DeadLetters { prefix: dead_letter::prefix(&stream.name, &name), max_age: Some(age) }),
    };
    let config = identity.mark(config);
    Ok(Desired { stream: stream.name.clone(), name, identity: identity.clone(), config, binding })
}

/// The spec's retry, with the defaults for what it leaves out.
fn retry(spec: &EventConsumerSpec) -> Retry {
    let Retry { max_attempts, backoff: Backoff { initial, factor, max } } = Retry::default();
    let asked = spec.retry.clone().unwrap_or_default();
    let backoff = asked.backoff.unwrap_or_default();
    Retry {
        max_attempts: asked.max_attempts.unwrap_or(max_attempts),
        backoff: Backoff {
            initial: backoff.initial.unwrap_or(initial),
            factor: backoff.factor.unwrap_or(factor),
            max: backoff.max.unwrap_or(max),
        },
    }
}

fn deliver_policy_text(policy: DeliverPolicy) -> &'static str {
    match policy {
        DeliverPolicy::All => "all",
        DeliverPolicy::Last => "last",
        DeliverPolicy::LastPerSubject => "last_per_subject",
        DeliverPolicy::New => "new",
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    const TEMPLATE: &str = "{spec: {containers: [{name: app, image: app:1}]}}";

    fn facts(retention: Retention) -> StreamFacts {
        StreamFacts { name: "orders".into(), retention, subjects: vec![">".into()] }
    }

    fn identity(generation: i64) -> Identity {
        Identity {
            cluster: "east".into(),
            namespace: "shop".into(),
            name: "fulfilment".into(),
            uid: "u1".into(),
            generation,
        }
    }

    pub fn desired_at(generation: i64, spec: &str) -> Desired {
        let spec = serde_saphyr::from_str(spec).unwrap();
        validate(&spec, &identity(generation), &facts(Retention::Limits)).unwrap()
    }

    fn problems(spec: &str, retention: Retention) -> Vec<&'static str> {
        let spec = serde_saphyr::from_str(spec).unwrap();
        let problems = validate(&spec, &identity(1), &facts(retention)).unwrap_err();
        problems.into_iter().map(|problem| problem.field).collect()
    }

    fn field(spec: &str, name: &str) -> Value {
        serde_json::to_value(desired_at(1, spec).config).unwrap()[name].clone()
    }

    #[test]
    fn a_minimal_spec_is_whole() {
        let desired = desired_at(1, "streamRef: {name: orders}");
        let retry = Retry::default();
        let binding = Binding {
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            ack_wait: jetwright_crds::Duration::from_secs(30),
            max_ack_pending: 1000,
            retry,
            handler_deadline: jetwright_crds::Duration::from_secs(20),
            ordering: None,
            dead_letters: None,
        };
        assert_eq!(desired.binding, binding);
        let mut config = serde_json::to_value(desired.config).unwrap();
        config["metadata"].as_object_mut().unwrap().remove("jetwright.dev/applied").unwrap();
        assert_eq!(
            config,
            json!({
                "durable_name": "fulfilment", "name": "fulfilment", "deliver_policy": "all", "ack_policy": "explicit",
                "replay_policy": "instant", "ack_wait": 30_000_000_000_i64, "max_deliver": -1, "max_ack_pending": 1000,
                "metadata": {
                    "jetwright.dev/owner": "east/shop/fulfilment", "jetwright.dev/uid": "u1",
                    "jetwright.dev/generation": "1",
                },
            })
        );
    }

    #[test]
    fn one_filter_and_several_are_different_fields() {
        let one = "{streamRef: {name: orders}, filterSubjects: [a.*]}";
        assert_eq!(
            (field(one, "filter_subject"), field(one, "filter_subjects")),
            (json!("a.*"), Value::Null)
        );
        let two = "{streamRef: {name: orders}, filterSubjects: [a.*, b.*]}";
        assert_eq!(
            (field(two, "filter_subject"), field(two, "filter_subjects")),
            (Value::Null, json!(["a.*", "b.*"]))
        );
    }

    #[test]
    fn what_fails_in_pods_may_wait_in_numbers_unless_they_are_said() {
        let pods = "{streamRef: {name: orders}, workloadRef: {name: other}";
        assert_eq!(field(&format!("{pods}}}"), "max_ack_pending"), json!(10_000));
        assert_eq!(field(&format!("{pods}, maxAckPending: 7}}"), "max_ack_pending"), json!(7));
    }

    #[test]
    fn jetstream_counts_the_attempts_only_where_no_runtime_does() {
        let retry = "retry: {maxAttempts: 4}";
        assert_eq!(field(&format!("{{streamRef: {{name: orders}}, {retry}}}"), "max_deliver"), json!(4));
        let workload =
            format!("{{streamRef: {{name: orders}}, {retry}, workload: {{template: {TEMPLATE}}}}}");
        assert_eq!(field(&workload, "max_deliver"), json!(-1));
        assert_eq!(desired_at(1, &workload).binding.retry.max_attempts, 4);
        let reference = format!("{{streamRef: {{name: orders}}, {retry}, workloadRef: {{name: other}}}}");
        assert_eq!(field(&reference, "max_deliver"), json!(-1));
    }

    #[test]
    fn pods_are_told_where_dead_letters_go_and_for_how_long_they_are_kept() {
        let spec = |rest: &str| {
            format!("{{streamRef: {{name: orders}}, consumerName: c, workloadRef: {{name: other}}, {rest}}}")
        };
        let kept = desired_at(1, &spec("deadLetter: {maxAge: 1d}")).binding.dead_letters;
        let expected = DeadLetters {
            prefix: "jetwright.dlq.orders.c".into(),
            max_age: Some(jetwright_crds::Duration::from_secs(86_400)),
        };
        assert_eq!(kept, Some(expected));
        assert_eq!(desired_at(1, &spec("deadLetter: {policy: Drop}")).binding.dead_letters, None);
        assert_eq!(
            problems(&spec("deadLetter: {maxAge: 1ms}"), Retention::Limits),
            ["spec.deadLetter.maxAge"]
        );
    }

    #[test]
    fn a_handler_may_take_from_a_second_to_an_hour() {
        let spec = |deadline: &str| format!("{{streamRef: {{name: orders}}, handlerDeadline: {deadline}}}");
        for deadline in ["1s", "1m30s", "1h"] {
            assert_eq!(desired_at(1, &spec(deadline)).binding.handler_deadline.to_string(), deadline);
        }
        for deadline in ["0s", "999ms", "1h1ms", "1d"] {
            assert_eq!(problems(&spec(deadline), Retention::Limits), ["spec.handlerDeadline"], "{deadline}");
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_of_the_stream_is_told() {
        let spec =
            serde_saphyr::from_str("{streamRef: {name: orders}, filterSubjects: [orders.*.placed, users.*]}")
                .unwrap();
        let stream = StreamFacts { subjects: vec!["orders.*.*".into()], ..facts(Retention::Limits) };
        let problems = validate(&spec, &identity(1), &stream).unwrap_err();
        assert_eq!(
            problems,
            [problem("spec.filterSubjects", "users.* matches nothing that the stream keeps (orders.*.*)")]
        );
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let spec = "{streamRef: {name: orders}, handlerDeadline: 1h1s, ackWait: 0s, deliverPolicy: New, retry: {backoff: {initial: 2m}}}";
        let all = ["spec.handlerDeadline", "spec.ackWait", "spec.retry.backoff.max", "spec.deliverPolicy"];
        assert_eq!(problems(spec, Retention::WorkQueue), all);
    }
}
