//! In: the outcome of a reconcile. Out: the status, Kubernetes events and metrics. Writes to Kubernetes, except for [`advance`].

use std::time::Duration;

use jetwright_crds::{
    EventStream, EventStreamStatus,
    conditions::{self, DURABLE, PARTITIONS_CHANGING, RECONCILING, Reason, STALLED, State},
    stream::{Drift, StreamState},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Resource, ResourceExt};

use super::{
    Error,
    durable::{durable, is_to_be_watched},
};
use crate::{
    context::Context,
    jetstream::{info::StreamInfo, partitions},
    kubernetes::status::{self, StatusUpdate, StatusWrite},
    object_state::ObjectKey,
    outcome::{Outcome, Reconciled, Recorded},
};

type Result<T = Outcome<StreamInfo>> = std::result::Result<T, Error>;

fn update(object: &EventStream, result: &Result, context: &Context) -> StatusUpdate<EventStreamStatus> {
    let before = object.status.clone().unwrap_or_default();
    let after = advance(before.clone(), object, result, &status::now());
    if after == before {
        return StatusUpdate::Unchanged;
    }
    let disconnected = result.as_ref().is_ok_and(Outcome::is_disconnected);
    let only_stats = ignoring_stats(&before) == ignoring_stats(&after);
    match context.status_write_delay(&ObjectKey::of(object), disconnected, only_stats) {
        Some(delay) => StatusUpdate::Defer(delay),
        None => StatusUpdate::Write(after),
    }
}

fn advance(
    mut status: EventStreamStatus,
    object: &EventStream,
    result: &Result,
    now: &Time,
) -> EventStreamStatus {
    let generation = object.metadata.generation;
    if let Ok(Outcome::Reconciled(reconciled)) = result {
        status.stream = reconciled.info.as_ref().map(state);
        let last = status.stream.as_ref().map(|stream| stream.last_sequence);
        status.highest_sequence = Recorded::sequence(status.highest_sequence).max(last);
        if let Some(fields) = reconciled.corrected() {
            status.drift = Some(Drift { last_repaired: now.clone(), fields });
        }
    }
    status.observed_generation = generation;
    let summary = status::summarize(result, "the stream is as declared");
    status::set_summary_conditions(&mut status.conditions, &summary, generation, now);
    if let Ok(Outcome::Reconciled(reconciled)) = result {
        set_durable(&mut status, durability(object, reconciled), generation, now);
        match &reconciled.changing {
            Some(state) => {
                conditions::set(&mut status.conditions, PARTITIONS_CHANGING, state.clone(), generation, now);
            }
            None => conditions::unset(&mut status.conditions, PARTITIONS_CHANGING),
        }
    } else if summary.ready.is_none() && conditions::get(&status.conditions, DURABLE).is_some() {
        conditions::set(&mut status.conditions, DURABLE, summary.state(), generation, now);
    }
    status
}

/// Sets Durable, and says that work goes on while copies are made. Where nothing is the object's own, nothing is durable or not.
fn set_durable(status: &mut EventStreamStatus, durable: Option<State>, generation: Option<i64>, now: &Time) {
    let Some(durable) = durable else { return conditions::unset(&mut status.conditions, DURABLE) };
    let stalled = conditions::get(&status.conditions, STALLED).is_some_and(|known| known.status == "True");
    if durable.reason == Reason::Scaling && !stalled {
        let reconciling = State { status: Some(true), ..durable.clone() };
        conditions::set(&mut status.conditions, RECONCILING, reconciling, generation, now);
    }
    conditions::set(&mut status.conditions, DURABLE, durable, generation, now);
}

fn durability(object: &EventStream, reconciled: &Reconciled<StreamInfo>) -> Option<State> {
    let was_durable = known_durability(object).is_some_and(|known| known.status == "True");
    let refusal = reconciled.refusal.as_deref();
    Some(durable(object.spec.effective_replicas(), reconciled.info.as_ref()?, refusal, was_durable))
}

fn known_durability(object: &EventStream) -> Option<&Condition> {
    conditions::get(&object.status.as_ref()?.conditions, DURABLE)
}

/// Whether copies of the object's stream were not current when its status was written. No advisory says when they are.
pub fn was_not_current(object: &EventStream) -> bool {
    let reasons = [Reason::Scaling, Reason::NotCurrent].map(Reason::as_str);
    known_durability(object).is_some_and(|known| reasons.contains(&known.reason.as_str()))
}

/// Whether the object's stream must be polled until its copies are current.
pub fn is_catching_up(object: &EventStream, result: &Result) -> bool {
    let Ok(Outcome::Reconciled(reconciled)) = result else { return false };
    let durable = durability(object, reconciled).zip(reconciled.info.as_ref());
    durable.is_some_and(|(durable, info)| is_to_be_watched(&durable, info))
}

fn state(info: &StreamInfo) -> StreamState {
    let text =
        |name| info.config.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    StreamState {
        name: text("name"),
        created: status::whole_seconds(&info.created),
        replicas: info.replicas(),
        messages: info.state.messages,
        bytes: info.state.bytes,
        first_sequence: info.state.first_seq,
        last_sequence: info.state.last_seq,
        consumers: info.state.consumer_count,
        partitions: partitions::count(&info.config),
        leader: info.leader().cloned(),
    }
}

/// The status without what changes with every message.
fn ignoring_stats(status: &EventStreamStatus) -> EventStreamStatus {
    let mut status = EventStreamStatus { highest_sequence: None, ..status.clone() };
    if let Some(stream) = &mut status.stream {
        let StreamState { name, created, replicas, partitions, .. } = std::mem::take(stream);
        *stream = StreamState { name, created, replicas, partitions, ..StreamState::default() };
    }
    status
}

/// Writes the status that a reconcile leads to, if it is another than before.
pub async fn write(
    api: &Api<EventStream>,
    object: &EventStream,
    result: &Result,
    context: &Context,
) -> std::result::Result<StatusWrite, kube::Error> {
    let before = object.status.as_ref().map(|status| status.conditions.as_slice());
    context.pace_availability(before.unwrap_or_default(), &status::summarize(result, "")).await;
    context.write_status(api, object, |object| update(object, result, context)).await
}

/// Records in events and metrics what was done, and once what is wrong; in how long that is due, where the object is too young.
pub fn record_events(object: &EventStream, result: &Result, context: &Context) -> Option<Duration> {
    let reference = object.object_ref(&());
    if let Ok(Outcome::Reconciled(reconciled)) = result
        && is_news(object, reconciled, context)
    {
        if reconciled.corrected().is_some() {
            let ObjectKey { namespace, name, .. } = ObjectKey::of(object);
            context.metrics.drift_corrected("stream", &namespace, &name);
        }
        if reconciled.recreated {
            context.metrics.stream_recreated(&object.namespace().unwrap_or_default(), &object.name_any());
        }
        let lost = lost(object, reconciled.info.as_ref());
        context.events.reconciled(&reference, "stream", reconciled, &lost);
    }
    let summary = status::summarize(result, "");
    context.report_trouble(object, object.conditions(), &summary)
}

/// Whether it was not recorded before: an object that does not have the last status yet notices a recreation once more.
fn is_news(object: &EventStream, reconciled: &Reconciled<StreamInfo>, context: &Context) -> bool {
    let created = reconciled.info.as_ref().map_or("", |info| info.created.as_str());
    !reconciled.recreated || context.states.first_seen(&ObjectKey::of(object), created)
}

/// What was lost with a stream that was recreated: whether anything was in it at the end, nobody knows.
fn lost(object: &EventStream, made: Option<&StreamInfo>) -> String {
    let known = object.status.as_ref().and_then(|status| status.stream.clone()).unwrap_or_default();
    let first = made.map_or(0, |info| info.state.first_seq);
    format!(
        "whatever was in it is lost (last known: {} messages, up to sequence {}), and its sequences begin at {first} now. \
         Restore a backup if there is one",
        known.messages, known.last_sequence
    )
}

#[cfg(test)]
#[allow(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the results of reconciles, as they come"
)]
mod tests {
    use jetwright_crds::conditions::READY;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        field_error::FieldError,
        outcome::{Blocked, OperationResult, Pending},
    };

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn info(messages: u64) -> StreamInfo {
        serde_json::from_value(json!({
            "config": {"name": "orders", "num_replicas": 3}, "created": "1970-01-01T00:00:05.9Z",
            "state": {"messages": messages, "bytes": 10, "first_seq": 1, "last_seq": messages, "consumer_count": 2},
            "cluster": {"name": "east", "leader": "n1", "replicas": [{"current": true}, {"current": true}]},
        }))
        .unwrap()
    }

    fn told(done: OperationResult, created: Option<i64>) -> Result {
        let recorded = Recorded { created, ..Recorded::default() };
        Ok(Outcome::Reconciled(Reconciled::new(done, Some(&info(7)), &recorded)))
    }

    fn advanced(before: EventStreamStatus, generation: i64, result: &Result) -> EventStreamStatus {
        let mut object =
            EventStream::new("orders", serde_json::from_value(json!({"subjects": ["a"]})).unwrap());
        object.metadata.generation = Some(generation);
        advance(before, &object, result, &at(9))
    }

    fn conditions_of(status: &EventStreamStatus) -> Vec<(&str, &str, &str)> {
        let of = |type_| {
            let condition = conditions::get(&status.conditions, type_).unwrap();
            (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_str())
        };
        [READY, RECONCILING, STALLED].map(of).to_vec()
    }

    #[test]
    fn a_stream_as_declared_is_ready_and_described() {
        let status = advanced(EventStreamStatus::default(), 4, &told(OperationResult::Created, None));
        assert_eq!(status.observed_generation, Some(4));
        assert_eq!(
            conditions_of(&status),
            [
                ("Ready", "True", "Reconciled"),
                ("Reconciling", "False", "Reconciled"),
                ("Stalled", "False", "Reconciled")
            ]
        );
        assert_eq!(conditions::get(&status.conditions, DURABLE).unwrap().status, "True");
        let expected = StreamState {
            name: "orders".into(),
            created: Some(at(5)),
            replicas: 3,
            messages: 7,
            bytes: 10,
            first_sequence: 1,
            last_sequence: 7,
            consumers: 2,
            partitions: None,
            leader: Some("n1".into()),
        };
        assert_eq!((status.stream, status.drift), (Some(expected), None));
    }

    #[test]
    fn a_stream_whose_copies_are_being_made_is_ready_and_work_goes_on() {
        let Ok(Outcome::Reconciled(mut scaling)) = told(OperationResult::Unchanged, Some(5)) else {
            panic!()
        };
        scaling.info.as_mut().unwrap().cluster.as_mut().unwrap().replicas[0].current = false;
        let result = Ok(Outcome::Reconciled(scaling));
        let status = advanced(EventStreamStatus::default(), 1, &result);
        let reconciling = ("Reconciling", "True", "Scaling");
        assert_eq!(
            conditions_of(&status),
            [("Ready", "True", "Reconciled"), reconciling, ("Stalled", "False", "Reconciled")]
        );
        let mut object =
            EventStream::new("orders", serde_json::from_value(json!({"subjects": ["a"]})).unwrap());
        assert!(is_catching_up(&object, &result) && !was_not_current(&object));
        object.status = Some(status);
        assert!(was_not_current(&object));
    }

    #[test]
    fn where_nobody_knows_whether_a_stream_is_ready_nobody_knows_whether_it_is_durable() {
        let durable_of = |status: &EventStreamStatus| {
            let durable = conditions::get(&status.conditions, DURABLE).cloned();
            durable.map(|durable| (durable.status, durable.reason, durable.message))
        };
        let away = |reason| {
            let message = "no server answers".to_owned();
            Ok(Outcome::Pending(Pending { reason, message, stalled: false, requeue_after: None }))
        };
        let before = advanced(EventStreamStatus::default(), 1, &told(OperationResult::Unchanged, Some(5)));
        for reason in [Reason::Disconnected, Reason::JetStreamUnavailable] {
            let status = advanced(before.clone(), 1, &away(reason));
            let expected = ("Unknown".to_owned(), reason.as_str().to_owned(), "no server answers".to_owned());
            assert_eq!(durable_of(&status), Some(expected));
            let back = advanced(status, 1, &told(OperationResult::Unchanged, Some(5)));
            assert_eq!(durable_of(&back), durable_of(&before));
            assert_eq!(durable_of(&advanced(EventStreamStatus::default(), 1, &away(reason))), None);
        }
        // What waits for something else is as durable as it was.
        assert_eq!(
            durable_of(&advanced(before.clone(), 1, &away(Reason::StreamNotReady))),
            durable_of(&before)
        );
    }

    #[test]
    fn a_repair_is_kept_as_drift_and_so_is_a_stream_made_again() {
        let edited = told(OperationResult::Corrected(vec!["max_age"]), Some(5));
        let status = advanced(EventStreamStatus::default(), 1, &edited);
        assert_eq!(status.drift, Some(Drift { last_repaired: at(9), fields: vec!["max_age".into()] }));
        let recreated = advanced(EventStreamStatus::default(), 1, &told(OperationResult::Created, Some(4)));
        assert_eq!(recreated.drift, Some(Drift { last_repaired: at(9), fields: vec!["*".into()] }));
    }

    #[test]
    fn what_waits_for_a_change_is_stalled_and_no_stream_of_others_is_described() {
        let blocked = Blocked { reason: Reason::NameConflict, message: "taken".into() };
        let applied =
            Reconciled::new(OperationResult::Blocked(blocked), Some(&info(7)), &Recorded::default());
        let result = Ok(Outcome::Reconciled(applied));
        let status = advanced(EventStreamStatus::default(), 1, &result);
        assert_eq!(
            conditions_of(&status),
            [
                ("Ready", "False", "NameConflict"),
                ("Reconciling", "False", "Reconciled"),
                ("Stalled", "True", "NameConflict")
            ]
        );
        assert_eq!(status.stream, None);
        // What is one's own stays described, so that it is still known to be one's own.
        let stuck = Blocked { reason: Reason::ImmutableField, message: "storage".into() };
        let status =
            advanced(EventStreamStatus::default(), 1, &told(OperationResult::Blocked(stuck), Some(5)));
        assert_eq!(status.stream.unwrap().messages, 7);
        let invalid = Ok(Outcome::Invalid(vec![
            FieldError::new("spec.a", "too long"),
            FieldError::new("spec.b", "too short"),
        ]));
        let status = advanced(EventStreamStatus::default(), 1, &invalid);
        let ready = conditions::get(&status.conditions, READY).unwrap();
        assert_eq!(ready.message, "spec.a: too long; spec.b: too short");
    }

    #[test]
    fn how_far_the_sequences_ever_were_outlives_the_stream() {
        let seen = advanced(EventStreamStatus::default(), 1, &told(OperationResult::Created, None));
        assert_eq!(seen.highest_sequence, Some(7));
        let before = EventStreamStatus { highest_sequence: Some(70), ..seen };
        let restored = advanced(before, 1, &told(OperationResult::Unchanged, Some(5)));
        assert_eq!(restored.highest_sequence, Some(70));
        let blocked = Blocked { reason: Reason::NameConflict, message: "taken".into() };
        let foreign =
            Reconciled::new(OperationResult::Blocked(blocked), Some(&info(700)), &Recorded::default());
        let taken = advanced(restored, 1, &Ok(Outcome::Reconciled(foreign)));
        assert_eq!((taken.stream, taken.highest_sequence), (None, Some(70)));
    }

    #[test]
    fn stats_alone_are_told_apart() {
        let of = |messages| EventStreamStatus {
            stream: Some(state(&info(messages))),
            highest_sequence: Some(messages),
            ..Default::default()
        };
        assert_eq!(ignoring_stats(&of(1)), ignoring_stats(&of(2)));
        assert_ne!(ignoring_stats(&of(1)), ignoring_stats(&EventStreamStatus::default()));
    }
}
