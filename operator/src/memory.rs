//! What is remembered of objects between their reconciles: failures, repairs, writes. All of it may be lost at any time; it only
//! keeps the operator from doing things too often.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rand::RngExt as _;
use tokio::time::Instant;

use crate::outcome::Category;

/// Most statuses that say Disconnected a second.
const DISCONNECTED_PER_SECOND: f64 = 20.0;
/// Most repairs of one thing in a while.
const REPAIRS: u32 = 20;
/// The while.
const REPAIRS_WITHIN: Duration = Duration::from_mins(1);

/// Kind, namespace and name.
pub type Key = (&'static str, String, String);

/// Time after which something remembered of an object is forgotten.
const OLD: Duration = Duration::from_hours(2);

/// Something remembered of objects, with the time when it was last of use.
struct Memory<T>(Mutex<HashMap<Key, (T, Instant)>>);

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Memory<T> {
    /// Works with what is remembered of an object, made by `new` where there is nothing.
    fn with<R>(&self, key: Key, new: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, used) = memory.entry(key).or_insert_with(|| (new(), Instant::now()));
        *used = Instant::now();
        work(value)
    }

    fn clear(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn forget_old(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, (_, used)| used.elapsed() < OLD);
    }
}

/// Failures in a row, by object: what the delay of the next try grows with.
#[derive(Default)]
pub struct Failures(Memory<u32>);

impl Failures {
    /// Counts one more failure, and says when to try again.
    pub fn delay(&self, key: Key, category: Category) -> Duration {
        let count = self.0.with(
            key,
            || 0,
            |count| {
                *count = count.saturating_add(1);
                *count
            },
        );
        backoff(category, count).mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// The object is well again, or gone.
    pub fn clear(&self, key: &Key) {
        self.0.clear(key);
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.0.forget_old();
    }
}

/// Longest delay before the try after so many failures.
fn backoff(category: Category, failures: u32) -> Duration {
    let (first, longest) = match category {
        Category::Conflict => (Duration::from_millis(200), Duration::from_secs(5)),
        Category::Retry => (Duration::from_millis(500), Duration::from_mins(1)),
        Category::Refused => (Duration::from_secs(10), Duration::from_mins(5)),
    };
    first.saturating_mul(1 << (failures - 1).min(16)).min(longest)
}

/// When deletions were first tried: what bounds them is how long they were tried, not how long ago they were asked for.
#[derive(Default)]
pub struct Deletions(Memory<Instant>);

impl Deletions {
    /// How long this process has been trying to delete what belongs to an object.
    pub fn tried_for(&self, key: Key) -> Duration {
        self.0.with(key, Instant::now, |first| first.elapsed())
    }

    /// The object is gone.
    pub fn clear(&self, key: &Key) {
        self.0.clear(key);
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.0.forget_old();
    }
}

/// How often things were put right, so that two who disagree do not do so a hundred times a second.
#[derive(Default)]
pub struct Repairs(Memory<(Instant, u32)>);

impl Repairs {
    /// Counts one more repair; how long to wait before it where there were too many.
    pub fn wait(&self, key: Key) -> Option<Duration> {
        let window = || (Instant::now(), 0);
        self.0.with(key, window, |(since, count)| {
            if since.elapsed() >= REPAIRS_WITHIN {
                (*since, *count) = window();
            }
            *count = count.saturating_add(1);
            (*count > REPAIRS).then(|| REPAIRS_WITHIN.saturating_sub(since.elapsed()))
        })
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.0.forget_old();
    }
}

/// Which making again of a thing was told last: a reconcile that does not see yet what the one before it wrote finds it once more.
#[derive(Default)]
pub struct Remade(Memory<Option<String>>);

impl Remade {
    /// Whether it was not told yet that the thing was made again at this time.
    pub fn is_news(&self, key: Key, created: &str) -> bool {
        self.0.with(key, || None, |told| told.replace(created.to_owned()).is_none_or(|told| told != created))
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.0.forget_old();
    }
}

/// How long it is believed that there is no object where none was found.
const ABSENT_FOR: Duration = Duration::from_mins(10);

/// What is known of objects that others own, so that what did not change is neither applied nor looked for again.
#[derive(Default)]
pub struct Applied(Memory<Option<Known>>);

/// What is known of an object.
#[derive(Clone, Copy, Debug)]
enum Known {
    Applied(Print),
    Absent(Instant),
}

/// Tells what was applied, and what Kubernetes made of it, from anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Print {
    /// Hash of what was wanted.
    pub desired: u64,
    /// Hash of what was the operator's own in the object afterwards.
    pub managed: u64,
}

impl Applied {
    /// What was applied last as an object of this kind, namespace and name.
    pub fn print(&self, key: Key) -> Option<Print> {
        match self.known(key) {
            Some(Known::Applied(print)) => Some(print),
            Some(Known::Absent(_)) | None => None,
        }
    }

    /// Whether there was nothing to remove a while ago, and nothing was applied since.
    pub fn is_absent(&self, key: Key) -> bool {
        matches!(self.known(key), Some(Known::Absent(since)) if since.elapsed() < ABSENT_FOR)
    }

    /// Something was applied.
    pub fn applied(&self, key: Key, print: Print) {
        self.learn(key, Known::Applied(print));
    }

    /// There is nothing to remove.
    pub fn absent(&self, key: Key) {
        self.learn(key, Known::Absent(Instant::now()));
    }

    /// Nobody knows any more.
    pub fn clear(&self, key: &Key) {
        self.0.clear(key);
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.0.forget_old();
    }

    fn known(&self, key: Key) -> Option<Known> {
        self.0.with(key, || None, |known| *known)
    }

    fn learn(&self, key: Key, news: Known) {
        self.0.with(key, || None, |known| *known = Some(news));
    }
}

/// When statuses were written, so that live figures and a dead NATS do not flood the API server.
#[derive(Default)]
pub struct Written {
    last: Memory<Option<Instant>>,
    turns: Mutex<Option<(Instant, f64)>>,
}

impl Written {
    /// How long an object's status has to wait for a write in which only figures change, at most one in this time.
    pub fn figures_wait(&self, key: Key, every: Duration) -> Option<Duration> {
        let last = self.last.with(key, || None, |last| *last)?;
        every.checked_sub(last.elapsed()).filter(|left| !left.is_zero())
    }

    /// An object's status was written.
    pub fn wrote(&self, key: Key) {
        self.last.with(key, || None, |last| *last = Some(Instant::now()));
    }

    /// The object is gone.
    pub fn clear(&self, key: &Key) {
        self.last.clear(key);
    }

    /// Takes one of the turns for statuses that say Disconnected; they refill with time.
    pub fn take_turn(&self) -> bool {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let left = turns.map_or(DISCONNECTED_PER_SECOND, |(then, left)| {
            (left + (now - then).as_secs_f64() * DISCONNECTED_PER_SECOND).min(DISCONNECTED_PER_SECOND)
        });
        let granted = left >= 1.0;
        *turns = Some((now, if granted { left - 1.0 } else { left }));
        granted
    }

    /// Forgets objects that are gone.
    pub fn forget_old(&self) {
        self.last.forget_old();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("EventStream", "shop".into(), "orders".into())
    }

    #[test]
    fn the_delay_doubles_up_to_a_bound_and_begins_again_after_success() {
        assert_eq!(backoff(Category::Retry, 1), Duration::from_millis(500));
        assert_eq!(backoff(Category::Retry, 4), Duration::from_secs(4));
        assert_eq!(backoff(Category::Retry, 4_000_000_000), Duration::from_mins(1));
        let failures = Failures::default();
        for _ in 0..20 {
            assert!(failures.delay(key(), Category::Retry) <= Duration::from_mins(1));
        }
        failures.clear(&key());
        assert!(failures.delay(key(), Category::Retry) <= Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn turns_refill_with_time() {
        let written = Written::default();
        let granted = (0..100).filter(|_| written.take_turn()).count();
        assert_eq!(granted, 20);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..100).filter(|_| written.take_turn()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn figures_wait_a_minute() {
        let written = Written::default();
        assert_eq!(written.figures_wait(key(), Duration::from_mins(1)), None);
        written.wrote(key());
        assert_eq!(written.figures_wait(key(), Duration::from_mins(1)), Some(Duration::from_mins(1)));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(written.figures_wait(key(), Duration::from_mins(1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_absent_is_looked_for_again_after_a_while_and_not_believed_once_it_was_applied() {
        let applied = Applied::default();
        assert!(!applied.is_absent(key()));
        applied.absent(key());
        assert_eq!((applied.is_absent(key()), applied.print(key())), (true, None));
        tokio::time::advance(ABSENT_FOR).await;
        assert!(!applied.is_absent(key()));
        applied.absent(key());
        let print = Print { desired: 1, managed: 2 };
        applied.applied(key(), print);
        assert_eq!((applied.is_absent(key()), applied.print(key())), (false, Some(print)));
    }

    #[tokio::test(start_paused = true)]
    async fn two_who_disagree_are_slowed_down() {
        let repairs = Repairs::default();
        assert!((0..REPAIRS).all(|_| repairs.wait(key()).is_none()));
        assert_eq!(repairs.wait(key()), Some(REPAIRS_WITHIN));
        tokio::time::advance(REPAIRS_WITHIN).await;
        assert_eq!(repairs.wait(key()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_of_objects_that_are_gone_is_forgotten() {
        let failures = Failures::default();
        failures.delay(key(), Category::Retry);
        tokio::time::advance(OLD).await;
        failures.forget_old();
        assert!(failures.0.0.lock().unwrap().is_empty());
    }

    #[test]
    fn that_something_was_made_again_is_news_once() {
        let remade = Remade::default();
        let told = ["10:00", "10:00", "10:05", "10:05"].map(|created| remade.is_news(key(), created));
        assert_eq!(told, [true, false, true, false]);
    }
}
