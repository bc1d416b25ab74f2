//! In: what the reconciles of the consumer, its dead letters and its workload came to. Out: one status, Kubernetes events and metrics. Writes to
//! Kubernetes, except for [`advance`].

use std::time::Duration;

use jetwright_crds::{
    EventConsumer, EventConsumerStatus,
    conditions::{self, CONSUMER_READY, DEAD_LETTERS_READY, WORKLOAD_READY},
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

/// What the reconcile of each part of an EventConsumer came to.
pub struct Parts {
    /// The consumer in JetStream.
    pub consumer: Result,
    /// Whether dead letters are kept; None where it has none.
    pub dead_letters: Result<Option<Verdict>>,
    /// The pods; None where it has none.
    pub workload: Result<Option<Running>>,
}

impl Parts {
    fn consumer_verdict(&self) -> Verdict {
        status::verdict(&self.consumer, "the consumer is as declared")
    }

    fn dead_letters_verdict(&self) -> Option<Verdict> {
        match &self.dead_letters {
            Ok(verdict) => verdict.clone(),
            Err(error) => Some(Verdict::failed(error)),
        }
    }

    fn workload_verdict(&self) -> Option<Verdict> {
        match &self.workload {
            Ok(running) => running.as_ref().map(|running| running.verdict.clone()),
            Err(Error::Workload(error)) => Some(workload::failed(error)),
            Err(_) => None,
        }
    }

    /// Ready is all together; of several that are not, the consumer comes first, since pods wait for it, and the pods last, which
    /// often become ready by themselves.
    fn overall(&self) -> Verdict {
        let consumer = self.consumer_verdict();
        let workload = self.workload_verdict();
        let ready = match workload {
            Some(_) => Verdict::ready("the consumer is as declared and the pods are ready"),
            None => consumer.clone(),
        };
        let all = [Some(consumer), self.dead_letters_verdict(), workload];
        all.into_iter().flatten().find(|part| part.ready != Some(true)).unwrap_or(ready)
    }
}

fn next(object: &EventConsumer, parts: &Parts, context: &Context) -> Next<EventConsumerStatus> {
    let before = object.status.clone().unwrap_or_default();
    let after = advance(before.clone(), object.metadata.generation, parts, &status::now());
    if after == before {
        return Next::Same;
    }
    let disconnected = parts.consumer.as_ref().is_ok_and(Told::is_disconnected);
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
    parts: &Parts,
    now: &Time,
) -> EventConsumerStatus {
    if let Ok(Told::Applied(applied)) = &parts.consumer {
        let info = applied.info.as_ref();
        status.consumer = info.map(state);
        status.lag = info.map(|info| info.num_pending);
        status.ack_pending = info.map(|info| info.num_ack_pending);
        status.redelivered = info.map(|info| info.num_redelivered);
        if let Some(fields) = applied.repaired() {
            status.drift = Some(Drift { last_repaired: now.clone(), fields });
        }
    }
    if let Ok(running) = &parts.workload {
        let own = running.as_ref().and_then(|running| running.own.as_ref());
        status.replicas = own.map(|own| own.replicas);
        status.selector = own.map(|own| own.selector.clone());
    }
    status.observed_generation = generation;
    for (type_, verdict) in [
        (CONSUMER_READY, Some(parts.consumer_verdict())),
        (DEAD_LETTERS_READY, parts.dead_letters_verdict()),
        (WORKLOAD_READY, parts.workload_verdict()),
    ] {
        match verdict {
            Some(verdict) => {
                conditions::set(&mut status.conditions, type_, verdict.state(), generation, now);
            }
            None => conditions::unset(&mut status.conditions, type_),
        }
    }
    status::conclude(&mut status.conditions, &parts.overall(), generation, now);
    status
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
    parts: &Parts,
    context: &Context,
) -> std::result::Result<Wrote, kube::Error> {
    let wrote = status::write(api, object, &(), |object| next(object, parts, context)).await?;
    if wrote == Wrote::Now {
        context.written.wrote(key(object));
    }
    Ok(wrote)
}

/// Tells in events and metrics what was done, and once what is wrong.
pub async fn tell(object: &EventConsumer, parts: &Parts, context: &Context) {
    if let Ok(Told::Applied(applied)) = &parts.consumer {
        if applied.repaired().is_some() {
            context.metrics.repaired("consumer");
        }
        events::done(&context.recorder, &object.object_ref(&()), "consumer", applied, LOST).await;
    }
    let before = object.status.as_ref().map(|status| status.conditions.as_slice());
    let verdict = parts.overall();
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

    fn running(verdict: Verdict) -> Result<Option<Running>> {
        let own = Own { replicas: 2, selector: "a=b".into() };
        Ok(Some(Running { own: Some(own), verdict, again: None }))
    }

    fn told(parts: &Parts) -> EventConsumerStatus {
        advance(EventConsumerStatus::default(), Some(1), parts, &at(9))
    }

    fn status(consumer: Result, workload: Result<Option<Running>>) -> EventConsumerStatus {
        told(&Parts { consumer, dead_letters: Ok(None), workload })
    }

    fn condition(status: &EventConsumerStatus, type_: &str) -> Option<(String, String)> {
        conditions::get(&status.conditions, type_).map(|known| (known.status.clone(), known.reason.clone()))
    }

    #[test]
    fn ready_is_the_consumer_and_its_pods() {
        let rolling = running(Verdict::reconciling(Reason::RollingOut, "1 of 2"));
        let status = status(applied(), rolling);
        assert_eq!(condition(&status, CONSUMER_READY), Some(("True".into(), "Reconciled".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!(condition(&status, READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!((status.lag, status.ack_pending, status.redelivered), (Some(12), Some(3), Some(1)));
        assert_eq!((status.replicas, status.selector.as_deref()), (Some(2), Some("a=b")));
    }

    #[test]
    fn other_words_for_the_same_reason_are_no_news() {
        let told = |reason, message: &str| status(applied(), running(Verdict::reconciling(reason, message)));
        let one = told(Reason::RollingOut, "1 of 2");
        assert_eq!(without_words(&one), without_words(&told(Reason::RollingOut, "2 of 2")));
        assert_ne!(without_words(&one), without_words(&told(Reason::CrashLoop, "1 of 2")));
    }

    #[test]
    fn without_a_workload_the_consumer_alone_counts() {
        let status = status(applied(), Ok(None));
        assert_eq!(condition(&status, WORKLOAD_READY), None);
        assert_eq!(condition(&status, READY), Some(("True".into(), "Reconciled".into())));
    }

    #[test]
    fn a_consumer_whose_dead_letters_cannot_be_kept_is_not_ready_whatever_its_pods_do() {
        let parts = |dead_letters, pods| {
            told(&Parts {
                consumer: applied(),
                dead_letters: Ok(Some(dead_letters)),
                workload: running(pods),
            })
        };
        let lost = || Verdict::stalled(Reason::NameConflict, "taken");
        for pods in [Verdict::ready(""), Verdict::reconciling(Reason::RollingOut, "1 of 2")] {
            let status = parts(lost(), pods);
            assert_eq!(condition(&status, CONSUMER_READY), Some(("True".into(), "Reconciled".into())));
            assert_eq!(condition(&status, DEAD_LETTERS_READY), Some(("False".into(), "NameConflict".into())));
            assert_eq!(condition(&status, READY), Some(("False".into(), "NameConflict".into())));
        }
        let kept = parts(Verdict::ready("kept"), Verdict::ready(""));
        assert_eq!(condition(&kept, DEAD_LETTERS_READY), Some(("True".into(), "Reconciled".into())));
        assert_eq!(condition(&kept, READY), Some(("True".into(), "Reconciled".into())));
        // One that no longer has any says nothing of them.
        let dropped = Parts { consumer: applied(), dead_letters: Ok(None), workload: Ok(None) };
        let dropped = advance(kept, Some(1), &dropped, &at(9));
        assert_eq!(condition(&dropped, DEAD_LETTERS_READY), None);
    }

    #[test]
    fn nobody_knows_of_a_consumer_while_nats_is_away() {
        let message = "away".to_owned();
        let waiting =
            Ok(Told::Waiting(Waiting { reason: Reason::Disconnected, message, stalled: false, again: None }));
        let status = status(waiting, running(Verdict::ready("")));
        assert_eq!(condition(&status, READY), Some(("Unknown".into(), "Disconnected".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("True".into(), "Reconciled".into())));
    }
}
