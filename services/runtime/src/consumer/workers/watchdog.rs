//! Detects handlers that block their threads. It has its own thread, since what blocks threads may block timers too.

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use jetwright_process::health::Health;
use parking_lot::Mutex;

/// How often threads are checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How much longer than its deadline a handler may block a thread before the process fails liveness.
pub(crate) const BLOCKING_MARGIN: Duration = Duration::from_secs(5);

/// The threads of one handler.
#[derive(Debug)]
pub(crate) struct Watchdog {
    handler: &'static str,
    /// How long an attempt may take.
    deadline: Duration,
    threads: Mutex<Vec<Weak<BusySince>>>,
    /// Ordered attempts that wait for their blocking code.
    waiting: Mutex<Vec<Weak<BusySince>>>,
    /// Checks of the threads, from 1. Time is counted in them: an attempt need not read a clock, and a process that stood still as a whole
    /// has not been blocked.
    checks: AtomicU64,
}

/// The check after which a thread entered the handler, or an attempt began; 0 while it is not in it.
#[derive(Debug, Default)]
pub(crate) struct BusySince(AtomicU64);

thread_local! {
    /// What watches this thread. The threads of a handler run nothing else.
    static BUSY_SINCE: RefCell<Option<(usize, Arc<BusySince>)>> = const { RefCell::new(None) };
}

impl Watchdog {
    pub(crate) fn new(handler: &'static str, deadline: Duration) -> Self {
        Self {
            handler,
            deadline,
            threads: Mutex::default(),
            waiting: Mutex::default(),
            checks: AtomicU64::new(1),
        }
    }

    /// Watches until the handler's threads have ended: a thread that is blocked for longer than a handler may take fails liveness, since
    /// only a restart ends it.
    pub(crate) fn watch(self: &Arc<Self>, health: &Health) {
        let (watchdog, health) = (Arc::downgrade(self), health.clone());
        let watching = thread::Builder::new().name(format!("watchdog {}", self.handler));
        if let Err(error) = watching.spawn(move || watch(&watchdog, &health)) {
            tracing::warn!(binding = self.handler, %error, "failed to start the watchdog");
        }
    }

    /// Watches an attempt that began so long ago and waits for its blocking code, until what this returns is dropped.
    pub(crate) fn watch_blocking_code(&self, elapsed: Duration) -> Arc<BusySince> {
        // A process that stood still was not blocked.
        let checks = elapsed.min(self.deadline).as_nanos() / CHECK_INTERVAL.as_nanos();
        let checks = u64::try_from(checks).unwrap_or(u64::MAX);
        let since = self.checks.load(Ordering::Relaxed).saturating_sub(checks).max(1);
        let waiting = Arc::new(BusySince(since.into()));
        add(&self.waiting, &waiting);
        waiting
    }

    /// Why the process has to be restarted, if it has to be.
    fn reason(&self) -> Option<String> {
        let is_too_long = |of: &Mutex<_>| {
            Some(self.longest(of)).filter(|longest| *longest > self.deadline + BLOCKING_MARGIN)
        };
        let of_thread = is_too_long(&self.threads).map(|time| {
            let seconds = time.as_secs();
            format!(
                "the handler has blocked a thread for {seconds} s; run blocking code with jetwright_runtime::blocking"
            )
        });
        of_thread.or_else(|| {
            let seconds = is_too_long(&self.waiting)?.as_secs();
            Some(format!(
                "an event waits for its blocking code for {seconds} s, and the next event of its key for both"
            ))
        })
    }

    /// The longest time that one of these has been in the handler.
    fn longest(&self, of: &Mutex<Vec<Weak<BusySince>>>) -> Duration {
        let threads = of.lock();
        let since = threads.iter().filter_map(Weak::upgrade).map(|thread| thread.0.load(Ordering::Relaxed));
        let Some(since) = since.filter(|since| *since > 0).min() else { return Duration::ZERO };
        let checks = self.checks.load(Ordering::Relaxed).saturating_sub(since);
        CHECK_INTERVAL.saturating_mul(u32::try_from(checks).unwrap_or(u32::MAX))
    }

    /// Watches the thread while it polls an attempt.
    pub(super) fn watch_poll<T>(self: &Arc<Self>, poll: impl FnOnce() -> T) -> T {
        self.set_busy(true);
        let polled = poll();
        self.set_busy(false);
        polled
    }

    /// Notes that this thread enters or leaves the handler.
    fn set_busy(self: &Arc<Self>, is_busy: bool) {
        let id = Arc::as_ptr(self).addr();
        let now = if is_busy { self.checks.load(Ordering::Relaxed) } else { 0 };
        BUSY_SINCE.with_borrow_mut(|watched| match watched {
            Some((watchdog, busy_since)) if *watchdog == id => busy_since.0.store(now, Ordering::Relaxed),
            _ => {
                let busy_since = Arc::new(BusySince(now.into()));
                add(&self.threads, &busy_since);
                *watched = Some((id, busy_since));
            }
        });
    }
}

fn add(all: &Mutex<Vec<Weak<BusySince>>>, one: &Arc<BusySince>) {
    let mut all = all.lock();
    all.retain(|known| known.strong_count() > 0);
    all.push(Arc::downgrade(one));
}

fn watch(watchdog: &Weak<Watchdog>, health: &Health) {
    while let Some(watchdog) = watchdog.upgrade() {
        watchdog.checks.fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = watchdog.reason() {
            health.fail(&format!("handler {}", watchdog.handler), &reason);
            return;
        }
        drop(watchdog);
        thread::sleep(CHECK_INTERVAL);
    }
}

/// An attempt whose thread is watched while it is polled.
pub(super) struct Watched<F> {
    attempt: F,
    watchdog: Arc<Watchdog>,
}

impl<F: Future + Unpin> Watched<F> {
    pub(super) fn new(attempt: F, watchdog: Arc<Watchdog>) -> Self {
        Self { attempt, watchdog }
    }
}

impl<F: Future + Unpin> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { attempt, watchdog } = &mut *self;
        watchdog.watch_poll(|| Pin::new(attempt).poll(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_stays_in_a_handler_is_found() {
        let watchdog = Arc::new(Watchdog::new("mails", Duration::ZERO));
        assert_eq!(watchdog.longest(&watchdog.threads), Duration::ZERO);
        watchdog.set_busy(true);
        assert_eq!(watchdog.longest(&watchdog.threads), Duration::ZERO);
        watchdog.checks.fetch_add(3, Ordering::Relaxed);
        assert_eq!(watchdog.longest(&watchdog.threads), CHECK_INTERVAL * 3);
        watchdog.set_busy(false);
        assert_eq!(watchdog.longest(&watchdog.threads), Duration::ZERO);
    }

    #[test]
    fn a_handler_that_blocks_for_longer_than_it_may_fails_liveness() {
        let (watchdog, health) = (Arc::new(Watchdog::new("mails", Duration::ZERO)), Health::new());
        watchdog.set_busy(true);
        // As if it had been for a long time.
        watchdog.checks.fetch_add(20, Ordering::Relaxed);
        watch(&Arc::downgrade(&watchdog), &health);
        let reasons = health.live().unwrap_err();
        assert_eq!(reasons[0].0, "handler mails");
        assert!(reasons[0].1.contains("has blocked a thread for 10 s"), "{reasons:?}");
    }

    #[test]
    fn an_event_that_waits_for_its_blocking_code_has_the_time_of_its_attempt_and_the_margin() {
        let watchdog = Watchdog::new("mails", Duration::from_secs(20));
        watchdog.checks.store(100, Ordering::Relaxed);
        // It stood still for an hour.
        let waiting = watchdog.watch_blocking_code(Duration::from_hours(1));
        assert_eq!(watchdog.longest(&watchdog.waiting), Duration::from_secs(20));
        let early = watchdog.watch_blocking_code(Duration::from_secs(2));
        watchdog.checks.fetch_add(10, Ordering::Relaxed);
        assert_eq!(watchdog.reason(), None);
        watchdog.checks.fetch_add(1, Ordering::Relaxed);
        assert!(watchdog.reason().unwrap().contains("waits for its blocking code for 25 s"));
        drop(waiting);
        assert_eq!(watchdog.longest(&watchdog.waiting), Duration::from_millis(7_500));
        drop(early);
        assert_eq!(watchdog.reason(), None);
    }
}
