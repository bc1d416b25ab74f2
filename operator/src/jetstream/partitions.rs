//! The partitions of a stream: a subject transform by which each server that keeps a copy adds the number to what it stores. In: what an EventStream
//! declares, and an update of its stream. Out: the transform, and why the update is not made. Pure.

use jetwright_crds::{EventStreamSpec, conditions::Reason, marks::APPLIED};
use jetwright_partitions::subjects::{Partitions, SubjectError};
use serde_json::{Value, json};

use super::{
    config::Config,
    info::StreamInfo,
    plan::{Cause, Plan},
    stream_config::SUBJECT_TRANSFORM,
};
use crate::outcome::Blocked;

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

/// Why an update is not made that would put events of one key into several partitions, or into none. Each server transforms for itself what it
/// applies: where the transform changes while somebody publishes, the copies of a stream come to differ. What another writer changed is set
/// back all the same, since until then more events go astray; but not where the mark of what was applied last is gone with it: then nobody
/// knows whether the stream ever had partitions.
#[must_use]
pub fn refusal(plan: &Plan, info: Option<&StreamInfo>) -> Option<Blocked> {
    let (Plan::Update { steps, cause, .. }, Some(info)) = (plan, info) else { return None };
    let (from, to) = (numbering(&info.config), numbering(steps.last()?));
    let is_unused = info.state.messages == 0 && info.state.consumer_count == 0;
    let is_known = info.config.metadata().contains_key(APPLIED);
    if from == to || is_unused || (*cause == Cause::Drift && is_known) {
        return None;
    }
    let name = info.name().unwrap_or_default();
    let message = match from {
        None => format!(
            "spec.partitions: stream {name} exists with {} messages and {} consumers, and its events are in no partition. Make another \
             EventStream with spec.partitions, and publish there; or, where nothing in the stream is needed, stop its publishers, delete its \
             consumers and purge it",
            info.state.messages, info.state.consumer_count
        ),
        Some(from) => format!(
            "spec.partitions: stream {name} exists, and stores its events by the transform {from}: another one would put events of one key \
             into two partitions. Set spec.partitions and spec.subjects to what the stream has, or make another EventStream"
        ),
    };
    Some(Blocked { reason: Reason::ImmutableField, message })
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
fn numbering(config: &Config) -> Option<&str> {
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

    fn refused(
        from: Option<&str>,
        to: Option<&str>,
        cause: Cause,
        (messages, consumers): (u64, u64),
    ) -> Option<String> {
        let info = json!({
            "config": config(from), "created": "2026-11-01T10:00:00Z",
            "state": {"messages": messages, "bytes": 0, "first_seq": 1, "last_seq": 10, "consumer_count": consumers},
        });
        let plan = Plan::Update { steps: vec![config(to)], fields: Vec::new(), cause };
        let blocked = refusal(&plan, Some(&serde_json::from_value(info).unwrap()))?;
        assert_eq!(blocked.reason, Reason::ImmutableField);
        Some(blocked.message)
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
    fn a_stream_with_messages_or_consumers_gets_no_partitions_and_none_loses_or_changes_them() {
        let declared = Cause::Declaration;
        let other = ORDERS.replace('8', "16");
        for used in [(1, 0), (0, 1)] {
            let message = refused(None, Some(ORDERS), declared.clone(), used).unwrap();
            let counts = format!("{} messages and {} consumers", used.0, used.1);
            assert!(message.contains(&counts) && message.contains("Make another EventStream"), "{message}");
            for to in [None, Some(other.as_str())] {
                let message = refused(Some(ORDERS), to, declared.clone(), used).unwrap();
                assert!(
                    message.contains(ORDERS) && message.contains("make another EventStream"),
                    "{message}"
                );
            }
        }
        assert_eq!(refused(None, Some(ORDERS), declared.clone(), (0, 0)), None);
        assert_eq!(refused(Some(ORDERS), None, declared.clone(), (0, 0)), None);
        assert_eq!(refused(Some(ORDERS), Some(ORDERS), declared, (9, 9)), None);
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
            refusal(&plan, Some(&serde_json::from_value(info).unwrap())).map(|blocked| blocked.reason)
        };
        assert_eq!([drifted(true), drifted(false)], [None, Some(Reason::ImmutableField)]);
        assert_eq!(refused(Some("a.{{wildcard(1)}}"), None, Cause::Declaration, (9, 9)), None);
    }
}
