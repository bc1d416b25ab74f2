//! In: what a reconcile came to. Out: the status, Kubernetes events and metrics. Writes to Kubernetes, except for [`advance`].

use jetwright_crds::{
    EventStream, EventStreamStatus,
    stream::{Drift, StreamState},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Resource, ResourceExt};

use super::Error;
use crate::{
    context::Context,
    jetstream::StreamInfo,
    kubernetes::{
        events,
        status::{self, Next, Wrote},
    },
    memory::Key,
    outcome::{Applied, Told},
};

type Result<T = Told<StreamInfo>> = std::result::Result<T, Error>;

fn next(object: &EventStream, result: &Result, context: &Context) -> Next<EventStreamStatus> {
    let before = object.status.clone().unwrap_or_default();
    let after = advance(before.clone(), object.metadata.generation, result, &status::now());
    if after == before {
        return Next::Same;
    }
    let disconnected = result.as_ref().is_ok_and(Told::is_disconnected);
    let only_figures = without_figures(&before) == without_figures(&after);
    match context.status_waits(key(object), disconnected, only_figures) {
        Some(pause) => Next::Later(pause),
        None => Next::Write(after),
    }
}

fn advance(
    mut status: EventStreamStatus,
    generation: Option<i64>,
    result: &Result,
    now: &Time,
) -> EventStreamStatus {
    if let Ok(Told::Applied(applied)) = result {
        status.stream = applied.info.as_ref().map(state);
        let last = status.stream.as_ref().map(|stream| stream.last_sequence);
        status.highest_sequence = status.highest_sequence.max(last);
        if let Some(fields) = applied.repaired() {
            status.drift = Some(Drift { last_repaired: now.clone(), fields });
        }
    }
    status.observed_generation = generation;
    let verdict = status::verdict(result, "the stream is as declared");
    status::conclude(&mut status.conditions, &verdict, generation, now);
    status
}

fn state(info: &StreamInfo) -> StreamState {
    let text =
        |name| info.config.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let replicas = info.config.get("num_replicas").and_then(serde_json::Value::as_u64);
    StreamState {
        name: text("name"),
        created: status::whole_seconds(&info.created),
        replicas: replicas.and_then(|replicas| u8::try_from(replicas).ok()).unwrap_or(1),
        messages: info.state.messages,
        bytes: info.state.bytes,
        first_sequence: info.state.first_seq,
        last_sequence: info.state.last_seq,
        consumers: info.state.consumer_count,
        leader: info.leader().cloned(),
    }
}

/// The status without what changes with every message.
fn without_figures(status: &EventStreamStatus) -> EventStreamStatus {
    let mut status = EventStreamStatus { highest_sequence: None, ..status.clone() };
    if let Some(stream) = &mut status.stream {
        let StreamState { name, created, replicas, .. } = std::mem::take(stream);
        *stream = StreamState { name, created, replicas, ..StreamState::default() };
    }
    status
}

pub(super) fn key(object: &EventStream) -> Key {
    ("EventStream", object.namespace().unwrap_or_default(), object.name_any())
}

/// Writes the status that a reconcile leads to, if it is another than before.
pub async fn write(
    api: &Api<EventStream>,
    object: &EventStream,
    result: &Result,
    context: &Context,
) -> std::result::Result<Wrote, kube::Error> {
    let wrote = status::write(api, object, &(), |object| next(object, result, context)).await?;
    if wrote == Wrote::Now {
        context.written.wrote(key(object));
    }
    Ok(wrote)
}

/// Tells in events and metrics what was done, and once what is wrong.
pub async fn tell(object: &EventStream, result: &Result, context: &Context) {
    let again = |applied: &Applied<StreamInfo>| {
        let created = applied.info.as_ref().map_or("", |info| info.created.as_str());
        applied.remade && !context.remade.is_news(key(object), created)
    };
    if let Ok(Told::Applied(applied)) = result
        && !again(applied)
    {
        if applied.repaired().is_some() {
            context.metrics.repaired("stream");
        }
        if applied.remade {
            context.metrics.stream_remade(&object.namespace().unwrap_or_default(), &object.name_any());
        }
        let lost = lost(object, applied.info.as_ref());
        events::done(&context.recorder, &object.object_ref(&()), "stream", applied, &lost).await;
    }
    let verdict = status::verdict(result, "");
    let before = object.status.as_ref().map(|status| status.conditions.as_slice());
    events::stalled(&context.recorder, &object.object_ref(&()), before.unwrap_or_default(), &verdict).await;
}

/// What was lost with a stream that is made again: whether anything was in it at the end, nobody knows.
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
    use jetwright_crds::conditions::{self, READY, RECONCILING, Reason, STALLED};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::outcome::{Applied, Blocked, Done, Remembered, problem};

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn info(messages: u64) -> StreamInfo {
        serde_json::from_value(json!({
            "config": {"name": "orders", "num_replicas": 3}, "created": "1970-01-01T00:00:05.9Z",
            "state": {"messages": messages, "bytes": 10, "first_seq": 1, "last_seq": messages, "consumer_count": 2},
            "cluster": {"name": "east", "leader": "n1"},
        }))
        .unwrap()
    }

    fn told(done: Done, created: Option<i64>) -> Result {
        let remembered = Remembered { created, ..Remembered::default() };
        Ok(Told::Applied(Applied::of(done, Some(&info(7)), &remembered)))
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
        let status = advance(EventStreamStatus::default(), Some(4), &told(Done::Created, None), &at(9));
        assert_eq!(status.observed_generation, Some(4));
        assert_eq!(
            conditions_of(&status),
            [
                ("Ready", "True", "Reconciled"),
                ("Reconciling", "False", "Reconciled"),
                ("Stalled", "False", "Reconciled")
            ]
        );
        let expected = StreamState {
            name: "orders".into(),
            created: Some(at(5)),
            replicas: 3,
            messages: 7,
            bytes: 10,
            first_sequence: 1,
            last_sequence: 7,
            consumers: 2,
            leader: Some("n1".into()),
        };
        assert_eq!((status.stream, status.drift), (Some(expected), None));
    }

    #[test]
    fn a_repair_is_kept_as_drift_and_so_is_a_stream_made_again() {
        let edited = told(Done::Repaired(vec!["max_age"]), Some(5));
        let status = advance(EventStreamStatus::default(), Some(1), &edited, &at(9));
        assert_eq!(status.drift, Some(Drift { last_repaired: at(9), fields: vec!["max_age".into()] }));
        let remade = advance(EventStreamStatus::default(), Some(1), &told(Done::Created, Some(4)), &at(9));
        assert_eq!(remade.drift, Some(Drift { last_repaired: at(9), fields: vec!["*".into()] }));
    }

    #[test]
    fn what_waits_for_a_change_is_stalled_and_no_stream_of_others_is_described() {
        let blocked = Blocked { reason: Reason::NameConflict, message: "taken".into() };
        let applied = Applied::of(Done::Blocked(blocked), Some(&info(7)), &Remembered::default());
        let result = Ok(Told::Applied(applied));
        let status = advance(EventStreamStatus::default(), Some(1), &result, &at(9));
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
            advance(EventStreamStatus::default(), Some(1), &told(Done::Blocked(stuck), Some(5)), &at(9));
        assert_eq!(status.stream.unwrap().messages, 7);
        let invalid = Ok(Told::Invalid(vec![problem("spec.a", "too long"), problem("spec.b", "too short")]));
        let status = advance(EventStreamStatus::default(), Some(1), &invalid, &at(9));
        let ready = conditions::get(&status.conditions, READY).unwrap();
        assert_eq!(ready.message, "spec.a: too long; spec.b: too short");
    }

    #[test]
    fn how_far_the_sequences_ever_were_outlives_the_stream() {
        let seen = advance(EventStreamStatus::default(), Some(1), &told(Done::Created, None), &at(9));
        assert_eq!(seen.highest_sequence, Some(7));
        let before = EventStreamStatus { highest_sequence: Some(70), ..seen };
        let restored = advance(before, Some(1), &told(Done::Nothing, Some(5)), &at(9));
        assert_eq!(restored.highest_sequence, Some(70));
        let blocked = Blocked { reason: Reason::NameConflict, message: "taken".into() };
        let foreign = Applied::of(Done::Blocked(blocked), Some(&info(700)), &Remembered::default());
        let taken = advance(restored, Some(1), &Ok(Told::Applied(foreign)), &at(9));
        assert_eq!((taken.stream, taken.highest_sequence), (None, Some(70)));
    }

    #[test]
    fn figures_alone_are_told_apart() {
        let of = |messages| EventStreamStatus {
            stream: Some(state(&info(messages))),
            highest_sequence: Some(messages),
            ..Default::default()
        };
        assert_eq!(without_figures(&of(1)), without_figures(&of(2)));
        assert_ne!(without_figures(&of(1)), without_figures(&EventStreamStatus::default()));
    }
}
