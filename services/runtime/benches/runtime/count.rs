//! Counts what was handled, on either side.

use std::{
    hint::black_box,
    sync::{
        LazyLock, Mutex, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use crate::{
    KEYS,
    event::Measured,
    job::{Job, Kind, Report, Watch},
};

/// What times within events count from.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Nanoseconds, now.
pub fn now() -> u64 {
    u64::try_from(EPOCH.elapsed().as_nanos()).unwrap()
}

/// What is counted of one job.
pub struct Count {
    wanted: u64,
    handled: AtomicU64,
    watch: OnceLock<Watch>,
    report: Mutex<Option<Report>>,
    done: Notify,
    /// Of each key, the number that the next event must have at least, where order is promised.
    lanes: Option<Vec<AtomicU64>>,
    /// Microseconds from published to handled, by number, where the job asks for them.
    latencies: Option<Vec<AtomicU32>>,
}

impl Count {
    pub fn new(job: &Job) -> Self {
        let timed = matches!(job.kind, Kind::Both { .. });
        Self {
            wanted: job.events,
            handled: AtomicU64::new(0),
            watch: OnceLock::new(),
            report: Mutex::default(),
            done: Notify::new(),
            lanes: job.is_ordered().then(|| (0..KEYS).map(|_| AtomicU64::new(0)).collect()),
            latencies: timed.then(|| (0..job.events).map(|_| AtomicU32::new(0)).collect()),
        }
    }

    /// Whether the event is one of those that are counted.
    pub fn counts(&self, event: &Measured) -> bool {
        event.number < self.wanted
    }

    /// One event is handled. The time runs from the first to the last.
    pub fn handled(&self, event: &Measured) {
        black_box(event);
        self.watch.get_or_init(Watch::start);
        if let Some(lanes) = &self.lanes {
            let lane = &lanes[usize::try_from(event.key()).unwrap()];
            let next = lane.swap(event.number + 1, Ordering::Relaxed);
            assert!(event.number >= next, "event {} came after event {}", event.number, next - 1);
        }
        if let Some(latencies) = &self.latencies {
            let latency = (now() - event.published) / 1000;
            let place = &latencies[usize::try_from(event.number).unwrap()];
            place.store(u32::try_from(latency).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        if self.handled.fetch_add(1, Ordering::Relaxed) + 1 == self.wanted {
            *self.report.lock().unwrap() = self.watch.get().map(Watch::report);
            self.done.notify_one();
        }
    }

    pub fn is_done(&self) -> bool {
        self.handled.load(Ordering::Relaxed) >= self.wanted
    }

    /// What it took, when all is handled.
    pub async fn report(&self) -> Report {
        self.done.notified().await;
        let mut report = self.report.lock().unwrap().take().unwrap();
        for latency in self.latencies.iter().flatten() {
            report.latencies_us.push(latency.load(Ordering::Relaxed));
        }
        report
    }
}
