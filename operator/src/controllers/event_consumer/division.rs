//! Divides one JetStream consumer into those of its parts, step by step, as [`crate::jetstream::repartition::division`] decides on what JetStream has.
//! Reads and writes JetStream.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream::iter};
use jetwright_crds::{conditions::Reason, marks::DIVIDING};
use jiff::Timestamp;

use super::{MAX_CONCURRENT_PARTITIONS, Physical, Work};
use crate::{
    jetstream::{
        asset::{Asset as _, Consumer, ConsumerKey, Desired},
        config::Config,
        entries::EntryGuard,
        finalize::finalize,
        info::ConsumerInfo,
        reconcile::{Error, attempt},
        repartition::division::{Known, Next, PAUSE, Stage, beginning_at, goes_on, next},
    },
    outcome::{OperationResult, Outcome, Pending},
};

/// How soon a division is looked at again.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it takes at most until a consumer that is paused acknowledges something more, beyond the deadline of its handler.
const MARGIN: Duration = Duration::from_secs(30);
/// How long one that did not finish goes on before it is paused again.
const RESUMED: Duration = Duration::from_secs(20);

/// A consumer and its parts, as they are to be.
pub struct Whole<'a> {
    pub wide: (&'a Physical, &'a Desired<Consumer>),
    pub becomes: Becomes<'a>,
    /// The other parts, by their numbers.
    pub parts: Vec<(u32, &'a Physical, &'a Desired<Consumer>)>,
    /// How many partitions there are.
    pub count: u32,
    /// Up to where events may have a number of before.
    pub at: u64,
}

/// What becomes of a consumer that is divided.
#[derive(Clone, Copy)]
pub enum Becomes<'a> {
    /// It is the first part.
    Part(&'a Physical, &'a Desired<Consumer>),
    /// All parts are others, and it goes.
    Nothing,
}

/// A part by its number, and what JetStream has of it.
type Part = (u32, Option<ConsumerInfo>);

/// A consumer that is divided, and what is known of its parts.
struct State<'a> {
    whole: &'a Whole<'a>,
    parts: Vec<Part>,
    /// Whether they were all read since this changed one.
    are_fresh: bool,
    goes_on: bool,
}

/// Divides the consumers of one object as far as that goes now; what it waits for, None where all are divided.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn divide(work: &Work<'_>, wholes: &[Whole<'_>]) -> Result<Option<Pending>, Error> {
    let mut states = Vec::new();
    for whole in wholes {
        // Events wait meanwhile, so a part is read again only where this changed it, and all of them before what cannot be taken back.
        let parts = read(work, whole).await?;
        let Some(info) = fresh(work, &whole.wide.1.key).await? else { continue };
        let goes_on = goes_on(&known(work, whole, (&info, &parts), false));
        states.push(State { whole, parts, are_fresh: true, goes_on });
    }
    let others_go_on = states.iter().any(|state| state.goes_on);
    // What is said is what the others wait for.
    states.sort_by_key(|state| !state.goes_on);
    for stage in Stage::ALL {
        let mut pending = None;
        for state in &mut states {
            let advanced = advance(work, state, others_go_on, stage).await;
            if stage == Stage::Made && !matches!(advanced, Ok(None)) {
                // It may take a change by somebody, for which events do not wait.
                let resumed = resume_all(work, wholes).await;
                return advanced.and_then(|waits| resumed.map(|()| waits));
            }
            pending = pending.or(advanced?);
        }
        if pending.is_some() {
            return Ok(pending);
        }
    }
    Ok(None)
}

/// Brings a consumer to a stage; what it waits for, None where it is there.
async fn advance(
    work: &Work<'_>,
    divided: &mut State<'_>,
    others_go_on: bool,
    stage: Stage,
) -> Result<Option<Pending>, Error> {
    let State { whole, parts, are_fresh, .. } = divided;
    // Each part is made and removed at most once, beside the steps of the whole one.
    for _ in 0..2 * whole.parts.len() + 6 {
        let Some(info) = fresh(work, &whole.wide.1.key).await? else { return Ok(None) };
        let known = known(work, whole, (&info, parts), others_go_on);
        let (step, was_resumed) = (next(&known), known.was_resumed);
        match step {
            _ if step.stage() > stage => return Ok(None),
            Next::Narrow | Next::Done if !*are_fresh => {
                *parts = read(work, whole).await?;
                *are_fresh = true;
            }
            Next::Done if matches!(whole.becomes, Becomes::Part(..)) => return Ok(None),
            Next::Narrow | Next::Done => match whole.becomes {
                Becomes::Part(consumer, desired) => {
                    if let Some(pending) = unfinished(work.ensure_one((consumer, desired)).await?) {
                        return Ok(Some(pending));
                    }
                }
                Becomes::Nothing => {
                    finalize::<Consumer>(&work.connection.cache, &whole.wide.1.key, work.owner).await?;
                    return Ok(None);
                }
            },
            Next::Pause => pause(work, &info, true).await?,
            Next::Resume => {
                resume(work, &info).await?;
                *parts = read(work, whole).await?;
            }
            Next::Make { part, begin } => {
                if let Some((_, consumer, desired)) = whole.parts.iter().find(|(number, ..)| *number == part)
                {
                    let config = beginning_at(desired.config.clone(), begin);
                    let desired = Desired { config, ..(*desired).clone() };
                    if let Some(pending) = unfinished(work.ensure_one((consumer, &desired)).await?) {
                        return Ok(Some(pending));
                    }
                    renew(work, &desired.key, part, parts).await?;
                    *are_fresh = false;
                }
            }
            Next::Remove { part } => {
                if let Some((.., desired)) = whole.parts.iter().find(|(number, ..)| *number == part) {
                    finalize::<Consumer>(&work.connection.cache, &desired.key, work.owner).await?;
                    renew(work, &desired.key, part, parts).await?;
                    *are_fresh = false;
                }
            }
            Next::GoOn => {
                if let Some(pending) = unfinished(work.ensure_one(whole.wide).await?) {
                    return Ok(Some(pending));
                }
                let message = if was_resumed {
                    goes_on_for_now(&info.name)
                } else {
                    waits(&step, &info.name, whole.at)
                };
                return Ok(Some(pending(message)));
            }
            Next::Finish | Next::Paused => return Ok(Some(pending(waits(&step, &info.name, whole.at)))),
        }
    }
    Ok(Some(pending(waits(&Next::Finish, &whole.wide.0.name, whole.at))))
}

/// Lets those that are paused go on.
async fn resume_all(work: &Work<'_>, wholes: &[Whole<'_>]) -> Result<(), Error> {
    let mut resumed = Ok(());
    for whole in wholes {
        // One that cannot be keeps no other from it.
        resumed = resumed.and(resume_divided(work, whole).await);
    }
    resumed
}

async fn resume_divided(work: &Work<'_>, whole: &Whole<'_>) -> Result<(), Error> {
    let found = fresh(work, &whole.wide.1.key).await?;
    if let Some(info) = found.filter(|info| info.paused && info.config.metadata().contains_key(DIVIDING)) {
        resume(work, &info).await?;
    }
    Ok(())
}

/// What JetStream has of the parts.
async fn read(work: &Work<'_>, whole: &Whole<'_>) -> Result<Vec<Part>, Error> {
    let keys: Vec<_> =
        whole.parts.iter().map(|(number, _, desired)| (*number, desired.key.clone())).collect();
    let parts = iter(keys).map(|(number, key)| async move { Ok((number, fresh(work, &key).await?)) });
    parts.buffered(MAX_CONCURRENT_PARTITIONS).try_collect().await
}

/// Reads one part again.
async fn renew(work: &Work<'_>, key: &ConsumerKey, part: u32, parts: &mut [Part]) -> Result<(), Error> {
    let info = fresh(work, key).await?;
    if let Some(known) = parts.iter_mut().find(|(number, _)| *number == part) {
        known.1 = info;
    }
    Ok(())
}

fn known<'k>(
    work: &Work<'_>,
    whole: &Whole<'_>,
    (info, parts): (&'k ConsumerInfo, &'k [Part]),
    others_go_on: bool,
) -> Known<'k> {
    Known {
        whole: info,
        parts,
        count: whole.count,
        at: whole.at,
        is_stuck: stands_still(work, info) >= work.object.spec.effective_handler_deadline().0 + MARGIN,
        was_resumed: work.context.unchanged.age(&resumed(work, info)).is_some_and(|age| age < RESUMED),
        others_go_on,
    }
}

async fn resume(work: &Work<'_>, info: &ConsumerInfo) -> Result<(), Error> {
    pause(work, info, false).await?;
    work.context.unchanged.observe(&resumed(work, info), &Timestamp::now());
    Ok(())
}

/// For how long a consumer has acknowledged nothing while it is paused.
fn stands_still(work: &Work<'_>, info: &ConsumerInfo) -> Duration {
    let name = format!("progress of {} {} {}", work.owner.namespace, info.stream_name, info.name);
    work.context.unchanged.observe(&name, &(info.paused, info.num_ack_pending, info.ack_floor.stream_seq))
}

fn resumed(work: &Work<'_>, info: &ConsumerInfo) -> String {
    format!("resumption of {} {} {}", work.owner.namespace, info.stream_name, info.name)
}

/// What JetStream has now.
async fn fresh(work: &Work<'_>, key: &ConsumerKey) -> Result<Option<ConsumerInfo>, Error> {
    let failed = |source| Error::reading::<Consumer>(key, source);
    let cache = &work.connection.cache;
    let (mut entry, just_read) = cache.lock_to_write::<Consumer>(key).await.map_err(failed)?;
    if !just_read {
        cache.refresh_locked::<Consumer>(key, &mut entry).await.map_err(failed)?;
    }
    Ok(entry.present())
}

/// Pauses a consumer, and says before that it is for its division; or lets it go on, and takes that back after. `info` is what JetStream has.
async fn pause(work: &Work<'_>, info: &ConsumerInfo, is_paused: bool) -> Result<(), Error> {
    let key = ConsumerKey { stream: info.stream_name.clone(), name: info.name.clone() };
    let action = if is_paused { "pause" } else { "resume" };
    let failed = |source| Error::new::<Consumer>(action, &key, source);
    let cache = &work.connection.cache;
    let is_marked = info.config.metadata().contains_key(DIVIDING);
    let mut entry = cache.lock::<Consumer>(&key).await.map_err(failed)?;
    let mark = async |entry: &mut EntryGuard<Consumer>, config: Config| {
        let updated = attempt(entry, Consumer::update(cache.api(), &key, &config)).await.map_err(failed)?;
        entry.set(Some(&updated));
        Ok(())
    };
    if is_paused && !is_marked {
        mark(&mut entry, info.config.clone().with_mark(DIVIDING, "true")).await?;
    }
    let until = is_paused.then(|| (Timestamp::now() + PAUSE).to_string());
    let paused = cache.api().pause_consumer(&key.stream, &key.name, until.as_deref());
    attempt(&mut entry, paused).await.map_err(failed)?;
    cache.refresh_locked::<Consumer>(&key, &mut entry).await.map_err(failed)?;
    if let Some(info) = entry.present().filter(|_| !is_paused && is_marked) {
        mark(&mut entry, info.config.without_mark(DIVIDING)).await?;
    }
    Ok(())
}

/// What an outcome waits for that is not as declared.
fn unfinished(outcome: Outcome<ConsumerInfo>) -> Option<Pending> {
    match outcome {
        Outcome::Pending(pending) => Some(pending),
        Outcome::Reconciled(reconciled) => match reconciled.result {
            OperationResult::Blocked(blocked) => Some(Pending {
                reason: blocked.reason,
                message: blocked.message,
                stalled: true,
                requeue_after: None,
            }),
            _ => None,
        },
        Outcome::Invalid(_) => None,
    }
}

/// What the status says while a consumer cannot be divided yet.
fn waits(step: &Next, name: &str, at: u64) -> String {
    match step {
        Next::Paused => {
            format!("consumer {name} is paused by somebody: resume it, so that it can be divided")
        }
        Next::Finish => format!(
            "consumer {name} is paused, and is divided when its pods have acknowledged what they have begun"
        ),
        _ => format!(
            "consumer {name} is divided when everything up to sequence {at} is acknowledged, and nothing waits for its next attempt"
        ),
    }
}

/// What the status says after an attempt that came to nothing.
fn goes_on_for_now(name: &str) -> String {
    format!(
        "consumer {name} could not be divided, and goes on for {} s before the next attempt: JetStream refused a part (see the operator's log), or \
         pods acknowledged nothing for too long",
        RESUMED.as_secs()
    )
}

/// What the status says.
pub fn pending(message: String) -> Pending {
    Pending { reason: Reason::ChangingPartitions, message, stalled: false, requeue_after: Some(INTERVAL) }
}
