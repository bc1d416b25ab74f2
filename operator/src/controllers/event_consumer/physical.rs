//! In: an EventConsumer and its EventStream. Out: the consumers that it has in JetStream, one, or one for each partition, or why it can have none;
//! and of what became of each, what became of the EventConsumer. Pure.

use jetwright_crds::{
    EventConsumer, EventStream, conditions::Reason, names::partition_consumer, stream::Storage,
};
use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{
    field_error::FieldError,
    jetstream::{
        config::Config,
        info::{ConsumerInfo, Position},
        partitions,
        repartition::filters::numbers,
    },
    outcome::{Blocked, OperationResult, Outcome, Pending, Reconciled, Recorded},
};

/// Longest name of a consumer (JSMaxNameLen in server/jetstream_api.go of nats-server).
const MAX_NAME_LENGTH: usize = 255;

/// A consumer in JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Physical {
    /// The partition that it delivers; None where it delivers all.
    pub partition: Option<u32>,
    pub name: String,
    pub filters: Vec<String>,
}

/// The partitions that the consumers of one with order take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// How many consumers there are.
    pub count: u32,
    /// Of how many partitions they share the numbers: more than they are while the stream's partitions change.
    pub of: u32,
}

/// The consumers of an object on the stream of its EventStream; with order, one for each declared partition where `shared` does not say otherwise.
///
/// # Errors
///
/// When the stream cannot have them.
pub fn physical(
    object: &EventConsumer,
    stream: &EventStream,
    shared: Option<Numbers>,
) -> Result<Vec<Physical>, FieldError> {
    let (name, filters) = (object.consumer_name(), &object.spec.filter_subjects);
    let wrong_filter = |error: &dyn ToString| FieldError::new("spec.filterSubjects", error.to_string());
    let partitions = partitions::declared(&stream.spec).map_err(|_| without_partitions(stream))?;
    if !object.spec.is_per_key() {
        let filters = match partitions {
            // Those of events that are in no partition, too: they were stored while another writer had taken the transform away, or before
            // the stream had partitions, which it gets once its consumers take both.
            Some(partitions) => {
                partitions.filters_of_all(filters, true).map_err(|error| wrong_filter(&error))?
            }
            None => filters.clone(),
        };
        return Ok(vec![Physical { partition: None, name, filters }]);
    }
    let Some(partitions) = partitions else { return Err(without_partitions(stream)) };
    if stream.spec.effective_storage() == Storage::Memory {
        let message = format!(
            "PerKey needs a stream that outlives its servers, and that of EventStream {} is in memory: set ordering to Unordered, or make another \
             EventStream with storage File",
            stream.name_any()
        );
        return Err(FieldError::new("spec.ordering", message));
    }
    let Numbers { count, of } =
        shared.unwrap_or(Numbers { count: partitions.count(), of: partitions.count() });
    let one = |partition| {
        let name = partition_consumer(&name, partition);
        let of_number = |number| partitions.filters_of(number, filters).map_err(|error| wrong_filter(&error));
        let filters: Vec<_> = numbers(partition, count, of).map(of_number).collect::<Result<_, _>>()?;
        Ok(Physical { partition: Some(partition), name, filters: filters.concat() })
    };
    let all: Vec<_> = (0..count).map(one).collect::<Result<_, _>>()?;
    match all.iter().find(|consumer| consumer.name.len() > MAX_NAME_LENGTH) {
        Some(longest) => {
            let message = format!(
                "{} is longer than {MAX_NAME_LENGTH}, JetStream's own limit, as the consumers of the partitions are named: recreate this object with \
                 a shorter name",
                longest.name
            );
            Err(FieldError::new("spec.consumerName", message))
        }
        None => Ok(all),
    }
}

fn without_partitions(stream: &EventStream) -> FieldError {
    let message = format!(
        "PerKey needs a stream with partitions, and EventStream {} declares none: set its spec.partitions",
        stream.name_any()
    );
    FieldError::new("spec.ordering", message)
}

/// Why nothing is made where the object has a consumer of the other order: `found` is that one's name.
#[must_use]
pub fn of_other_order(object: &EventConsumer, found: &str) -> Blocked {
    let (there, declared) =
        if object.spec.is_per_key() { ("Unordered", "PerKey") } else { ("PerKey", "Unordered") };
    Blocked {
        reason: Reason::ImmutableField,
        message: format!(
            "spec.ordering cannot change to {declared}: consumer {found} was created for this object with {there}, and knows what was handled. Set \
             spec.ordering to {there}, or make another EventConsumer; where nothing is lost if all is handled again, delete the consumer in NATS"
        ),
    }
}

/// What became of an object whose consumers came to these ends: it is as well as the worst of them.
#[must_use]
pub fn combined(
    object: &EventConsumer,
    outcomes: Vec<(Physical, Outcome<ConsumerInfo>)>,
) -> Outcome<ConsumerInfo> {
    let mut all: Vec<Reconciled<ConsumerInfo>> = Vec::new();
    let mut pending: Option<Pending> = None;
    for (consumer, outcome) in outcomes {
        match outcome {
            // Not all messages name it.
            Outcome::Pending(one) if consumer.partition.is_some() => {
                let message = format!("consumer {}: {}", consumer.name, one.message);
                let requeue_after = one.requeue_after;
                let first = pending.get_or_insert(Pending { message, ..one });
                first.requeue_after = [first.requeue_after, requeue_after].into_iter().flatten().min();
            }
            Outcome::Reconciled(one) if consumer.partition.is_some() => all.push(one),
            // It has no other consumers.
            whole => return whole,
        }
    }
    if let Some(pending) = pending {
        return Outcome::Pending(pending);
    }
    let own: Vec<_> = all.iter().filter_map(|one| one.info.as_ref()).collect();
    let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
    let known_count = known.and_then(|known| known.partitions);
    let (is_whole, all_count) = (own.len() == all.len(), u32::try_from(all.len()).ok());
    let mut info = summed(object, &own);
    if let Some(info) = info.as_mut().filter(|_| !is_whole) {
        // The missing one is created later; clearing `created` keeps that from looking like a recreation.
        info.created.clear();
        // A partition whose consumer belongs to another owner still counts: the others must stay shared out.
        info.partitions = all_count.filter(|_| known_count == all_count).or(info.partitions);
    }
    let requeue_after = all.iter().filter_map(|one| one.requeue_after).min();
    let contested = all.iter().find_map(|one| one.contested.clone());
    let result = all.into_iter().map(|one| one.result).max_by_key(weight);
    let result = result.unwrap_or(OperationResult::Unchanged);
    let whole = info.as_ref().filter(|_| is_whole);
    // More partitions, or order: those are other consumers, and nothing is lost.
    let recorded = if known_count == all_count { Recorded::of_consumer(object) } else { Recorded::default() };
    let reconciled = Reconciled::new(result, whole, &recorded);
    Outcome::Reconciled(Reconciled { info, contested, requeue_after, ..reconciled })
}

/// What an object is told of first: what is in its way, and then what was done.
fn weight(result: &OperationResult) -> u8 {
    match result {
        OperationResult::Blocked(_) => 5,
        OperationResult::Created => 4,
        OperationResult::Adopted { .. } => 3,
        OperationResult::Corrected(_) => 2,
        OperationResult::Updated(_) => 1,
        OperationResult::Unchanged => 0,
    }
}

/// The consumers as one, which was made when the last of them was: one that is made again makes it another one.
fn summed(object: &EventConsumer, infos: &[&ConsumerInfo]) -> Option<ConsumerInfo> {
    let made = |info: &&&ConsumerInfo| info.created.parse::<Timestamp>().ok();
    let last = infos.iter().max_by_key(made)?;
    let sum = |figure: fn(&ConsumerInfo) -> u64| infos.iter().map(|info| figure(info)).sum();
    Some(ConsumerInfo {
        stream_name: last.stream_name.clone(),
        name: object.consumer_name(),
        config: Config::default(),
        created: last.created.clone(),
        num_pending: sum(|info| info.num_pending),
        num_ack_pending: sum(|info| info.num_ack_pending),
        num_redelivered: sum(|info| info.num_redelivered),
        delivered: Position::default(),
        ack_floor: Position::default(),
        paused: false,
        pause_remaining: 0,
        partitions: u32::try_from(infos.len()).ok(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stream(spec: &str) -> EventStream {
        EventStream::new("orders", serde_saphyr::from_str(spec).unwrap())
    }

    fn consumer(rest: &str) -> EventConsumer {
        let spec = format!("{{streamRef: {{name: orders}}, {rest}}}");
        EventConsumer::new("fulfilment", serde_saphyr::from_str(&spec).unwrap())
    }

    const PARTITIONED: &str = "{subjects: ['orders.*.*'], partitions: {count: 3, keyTokens: [2]}}";

    fn of(rest: &str, stream_spec: &str) -> Result<Vec<(String, String)>, FieldError> {
        let found = physical(&consumer(rest), &stream(stream_spec), None)?;
        Ok(found.into_iter().map(|one| (one.name, one.filters.join(" "))).collect())
    }

    fn pair(name: &str, filters: &str) -> (String, String) {
        (name.to_owned(), filters.to_owned())
    }

    #[test]
    fn in_order_there_is_a_consumer_for_each_partition_with_its_filters() {
        let expected = |filters: [&str; 3]| {
            (0..3)
                .zip(filters)
                .map(|(n, filter)| pair(&format!("fulfilment-p{n}"), filter))
                .collect::<Vec<_>>()
        };
        let all = expected(["orders.*.*.0", "orders.*.*.1", "orders.*.*.2"]);
        assert_eq!(of("ordering: PerKey", PARTITIONED), Ok(all));
        let placed = expected(["orders.*.placed.0", "orders.*.placed.1", "orders.*.placed.2"]);
        assert_eq!(of("ordering: PerKey, filterSubjects: [orders.*.placed]", PARTITIONED), Ok(placed));
    }

    #[test]
    fn while_partitions_change_each_consumer_takes_the_numbers_of_those_that_it_becomes() {
        let of = |count, of| {
            let object = consumer("ordering: PerKey, filterSubjects: [orders.*.placed, orders.*.paid]");
            let found = physical(&object, &stream(PARTITIONED), Some(Numbers { count, of })).unwrap();
            found.into_iter().map(|one| (one.name, one.filters.join(" "))).collect::<Vec<_>>()
        };
        let first = "orders.*.placed.0 orders.*.paid.0 orders.*.placed.2 orders.*.paid.2";
        let second = "orders.*.placed.1 orders.*.paid.1 orders.*.placed.3 orders.*.paid.3";
        assert_eq!(of(2, 4), [pair("fulfilment-p0", first), pair("fulfilment-p1", second)]);
        assert_eq!(of(4, 4).len(), 4);
    }

    #[test]
    fn without_order_there_is_one_consumer_which_gets_all_partitions() {
        let one = |filters: &str| Ok(vec![pair("fulfilment", filters)]);
        assert_eq!(of("", PARTITIONED), one(""));
        let placed = "filterSubjects: [orders.*.placed]";
        assert_eq!(of(placed, PARTITIONED), one("orders.*.placed orders.*.placed.*"));
        assert_eq!(of(placed, "subjects: ['orders.*.*']"), one("orders.*.placed"));
    }

    #[test]
    fn what_a_stream_cannot_have_in_order_is_refused_with_what_to_do() {
        let error = |rest: &str, stream: &str| of(rest, stream).unwrap_err();
        for (rest, stream, field, words) in [
            ("ordering: PerKey", "subjects: ['orders.*.*']", "spec.ordering", "set its spec.partitions"),
            (
                "ordering: PerKey",
                "{subjects: ['orders.*.*'], partitions: {keyTokens: [2]}, storage: Memory}",
                "spec.ordering",
                "make another EventStream with storage File",
            ),
            (
                "ordering: PerKey, filterSubjects: [orders.placed]",
                PARTITIONED,
                "spec.filterSubjects",
                "as many tokens",
            ),
            ("filterSubjects: [orders.placed]", PARTITIONED, "spec.filterSubjects", "as many tokens"),
        ] {
            let found = error(rest, stream);
            assert_eq!(found.field, field);
            assert!(found.message.contains(words), "{}", found.message);
        }
        let long = format!("ordering: PerKey, consumerName: {}", "a".repeat(253));
        let found = error(&long, PARTITIONED);
        assert!(found.field == "spec.consumerName" && found.message.contains("shorter name"), "{found:?}");
        assert!(of(&format!("ordering: PerKey, consumerName: {}", "a".repeat(252)), PARTITIONED).is_ok());
    }

    fn info(created: &str, pending: u64) -> ConsumerInfo {
        serde_json::from_value(json!({
            "config": {"a": 1}, "created": created, "stream_name": "ORDERS", "name": "x", "num_pending": pending,
            "num_ack_pending": 1, "num_redelivered": 2,
        }))
        .unwrap()
    }

    fn one(partition: u32, outcome: Outcome<ConsumerInfo>) -> (Physical, Outcome<ConsumerInfo>) {
        let name = format!("fulfilment-p{partition}");
        (Physical { partition: Some(partition), name, filters: Vec::new() }, outcome)
    }

    fn reconciled(result: OperationResult, info: Option<&ConsumerInfo>) -> Outcome<ConsumerInfo> {
        Outcome::Reconciled(Reconciled::new(result, info, &Recorded::default()))
    }

    /// The EventConsumer whose status describes a consumer that was made then.
    fn recorded(created: &str) -> EventConsumer {
        let mut object = consumer("ordering: PerKey");
        let status = json!({"consumer": {"stream": "ORDERS", "name": "fulfilment", "created": created, "partitions": 2}});
        object.status = Some(serde_json::from_value(status).unwrap());
        object
    }

    fn combination(
        object: &EventConsumer,
        results: [(OperationResult, Option<&ConsumerInfo>); 2],
    ) -> Reconciled<ConsumerInfo> {
        let all = (0..).zip(results).map(|(n, (result, info))| one(n, reconciled(result, info))).collect();
        match combined(object, all) {
            Outcome::Reconciled(reconciled) => reconciled,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn figures_are_sums_and_the_last_that_was_made_counts() {
        use OperationResult::Unchanged;
        let (first, second) = (info("2026-11-21T10:00:00.5Z", 3), info("2026-11-21T10:00:00Z", 4));
        let object = recorded("2026-11-21T10:00:00Z");
        let whole = combination(&object, [(Unchanged, Some(&first)), (Unchanged, Some(&second))]);
        assert!(!whole.recreated);
        let found = whole.info.unwrap();
        assert_eq!((found.name.as_str(), found.created.as_str()), ("fulfilment", "2026-11-21T10:00:00.5Z"));
        assert_eq!((found.num_pending, found.num_ack_pending, found.num_redelivered), (7, 2, 4));
    }

    #[test]
    fn one_that_was_deleted_and_made_again_is_told_as_such() {
        let (first, again) = (info("2026-11-21T10:00:00Z", 0), info("2026-11-21T11:00:00Z", 0));
        let results =
            || [(OperationResult::Unchanged, Some(&first)), (OperationResult::Created, Some(&again))];
        assert!(combination(&recorded("2026-11-21T10:00:00Z"), results()).recreated);
        assert!(
            !combination(&consumer("ordering: PerKey"), results()).recreated,
            "it was made for the first time"
        );
    }

    #[test]
    fn it_is_not_ready_where_one_is_in_the_way_and_waits_where_one_waits() {
        let there = info("2026-11-21T10:00:00Z", 0);
        let taken = Blocked { reason: Reason::NameConflict, message: "taken".into() };
        let blocked = OperationResult::Blocked(taken);
        let whole = combination(
            &consumer("ordering: PerKey"),
            [(blocked.clone(), Some(&there)), (OperationResult::Created, Some(&there))],
        );
        assert_eq!((whole.result, whole.recreated), (blocked.clone(), false));
        let known = whole.info.unwrap();
        assert_eq!((known.num_ack_pending, known.created.as_str()), (1, ""), "of those that are its own");
        assert_eq!(known.partitions, Some(1));
        let taken_away = [(blocked.clone(), None), (OperationResult::Unchanged, Some(&there))];
        let known = combination(&recorded("2026-11-21T10:00:00Z"), taken_away).info.unwrap();
        assert_eq!(known.partitions, Some(2), "it had all of them");
        let none = combination(&consumer("ordering: PerKey"), [(blocked.clone(), None), (blocked, None)]);
        assert!(none.info.is_none());
        let waiting = Pending {
            reason: Reason::Contested,
            message: "others write".into(),
            stalled: false,
            requeue_after: None,
        };
        let all = vec![
            one(0, reconciled(OperationResult::Unchanged, Some(&there))),
            one(1, Outcome::Pending(waiting)),
        ];
        match combined(&consumer("ordering: PerKey"), all) {
            Outcome::Pending(pending) => assert_eq!(pending.message, "consumer fulfilment-p1: others write"),
            other => panic!("{other:?}"),
        }
    }
}
