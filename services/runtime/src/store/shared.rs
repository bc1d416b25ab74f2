//! Runs the same work once at a time for each key, and shares its outcome with all concurrent callers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Mutex as Turn;

/// A caller that arrives while the work of its key runs waits, and then runs it, or takes the outcome of a run that began after the
/// caller arrived: so the outcome is never older than the call. Outcomes are dropped when nobody waits.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    works: Mutex<HashMap<String, Arc<Work<T>>>>,
    /// Counts arrivals and beginnings.
    clock: AtomicU64,
}

/// The newest outcome for those who wait, and when its run began.
type Work<T> = Turn<Option<(u64, T)>>;

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { works: Mutex::default(), clock: AtomicU64::new(0) }
    }
}

impl<T: Clone> Shared<T> {
    /// The outcome of this work, or of the same work that another caller began after this call.
    pub(crate) async fn run(&self, key: &str, work: impl Future<Output = T>) -> T {
        let arrived = self.tick();
        let place =
            Place { shared: self, key, work: Arc::clone(self.works().entry(key.to_owned()).or_default()) };
        let mut turn = place.work.lock().await;
        if let Some((begun, outcome)) = &*turn
            && *begun > arrived
        {
            return outcome.clone();
        }
        let begun = self.tick();
        let outcome = work.await;
        // One reference is the table's, one is this caller's: more are waiting callers.
        *turn = (Arc::strong_count(&place.work) > 2).then(|| (begun, outcome.clone()));
        outcome
    }
}

impl<T> Shared<T> {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn works(&self) -> MutexGuard<'_, HashMap<String, Arc<Work<T>>>> {
        self.works.lock()
    }
}

/// One caller's share of a key; the last one removes the key.
struct Place<'a, T> {
    shared: &'a Shared<T>,
    key: &'a str,
    work: Arc<Work<T>>,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut works = self.shared.works();
        if Arc::strong_count(&self.work) == 2 {
            works.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures::future::{join, join_all};
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_what_was_begun_after_they_came() {
        let (shared, done, gate) = (Shared::default(), AtomicUsize::new(0), Semaphore::new(0));
        let run = || {
            shared.run("ann", async {
                let number = done.fetch_add(1, Ordering::Relaxed) + 1;
                gate.acquire().await.unwrap().forget();
                number
            })
        };
        let all = join_all((0..5).map(|_| run()));
        let (outcomes, ()) = join(all, async {
            while done.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
            gate.add_permits(2);
        })
        .await;
        assert_eq!(outcomes, [1, 2, 2, 2, 2]);
        assert!(shared.works().is_empty());
        gate.add_permits(1);
        assert_eq!(run().await, 3);
    }

    #[tokio::test]
    async fn who_gives_up_leaves_the_work_to_the_next_and_other_keys_do_not_wait() {
        let shared = Shared::default();
        let mut given_up = Box::pin(shared.run("ann", std::future::pending()));
        assert!(futures::poll!(given_up.as_mut()).is_pending());
        assert_eq!(shared.run("bob", async { 1 }).await, 1);
        let mut next = Box::pin(shared.run("ann", async { 2 }));
        assert!(futures::poll!(next.as_mut()).is_pending());
        drop(given_up);
        assert_eq!(next.await, 2);
        assert!(shared.works().is_empty());
    }
}
