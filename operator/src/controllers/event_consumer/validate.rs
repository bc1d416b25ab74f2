//! In: an EventConsumer, its EventStream, and whether its name is taken. Out: the consumers that it declares, whole, with what its handler needs,
//! or everything that is wrong with it. Pure.
//!
//! What the API server refuses by the schema is not judged again here.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use jetwright_crds::{
    EventConsumer, EventConsumerSpec, EventStream,
    conditions::{self, CONSUMER_READY, READY, Reason},
    consumer::DeliverPolicy,
    dead_letter,
    environment::{
        Binding, Bindings, DeadLetters, HANDLER_DEADLINE, HANDLER_DEADLINES, Ordering, StreamPartitions,
    },
    stream::Retention,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::{
    inputs::{Guest, Inputs, Source},
    physical::{Numbers, Physical, physical},
};
use crate::{
    field_error::FieldError,
    jetstream::{
        asset::{Consumer, ConsumerKey, Desired},
        consumer_config,
        ownership::Owner,
        subjects,
    },
};

/// A consumer that can be.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// What it is in JetStream: one consumer, or one for each partition.
    pub consumers: Vec<(Physical, Desired<Consumer>)>,
    /// What a workload's handler needs.
    pub binding: Binding,
}

/// Makes the desired consumers of an object; with order, those that `shared` says.
///
/// # Errors
///
/// Everything that is wrong, each with its field and what to do.
pub fn validate(
    object: &EventConsumer,
    owner: &Owner,
    source: Source<'_>,
    shared: Option<Numbers>,
) -> Result<Validated, Vec<FieldError>> {
    let (spec, binding) = (&object.spec, binding(object, source)?);
    let silent = spec.max_ack_pending.is_none() && (spec.has_pods() || spec.is_per_key());
    let desired = |consumer: Physical| {
        let desired = Desired {
            key: ConsumerKey { stream: binding.stream.clone(), name: consumer.name.clone() },
            owner: owner.clone(),
            adoption: spec.effective_adoption_policy(),
            config: consumer_config::config(&consumer.name, &consumer.filters, spec),
            replicas: None,
            max_ack_pending: silent.then(|| spec.effective_max_ack_pending()),
        };
        (consumer, desired)
    };
    let consumers = physical(object, source.stream, shared).map_err(|error| vec![error])?;
    Ok(Validated { consumers: consumers.into_iter().map(desired).collect(), binding })
}

/// What a handler needs of a consumer, whosever it is.
fn binding(object: &EventConsumer, Source { stream, clash }: Source<'_>) -> Result<Binding, Vec<FieldError>> {
    let (spec, mut errors) = (&object.spec, errors_of(&object.spec, stream));
    let max_age = dead_letter_max_age(spec).unwrap_or_else(|error| {
        errors.push(error);
        None
    });
    errors.extend(clash.cloned());
    if errors.is_empty() {
        errors.extend(physical(object, stream, None).err());
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // Also before the stream has them: a pod has to know a number when it sees one.
    let partitions = partitions_of(stream);
    let ordering = partitions.as_ref().filter(|_| spec.is_per_key());
    let ordering = ordering.map(|partitions| Ordering { key_tokens: partitions.key_tokens.clone() });
    let (stream, consumer) = (stream.stream_name(), object.consumer_name());
    let dead_letters = max_age
        .map(|age| DeadLetters { prefix: dead_letter::prefix(&stream, &consumer), max_age: Some(age) });
    Ok(Binding {
        stream,
        consumer,
        ack_wait: spec.effective_ack_wait(),
        max_ack_pending: spec.effective_max_ack_pending(),
        retry: spec.effective_retry(),
        handler_deadline: spec.effective_handler_deadline(),
        partitions,
        ordering,
        dead_letters,
    })
}

/// The partitions of a stream as pods are told of them.
fn partitions_of(stream: &EventStream) -> Option<StreamPartitions> {
    let partitions = stream.spec.partitions.as_ref()?;
    Some(StreamPartitions {
        subject: stream.spec.subjects.first()?.clone(),
        key_tokens: partitions.key_tokens.clone(),
        count: stream.partition_count()?,
    })
}

fn errors_of(spec: &EventConsumerSpec, stream: &EventStream) -> Vec<FieldError> {
    let (deadline, retry) = (spec.effective_handler_deadline(), spec.effective_retry());
    let backoff = spec.retry.as_ref().and_then(|retry| retry.backoff.clone()).unwrap_or_default();
    let durations = [
        ("spec.ackWait", spec.ack_wait),
        ("spec.retry.backoff.initial", backoff.initial),
        ("spec.retry.backoff.max", backoff.max),
    ];
    let mut errors: Vec<_> =
        durations.into_iter().filter_map(|(field, duration)| FieldError::too_long(field, duration)).collect();
    if !HANDLER_DEADLINES.contains(&deadline) {
        let (least, most) = HANDLER_DEADLINES.into_inner();
        let message = format!("{deadline} must be from {least} to {most} (default: {HANDLER_DEADLINE})");
        errors.push(FieldError::new("spec.handlerDeadline", message));
    }
    if spec.effective_ack_wait().0.is_zero() {
        let default = if spec.is_per_key() { "10s" } else { "30s" };
        errors.push(FieldError::new("spec.ackWait", format!("must be greater than 0 (default: {default})")));
    }
    if retry.backoff.max < retry.backoff.initial {
        let message = format!(
            "{} is less than the first delay ({}): raise it, or lower spec.retry.backoff.initial",
            retry.backoff.max, retry.backoff.initial
        );
        errors.push(FieldError::new("spec.retry.backoff.max", message));
    }
    let is_work_queue = stream.spec.effective_retention() == Retention::WorkQueue;
    if is_work_queue && spec.effective_deliver_policy() != DeliverPolicy::All {
        let message = "must be All, since the stream is a WorkQueue";
        errors.push(FieldError::new("spec.deliverPolicy", message));
    }
    let kept = &stream.spec.subjects;
    let misses = |filter: &&String| !kept.iter().any(|subject| subjects::overlap(filter, subject));
    if let Some(filter) = spec.filter_subjects.iter().find(misses) {
        let message = format!("{filter} matches nothing that the stream keeps ({})", kept.join(", "));
        errors.push(FieldError::new("spec.filterSubjects", message));
    }
    errors.extend(covered_filter(&spec.filter_subjects));
    errors
}

/// Filters may overlap in part; one that another covers adds nothing, and servers refuse it.
fn covered_filter(filters: &[String]) -> Option<FieldError> {
    filters.iter().enumerate().find_map(|(index, one)| {
        let others = filters.iter().enumerate().filter(|(other, _)| *other != index);
        let (_, other) = others.into_iter().find(|(_, other)| subjects::is_covered(one, other))?;
        Some(FieldError::new("spec.filterSubjects", format!("{one} is covered by {other}: leave it out")))
    })
}

/// How long each dead letter is kept; None where there are none.
///
/// # Errors
///
/// When messages of JetStream cannot be kept so: the header Nats-TTL has whole seconds, at least one (ADR-43 of NATS).
pub fn dead_letter_max_age(spec: &EventConsumerSpec) -> Result<Option<jetwright_crds::Duration>, FieldError> {
    let Some(age) = spec.dead_letter_max_age() else { return Ok(None) };
    if age.0 < Duration::from_secs(1) || age.0.subsec_nanos() != 0 {
        let default = EventConsumerSpec::DEAD_LETTER_MAX_AGE;
        let message = format!("{age} must be whole seconds, at least one (default: {default})");
        return Err(FieldError::new("spec.deadLetter.maxAge", message));
    }
    FieldError::too_long("spec.deadLetter.maxAge", Some(age)).map_or(Ok(Some(age)), Err)
}

/// What the pods of an object consume: its own events, and those of its guests.
pub fn bindings(object: &EventConsumer, inputs: &Inputs, guests: &[Guest]) -> Bindings {
    let own = (object, inputs.source());
    let others = guests.iter().map(|guest| (guest.consumer.as_ref(), guest.source()));
    let bindings: BTreeMap<_, _> = std::iter::once(own)
        .chain(others)
        .filter_map(|(consumer, source)| Some((consumer.name_any(), usable_binding(consumer, source?)?)))
        .collect();
    Bindings { bindings }
}

/// An object as it is handled now: one that is to have order has none yet while its consumer without order is there.
#[must_use]
pub fn in_force(object: &EventConsumer) -> Cow<'_, EventConsumer> {
    let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
    if object.spec.is_per_key() && known.is_some_and(|known| known.partitions.is_none()) {
        return Cow::Owned(without_order(object));
    }
    Cow::Borrowed(object)
}

/// The object as it would be without order.
#[must_use]
pub fn without_order(object: &EventConsumer) -> EventConsumer {
    let mut object = object.clone();
    object.spec.ordering = None;
    object
}

/// The binding of a consumer; None where the consumer's own conditions say what is wrong with it.
fn usable_binding(consumer: &EventConsumer, source: Source<'_>) -> Option<Binding> {
    if is_foreign(source.stream.conditions(), READY) || is_foreign(consumer.conditions(), CONSUMER_READY) {
        return None;
    }
    binding(&in_force(consumer), source).ok()
}

/// Whether what an object declares belongs to another in JetStream: pods would take another's events.
fn is_foreign(known: &[Condition], type_: &str) -> bool {
    conditions::get(known, type_).is_some_and(|condition| condition.reason == Reason::NameConflict.as_str())
}

#[cfg(test)]
mod tests {
    use jetwright_crds::{
        AdoptionPolicy, EventConsumerStatus,
        consumer::ConsumerState,
        environment::Retry,
        stream::{EventStreamStatus, StreamState},
    };

    use super::*;
    use crate::jetstream::ownership::tests::owner;

    const TEMPLATE: &str = "{spec: {containers: [{name: app, image: app:1}]}}";

    fn stream(spec: &str) -> EventStream {
        EventStream::new("orders", serde_saphyr::from_str(spec).unwrap())
    }

    fn consumer(spec: &str) -> EventConsumer {
        EventConsumer::new("fulfilment", serde_saphyr::from_str(spec).unwrap())
    }

    fn validated(spec: &str, of: &str) -> Result<Validated, Vec<FieldError>> {
        validate(&consumer(spec), &owner(1), Source { stream: &stream(of), clash: None }, None)
    }

    fn binding_of(spec: &str) -> Binding {
        validated(spec, "subjects: ['>']").unwrap().binding
    }

    fn fields(spec: &str) -> Vec<&'static str> {
        let errors = validated(spec, "{subjects: ['>'], retention: WorkQueue}").unwrap_err();
        errors.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_minimal_spec_is_whole() {
        let expected = Validated {
            consumers: vec![(
                Physical { partition: None, name: "fulfilment".into(), filters: Vec::new() },
                Desired {
                    key: ConsumerKey { stream: "orders".into(), name: "fulfilment".into() },
                    owner: owner(1),
                    adoption: AdoptionPolicy::Refuse,
                    config: consumer_config::config(
                        "fulfilment",
                        &[],
                        &consumer("streamRef: {name: orders}").spec,
                    ),
                    replicas: None,
                    max_ack_pending: None,
                },
            )],
            binding: Binding {
                stream: "orders".into(),
                consumer: "fulfilment".into(),
                ack_wait: jetwright_crds::Duration::from_secs(30),
                max_ack_pending: 1000,
                retry: Retry::default(),
                handler_deadline: jetwright_crds::Duration::from_secs(20),
                partitions: None,
                ordering: None,
                dead_letters: None,
            },
        };
        assert_eq!(validated("streamRef: {name: orders}", "subjects: ['>']"), Ok(expected));
    }

    #[test]
    fn each_partition_has_a_consumer_and_pods_are_told_of_one_with_its_partitions() {
        let of = "{subjects: ['orders.*.*'], partitions: {count: 2, keyTokens: [3, 2]}}";
        let per_key = validated("{streamRef: {name: orders}, ordering: PerKey}", of).unwrap();
        let made = per_key.consumers.iter().map(|(consumer, desired)| {
            let config = serde_json::json!(desired.config);
            assert_eq!((&consumer.name, &desired.key.stream), (&desired.key.name, &"orders".to_owned()));
            let fields =
                ["durable_name", "filter_subject", "ack_wait"].map(|field| config[field].to_string());
            (fields.join(" "), desired.max_ack_pending)
        });
        let expected = |n: u8| (format!("\"fulfilment-p{n}\" \"orders.*.*.{n}\" 10000000000"), Some(256));
        assert_eq!(made.collect::<Vec<_>>(), [expected(0), expected(1)]);
        let partitions = StreamPartitions { subject: "orders.*.*".into(), key_tokens: vec![3, 2], count: 2 };
        let Binding { consumer, ack_wait, max_ack_pending, ordering, .. } = per_key.binding.clone();
        assert_eq!(
            (consumer.as_str(), ack_wait.to_string(), max_ack_pending),
            ("fulfilment", "10s".into(), 256)
        );
        assert_eq!(per_key.binding.partitions, Some(partitions.clone()));
        assert_eq!(ordering, Some(Ordering { key_tokens: vec![3, 2] }));
        let unordered = validated("streamRef: {name: orders}", of).unwrap();
        assert_eq!((unordered.consumers.len(), unordered.binding.ordering), (1, None));
        assert_eq!(unordered.binding.partitions, Some(partitions));
    }

    #[test]
    fn filters_and_pods_know_of_numbers_before_the_stream_has_them_and_of_as_many_as_it_has() {
        let mut stream = stream("{subjects: ['orders.*.*'], partitions: {count: 16, keyTokens: [2]}}");
        let filters = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}";
        for (there, expected) in [(None, 16), (Some(None), 16), (Some(Some(8)), 8), (Some(Some(7)), 16)] {
            let state = there.map(|partitions| StreamState { partitions, ..StreamState::default() });
            stream.status = Some(EventStreamStatus { stream: state, ..EventStreamStatus::default() });
            let source = Source { stream: &stream, clash: None };
            let found = validate(&consumer(filters), &owner(1), source, None).unwrap();
            let (physical, _) = &found.consumers[0];
            assert_eq!((physical.filters.len(), found.binding.partitions.unwrap().count), (2, expected));
        }
    }

    #[test]
    fn pods_go_on_without_order_while_the_consumer_without_order_is_there() {
        let stream = stream("{subjects: ['orders.*.*'], partitions: {count: 2, keyTokens: [2]}}");
        let source = Source { stream: &stream, clash: None };
        for (known, is_ordered) in [(None, true), (Some(None), false), (Some(Some(2)), true)] {
            let mut object = consumer("{streamRef: {name: orders}, ordering: PerKey}");
            let state = known.map(|partitions| ConsumerState { partitions, ..ConsumerState::default() });
            object.status = Some(EventConsumerStatus { consumer: state, ..EventConsumerStatus::default() });
            let binding = usable_binding(&object, source).unwrap();
            assert_eq!(
                (binding.ordering.is_some(), binding.max_ack_pending == 256),
                (is_ordered, is_ordered)
            );
        }
    }

    #[test]
    fn a_name_that_is_taken_is_told_with_all_that_is_wrong_and_no_pod_is_told_of_it() {
        let taken = FieldError::new("spec.consumerName", "taken");
        let orders = stream("subjects: ['>']");
        let source = Source { stream: &orders, clash: Some(&taken) };
        let wrong = consumer("{streamRef: {name: orders}, ackWait: 0s}");
        let fields =
            validate(&wrong, &owner(1), source, None).unwrap_err().into_iter().map(|error| error.field);
        assert_eq!(fields.collect::<Vec<_>>(), ["spec.ackWait", "spec.consumerName"]);
        assert_eq!(usable_binding(&consumer("streamRef: {name: orders}"), source), None);
    }

    #[test]
    fn the_runtime_is_told_how_often_to_try() {
        let workload = format!(
            "{{streamRef: {{name: orders}}, retry: {{maxAttempts: 4}}, workload: {{template: {TEMPLATE}}}}}"
        );
        assert_eq!(binding_of(&workload).retry.max_attempts, 4);
    }

    #[test]
    fn pods_are_told_where_dead_letters_go_and_for_how_long_they_are_kept() {
        let spec = |rest: &str| {
            format!("{{streamRef: {{name: orders}}, consumerName: c, workloadRef: {{name: other}}, {rest}}}")
        };
        let expected = DeadLetters {
            prefix: "jetwright.dlq.orders.c".into(),
            max_age: Some(jetwright_crds::Duration::from_secs(86_400)),
        };
        assert_eq!(binding_of(&spec("deadLetter: {maxAge: 1d}")).dead_letters, Some(expected));
        assert_eq!(binding_of(&spec("deadLetter: {policy: Drop}")).dead_letters, None);
        assert_eq!(fields(&spec("deadLetter: {maxAge: 1ms}")), ["spec.deadLetter.maxAge"]);
    }

    #[test]
    fn the_age_of_a_dead_letter_is_whole_seconds() {
        let age = |age: &str| {
            let spec = format!(
                "{{streamRef: {{name: orders}}, workloadRef: {{name: a}}, deadLetter: {{maxAge: {age}}}}}"
            );
            let age = dead_letter_max_age(&consumer(&spec).spec);
            age.map(|age| age.map(|age| age.to_string())).map_err(|error| error.field)
        };
        assert_eq!(age("1s"), Ok(Some("1s".into())));
        for wrong in ["0s", "999ms", "1s1ms"] {
            assert_eq!(age(wrong), Err("spec.deadLetter.maxAge"), "{wrong}");
        }
    }

    #[test]
    fn a_handler_may_take_from_a_second_to_an_hour() {
        let spec = |deadline: &str| format!("{{streamRef: {{name: orders}}, handlerDeadline: {deadline}}}");
        for deadline in ["1s", "1m30s", "1h"] {
            assert_eq!(binding_of(&spec(deadline)).handler_deadline.to_string(), deadline);
        }
        for deadline in ["0s", "999ms", "1h1ms", "1d"] {
            assert_eq!(fields(&spec(deadline)), ["spec.handlerDeadline"], "{deadline}");
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_of_the_stream_is_refused() {
        let spec = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed, users.*]}";
        let message = "users.* matches nothing that the stream keeps (orders.*.*)";
        assert_eq!(
            validated(spec, "subjects: ['orders.*.*']"),
            Err(vec![FieldError::new("spec.filterSubjects", message)])
        );
    }

    #[test]
    fn filters_may_overlap_in_part_but_none_may_cover_another() {
        let errors = |filters: &str| {
            let spec = format!("{{streamRef: {{name: orders}}, filterSubjects: {filters}}}");
            validated(&spec, "subjects: ['orders.*.*']").err()
        };
        assert_eq!(errors("[orders.*.placed, orders.1.*]"), None);
        let message = "orders.1.placed is covered by orders.*.placed: leave it out";
        assert_eq!(
            errors("[orders.*.placed, orders.1.placed]"),
            Some(vec![FieldError::new("spec.filterSubjects", message)])
        );
    }

    #[test]
    fn what_jetstream_cannot_hold_is_refused() {
        let spec = "{streamRef: {name: orders}, ackWait: 300y, retry: {backoff: {initial: 293y, max: 99999999999999999999y}},
            workloadRef: {name: other}, deadLetter: {maxAge: 400y}}";
        let all = [
            "spec.ackWait",
            "spec.retry.backoff.initial",
            "spec.retry.backoff.max",
            "spec.deadLetter.maxAge",
        ];
        assert_eq!(fields(spec), all);
    }

    #[test]
    fn every_error_is_named_at_once() {
        let spec = "{streamRef: {name: orders}, handlerDeadline: 1h1s, ackWait: 0s, deliverPolicy: New, retry: {backoff: {initial: 2m}}}";
        let all = ["spec.handlerDeadline", "spec.ackWait", "spec.retry.backoff.max", "spec.deliverPolicy"];
        assert_eq!(fields(spec), all);
    }

    #[test]
    fn pods_are_told_of_no_consumer_that_belongs_to_another_in_jetstream() {
        let host = consumer(&format!("{{streamRef: {{name: orders}}, workload: {{template: {TEMPLATE}}}}}"));
        let mut guest = EventConsumer::new(
            "mails",
            serde_saphyr::from_str("{streamRef: {name: orders}, workloadRef: {name: fulfilment}}").unwrap(),
        );
        let orders = std::sync::Arc::new(stream("subjects: ['>']"));
        let inputs = Inputs {
            stream: Some(orders.clone()),
            clash: None,
            dead_letter_stream: None,
            pods: super::super::inputs::Pods::None,
        };
        let names = |guest: &EventConsumer| {
            let guest = Guest { consumer: guest.clone().into(), stream: Some(orders.clone()), clash: None };
            bindings(&host, &inputs, &[guest]).bindings.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(names(&guest), ["fulfilment", "mails"]);
        guest.status = serde_json::from_value(serde_json::json!({"conditions": [{
            "type": "ConsumerReady", "status": "False", "reason": "NameConflict", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}))
        .unwrap();
        assert_eq!(names(&guest), ["fulfilment"]);
    }
}
