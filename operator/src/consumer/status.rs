//! In: what the reconciles of the consumer and of its workload came to. Out: one status, Kubernetes events and metrics. Writes to
//! Kubernetes, except for [`advance`].

use std::time::Duration;

use jetwright_crds::{
    EventConsumer, EventConsumerStatus,
    conditions::{self, CONSUMER_READY, WORKLOAD_READY},
    consumer::ConsumerState,
    stream::Drift,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Resource, ResourceExt};

use super::Error;
use crate::{
    context::Context,
    jetstream::ConsumerInfo,
    kubernetes::{
        events,
        status::{self, Next, Verdict, Wrote},
    },
    memory::Key,
    outcome::Told,
    workload::{self, Running},
};

/// What was lost with a consumer that is made again.
const LOST: &str = "what it had acknowledged is forgotten, and it begins where spec.deliverPolicy says";

/// Least time between two writes of a status in which only messages changed, as while pods come up one after another.
const WORDS_EVERY: Duration = Duration::from_secs(2);

type Result<T = Told<ConsumerInfo>> = std::result::Result<T, Error>;
/// None where the EventConsumer has no workload.
type WorkloadResult = Result<Option<Running>>;

fn next(
    object: &EventConsumer,
    consumer: &Result,
    workload: &WorkloadResult,
    context: &Context,
) -> Next<EventConsumerStatus> {
    let before = object.status.clone().unwrap_or_default();
    let after = advance(before.clone(), object.metadata.generation, consumer, workload, &status::now());
    if after == before {
        return Next::Same;
    }
    let disconnected = consumer.as_ref().is_ok_and(Told::is_disconnected);
    let only_figures = without_figures(&before) == without_figures(&after);
    let only_words = without_words(&before) == without_words(&after);
    let words_wait = || context.written.figures_wait(key(object), WORDS_EVERY).filter(|_| only_words);
    match context.status_waits(key(object), disconnected, only_figures).or_else(words_wait) {
        Some(pause) => Next::Later(pause),
        None => Next::Write(after),
    }
}

fn advance(
    mut status: EventConsumerStatus,
    generation: Option<i64>,
    consumer: &Result,
    workload: &WorkloadResult,
    now: &Time,
) -> EventConsumerStatus {
    if let Ok(Told::Applied(applied)) = consumer {
        let info = applied.info.as_ref();
        status.consumer = info.map(state);
        status.lag = info.map(|info| info.num_pending);
        status.ack_pending = info.map(|info| info.num_ack_pending);
        status.redelivered = info.map(|info| info.num_redelivered);
        if let Some(fields) = applied.repaired() {
            status.drift = Some(Drift { last_repaired: now.clone(), fields });
        }
    }
    if let Ok(running) = workload {
        let own = running.as_ref().and_then(|running| running.own.as_ref());
        status.replicas = own.map(|own| own.replicas);
        status.selector = own.map(|own| own.selector.clone());
    }
    status.observed_generation = generation;
    let consumer_ready = status::verdict(consumer, "the consumer is as declared");
    conditions::set(&mut status.conditions, CONSUMER_READY, consumer_ready.state(), generation, now);
    match workload_verdict(workload) {
        Some(verdict) => {
            conditions::set(&mut status.conditions, WORKLOAD_READY, verdict.state(), generation, now);
        }
        None => conditions::unset(&mut status.conditions, WORKLOAD_READY),
    }
    status::conclude(&mut status.conditions, &overall(consumer, workload), generation, now);
    status
}

/// Ready is both together; of two that are not, the consumer comes first, since pods wait for it.
fn overall(consumer: &Result, workload: &WorkloadResult) -> Verdict {
    let consumer = status::verdict(consumer, "the consumer is as declared");
    if consumer.ready != Some(true) {
        return consumer;
    }
    match workload_verdict(workload) {
        Some(workload) if workload.ready != Some(true) => workload,
        Some(_) => Verdict::ready("the consumer is as declared and the pods are ready"),
        None => consumer,
    }
}

fn workload_verdict(workload: &WorkloadResult) -> Option<Verdict> {
    match workload {
        Ok(running) => running.as_ref().map(|running| running.verdict.clone()),
        Err(Error::Workload(error)) => Some(workload::failed(error)),
        Err(_) => None,
    }
}

fn state(info: &ConsumerInfo) -> ConsumerState {
    ConsumerState {
        stream: info.stream_name.clone(),
        name: info.name.clone(),
        created: status::whole_seconds(&info.created),
    }
}

/// The status without what changes with every message.
fn without_figures(status: &EventConsumerStatus) -> EventConsumerStatus {
    EventConsumerStatus { lag: None, ack_pending: None, redelivered: None, ..status.clone() }
}

/// The status without what may change many times a second.
fn without_words(status: &EventConsumerStatus) -> EventConsumerStatus {
    let mut status = without_figures(status);
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    status
}

pub(super) fn key(object: &EventConsumer) -> Key {
    ("EventConsumer", object.namespace().unwrap_or_default(), object.name_any())
}

/// Writes the status that a reconcile leads to, if it is another than before.
pub async fn write(
    api: &Api<EventConsumer>,
    object: &EventConsumer,
    consumer: &Result,
    workload: &WorkloadResult,
    context: &Context,
) -> std::result::Result<Wrote, kube::Error> {
    let wrote = status::write(api, object, &(), |object| next(object, consumer, workload, context)).await?;
    if wrote == Wrote::Now {
        context.written.wrote(key(object));
    }
    Ok(wrote)
}

/// Tells in events and metrics what was done, and once what is wrong.
pub async fn tell(object: &EventConsumer, consumer: &Result, workload: &WorkloadResult, context: &Context) {
    if let Ok(Told::Applied(applied)) = consumer {
        if applied.repaired().is_some() {
            context.metrics.repaired("consumer");
        }
        events::done(&context.recorder, &object.object_ref(&()), "consumer", applied, LOST).await;
    }
    let before = object.status.as_ref().map(|status| status.conditions.as_slice());
    let verdict = overall(consumer, workload);
    events::stalled(&context.recorder, &object.object_ref(&()), before.unwrap_or_default(), &verdict).await;
}

#[cfg(test)]
#[allow(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the results of reconciles, as they come"
)]
mod tests {
    use jetwright_crds::conditions::{READY, Reason};
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        outcome::{Applied, Done, Remembered, Waiting},
        workload::Own,
    };

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn applied() -> Result {
        let info = serde_json::from_value(json!({
            "config": {}, "created": "1970-01-01T00:00:05Z", "stream_name": "orders", "name": "fulfilment",
            "num_pending": 12, "num_ack_pending": 3, "num_redelivered": 1,
        }));
        let info: ConsumerInfo = info.unwrap();
        Ok(Told::Applied(Applied::of(Done::Created, Some(&info), &Remembered::default())))
    }

    fn running(verdict: Verdict) -> WorkloadResult {
        let own = Own { replicas: 2, selector: "a=b".into() };
        Ok(Some(Running { own: Some(own), verdict, again: None }))
    }

    fn status(consumer: &Result, workload: &WorkloadResult) -> EventConsumerStatus {
        advance(EventConsumerStatus::default(), Some(1), consumer, workload, &at(9))
    }

    fn condition(status: &EventConsumerStatus, type_: &str) -> Option<(String, String)> {
        conditions::get(&status.conditions, type_).map(|known| (known.status.clone(), known.reason.clone()))
    }

    #[test]
    fn ready_is_the_consumer_and_its_pods() {
        let rolling = running(Verdict::reconciling(Reason::RollingOut, "1 of 2"));
        let status = status(&applied(), &rolling);
        assert_eq!(condition(&status, CONSUMER_READY), Some(("True".into(), "Reconciled".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!(condition(&status, READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!((status.lag, status.ack_pending, status.redelivered), (Some(12), Some(3), Some(1)));
        assert_eq!((status.replicas, status.selector.as_deref()), (Some(2), Some("a=b")));
    }

    #[test]
    fn other_words_for_the_same_reason_are_no_news() {
        let told =
            |reason, message: &str| status(&applied(), &running(Verdict::reconciling(reason, message)));
        let one = told(Reason::RollingOut, "1 of 2");
        assert_eq!(without_words(&one), without_words(&told(Reason::RollingOut, "2 of 2")));
        assert_ne!(without_words(&one), without_words(&told(Reason::CrashLoop, "1 of 2")));
    }

    #[test]
    fn without_a_workload_the_consumer_alone_counts() {
        let status = status(&applied(), &Ok(None));
        assert_eq!(condition(&status, WORKLOAD_READY), None);
        assert_eq!(condition(&status, READY), Some(("True".into(), "Reconciled".into())));
    }

    #[test]
    fn nobody_knows_of_a_consumer_while_nats_is_away() {
        let message = "away".to_owned();
        let waiting =
            Ok(Told::Waiting(Waiting { reason: Reason::Disconnected, message, stalled: false, again: None }));
        let status = status(&waiting, &running(Verdict::ready("")));
        assert_eq!(condition(&status, READY), Some(("Unknown".into(), "Disconnected".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("True".into(), "Reconciled".into())));
    }
}
