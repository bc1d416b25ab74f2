//! Brings a stream or a consumer in JetStream to what is desired. Reads and writes JetStream; what to do is decided in [`super::plan`].

use std::time::Duration;

use jetwright_crds::{conditions::Reason, stream::Replicas};
use jetwright_nats::{
    Api, ApiError,
    jetstream_error::{
        ACCOUNT_RESOURCES_EXCEEDED, INSUFFICIENT_RESOURCES, MAX_ACK_PENDING_EXCEEDED, MEMORY_EXCEEDED,
        MOVING, NO_SUITABLE_PEERS, RECONFIGURING, REPLICAS_NEED_CLUSTER, STORAGE_EXCEEDED,
    },
};

use super::{
    asset::{Asset, Desired},
    cache::{Cache, Cached},
    config::Config,
    entries::EntryGuard,
    plan::{Cause, Known, Plan, plan},
};
use crate::{
    contest::Rivals,
    error::{ErrorClass, ReconcileError},
    outcome::{Blocked, OperationResult, Outcome, Pending, Reconciled, Recorded},
    write_gate::WriteGate,
};

/// The server's words where a cluster has too few servers, and no other reason beside it (selectPeerError in
/// server/jetstream_cluster.go of nats-server): a server that is away is named in them, and is waited for.
const TOO_FEW_SERVERS: &str = "no suitable peers for placement";
/// How long an object waits for a cluster to have as many servers as its profile asks for.
const CLUSTER_GRACE: Duration = Duration::from_mins(3);
/// What JetStream answers where there is no room for more replicas.
const NO_ROOM: [u64; 6] = [
    REPLICAS_NEED_CLUSTER,
    NO_SUITABLE_PEERS,
    ACCOUNT_RESOURCES_EXCEEDED,
    INSUFFICIENT_RESOURCES,
    MEMORY_EXCEEDED,
    STORAGE_EXCEEDED,
];
/// Delay before a change is tried again that waits for JetStream to move or scale a stream.
pub const SCALING_INTERVAL: Duration = Duration::from_secs(3);

/// Why JetStream could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} {asset}")]
pub struct Error {
    action: String,
    asset: String,
    source: ApiError,
}

impl Error {
    /// The error of something that was tried.
    pub fn new<A: Asset>(action: impl Into<String>, key: &A::Key, source: ApiError) -> Self {
        Self { action: action.into(), asset: A::describe(key), source }
    }

    /// The error of a read that failed.
    pub fn reading<A: Asset>(key: &A::Key, source: ApiError) -> Self {
        Self::new::<A>("read", key, source)
    }

    /// What failed of so many consumers of one object, as one error: that of the first, by which it may also be tried again. None where
    /// nothing failed.
    pub fn together(mut errors: Vec<Self>, of: usize) -> Option<Self> {
        let passes = errors.iter().position(|error| error.class() != ErrorClass::Terminal);
        let first = passes.or((!errors.is_empty()).then_some(0))?;
        let mut error = errors.remove(first);
        if !errors.is_empty() {
            error.asset = format!("{}, and {} more of its {of} consumers", error.asset, errors.len());
        }
        Some(error)
    }
}

impl ReconcileError for Error {
    fn class(&self) -> ErrorClass {
        ErrorClass::of_jetstream(&self.source)
    }

    fn is_unavailable(&self) -> bool {
        self.source.is_unavailable()
    }
}

/// Why a plan for what JetStream has must not be carried out.
type Forbids<'a, I> = dyn Fn(&Plan, Option<&I>) -> Option<Blocked> + Sync + 'a;

/// What an object knows of itself beyond its declaration.
pub struct Situation<'a, A: Asset> {
    pub recorded: &'a Recorded,
    /// How long the object has existed.
    pub age: Duration,
    /// Time after which what JetStream refused is asked for again.
    pub refusal_ttl: Duration,
    /// Says why a plan must not be carried out that JetStream would not refuse.
    pub forbids: &'a Forbids<'a, A::Info>,
}

/// Brings JetStream to what is desired, as far as `gate` lets writes pass.
///
/// # Errors
///
/// When JetStream does not answer or refuses.
pub async fn ensure<A: Cached>(
    cache: &Cache,
    desired: &Desired<A>,
    situation: Situation<'_, A>,
    gate: &WriteGate<'_>,
) -> Result<Outcome<A::Info>, Error> {
    let failed = |source| Error::reading::<A>(&desired.key, source);
    let (mut entry, just_read) = cache.lock_to_write::<A>(&desired.key).await.map_err(failed)?;
    entry.history_mut().forget_refusal(situation.refusal_ttl);
    let mut todo = decide(cache, desired, &situation, &entry);
    if todo.writes() {
        if let Some(pending) = gate.pause() {
            return Ok(Outcome::Pending(pending));
        }
        // What is written is decided on what JetStream has now, not on what it had when it was read last.
        if !just_read {
            cache.refresh_locked::<A>(&desired.key, &mut entry).await.map_err(failed)?;
            todo = decide(cache, desired, &situation, &entry);
        }
        if todo.claims()
            && let Some(other) = A::elsewhere(cache, &desired.owner, &desired.key).await.map_err(failed)?
        {
            todo = Plan::Blocked(renamed::<A>(&desired.key, &other));
        }
        if let Some(blocked) = (situation.forbids)(&todo, entry.present().as_ref()) {
            todo = Plan::Blocked(blocked);
        }
    }
    let contested = match &todo {
        Plan::Blocked(_) => None,
        _ => match gate.pass(todo.writes(), &rivals(cache, desired, &entry, todo.writes())) {
            Ok(contested) => contested,
            Err(pending) => return Ok(Outcome::Pending(pending)),
        },
    };
    match apply_with_less(cache, desired, &situation, todo, &mut entry).await {
        Ok(result) => {
            let requeue_after = if result.is_write() { gate.wrote() } else { None };
            let reconciled = Reconciled::new(result, entry.present().as_ref(), situation.recorded);
            let refusal = entry.history().refusal(desired.owner.declaration()).map(str::to_owned);
            Ok(Outcome::Reconciled(Reconciled { refusal, contested, requeue_after, ..reconciled }))
        }
        Err(Error { source, .. }) if [RECONFIGURING, MOVING].map(Some).contains(&source.err_code()) => {
            Ok(Outcome::Pending(scaling::<A>(&desired.key)))
        }
        Err(error) => Err(error),
    }
}

/// What others do with what is desired. What has to be written may carry the mark of another.
fn rivals<A: Cached>(cache: &Cache, desired: &Desired<A>, entry: &EntryGuard<A>, differs: bool) -> Rivals {
    let actual = if differs { entry.present() } else { None };
    Rivals {
        writes: cache.foreign_writes::<A>(&desired.key),
        twin: actual.and_then(|info| desired.owner.twin(A::config(&info)).map(ToString::to_string)),
    }
}

/// Carries a plan out, and where JetStream refuses what is only preferred, what is declared without it.
async fn apply_with_less<A: Cached>(
    cache: &Cache,
    desired: &Desired<A>,
    situation: &Situation<'_, A>,
    todo: Plan,
    entry: &mut EntryGuard<A>,
) -> Result<OperationResult, Error> {
    let scales = todo.scales() && matches!(desired.replicas, Some(Replicas::Prefer(_)));
    let applied = apply::<A>(cache, desired, todo, situation.age, entry).await;
    let Err(Error { source, .. }) = &applied else { return applied };
    let no_room = scales && source.err_code().is_some_and(|code| NO_ROOM.contains(&code));
    if no_room {
        entry.history_mut().refuse(desired.owner.declaration(), source.to_string());
    }
    let limit = desired.max_ack_pending.and_then(|most| smaller_limit(most, source));
    if limit.is_some() {
        cache.set_max_ack_pending(limit);
    }
    if !no_room && limit.is_none() {
        return applied;
    }
    // What is declared does not wait for what is only preferred.
    let rest = decide(cache, desired, situation, entry);
    apply::<A>(cache, desired, rest, situation.age, entry).await
}

fn decide<A: Cached>(
    cache: &Cache,
    desired: &Desired<A>,
    situation: &Situation<'_, A>,
    entry: &EntryGuard<A>,
) -> Plan {
    let actual = entry.present();
    let known = Known {
        actual: actual.as_ref(),
        history: entry.history(),
        recorded: situation.recorded,
        max_ack_pending: cache.max_ack_pending(),
    };
    plan(desired, known)
}

/// How many unacknowledged messages the server or the account allows, in the words of a refusal (JSConsumerMaxPendingAckExcessErrF of
/// nats-server); 0 where they say otherwise.
fn smaller_limit(preferred: u32, refusal: &ApiError) -> Option<u32> {
    match refusal {
        ApiError::Refused { error, .. } if error.err_code == MAX_ACK_PENDING_EXCEEDED => {
            let limit = error.description.rsplit(' ').next().and_then(|limit| limit.parse().ok());
            Some(limit.filter(|limit| *limit < preferred).unwrap_or_default())
        }
        _ => None,
    }
}

fn renamed<A: Asset>(key: &A::Key, other: &str) -> Blocked {
    let (kind, name) = (A::KIND, A::name(key));
    let message = format!(
        "spec.{kind}Name never changes once the {kind} exists: {kind} {other} was created for this object, which names {name} now. \
         Neither was modified: set spec.{kind}Name to {other}, and make another object for {name}"
    );
    Blocked { reason: Reason::ImmutableField, message }
}

fn scaling<A: Asset>(key: &A::Key) -> Pending {
    Pending {
        reason: Reason::Scaling,
        message: format!(
            "waiting until JetStream has moved or scaled {}; then it is changed as declared",
            A::describe(key)
        ),
        stalled: false,
        requeue_after: Some(SCALING_INTERVAL),
    }
}

/// Carries a plan out, and decides nothing.
async fn apply<A: Cached>(
    cache: &Cache,
    desired: &Desired<A>,
    plan: Plan,
    age: Duration,
    entry: &mut EntryGuard<A>,
) -> Result<OperationResult, Error> {
    let key = &desired.key;
    match plan {
        Plan::Unchanged => Ok(OperationResult::Unchanged),
        Plan::Blocked(blocked) => Ok(OperationResult::Blocked(blocked)),
        Plan::Create { config, fallback, alone } => {
            let fallbacks = Fallbacks { clustered: fallback.filter(|_| age >= CLUSTER_GRACE), alone };
            let create = create::<A>(cache.api(), key, &config, &fallbacks);
            let created = attempt(entry, create).await;
            let (info, refusal) = created.map_err(|source| Error::new::<A>("create", key, source))?;
            entry.set(Some(&info));
            A::observe_mark(cache, &info);
            if let Some(refusal) = refusal {
                entry.history_mut().refuse(desired.owner.declaration(), refusal.to_string());
            }
            A::created(cache, key);
            Ok(OperationResult::Created)
        }
        Plan::Update { steps, fields, cause } => {
            for step in &steps {
                let updated = attempt(entry, A::update(cache.api(), key, step)).await;
                let action = || format!("update {} of", fields.join(", "));
                entry.set(Some(&updated.map_err(|source| Error::new::<A>(action(), key, source))?));
            }
            if let Cause::Adoption(_) = cause {
                // The object that had it does not any more.
                cache.notify(A::change(key));
            }
            Ok(match cause {
                Cause::Declaration => OperationResult::Updated(fields),
                Cause::Drift => OperationResult::Corrected(fields),
                Cause::Adoption(adoption) => OperationResult::Adopted { adoption, fields },
            })
        }
    }
}

/// Sends what changes something. After a refusal everything is as it was: that another operator is refused the same is no news then. Only
/// silence, or the end of the reconcile before there is an answer, leaves open what JetStream has, and what it will have.
pub async fn attempt<A: Asset, T>(
    entry: &mut EntryGuard<A>,
    request: impl Future<Output = Result<T, ApiError>> + Send,
) -> Result<T, ApiError> {
    let before = entry.invalidate();
    let open = entry.history_mut().ask();
    let answer = request.await;
    let is_refused = matches!(answer, Err(ApiError::Refused { .. } | ApiError::InvalidName { .. }));
    if is_refused || answer.is_ok() {
        entry.history_mut().answered(open);
    }
    if is_refused {
        entry.entry = before;
    }
    answer
}

/// What to settle for where there are too few servers for what is preferred.
struct Fallbacks {
    /// In a cluster.
    clustered: Option<Config>,
    /// On a server that is in none.
    alone: Option<Config>,
}

/// Creates it, or a fallback, with why it is one. Servers that are not clustered are one; a cluster of too few may be one that is still
/// forming, so that only an object that waited settles for fewer.
async fn create<A: Asset>(
    api: &Api,
    key: &A::Key,
    config: &Config,
    fallbacks: &Fallbacks,
) -> Result<(A::Info, Option<ApiError>), ApiError> {
    let refusal = match A::create(api, key, config).await {
        Ok(info) => return Ok((info, None)),
        Err(error) => error,
    };
    let fallback = match refusal.err_code() {
        Some(REPLICAS_NEED_CLUSTER) => &fallbacks.alone,
        _ if has_too_few_servers(&refusal) => &fallbacks.clustered,
        _ => &None,
    };
    match fallback {
        Some(config) => Ok((A::create(api, key, config).await?, Some(refusal))),
        None => Err(refusal),
    }
}

fn has_too_few_servers(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { error, .. } if error.err_code == NO_SUITABLE_PEERS && error.description == TOO_FEW_SERVERS)
}
