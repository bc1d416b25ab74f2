//! Divides one JetStream consumer into those of its parts, step by step, as [`crate::jetstream::repartition::division`] decides on what JetStream has.
//! Reads and writes JetStream.

use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream::iter};
use jetwright_crds::{conditions::Reason, marks::DIVIDING};
use jiff::Timestamp;

use super::{MAX_CONCURRENT_PARTITIONS, Physical, Work, all};
use crate::{
    error::{ErrorClass, ReconcileError as _, error_chain},
    jetstream::{
        asset::{Asset as _, Consumer, ConsumerKey, Desired},
        config::Config,
        entries::EntryGuard,
        finalize::finalize,
        info::ConsumerInfo,
        reconcile::{Error, attempt},
        repartition::{
            division::{Known, Next, PAUSE, Resumption, Stage, beginning_at, goes_on, next},
            resumed::PERIOD,
        },
    },
    outcome::{OperationResult, Outcome, Pending},
};

/// How soon a division is looked at again.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long it takes at most until a consumer that is paused acknowledges something more, beyond the deadline of its handler.
const MARGIN: Duration = Duration::from_secs(30);
/// Most steps of one consumer on its way to a stage: what others change meanwhile may take it back.
const MAX_STEPS: usize = 12;

/// A consumer and its parts, as they are to be.
pub struct Whole<'a> {
    pub wide: (&'a Physical, &'a Desired<Consumer>),
    pub becomes: Becomes<'a>,
    /// The other parts, by their numbers.
    pub parts: Vec<Wanted<'a>>,
    /// How many partitions there are.
    pub count: u32,
    /// Up to where events may have a number of before.
    pub at: u64,
}

/// A part that is to be: its number, and what it is in JetStream.
pub type Wanted<'a> = (u32, &'a Physical, &'a Desired<Consumer>);

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

/// Divides the consumers of one object as far as that goes now; what it waits for, None where all are divided. `is_begun`: another one of the
/// object is divided already.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn divide(work: &Work<'_>, wholes: &[Whole<'_>], is_begun: bool) -> Result<Option<Pending>, Error> {
    // Until the last one is divided nobody handles the parts of the others, so what may pass is tried again soon.
    let is_tried_again =
        |error: &Error, stage| error.class() != ErrorClass::Terminal && (is_begun || stage == Stage::Divided);
    let mut states = match states(work, wholes).await {
        Ok(states) => states,
        Err(error) if is_tried_again(&error, Stage::Paused) => return Err(error),
        Err(error) => return stop(work, wholes, Err(error)).await,
    };
    let others_go_on = states.iter().any(|state| state.goes_on);
    // What is said is what the others wait for.
    states.sort_by_key(|state| !state.goes_on);
    for stage in Stage::ALL {
        let advancing =
            states.iter_mut().map(|state| advance(work, state, others_go_on, stage).boxed()).collect();
        let advanced = all(advancing).await.map(|waits| waits.into_iter().flatten().next());
        match &advanced {
            Ok(None) => {}
            Ok(Some(_)) if stage == Stage::Paused => return advanced,
            Err(error) if is_tried_again(error, stage) => return advanced,
            // It may take a change by a user, for which events do not wait.
            Ok(Some(_)) | Err(_) => return stop(work, wholes, advanced).await,
        }
    }
    Ok(None)
}

/// What is known of each consumer that is there.
async fn states<'w>(work: &Work<'_>, wholes: &'w [Whole<'w>]) -> Result<Vec<State<'w>>, Error> {
    let reading = wholes.iter().map(|whole| state(work, whole).boxed()).collect();
    let states = all(reading).await?;
    Ok(states.into_iter().flatten().collect())
}

async fn state<'w>(work: &Work<'_>, whole: &'w Whole<'w>) -> Result<Option<State<'w>>, Error> {
    // Events wait meanwhile, so a part is read again only where this changed it, and all of them before what cannot be taken back.
    let parts = read(work, whole).await?;
    let Some(info) = fresh(work, &whole.wide.1.key).await? else { return Ok(None) };
    let goes_on = goes_on(&known(work, whole, (&info, &parts), false));
    Ok(Some(State { whole, parts, are_fresh: true, goes_on }))
}

/// Brings a consumer to a stage; what it waits for, None where it is there.
async fn advance(
    work: &Work<'_>,
    divided: &mut State<'_>,
    others_go_on: bool,
    stage: Stage,
) -> Result<Option<Pending>, Error> {
    let State { whole, parts, are_fresh, .. } = divided;
    for _ in 0..MAX_STEPS {
        let Some(info) = fresh(work, &whole.wide.1.key).await? else { return Ok(None) };
        let step = next(&known(work, whole, (&info, parts), others_go_on));
        match step {
            _ if step.stage() > stage => return Ok(None),
            Next::Narrow | Next::Done if !*are_fresh => {
                *parts = read(work, whole).await?;
                *are_fresh = true;
            }
            Next::Done if matches!(whole.becomes, Becomes::Part(..)) => return Ok(None),
            Next::Narrow | Next::Done => match whole.becomes {
                Becomes::Part(consumer, desired) => {
                    if let Some(pending) = unfinished(&work.ensure_one((consumer, desired)).await?) {
                        return Ok(Some(pending));
                    }
                }
                Becomes::Nothing => {
                    finalize::<Consumer>(&work.connection.cache, &whole.wide.1.key, work.owner).await?;
                    return Ok(None);
                }
            },
            Next::Pause => pause(work, &info, true).await?,
            Next::Resume(why) => {
                resume(work, &info, why_resumed(why)).await?;
                *parts = read(work, whole).await?;
                *are_fresh = true;
            }
            Next::Make { parts: numbers, begin } => {
                if let Some(pending) = make(work, whole, (&numbers, begin), parts).await? {
                    return Ok(Some(pending));
                }
                *are_fresh = false;
            }
            Next::Remove { parts: numbers } => {
                let removing = of_numbers(whole, &numbers).map(|part| remove(work, part).boxed()).collect();
                all(removing).await?;
                *parts = read(work, whole).await?;
                *are_fresh = false;
            }
            Next::GoOn => {
                if let Some(pending) = unfinished(&work.ensure_one(whole.wide).await?) {
                    return Ok(Some(pending));
                }
                let message = match work.context.resumed.why(&thing(work, &info)) {
                    Some(why) => goes_on_for_now(&info.name, &why),
                    None => waits(&step, &info.name, whole.at),
                };
                return Ok(Some(pending(message)));
            }
            Next::Finish | Next::Paused => return Ok(Some(pending(waits(&step, &info.name, whole.at)))),
        }
    }
    Ok(Some(pending(waits(&Next::Finish, &whole.wide.0.name, whole.at))))
}

/// Makes the parts with these numbers, which begin at this sequence; what they wait for, None where all are there.
async fn make(
    work: &Work<'_>,
    whole: &Whole<'_>,
    (numbers, begin): (&[u32], u64),
    parts: &mut [Part],
) -> Result<Option<Pending>, Error> {
    let making = of_numbers(whole, numbers).map(|part| make_one(work, part, begin).boxed()).collect();
    let mut waits = None;
    for (number, outcome) in all(making).await? {
        waits = waits.or(unfinished(&outcome));
        if let Some(known) = parts.iter_mut().find(|(known, _)| *known == number)
            && let Outcome::Reconciled(reconciled) = outcome
        {
            known.1 = reconciled.info;
        }
    }
    Ok(waits)
}

async fn make_one(
    work: &Work<'_>,
    (number, consumer, desired): Wanted<'_>,
    begin: u64,
) -> Result<(u32, Outcome<ConsumerInfo>), Error> {
    let config = beginning_at(desired.config.clone(), begin);
    let desired = Desired { config, ..desired.clone() };
    Ok((number, work.ensure_one((consumer, &desired)).await?))
}

async fn remove(work: &Work<'_>, (_, _, desired): Wanted<'_>) -> Result<(), Error> {
    finalize::<Consumer>(&work.connection.cache, &desired.key, work.owner).await.map(drop)
}

/// The parts with these numbers.
fn of_numbers<'w>(whole: &Whole<'w>, numbers: &[u32]) -> impl Iterator<Item = Wanted<'w>> {
    whole.parts.iter().copied().filter(|(number, ..)| numbers.contains(number))
}

/// Lets all that are paused go on, since they cannot be divided now; what is in the way.
async fn stop(
    work: &Work<'_>,
    wholes: &[Whole<'_>],
    stopped: Result<Option<Pending>, Error>,
) -> Result<Option<Pending>, Error> {
    let why = match &stopped {
        Err(error) => error_chain(error),
        Ok(waits) => waits.as_ref().map(|waits| waits.message.clone()).unwrap_or_default(),
    };
    let resuming = wholes.iter().map(|whole| resume_paused(work, whole, &why).boxed()).collect();
    let resumed = all(resuming).await;
    stopped.and_then(|waits| resumed.map(|_| waits))
}

/// Resumes one that is paused for its division.
async fn resume_paused(work: &Work<'_>, whole: &Whole<'_>, why: &str) -> Result<(), Error> {
    let found = fresh(work, &whole.wide.1.key).await?;
    if let Some(info) = found.filter(|info| info.paused && info.config.metadata().contains_key(DIVIDING)) {
        resume(work, &info, Some(why.to_owned())).await?;
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
        was_resumed: work.context.resumed.why(&thing(work, info)).is_some(),
        others_go_on,
    }
}

async fn resume(work: &Work<'_>, info: &ConsumerInfo, why: Option<String>) -> Result<(), Error> {
    // It goes on although the mark cannot be taken back.
    if let Some(why) = why {
        work.context.resumed.record(thing(work, info), why);
    }
    pause(work, info, false).await
}

/// For how long a consumer has acknowledged nothing while it is paused.
fn stands_still(work: &Work<'_>, info: &ConsumerInfo) -> Duration {
    let name = format!("progress of {}", thing(work, info));
    work.context.unchanged.observe(&name, &(info.paused, info.num_ack_pending, info.ack_floor.stream_seq))
}

/// What a consumer is remembered by.
fn thing(work: &Work<'_>, info: &ConsumerInfo) -> String {
    format!("{} {} {}", work.owner.namespace, info.stream_name, info.name)
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
pub fn unfinished(outcome: &Outcome<ConsumerInfo>) -> Option<Pending> {
    match outcome {
        Outcome::Pending(pending) => Some(pending.clone()),
        Outcome::Reconciled(reconciled) => match &reconciled.result {
            OperationResult::Blocked(blocked) => Some(Pending {
                reason: blocked.reason,
                message: blocked.message.clone(),
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
            format!(
                "consumer {name} was paused by another client than the operator: resume it, so that it can be divided"
            )
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
fn goes_on_for_now(name: &str, why: &str) -> String {
    let period = PERIOD.as_secs();
    format!("consumer {name} could not be divided, and goes on for {period} s before the next attempt: {why}")
}

/// Why a consumer goes on undivided; None of one that is divided.
fn why_resumed(why: Resumption) -> Option<String> {
    let why = match why {
        Resumption::Divided => return None,
        Resumption::Together => "another one of the same EventConsumer has to go on before".to_owned(),
        Resumption::Stuck { unacknowledged } => format!(
            "while it was paused, its pods acknowledged nothing for too long, and have {unacknowledged} unacknowledged messages. Their handlers, and \
             waits for the next attempt, have to end first"
        ),
        Resumption::PauseEnds => "its pause was nearly over".to_owned(),
        Resumption::Behind => "events came before it was paused that may have a number of before".to_owned(),
    };
    Some(why)
}

/// What the status says.
fn pending(message: String) -> Pending {
    Pending { reason: Reason::ChangingPartitions, message, stalled: false, requeue_after: Some(INTERVAL) }
}
