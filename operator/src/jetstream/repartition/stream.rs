//! In: a stream that exists, the partitions that it is to have, its consumers, and for how long it stood still. Out: the next step of the change,
//! or what it waits for. Pure.

use std::time::Duration;

use jetwright_crds::conditions::{Reason, State};
use jetwright_partitions::subjects::Partitions;
use serde_json::{Value, json};

use super::{filters::Change, mark::Mark};
use crate::{
    jetstream::{
        config::Config,
        info::{ConsumerInfo, StreamInfo},
        partitions::{count, numbering, transform},
        stream_config::SUBJECT_TRANSFORM,
    },
    outcome::Blocked,
};

/// For how long nothing may be stored before the transform changes. What a publisher sent that was not answered is stored by then.
pub const STILL: Duration = Duration::from_secs(10);
/// How much later than the leader a server may take the new transform.
pub const SETTLING: Duration = Duration::from_secs(10);

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// The partitions are as declared, and no change goes on.
    Nothing,
    /// The transform may change, together with this mark.
    Change(Mark),
    /// The mark is this one now.
    Mark(Mark),
    /// Nothing now.
    Wait(State),
    /// Nothing ever.
    Refused(Blocked),
}

/// What is known of a stream.
#[derive(Debug)]
pub struct Known<'a> {
    pub info: &'a StreamInfo,
    /// All consumers that it has.
    pub consumers: &'a [ConsumerInfo],
    /// For how long its last sequence stood still.
    pub still: Duration,
    /// For how long it has had its mark.
    pub marked: Duration,
}

/// Decides the next step.
#[must_use]
pub fn next(declared: Option<&Partitions>, known: &Known<'_>) -> Next {
    let config = &known.info.config;
    if let Some(mark @ Mark { at: None, .. }) = Mark::of(config).filter(|mark| Some(mark.to) == count(config))
    {
        return settle(mark, known);
    }
    let from = match start(declared, config) {
        Ok(Start::Count(from)) => from,
        Ok(Start::Declared) => return Next::Nothing,
        Err(message) => {
            let message = format!("spec.partitions: {message}");
            return Next::Refused(Blocked { reason: Reason::ImmutableField, message });
        }
    };
    let Some(declared) = declared else { return Next::Nothing };
    let (subject, to) = (declared.transform_source(), declared.count());
    let obstacle = narrow(Change { subject, from, to }, known.consumers)
        .or_else(|| behind(known.info))
        .or_else(|| busy(known));
    obstacle.map_or(Next::Change(Mark { from, to, at: None }), Next::Wait)
}

/// Whether a change of a stream is under way, or declared, as far as its configuration says.
#[must_use]
pub fn is_due(desired: &Config, actual: &Config) -> bool {
    let is_open = Mark::of(actual).is_some_and(|mark| mark.at.is_none() && Some(mark.to) == count(actual));
    is_open || numbering(desired) != numbering(actual)
}

/// What a stream's partitions have to become the declared ones from.
#[derive(Debug, PartialEq, Eq)]
enum Start {
    /// They are the declared ones.
    Declared,
    /// So many; None where events have no number.
    Count(Option<u32>),
}

/// What the change begins with, or why it never may.
fn start(declared: Option<&Partitions>, config: &Config) -> Result<Start, String> {
    let name = config.get("name").and_then(Value::as_str).unwrap_or_default();
    let from = count(config);
    let Some(declared) = declared else {
        return match numbering(config) {
            None => Ok(Start::Declared),
            Some(there) => Err(format!(
                "stream {name} stores its events by the transform {there}, and consumers know them by their numbers: set spec.partitions and \
                 spec.subjects to what the stream has, or make another EventStream"
            )),
        };
    };
    let there = config.get(SUBJECT_TRANSFORM).filter(|transform| !transform.is_null());
    if there == Some(&transform(declared)) {
        return Ok(Start::Declared);
    }
    let retention = config.get("retention").and_then(Value::as_str).unwrap_or("limits");
    if retention != "limits" {
        return Err(format!(
            "stream {name} exists with messages or consumers, and its retention is not Limits, where an event goes while its consumer changes: \
             make another EventStream, or stop its publishers, delete its consumers and purge it"
        ));
    }
    let is_multiple = |from: u32| {
        let before = declared.with_count(from).map(|before| transform(&before));
        from < declared.count() && declared.count().is_multiple_of(from) && before.ok().as_ref() == there
    };
    if there.is_none()
        && config.get("subjects").is_none_or(|subjects| *subjects != json!([declared.transform_source()]))
    {
        return Err(format!(
            "stream {name} exists, and listens to other subjects than {}: what it stored under them could be taken for an event with a number. Set \
             spec.subjects to what the stream has, or make another EventStream",
            declared.transform_source()
        ));
    }
    match (there, from) {
        (None, _) => Ok(Start::Count(None)),
        (Some(_), Some(from)) if is_multiple(from) => Ok(Start::Count(Some(from))),
        (Some(there), _) => Err(format!(
            "stream {name} exists, and stores its events by the transform {}: only a multiple of its count, with the same subject and keyTokens, \
             divides each partition and mixes none. Set spec.partitions and spec.subjects to such, or make another EventStream",
            numbering(config).map_or_else(|| there.to_string(), str::to_owned)
        )),
    }
}

/// Waits until every server has the new transform, and then says up to where events may have a number of before.
fn settle(mark: Mark, known: &Known<'_>) -> Next {
    if known.marked < SETTLING {
        let message = "the stream has its new partitions; in a few seconds each server that keeps a copy has them. Leave publishers stopped";
        return Next::Wait(waiting(true, Reason::ChangingPartitions, message));
    }
    if let Some(behind) = behind(known.info) {
        return Next::Wait(State { status: Some(true), ..behind });
    }
    Next::Mark(Mark { at: Some(known.info.state.last_seq), ..mark })
}

fn narrow(change: Change<'_>, consumers: &[ConsumerInfo]) -> Option<State> {
    let narrow = consumers.iter().find_map(|consumer| {
        let missed = change.missed_by(&consumer.config)?;
        Some((&consumer.name, missed))
    });
    let (name, missed) = narrow?;
    let message = format!(
        "spec.partitions: consumer {name} would miss what is stored as {missed} then. An EventConsumer's is widened as soon as nothing else goes on \
         with it (see its conditions); add the subject to the filters of any other, or delete it"
    );
    Some(waiting(false, Reason::FiltersTooNarrow, message))
}

fn behind(info: &StreamInfo) -> Option<State> {
    let cluster = info.cluster.as_ref().filter(|_| info.is_clustered())?;
    let is_current = cluster.current() >= info.replicas()
        && cluster.replicas.iter().all(|peer| peer.lag == 0)
        && cluster.desired.is_none();
    let message =
        "spec.partitions: not every server that keeps a copy of the stream has all of it yet (see Durable)";
    (!is_current).then(|| waiting(false, Reason::NotCurrent, message))
}

fn busy(known: &Known<'_>) -> Option<State> {
    let message = "spec.partitions: events are stored, or were less than 10s ago. Stop or pause the publishers of this stream until this condition is gone: \
         each server that keeps a copy numbers events for itself, and copies would differ for good where they change the numbers under a publisher";
    (known.still < STILL).then(|| waiting(false, Reason::StreamIsBusy, message))
}

fn waiting(goes_on: bool, reason: Reason, message: impl Into<String>) -> State {
    State { status: Some(goes_on), reason, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(count: u32) -> Partitions {
        Partitions::new("orders.*.*", &[2], count).unwrap()
    }

    fn config(count: Option<u32>) -> Config {
        let config = Config::default()
            .with("name", "orders")
            .with("subjects", json!(["orders.*.*"]))
            .with("num_replicas", 3);
        match count {
            Some(count) => config.with(SUBJECT_TRANSFORM, transform(&partitions(count))),
            None => config,
        }
    }

    fn info(config: &Config) -> StreamInfo {
        let peer = |name: &str| json!({"name": name, "current": true, "active": 1});
        let info = json!({
            "config": config, "created": "2026-11-01T10:00:00Z",
            "state": {"messages": 9, "bytes": 0, "first_seq": 1, "last_seq": 10, "consumer_count": 1},
            "cluster": {"name": "c", "leader": "a", "replicas": [peer("b"), peer("c")]},
        });
        serde_json::from_value(info).unwrap()
    }

    fn consumer(filters: &[&str]) -> ConsumerInfo {
        let info = json!({
            "stream_name": "orders", "name": "mails", "created": "2026-11-01T10:00:00Z", "config": {"filter_subjects": filters},
        });
        serde_json::from_value(info).unwrap()
    }

    const LONG: Duration = Duration::from_secs(10);

    fn known<'a>(info: &'a StreamInfo, consumers: &'a [ConsumerInfo]) -> Known<'a> {
        Known { info, consumers, still: LONG, marked: LONG }
    }

    fn reason(next: Next) -> (Option<bool>, Reason) {
        match next {
            Next::Wait(State { status, reason, .. }) => (status, reason),
            Next::Refused(Blocked { reason, .. }) => (None, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn partitions_are_added_or_multiplied_and_nothing_else() {
        for (from, to, expected) in [
            (None, Some(8), Ok(Start::Count(None))),
            (Some(8), Some(16), Ok(Start::Count(Some(8)))),
            (Some(16), Some(48), Ok(Start::Count(Some(16)))),
            (Some(8), Some(8), Ok(Start::Declared)),
            (None, None, Ok(Start::Declared)),
            (Some(8), Some(12), Err(())),
            (Some(8), Some(4), Err(())),
            (Some(8), None, Err(())),
        ] {
            let found = start(to.map(partitions).as_ref(), &config(from)).map_err(|_| ());
            assert_eq!(found, expected, "{from:?} {to:?}");
        }
        let other_key = Partitions::new("orders.*.*", &[3], 16).unwrap();
        let other_subject = Partitions::new("mails.*.*", &[2], 16).unwrap();
        for other in [&other_key, &other_subject] {
            assert!(start(Some(other), &config(Some(8))).is_err());
        }
        let wider = config(None).with("subjects", json!(["orders.>"]));
        assert!(start(Some(&partitions(8)), &wider).is_err(), "orders.1.placed.3 has no number");
        for retention in ["interest", "workqueue"] {
            assert!(start(Some(&partitions(8)), &config(None).with("retention", retention)).is_err());
        }
        let renamed =
            config(None).with(SUBJECT_TRANSFORM, json!({"src": "orders.*.*", "dest": "o.{{wildcard(1)}}"}));
        assert!(start(Some(&partitions(8)), &renamed).is_err(), "its events have other subjects");
        let next = next(Some(&partitions(12)), &known(&info(&config(Some(8))), &[]));
        let Next::Refused(Blocked { reason, message }) = next else { panic!("{next:?}") };
        assert_eq!(reason, Reason::ImmutableField);
        assert!(
            message.contains("partition(8,1)") && message.contains("only a multiple of its count"),
            "{message}"
        );
    }

    #[test]
    fn the_transform_changes_once_consumers_are_widened_copies_are_current_and_nobody_publishes() {
        let declared = partitions(16);
        let (wide, narrow) = (consumer(&["orders.*.*.3", "orders.*.*.11"]), consumer(&["orders.*.*.3"]));
        let quiet = info(&config(Some(8)));
        let decide = |known: &Known<'_>| next(Some(&declared), known);
        let consumers = [wide.clone(), narrow];
        let Next::Wait(State { status, reason: why, message }) = decide(&known(&quiet, &consumers)) else {
            panic!()
        };
        assert_eq!((status, why), (Some(false), Reason::FiltersTooNarrow));
        assert!(message.contains("consumer mails") && message.contains("orders.*.*.11"), "{message}");
        let consumers = [wide];
        let mut behind = quiet.clone();
        behind.cluster.as_mut().unwrap().replicas[1].current = false;
        assert_eq!(reason(decide(&known(&behind, &consumers))), (Some(false), Reason::NotCurrent));
        let mut lagging = quiet.clone();
        lagging.cluster.as_mut().unwrap().replicas[1].lag = 1;
        assert_eq!(reason(decide(&known(&lagging, &consumers))), (Some(false), Reason::NotCurrent));
        let busy = Known { still: Duration::from_secs(9), ..known(&quiet, &consumers) };
        assert_eq!(reason(decide(&busy)), (Some(false), Reason::StreamIsBusy));
        let mark = Mark { from: Some(8), to: 16, at: None };
        assert_eq!(decide(&known(&quiet, &consumers)), Next::Change(mark));
    }

    #[test]
    fn after_the_change_the_sequence_is_marked_once_every_server_has_it_whatever_is_declared_meanwhile() {
        let mark = Mark { from: Some(8), to: 16, at: None };
        let changed = info(&mark.put_on(config(Some(16))));
        for declared in [16, 48] {
            let declared = partitions(declared);
            let early = Known { marked: Duration::from_secs(9), ..known(&changed, &[]) };
            assert_eq!(reason(next(Some(&declared), &early)), (Some(true), Reason::ChangingPartitions));
            let marked = Mark { at: Some(10), ..mark };
            assert_eq!(next(Some(&declared), &known(&changed, &[])), Next::Mark(marked));
            let done = info(&marked.put_on(config(Some(16))));
            let then = next(Some(&declared), &known(&done, &[]));
            let again = Mark { from: Some(16), to: 48, at: None };
            assert_eq!(then, if declared.count() == 16 { Next::Nothing } else { Next::Change(again) });
        }
    }

    /// The operator may be killed after any step: what it goes on by is in the configuration alone.
    #[test]
    fn each_step_follows_from_what_jetstream_has_and_the_last_one_leaves_nothing_due() {
        let declared = partitions(16);
        let desired = config(Some(16));
        let mut there = config(Some(8));
        let mut steps = Vec::new();
        while is_due(&desired, &there) {
            let step = next(Some(&declared), &known(&info(&there), &[]));
            there = match &step {
                Next::Change(mark) => mark.put_on(desired.clone()),
                Next::Mark(mark) => mark.put_on(there),
                other => panic!("{other:?}"),
            };
            steps.push(step);
        }
        let mark = |at| Mark { from: Some(8), to: 16, at };
        assert_eq!(steps, [Next::Change(mark(None)), Next::Mark(mark(Some(10)))]);
    }
}
