//! In: the results for the consumer, its dead letters and its workload. Out: one status, Kubernetes events and metrics. Writes to
//! Kubernetes, except for [`advance`].

use std::{fmt::Write as _, time::Duration};

use jetwright_crds::{
    EventConsumer, EventConsumerStatus,
    conditions::{
        self, CONSUMER_READY, DEAD_LETTERS_READY, PARTITIONS_OWNED, Reason, SCALING_ACTIVE, State,
        WORKLOAD_READY,
    },
    consumer::ConsumerState,
    stream::Drift,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Resource};

use super::Error;
use crate::{
    context::Context,
    error::error_chain,
    jetstream::info::ConsumerInfo,
    kubernetes::status::{self, ConditionSummary, StatusUpdate, StatusWrite},
    object_state::ObjectKey,
    outcome::Outcome,
    partitions::published::View as Sharing,
    scaling::registry::View,
    workload::{apply::remedy, status::WorkloadStatus},
};

/// What was lost with a consumer that was recreated.
const LOST: &str = "what it had acknowledged is forgotten, and it begins where spec.deliverPolicy says";

/// Least time between two writes of a status in which only messages changed, as while pods come up one after another.
const MESSAGE_INTERVAL: Duration = Duration::from_secs(2);

type Result<T = Outcome<ConsumerInfo>> = std::result::Result<T, Error>;

/// The result for each part of an EventConsumer.
pub struct Results {
    /// The consumer in JetStream.
    pub consumer: Result,
    /// Whether dead letters are kept; None where it has none.
    pub dead_letters: Result<Option<ConditionSummary>>,
    /// The pods; None where it has none.
    pub workload: Result<Option<WorkloadStatus>>,
    pub scaling: Scaling,
    /// How its partitions are shared out; None where it has none, and before that is known: what an earlier process wrote stays.
    pub sharing: Option<Sharing>,
}

/// What autoscaling decided for the pods.
pub enum Scaling {
    /// The object declares no autoscaling.
    Undeclared,
    /// This process has not decided yet: what an earlier one wrote stays.
    Pending,
    Decided(View),
}

impl Scaling {
    pub fn of(object: &EventConsumer, context: &Context) -> Self {
        let declared = object.spec.workload.as_ref().and_then(|workload| workload.autoscaling.as_ref());
        match declared.and_then(|_| context.autoscalers.view(object)) {
            Some(view) => Self::Decided(view),
            None if declared.is_some() => Self::Pending,
            None => Self::Undeclared,
        }
    }

    /// `emptying` says which pods are emptied before they are removed.
    fn advance(
        &self,
        status: &mut EventConsumerStatus,
        emptying: Option<&str>,
        (generation, now): (Option<i64>, &Time),
    ) {
        match self {
            Self::Undeclared => {
                status.autoscaling = None;
                conditions::unset(&mut status.conditions, SCALING_ACTIVE);
            }
            Self::Pending => {}
            Self::Decided(View { said, status: decided }) => {
                status.autoscaling = Some(decided.clone());
                let Some(said) = said else { return };
                let is_active = !matches!(said.reason, Reason::FiguresUnknown | Reason::Observing);
                let mut message = said.message.clone();
                if let Some(emptying) = emptying.filter(|_| said.reason != Reason::Observing) {
                    let _ = write!(message, "; {emptying}");
                }
                let state = State { status: Some(is_active), reason: said.reason, message };
                conditions::set(&mut status.conditions, SCALING_ACTIVE, state, generation, now);
            }
        }
    }
}

impl Results {
    fn consumer_summary(&self) -> ConditionSummary {
        status::summarize(&self.consumer, "the consumer is as declared")
    }

    fn dead_letters_summary(&self) -> Option<ConditionSummary> {
        match &self.dead_letters {
            Ok(summary) => summary.clone(),
            Err(error) => Some(ConditionSummary::failed(error)),
        }
    }

    fn workload_summary(&self) -> Option<ConditionSummary> {
        match &self.workload {
            Ok(workload) => workload.as_ref().map(|workload| workload.summary.clone()),
            Err(error) => Some(workload_failed(error)),
        }
    }

    /// Ready is all together; of several that are not, the consumer comes first, since pods wait for it, and the pods last, which
    /// often become ready by themselves.
    fn overall(&self) -> ConditionSummary {
        let consumer = self.consumer_summary();
        let workload = self.workload_summary();
        let ready = match workload {
            Some(_) => ConditionSummary::ready("the consumer is as declared and the pods are ready"),
            None => consumer.clone(),
        };
        let all = [Some(consumer), self.dead_letters_summary(), workload];
        all.into_iter().flatten().find(|part| part.ready != Some(true)).unwrap_or(ready)
    }
}

/// What a workload that could not be applied means for its condition.
fn workload_failed(error: &Error) -> ConditionSummary {
    match error {
        Error::Workload(foreign) if let Some(remedy) = remedy(foreign) => {
            let message = format!("{}: {remedy}", error_chain(error));
            ConditionSummary::stalled(Reason::NameConflict, message)
        }
        _ => ConditionSummary::failed(error),
    }
}

fn update(object: &EventConsumer, results: &Results, context: &Context) -> StatusUpdate<EventConsumerStatus> {
    let before = object.status.clone().unwrap_or_default();
    let after = advance(before.clone(), object.metadata.generation, results, &status::now());
    if after == before {
        return StatusUpdate::Unchanged;
    }
    let key = ObjectKey::of(object);
    let disconnected = results.consumer.as_ref().is_ok_and(Outcome::is_disconnected);
    let only_stats = ignoring_stats(&before) == ignoring_stats(&after);
    let only_messages = ignoring_messages(&before) == ignoring_messages(&after);
    let message_delay =
        || context.states.status_write_delay(&key, MESSAGE_INTERVAL).filter(|_| only_messages);
    match context.status_write_delay(&key, disconnected, only_stats).or_else(message_delay) {
        Some(delay) => StatusUpdate::Defer(delay),
        None => StatusUpdate::Write(after),
    }
}

fn advance(
    mut status: EventConsumerStatus,
    generation: Option<i64>,
    results: &Results,
    now: &Time,
) -> EventConsumerStatus {
    if let Ok(Outcome::Reconciled(reconciled)) = &results.consumer {
        let info = reconciled.info.as_ref();
        status.consumer = info.map(state);
        status.lag = info.map(|info| info.num_pending);
        status.ack_pending = info.map(|info| info.num_ack_pending);
        status.redelivered = info.map(|info| info.num_redelivered);
        if let Some(fields) = reconciled.corrected() {
            status.drift = Some(Drift { last_repaired: now.clone(), fields });
        }
    }
    if is_dividing(&results.consumer) {
        // Nobody sums up what the parts have before all are there.
        (status.lag, status.ack_pending, status.redelivered) = (None, None, None);
    }
    if let Ok(workload) = &results.workload {
        let own = workload.as_ref().and_then(|workload| workload.own.as_ref());
        status.replicas = own.map(|own| own.replicas);
        status.selector = own.map(|own| own.selector.clone());
    }
    status.observed_generation = generation;
    for (type_, summary) in [
        (CONSUMER_READY, Some(results.consumer_summary())),
        (DEAD_LETTERS_READY, results.dead_letters_summary()),
        (WORKLOAD_READY, results.workload_summary()),
    ] {
        match summary {
            Some(summary) => {
                conditions::set(&mut status.conditions, type_, summary.state(), generation, now);
            }
            None => conditions::unset(&mut status.conditions, type_),
        }
    }
    let workload = results.workload.as_ref().ok().and_then(Option::as_ref);
    let emptying = workload.and_then(|workload| workload.emptying.as_deref());
    results.scaling.advance(&mut status, emptying, (generation, now));
    if let Some(Sharing { condition, status: sharing }) = &results.sharing {
        conditions::set(&mut status.conditions, PARTITIONS_OWNED, condition.clone(), generation, now);
        status.partitions = sharing.clone().or(status.partitions);
    }
    status::set_summary_conditions(&mut status.conditions, &results.overall(), generation, now);
    status
}

fn is_dividing(consumer: &Result) -> bool {
    matches!(consumer, Ok(Outcome::Pending(pending)) if pending.reason == Reason::ChangingPartitions)
}

fn state(info: &ConsumerInfo) -> ConsumerState {
    ConsumerState {
        stream: info.stream_name.clone(),
        name: info.name.clone(),
        created: status::whole_seconds(&info.created),
        partitions: info.partitions,
    }
}

/// The status without what changes with every message.
fn ignoring_stats(status: &EventConsumerStatus) -> EventConsumerStatus {
    EventConsumerStatus {
        lag: None,
        ack_pending: None,
        redelivered: None,
        // A step is in the condition too.
        autoscaling: None,
        ..status.clone()
    }
}

/// The status without what may change many times a second.
fn ignoring_messages(status: &EventConsumerStatus) -> EventConsumerStatus {
    let mut status = ignoring_stats(status);
    status.partitions = None;
    for condition in &mut status.conditions {
        condition.message.clear();
    }
    status
}

/// Writes the status that a reconcile leads to, if it is another than before.
pub async fn write(
    api: &Api<EventConsumer>,
    object: &EventConsumer,
    results: &Results,
    context: &Context,
) -> std::result::Result<StatusWrite, kube::Error> {
    let before = object.status.as_ref().map(|status| status.conditions.as_slice());
    context.pace_availability(before.unwrap_or_default(), &results.overall()).await;
    context.write_status(api, object, |object| update(object, results, context)).await
}

/// Records in events and metrics what was done, and once what is wrong; in how long that is due, where the object is too young.
pub fn record_events(object: &EventConsumer, results: &Results, context: &Context) -> Option<Duration> {
    if let Ok(Outcome::Reconciled(reconciled)) = &results.consumer {
        if reconciled.corrected().is_some() {
            let ObjectKey { namespace, name, .. } = ObjectKey::of(object);
            context.metrics.drift_corrected("consumer", &namespace, &name);
        }
        context.events.reconciled(&object.object_ref(&()), "consumer", reconciled, LOST);
    }
    context.report_trouble(object, object.conditions(), &results.overall())
}

#[cfg(test)]
#[allow(
    clippy::result_large_err,
    clippy::unnecessary_wraps,
    reason = "the results of reconciles, as they come"
)]
mod tests {
    use jetwright_crds::{
        conditions::READY,
        consumer::{AutoscalingStatus, PartitionsStatus},
    };
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        outcome::{OperationResult, Pending, Reconciled, Recorded},
        scaling::published::Said,
        workload::status::OwnPods,
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
        Ok(Outcome::Reconciled(Reconciled::new(OperationResult::Created, Some(&info), &Recorded::default())))
    }

    fn running(summary: ConditionSummary) -> Result<Option<WorkloadStatus>> {
        let own = OwnPods { replicas: 2, selector: "a=b".into() };
        Ok(Some(WorkloadStatus { own: Some(own), summary, emptying: None, requeue_after: None }))
    }

    fn told(results: &Results) -> EventConsumerStatus {
        advance(EventConsumerStatus::default(), Some(1), results, &at(9))
    }

    fn status(consumer: Result, workload: Result<Option<WorkloadStatus>>) -> EventConsumerStatus {
        told(&Results {
            consumer,
            dead_letters: Ok(None),
            workload,
            scaling: Scaling::Undeclared,
            sharing: None,
        })
    }

    fn condition(status: &EventConsumerStatus, type_: &str) -> Option<(String, String)> {
        conditions::get(&status.conditions, type_).map(|known| (known.status.clone(), known.reason.clone()))
    }

    #[test]
    fn how_partitions_are_shared_out_is_told_and_stays_where_it_is_not_known() {
        let condition_of = |reason| State { status: Some(false), reason, message: "m".into() };
        let sharing = PartitionsStatus { count: 4, owned: 3, unowned: 1, ..PartitionsStatus::default() };
        let results = |sharing| Results {
            consumer: applied(),
            dead_letters: Ok(None),
            workload: Ok(None),
            scaling: Scaling::Undeclared,
            sharing,
        };
        let view = Sharing { condition: condition_of(Reason::WithoutOwner), status: Some(sharing.clone()) };
        let first = told(&results(Some(view)));
        assert_eq!(first.partitions, Some(sharing.clone()));
        assert_eq!(condition(&first, PARTITIONS_OWNED), Some(("False".into(), "WithoutOwner".into())));
        let unknown = advance(first.clone(), Some(1), &results(None), &at(10));
        assert_eq!(unknown, first);
        let unavailable = Sharing { condition: condition_of(Reason::BucketUnavailable), status: None };
        let after = advance(first, Some(1), &results(Some(unavailable)), &at(10));
        assert_eq!(
            (after.partitions.clone(), condition(&after, PARTITIONS_OWNED).unwrap().1),
            (Some(sharing), "BucketUnavailable".into())
        );
    }

    #[test]
    fn ready_is_the_consumer_and_its_pods() {
        let rolling = running(ConditionSummary::reconciling(Reason::RollingOut, "1 of 2"));
        let status = status(applied(), rolling);
        assert_eq!(condition(&status, CONSUMER_READY), Some(("True".into(), "Reconciled".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!(condition(&status, READY), Some(("False".into(), "RollingOut".into())));
        assert_eq!((status.lag, status.ack_pending, status.redelivered), (Some(12), Some(3), Some(1)));
        assert_eq!((status.replicas, status.selector.as_deref()), (Some(2), Some("a=b")));
    }

    #[test]
    fn another_message_for_the_same_reason_is_no_news() {
        let told = |reason, message: &str| {
            status(applied(), running(ConditionSummary::reconciling(reason, message)))
        };
        let one = told(Reason::RollingOut, "1 of 2");
        assert_eq!(ignoring_messages(&one), ignoring_messages(&told(Reason::RollingOut, "2 of 2")));
        assert_ne!(ignoring_messages(&one), ignoring_messages(&told(Reason::CrashLoop, "1 of 2")));
    }

    #[test]
    fn what_autoscaling_said_stays_until_this_process_decided_and_goes_with_the_declaration() {
        let scaled = |scaling| Results {
            consumer: applied(),
            dead_letters: Ok(None),
            workload: Ok(None),
            scaling,
            sharing: None,
        };
        let view = View {
            said: Some(Said { reason: Reason::FiguresUnknown, message: "it does not answer".into() }),
            status: AutoscalingStatus { desired_replicas: 4, ..AutoscalingStatus::default() },
        };
        let decided = told(&scaled(Scaling::Decided(view)));
        assert_eq!(condition(&decided, SCALING_ACTIVE), Some(("False".into(), "FiguresUnknown".into())));
        assert_eq!(decided.autoscaling.as_ref().unwrap().desired_replicas, 4);
        assert_eq!(
            condition(&decided, READY),
            Some(("True".into(), "Reconciled".into())),
            "it is no part of it"
        );
        let restarted = advance(decided.clone(), Some(1), &scaled(Scaling::Pending), &at(10));
        assert_eq!(restarted, decided);
        let without = advance(decided, Some(1), &scaled(Scaling::Undeclared), &at(11));
        assert_eq!((condition(&without, SCALING_ACTIVE), without.autoscaling), (None, None));
    }

    #[test]
    fn without_a_workload_the_consumer_alone_counts() {
        let status = status(applied(), Ok(None));
        assert_eq!(condition(&status, WORKLOAD_READY), None);
        assert_eq!(condition(&status, READY), Some(("True".into(), "Reconciled".into())));
    }

    #[test]
    fn a_consumer_whose_dead_letters_cannot_be_kept_is_not_ready_whatever_its_pods_do() {
        let results = |dead_letters, pods| {
            told(&Results {
                consumer: applied(),
                dead_letters: Ok(Some(dead_letters)),
                workload: running(pods),
                scaling: Scaling::Undeclared,
                sharing: None,
            })
        };
        let lost = || ConditionSummary::stalled(Reason::NameConflict, "taken");
        for pods in [ConditionSummary::ready(""), ConditionSummary::reconciling(Reason::RollingOut, "1 of 2")]
        {
            let status = results(lost(), pods);
            assert_eq!(condition(&status, CONSUMER_READY), Some(("True".into(), "Reconciled".into())));
            assert_eq!(condition(&status, DEAD_LETTERS_READY), Some(("False".into(), "NameConflict".into())));
            assert_eq!(condition(&status, READY), Some(("False".into(), "NameConflict".into())));
        }
        let kept = results(ConditionSummary::ready("kept"), ConditionSummary::ready(""));
        assert_eq!(condition(&kept, DEAD_LETTERS_READY), Some(("True".into(), "Reconciled".into())));
        assert_eq!(condition(&kept, READY), Some(("True".into(), "Reconciled".into())));
        // One that no longer has any says nothing of them.
        let scaling = Scaling::Undeclared;
        let dropped = Results {
            consumer: applied(),
            dead_letters: Ok(None),
            workload: Ok(None),
            scaling,
            sharing: None,
        };
        let dropped = advance(kept, Some(1), &dropped, &at(9));
        assert_eq!(condition(&dropped, DEAD_LETTERS_READY), None);
    }

    #[test]
    fn figures_are_unknown_while_a_consumer_is_divided_and_the_last_known_ones_while_nats_is_away() {
        let pending = |reason| Results {
            consumer: Ok(Outcome::Pending(Pending {
                reason,
                message: String::new(),
                stalled: false,
                requeue_after: None,
            })),
            dead_letters: Ok(None),
            workload: Ok(None),
            scaling: Scaling::Undeclared,
            sharing: None,
        };
        let figures = |status: &EventConsumerStatus| (status.lag, status.ack_pending, status.redelivered);
        let before = status(applied(), Ok(None));
        let away = advance(before.clone(), Some(1), &pending(Reason::Disconnected), &at(10));
        assert_eq!(figures(&away), (Some(12), Some(3), Some(1)));
        let divided = advance(before.clone(), Some(1), &pending(Reason::ChangingPartitions), &at(10));
        assert_eq!((figures(&divided), divided.consumer), ((None, None, None), before.consumer));
    }

    #[test]
    fn nobody_knows_of_a_consumer_while_nats_is_away() {
        let message = "away".to_owned();
        let pending = Ok(Outcome::Pending(Pending {
            reason: Reason::Disconnected,
            message,
            stalled: false,
            requeue_after: None,
        }));
        let status = status(pending, running(ConditionSummary::ready("")));
        assert_eq!(condition(&status, READY), Some(("Unknown".into(), "Disconnected".into())));
        assert_eq!(condition(&status, WORKLOAD_READY), Some(("True".into(), "Reconciled".into())));
    }
}
