//! In: an EventStream's stream as it is to be, and as JetStream has it. Out: the next step of a change of its partitions, as what the stream is to
//! be now, and what the status says of it. Asks JetStream only where a change is declared or goes on.

use std::{pin::pin, time::Duration};

use futures::TryStreamExt as _;
use jetwright_crds::{
    EventStream,
    conditions::{Reason, State},
};
use jetwright_nats::ApiError;
use serde_json::Value;

use crate::{
    context::Context,
    jetstream::{
        asset::{Desired, Stream},
        cache::Cache,
        entries::EntryGuard,
        info::{ConsumerInfo, StreamInfo},
        ownership::Ownership,
        pages::pages,
        partitions,
        plan::{self, Plan},
        reconcile::Error,
        repartition::{
            mark::Mark,
            stream::{Known, Next, is_due, next},
        },
        stream_config::SUBJECT_TRANSFORM,
    },
    outcome::{Blocked, CreationTime as _, OperationResult, Outcome, Pending, Reconciled, Recorded},
};

/// How soon a change is looked at again.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a stream is to be now.
pub struct Step {
    pub desired: Desired<Stream>,
    /// What the status says of the change; None where there is none.
    changing: Option<State>,
    permission: Permission,
}

/// Whether the stream's partitions may become others in this step.
enum Permission {
    /// While this is the last sequence.
    Until(u64),
    Refused(Blocked),
    None,
}

/// Finds the next step.
///
/// # Errors
///
/// When JetStream has to be asked and does not answer.
pub async fn step(
    object: &EventStream,
    desired: Desired<Stream>,
    cache: &Cache,
    context: &Context,
) -> Result<Step, Error> {
    let failed = |source| Error::reading::<Stream>(&desired.key, source);
    let none = |desired| Ok(Step { desired, changing: None, permission: Permission::None });
    let recorded = Recorded::of_stream(object);
    // What is not known yet is asked for once, and changes no partitions in this reconcile.
    let is_known = cache.peek::<Stream>(&desired.key).present().is_some();
    if object.spec.partitions.is_none() && !is_known {
        return none(desired);
    }
    let entry = cache.lock::<Stream>(&desired.key).await.map_err(failed)?;
    let desired = entry.present().map_or_else(|| desired.clone(), |info| marked(&desired, &info));
    if !goes_on(&desired, &entry, &recorded) {
        return none(desired);
    }
    drop(entry);
    let consumers = consumers(cache, &desired.key).await.map_err(failed)?;
    let (mut entry, just_read) = cache.lock_to_write::<Stream>(&desired.key).await.map_err(failed)?;
    if !just_read {
        cache.refresh_locked::<Stream>(&desired.key, &mut entry).await.map_err(failed)?;
    }
    let Some(info) = entry.present().filter(|_| goes_on(&desired, &entry, &recorded)) else {
        return none(desired);
    };
    let declared = partitions::declared(&object.spec).ok().flatten();
    let thing = |what| format!("{what} {} {}", desired.owner.namespace, desired.key);
    let known = Known {
        info: &info,
        consumers: &consumers,
        still: context.unchanged.observe(&thing("last sequence of"), &(&info.created, info.state.last_seq)),
        marked: context.unchanged.observe(
            &thing("mark of"),
            &(&info.created, Mark::of(&info.config).map(|mark| mark.to_string())),
        ),
    };
    Ok(taken(next(declared.as_ref(), &known), desired, &info))
}

/// With the mark that the stream has: what was applied last is told from what another writer changed by all of it.
fn marked(desired: &Desired<Stream>, info: &StreamInfo) -> Desired<Stream> {
    match Mark::of(&info.config) {
        Some(mark) => Desired { config: mark.put_on(desired.config.clone()), ..desired.clone() },
        None => desired.clone(),
    }
}

/// Whether there is a change to make or to end, of a stream that is the object's, or is to be.
fn goes_on(desired: &Desired<Stream>, entry: &EntryGuard<Stream>, recorded: &Recorded) -> bool {
    let Some(info) = entry.present().filter(|info| is_due(&desired.config, &info.config)) else {
        return false;
    };
    let known =
        plan::Known { actual: Some(&info), history: entry.history(), recorded, max_ack_pending: None };
    match plan::plan(desired, known) {
        Plan::Blocked(_) | Plan::Create { .. } => false,
        plan if partitions::changes(&plan, &info) => true,
        Plan::Update { .. } | Plan::Unchanged => {
            let ownership = desired.owner.ownership(&info.config, info.created(), entry.history());
            matches!(ownership, Ownership::Ours(_)) && is_due(&info.config, &info.config)
        }
    }
}

/// What the stream is to be after the step. While a change waits, whatever else is declared is brought about.
fn taken(next: Next, desired: Desired<Stream>, info: &StreamInfo) -> Step {
    let there = info.config.get(SUBJECT_TRANSFORM).cloned().unwrap_or(Value::Null);
    let held = |desired: Desired<Stream>| {
        let config = desired.config.with(SUBJECT_TRANSFORM, there);
        Desired { config, ..desired }
    };
    let changing = |message: &str| {
        Some(State { status: Some(true), reason: Reason::ChangingPartitions, message: message.to_owned() })
    };
    match next {
        Next::Nothing => Step { desired, changing: None, permission: Permission::None },
        Next::Change(mark) => Step {
            desired: Desired { config: mark.put_on(desired.config), ..desired },
            changing: changing("the stream gets its new partitions. Leave publishers stopped"),
            permission: Permission::Until(info.state.last_seq),
        },
        Next::Mark(mark) => {
            let desired = held(desired);
            Step {
                desired: Desired { config: mark.put_on(desired.config), ..desired },
                changing: None,
                permission: Permission::None,
            }
        }
        Next::Wait(state) => {
            Step { desired: held(desired), changing: Some(state), permission: Permission::None }
        }
        Next::Refused(blocked) => Step { desired, changing: None, permission: Permission::Refused(blocked) },
    }
}

impl Step {
    /// Why a plan must not be carried out that gives the stream other partitions. What JetStream has may be newer than what the step was decided on.
    pub fn forbids(&self, plan: &Plan, info: Option<&StreamInfo>) -> Option<Blocked> {
        let info = info.filter(|info| partitions::changes(plan, info))?;
        match &self.permission {
            Permission::Until(last) if info.state.last_seq == *last => None,
            Permission::Refused(blocked) => Some(blocked.clone()),
            Permission::Until(_) | Permission::None => Some(Blocked {
                reason: Reason::StreamIsBusy,
                message: "spec.partitions: the stream changed while its partitions were to change; it is tried again".to_owned(),
            }),
        }
    }

    /// Says in an outcome how the change goes.
    pub fn tell(self, outcome: &mut Outcome<StreamInfo>) {
        let Outcome::Reconciled(Reconciled { result, contested, changing, requeue_after, .. }) = outcome
        else {
            return;
        };
        let is_too_late =
            matches!(result, OperationResult::Blocked(Blocked { reason: Reason::StreamIsBusy, .. }));
        if is_too_late || matches!(self.permission, Permission::Until(_)) {
            *requeue_after = Some(INTERVAL);
        }
        let Some(state) = self.changing else { return };
        contested.get_or_insert_with(|| Pending {
            reason: state.reason,
            message: state.message.clone(),
            stalled: false,
            requeue_after: Some(INTERVAL),
        });
        *changing = Some(state);
    }
}

/// All consumers of a stream; an error where some server did not answer, since what it has would be overlooked.
async fn consumers(cache: &Cache, stream: &str) -> Result<Vec<ConsumerInfo>, ApiError> {
    let mut consumers = Vec::new();
    let mut pages =
        pin!(pages(|offset| cache.api().list_consumers::<ConsumerInfo>(stream, offset), |info| &info.name));
    while let Some(page) = pages.try_next().await? {
        consumers.extend(page.items);
        // Each is asked for by itself: a list leaves out what a server did not answer for in time.
        for name in page.missing {
            consumers.extend(cache.api().consumer_info::<ConsumerInfo>(stream, &name).await?);
        }
    }
    Ok(consumers)
}
