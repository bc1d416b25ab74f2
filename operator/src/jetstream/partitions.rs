//! The partitions of a stream: a subject transform by which each server that keeps a copy adds the number to what it stores. In: what an EventStream
//! declares, and an update of its stream. Out: the transform, and whether the update changes partitions that are in use. Pure.

use jetwright_crds::{EventStreamSpec, marks::APPLIED};
use jetwright_partitions::subjects::{Partitions, SubjectError};
use serde_json::{Value, json};

use super::{
    config::Config,
    info::StreamInfo,
    plan::{Cause, Plan},
    stream_config::SUBJECT_TRANSFORM,
};

/// What the destination of a transform has that numbers partitions.
const FUNCTION: &str = "{{partition(";

/// The partitions that a spec declares; None where it has none.
///
/// # Errors
///
/// When its subject cannot have them.
pub fn declared(spec: &EventStreamSpec) -> Result<Option<Partitions>, SubjectError> {
    let Some(partitions) = &spec.partitions else { return Ok(None) };
    let subject = spec.subjects.first().map(String::as_str).unwrap_or_default();
    Partitions::new(subject, &partitions.key_tokens, partitions.effective_count()).map(Some)
}

/// The server's transform.
#[must_use]
pub fn transform(partitions: &Partitions) -> Value {
    json!({"src": partitions.transform_source(), "dest": partitions.transform_destination()})
}

/// Whether an update would give a stream that has messages or consumers other partitions than it has: that has an order, which
/// [`super::repartition`] keeps. What another writer changed is set back all the same, since until then more events go astray; but not where the
/// mark of what was applied last is gone with it: then nobody knows whether the stream ever had partitions.
#[must_use]
pub fn changes(plan: &Plan, info: &StreamInfo) -> bool {
    let Plan::Update { steps, cause, .. } = plan else { return false };
    let is_unused = info.state.messages == 0 && info.state.consumer_count == 0;
    let is_known = info.config.metadata().contains_key(APPLIED);
    let is_other = steps.last().is_some_and(|step| numbering(step) != numbering(&info.config));
    is_other && !is_unused && !(*cause == Cause::Drift && is_known)
}

/// Whether a stream puts its events into these partitions.
#[must_use]
pub fn has(config: &Config, partitions: &Partitions) -> bool {
    config.get(SUBJECT_TRANSFORM) == Some(&transform(partitions))
}

/// How many partitions a stream has; None where it has none.
#[must_use]
pub fn count(config: &Config) -> Option<u32> {
    let (_, arguments) = numbering(config)?.split_once(FUNCTION)?;
    arguments.split(',').next()?.trim().parse().ok()
}

/// The destination of a stream's transform, where it numbers partitions.
#[must_use]
pub fn numbering(config: &Config) -> Option<&str> {
    let destination = config.get(SUBJECT_TRANSFORM)?.get("dest")?.as_str()?;
    destination.contains(FUNCTION).then_some(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "orders.{{wildcard(1)}}.{{partition(8,1)}}";

    fn config(destination: Option<&str>) -> Config {
        let transform = destination.map(|destination| json!({"src": "orders.*", "dest": destination}));
        serde_json::from_value(json!({"name": "orders", SUBJECT_TRANSFORM: transform})).unwrap()
    }

    fn is_change(
        from: Option<&str>,
        to: Option<&str>,
        cause: Cause,
        (messages, consumers): (u64, u64),
    ) -> bool {
        let info = json!({
            "config": config(from), "created": "2026-11-01T10:00:00Z",
            "state": {"messages": messages, "bytes": 0, "first_seq": 1, "last_seq": 10, "consumer_count": consumers},
        });
        let plan = Plan::Update { steps: vec![config(to)], fields: Vec::new(), cause };
        changes(&plan, &serde_json::from_value(info).unwrap())
    }

    #[test]
    fn a_spec_declares_the_transform_of_its_subject() {
        let of = |spec: &str| declared(&serde_saphyr::from_str(spec).unwrap());
        assert_eq!(of("subjects: [orders.>]"), Ok(None));
        let partitions = of("{subjects: [orders.*], partitions: {keyTokens: [2]}}").unwrap().unwrap();
        assert_eq!(transform(&partitions), json!({"src": "orders.*", "dest": ORDERS}));
        assert!(of("{subjects: [orders.>], partitions: {keyTokens: [2]}}").is_err());
    }

    #[test]
    fn a_streams_partitions_are_those_of_its_transform() {
        let eight = declared(
            &serde_saphyr::from_str("{subjects: [orders.*], partitions: {keyTokens: [2]}}").unwrap(),
        );
        let eight = eight.unwrap().unwrap();
        for (destination, expected, is_as_declared) in [
            (Some(ORDERS), Some(8), true),
            (Some("a.{{partition(12, 1)}}"), Some(12), false),
            (None, None, false),
        ] {
            let config = config(destination);
            assert_eq!((count(&config), has(&config, &eight)), (expected, is_as_declared));
        }
    }

    #[test]
    fn other_partitions_of_a_stream_with_messages_or_consumers_are_a_change_that_has_an_order() {
        let other = ORDERS.replace('8', "16");
        for (from, to, used, expected) in [
            (None, Some(ORDERS), (1, 0), true),
            (None, Some(ORDERS), (0, 1), true),
            (Some(ORDERS), None, (1, 0), true),
            (Some(ORDERS), Some(other.as_str()), (0, 1), true),
            (None, Some(ORDERS), (0, 0), false),
            (Some(ORDERS), None, (0, 0), false),
            (Some(ORDERS), Some(ORDERS), (9, 9), false),
        ] {
            assert_eq!(is_change(from, to, Cause::Declaration, used), expected, "{from:?} {to:?} {used:?}");
        }
    }

    #[test]
    fn what_another_writer_changed_is_set_back_and_other_transforms_are_not_judged() {
        let drifted = |is_marked: bool| {
            let metadata = if is_marked { json!({APPLIED: "1"}) } else { json!({}) };
            let info = json!({
                "config": {"name": "orders", "metadata": metadata}, "created": "2026-11-01T10:00:00Z",
                "state": {"messages": 9, "bytes": 0, "first_seq": 1, "last_seq": 10, "consumer_count": 9},
            });
            let plan =
                Plan::Update { steps: vec![config(Some(ORDERS))], fields: Vec::new(), cause: Cause::Drift };
            changes(&plan, &serde_json::from_value(info).unwrap())
        };
        assert_eq!([drifted(true), drifted(false)], [false, true]);
        assert!(!is_change(Some("a.{{wildcard(1)}}"), None, Cause::Declaration, (9, 9)));
    }
}
