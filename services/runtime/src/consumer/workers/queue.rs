//! How jobs reach threads and results return. Both move many at a time: a wake-up of another thread costs more than most jobs.

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// Maximum results for which the other side is woken once.
const MAX_UNANNOUNCED: usize = 128;
/// Maximum time that a result waits for others to be announced with, beside the current job.
const MAX_WAIT: Duration = Duration::from_micros(200);
/// A job that takes longer has its result announced at once: the next one may be as slow, or block its thread.
const SLOW_JOB: Duration = Duration::from_micros(50);

/// Jobs that no thread has begun, in their order.
pub(super) struct Jobs<J> {
    waiting: Mutex<VecDeque<J>>,
    added: Notify,
}

impl<J> Default for Jobs<J> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), added: Notify::new() }
    }
}

impl<J> Jobs<J> {
    pub(super) fn extend(&self, jobs: &mut Vec<J>) {
        if jobs.is_empty() {
            return;
        }
        lock(&self.waiting).extend(jobs.drain(..));
        self.added.notify_one();
    }

    /// The next job, if there is one.
    pub(super) fn try_next(&self) -> Option<J> {
        lock(&self.waiting).pop_front()
    }

    /// The next job, as soon as there is one. Cancel safe.
    pub(super) async fn next(&self) -> J {
        loop {
            let (job, is_last) = {
                let mut waiting = lock(&self.waiting);
                (waiting.pop_front(), waiting.is_empty())
            };
            if let Some(job) = job {
                // One thread is woken for many jobs, and this one may block it.
                if !is_last {
                    self.added.notify_one();
                }
                return job;
            }
            self.added.notified().await;
        }
    }
}

/// Results that were not taken yet.
pub(super) struct Results<R> {
    ended: Mutex<Vec<R>>,
    added: Notify,
}

impl<R> Default for Results<R> {
    fn default() -> Self {
        Self { ended: Mutex::default(), added: Notify::new() }
    }
}

impl<R> Results<R> {
    /// Adds a result, which every reader sees, but wakes nobody.
    pub(super) fn add(&self, result: R) {
        lock(&self.ended).push(result);
    }

    /// Wakes the reader of the results.
    pub(super) fn announce(&self) {
        self.added.notify_one();
    }

    /// All results so far, in exchange for empty room for the next ones.
    pub(super) fn swap(&self, room: &mut Vec<R>) {
        mem::swap(&mut *lock(&self.ended), room);
    }

    /// Waits until results were announced. Cancel safe.
    pub(super) async fn announced(&self) {
        self.added.notified().await;
    }
}

/// When one thread announces its results. Pure.
#[derive(Debug)]
pub(super) struct Announcements {
    unannounced: usize,
    /// When the first of them was added.
    since: Instant,
    /// When the last job ended.
    last_end: Instant,
}

impl Announcements {
    pub(super) fn new(now: Instant) -> Self {
        Self { unannounced: 0, since: now, last_end: now }
    }

    /// A thread that waited begins jobs again.
    pub(super) fn resumed(&mut self, now: Instant) {
        self.last_end = now;
    }

    /// A job ended with a result; returns whether it is announced now, with those before it.
    pub(super) fn ended(&mut self, now: Instant) -> bool {
        let took = now.saturating_duration_since(mem::replace(&mut self.last_end, now));
        if self.unannounced == 0 {
            self.since = now;
        }
        self.unannounced += 1;
        let is_due = took > SLOW_JOB
            || now.saturating_duration_since(self.since) > MAX_WAIT
            || self.unannounced >= MAX_UNANNOUNCED;
        if is_due {
            self.unannounced = 0;
        }
        is_due
    }

    /// No jobs are left; returns whether results are left to announce.
    pub(super) fn idle(&mut self) -> bool {
        mem::take(&mut self.unannounced) > 0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(1);

    #[test]
    fn results_of_fast_jobs_are_announced_together_and_that_of_a_slow_one_at_once() {
        let mut now = Instant::now();
        let mut announcements = Announcements::new(now);
        let mut ends_after = |took| {
            now += took;
            announcements.ended(now)
        };
        let fast: Vec<_> = (0..MAX_UNANNOUNCED).map(|_| ends_after(FAST)).collect();
        assert_eq!(fast.iter().position(|is_due| *is_due), Some(MAX_UNANNOUNCED - 1));
        assert!(!ends_after(FAST));
        assert!(ends_after(SLOW_JOB * 2));
        // Each is fast, and the first has waited for the others.
        let waited: Vec<_> = (0..6).map(|_| ends_after(MAX_WAIT / 4)).collect();
        assert_eq!(waited, [false, false, false, false, false, true]);
    }

    #[test]
    fn what_is_left_when_nothing_is_to_be_done_is_announced_once() {
        let now = Instant::now();
        let mut announcements = Announcements::new(now);
        assert!(!announcements.idle());
        assert!(!announcements.ended(now));
        assert!(announcements.idle());
        assert!(!announcements.idle());
        // A pause between two jobs is not the second one's time.
        announcements.resumed(now + SLOW_JOB * 10);
        assert!(!announcements.ended(now + SLOW_JOB * 10));
    }

    #[tokio::test]
    async fn a_thread_that_is_woken_wakes_another_while_there_are_more_jobs() {
        let jobs = Jobs::default();
        let (first, second) = (jobs.next(), jobs.next());
        jobs.extend(&mut vec![1, 2]);
        assert_eq!((first.await, second.await), (1, 2));
    }
}
