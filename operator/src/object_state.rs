//! What is remembered of objects between their reconciles. All of it may be lost at any time: it only keeps the operator from doing
//! things too often.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::time::Instant;

use crate::{
    contest::Contest,
    deletion::Deletion,
    error::ErrorClass,
    rate_limit::RateLimit,
    reported::{Report, Reported, Sighting},
};

/// How long an own write is waited for: without a bound, an object whose resource versions start over would never be reconciled.
const MAX_WATCH_LAG: Duration = Duration::from_secs(10);
/// Time after which a turn is over that was not used.
const TURN_TTL: Duration = Duration::from_mins(5);
/// Time without use after which the state of an object is dropped; longer than any pause between two reconciles.
const TTL: Duration = Duration::from_hours(2);

/// Names an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectKey {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    #[must_use]
    pub fn new<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> Self {
        let kind = match K::kind(&()) {
            Cow::Borrowed(kind) => kind,
            // No kind that is known at compile time is so.
            Cow::Owned(_) => std::any::type_name::<K>(),
        };
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    #[must_use]
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::new::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
    }
}

/// Tells what was applied, and what Kubernetes made of it, from anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Hash of what was desired.
    pub desired: u64,
    /// Hash of what was the operator's own in the object afterwards.
    pub observed: u64,
}

/// What is remembered of one object.
#[derive(Default)]
struct ObjectState {
    /// Failures in a row: what the delay of the next try grows with.
    failures: u32,
    /// When to try again after a failure, and what JetStream was seen to have when it failed.
    retry: Option<(Instant, Option<u64>)>,
    /// None of an object that is not deleted, as most are.
    deletion: Option<Box<Deletion>>,
    /// Writes of each thing that it declares, so that two writers who disagree do not take turns a hundred times a second: of its only one, or
    /// of each partition by its number.
    contests: Vec<Contest>,
    /// Which recreation was reported last: a reconcile that does not see yet what the one before it wrote notices it once more.
    last_recreated: Option<String>,
    /// Which troubles were reported by events.
    reported: Reported,
    last_status_write: Option<Instant>,
    /// When the status may be written, of those that wait for a permit.
    turn: Option<Instant>,
    /// The resource version that the object has since.
    written_version: Option<u64>,
    /// What was applied as this object, where the operator applies it.
    applied: Option<Fingerprint>,
    /// A question about what runs as this object, by its hash, and the answer.
    runs_as: Option<(u64, bool)>,
    /// A read proved that the object does not exist; its watch reports its creation.
    absent: bool,
}

impl ObjectState {
    fn deletion_of(&mut self, uid: &str) -> &mut Deletion {
        self.deletion.get_or_insert_default().of(uid)
    }
}

/// The states of all objects, with when each was used last. In boxes, since half of a big map is room for more.
#[derive(Default)]
pub struct ObjectStates(Mutex<HashMap<ObjectKey, Box<(ObjectState, Instant)>>>);

impl ObjectStates {
    /// Works with the state of an object, made where there is none.
    fn with<R>(&self, key: &ObjectKey, work: impl FnOnce(&mut ObjectState) -> R) -> R {
        let mut states = self.0.lock();
        if let Some(kept) = states.get_mut(key) {
            kept.1 = Instant::now();
            return work(&mut kept.0);
        }
        let made = || Box::new((ObjectState::default(), Instant::now()));
        work(&mut states.entry(key.clone()).or_insert_with(made).0)
    }

    /// Reads the state of an object.
    fn read<R: Default>(&self, key: &ObjectKey, read: impl FnOnce(&ObjectState) -> R) -> R {
        self.0.lock().get_mut(key).map_or_else(R::default, |kept| {
            kept.1 = Instant::now();
            read(&kept.0)
        })
    }

    /// Counts one more failure, and says when to try again. `seen` tells what JetStream was seen to have from anything else.
    pub fn failed(&self, key: &ObjectKey, class: ErrorClass, seen: Option<u64>) -> Duration {
        self.with(key, |state| {
            state.failures = state.failures.saturating_add(1);
            let delay = max_delay(class, state.failures).mul_f64(rand::rng().random_range(0.5..1.0));
            let longest = state.deletion.as_ref().and_then(|deletion| deletion.max_pause());
            let delay = longest.map_or(delay, |longest| delay.min(longest));
            state.retry = Some((Instant::now() + delay, seen));
            delay
        })
    }

    pub fn succeeded(&self, key: &ObjectKey) {
        if self.read(key, |state| state.failures > 0) {
            self.with(key, |state| (state.failures, state.retry) = (0, None));
        }
    }

    /// Whether an object waits for its next try, and JetStream has what it had when the last one failed: `seen` tells.
    pub fn backs_off(&self, key: &ObjectKey, seen: impl FnOnce() -> Option<u64>) -> bool {
        let retry = self.read(key, |state| state.retry);
        retry.is_some_and(|(at, then)| at > Instant::now() && then.is_some() && then == seen())
    }

    /// Works with how far the deletion of the object with this uid has come.
    pub fn deletion<R>(&self, key: &ObjectKey, uid: &str, work: impl FnOnce(&mut Deletion) -> R) -> R {
        self.with(key, |state| work(state.deletion_of(uid)))
    }

    /// Nothing holds the object with this uid any more: what is remembered of it means nothing to another one of its name.
    pub fn released(&self, key: &ObjectKey, uid: &str) {
        self.with(key, |state| {
            *state = ObjectState::default();
            state.deletion_of(uid).release();
        });
    }

    /// Works with the contest for what an object declares, or for one partition of it.
    pub fn with_contest<R>(
        &self,
        key: &ObjectKey,
        partition: Option<u32>,
        work: impl FnOnce(&mut Contest) -> R,
    ) -> R {
        self.with(key, |state| {
            let index = contest_index(partition);
            if let Some(missing) = (index + 1).checked_sub(state.contests.len()) {
                state.contests.reserve_exact(missing);
                state.contests.resize_with(index + 1, Contest::default);
            }
            work(&mut state.contests[index])
        })
    }

    /// Whether nothing is written of it because others write as much.
    pub fn is_contested(&self, key: &ObjectKey, partition: Option<u32>) -> bool {
        let index = contest_index(partition);
        self.read(key, |state| state.contests.get(index).is_some_and(Contest::is_paused))
    }

    /// Whether it was not reported yet that the thing was recreated at this time.
    pub fn first_seen(&self, key: &ObjectKey, created: &str) -> bool {
        self.with(key, |state| {
            state.last_recreated.replace(created.to_owned()).is_none_or(|last| last != created)
        })
    }

    /// Whether a trouble of an object is to be reported now.
    pub fn report(&self, key: &ObjectKey, sighting: &Sighting) -> Report {
        self.with(key, |state| state.reported.decide(sighting))
    }

    /// How long an object's status has to wait for a write, where at most one is due in this time.
    pub fn status_write_delay(&self, key: &ObjectKey, interval: Duration) -> Option<Duration> {
        let last = self.read(key, |state| state.last_status_write)?;
        interval.checked_sub(last.elapsed()).filter(|left| !left.is_zero())
    }

    /// How long a status that waits for a permit has to wait; None when it is its turn.
    pub fn turn(&self, key: &ObjectKey, limit: &RateLimit) -> Option<Duration> {
        self.with(key, |state| {
            let now = Instant::now();
            // One that was not used is nobody's any more.
            let turn = state.turn.filter(|turn| now.saturating_duration_since(*turn) < TURN_TTL);
            let turn = turn.unwrap_or_else(|| now + limit.reserve());
            state.turn = Some(turn);
            Some(turn.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
        })
    }

    /// The status was written; the object has this resource version since.
    pub fn status_written(&self, key: &ObjectKey, version: Option<u64>) {
        self.with(key, |state| {
            (state.last_status_write, state.written_version) = (Some(Instant::now()), version);
            state.turn = None;
        });
    }

    /// Whether a copy of an object is older than what this process wrote a moment ago: its watch brings a newer one.
    pub fn is_stale(&self, key: &ObjectKey, version: Option<u64>) -> bool {
        self.read(key, |state| {
            let recent = state.last_status_write.is_some_and(|written| written.elapsed() < MAX_WATCH_LAG);
            recent && version.zip(state.written_version).is_some_and(|(copy, written)| copy < written)
        })
    }

    /// What was applied last as this object.
    pub fn applied(&self, key: &ObjectKey) -> Option<Fingerprint> {
        self.read(key, |state| state.applied)
    }

    pub fn set_applied(&self, key: &ObjectKey, fingerprint: Option<Fingerprint>) {
        self.with(key, |state| (state.applied, state.absent) = (fingerprint, false));
    }

    /// The answer to a question about what runs as this object, where it was the last one.
    pub fn runs_as(&self, key: &ObjectKey, question: u64) -> Option<bool> {
        self.read(key, |state| state.runs_as)
            .filter(|(known, _)| *known == question)
            .map(|(_, answer)| answer)
    }

    pub fn set_runs_as(&self, key: &ObjectKey, question: u64, answer: bool) {
        self.with(key, |state| state.runs_as = Some((question, answer)));
    }

    /// Whether a read proved that the object does not exist.
    pub fn is_absent(&self, key: &ObjectKey) -> bool {
        self.read(key, |state| state.absent)
    }

    pub fn set_absent(&self, key: &ObjectKey, absent: bool) {
        if self.is_absent(key) != absent {
            self.with(key, |state| (state.applied, state.absent) = (None, absent));
        }
    }

    /// Drops the states of objects that are gone.
    pub fn evict_idle(&self) {
        self.0.lock().retain(|_, kept| kept.1.elapsed() < TTL);
    }
}

/// Where the contest of a partition is, or that of an object that has none.
fn contest_index(partition: Option<u32>) -> usize {
    partition.and_then(|partition| usize::try_from(partition).ok()).unwrap_or_default()
}

/// Longest delay before the try after so many failures.
fn max_delay(class: ErrorClass, failures: u32) -> Duration {
    let (first, longest) = match class {
        ErrorClass::Conflict => (Duration::from_millis(200), Duration::from_secs(5)),
        ErrorClass::Transient => (Duration::from_millis(500), Duration::from_mins(1)),
        ErrorClass::Terminal => (Duration::from_secs(10), Duration::from_mins(5)),
    };
    let delays =
        ExponentialBuilder::default().with_min_delay(first).with_max_delay(longest).without_max_times();
    let nth = usize::try_from(failures).unwrap_or(usize::MAX).saturating_sub(1);
    // Every delay is the longest long before that.
    delays.build().nth(nth.min(16)).unwrap_or(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ObjectKey {
        ObjectKey { kind: "EventStream", namespace: "shop".into(), name: "orders".into() }
    }

    #[test]
    fn delays_grow_to_a_bound_and_start_over_after_a_success() {
        let (conflict, transient) = (ErrorClass::Conflict, ErrorClass::Transient);
        assert_eq!(max_delay(transient, 1), Duration::from_millis(500));
        assert_eq!(max_delay(transient, 4), Duration::from_secs(4));
        assert_eq!(max_delay(transient, 1000), Duration::from_mins(1));
        assert_eq!(max_delay(conflict, 1000), Duration::from_secs(5));
        assert_eq!(max_delay(ErrorClass::Terminal, 1), Duration::from_secs(10));
        let states = ObjectStates::default();
        for _ in 0..20 {
            assert!(states.failed(&key(), transient, None) <= Duration::from_mins(1));
        }
        states.succeeded(&key());
        assert!(states.failed(&key(), transient, None) <= Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_failed_waits_unless_jetstream_has_something_else_than_it_saw() {
        let states = ObjectStates::default();
        assert!(!states.backs_off(&key(), || Some(1)));
        let delay = states.failed(&key(), ErrorClass::Terminal, Some(1));
        assert!(states.backs_off(&key(), || Some(1)));
        assert!(!states.backs_off(&key(), || Some(2)) && !states.backs_off(&key(), || None));
        tokio::time::advance(delay).await;
        assert!(!states.backs_off(&key(), || Some(1)));
        // Without knowledge of what it saw, everything may be news.
        states.failed(&key(), ErrorClass::Terminal, None);
        assert!(!states.backs_off(&key(), || None));
    }

    #[tokio::test(start_paused = true)]
    async fn stats_wait_a_minute() {
        let states = ObjectStates::default();
        let minute = Duration::from_mins(1);
        assert_eq!(states.status_write_delay(&key(), minute), None);
        states.status_written(&key(), None);
        assert_eq!(states.status_write_delay(&key(), minute), Some(minute));
        tokio::time::advance(minute).await;
        assert_eq!(states.status_write_delay(&key(), minute), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_is_older_than_the_last_write_is_stale_for_a_moment() {
        let states = ObjectStates::default();
        assert!(!states.is_stale(&key(), Some(1)));
        states.status_written(&key(), Some(7));
        let stale = |version| states.is_stale(&key(), version);
        assert_eq!([Some(6), Some(7), Some(8), None].map(stale), [true, false, false, false]);
        tokio::time::advance(MAX_WATCH_LAG).await;
        assert!(!states.is_stale(&key(), Some(6)));
    }

    #[test]
    fn what_is_absent_is_believed_until_it_is_applied_or_seen() {
        let states = ObjectStates::default();
        assert!(!states.is_absent(&key()));
        states.set_absent(&key(), true);
        assert_eq!((states.is_absent(&key()), states.applied(&key())), (true, None));
        let fingerprint = Fingerprint { desired: 1, observed: 2 };
        states.set_applied(&key(), Some(fingerprint));
        assert_eq!((states.is_absent(&key()), states.applied(&key())), (false, Some(fingerprint)));
        states.set_absent(&key(), false);
        assert_eq!(states.applied(&key()), Some(fingerprint));
    }

    #[tokio::test(start_paused = true)]
    async fn the_state_of_objects_that_are_gone_is_dropped() {
        let states = ObjectStates::default();
        states.failed(&key(), ErrorClass::Transient, None);
        tokio::time::advance(TTL).await;
        states.evict_idle();
        assert!(states.0.lock().is_empty());
    }

    #[test]
    fn that_something_was_recreated_is_news_once() {
        let states = ObjectStates::default();
        let news = ["10:00", "10:00", "10:05", "10:05"].map(|created| states.first_seen(&key(), created));
        assert_eq!(news, [true, false, true, false]);
    }
}
