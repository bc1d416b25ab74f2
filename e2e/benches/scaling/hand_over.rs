//! How soon the partitions of a process that ended, or is silent, are handled by others: from the signal to the first event of each of its partitions
//! that another begins.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jetwright_e2e::{
    figures::print_times,
    order::{
        history::{Entry, Step},
        holders::ensure_shared,
        load::{Pace, monotonic},
    },
    workers::SETTLED,
};
use jetwright_testing::{Process, await_until};
use serde_json::json;
use tokio::time::sleep;

use crate::world::Loaded;

const ROUNDS: usize = 3;
const PODS: usize = 4;
const PARTITIONS: u32 = 8;
const KEYS: u32 = 80;
/// The times are those that the processes write.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long a handler takes in milliseconds, and the pace of the events: one is done soon, the other is at work nearly all the time.
const SHORT: (u64, Pace) = (1, Pace::Every(Duration::from_millis(100)));
const LONG: (u64, Pace) = (900, Pace::Every(Duration::from_secs(1)));

/// A process that was interrupted.
struct Interrupted {
    index: usize,
    process: Arc<Process>,
    at: Duration,
    /// What it handled, with the deliveries of each that were unacknowledged right after.
    partitions: BTreeMap<u32, usize>,
}

impl Loaded {
    async fn with_pods(handling: u64) -> Self {
        let loaded = Self::start(PARTITIONS, KEYS).await;
        loaded.declare_consumer(json!({"replicas": PODS}), &[("SOAK_HANDLING_MILLISECONDS", handling)]).await;
        loaded
    }

    /// Waits until all pods are there, and each has its share of the partitions and handles it.
    async fn await_settled(&self) {
        let uids = self.world.workers.await_pods(PODS).await;
        let jetstream = self.world.nats.jetstream().await;
        await_until("the partitions to be shared", SETTLED, async || {
            ensure_shared(&jetstream, PARTITIONS, &uids).await
        })
        .await;
        self.load.await_progress(SETTLED).await;
    }

    /// The process that handles each partition.
    fn owners(&mut self) -> BTreeMap<u32, usize> {
        self.history().entries.iter().map(|entry| (entry.partition, entry.process)).collect()
    }

    /// Interrupts one of the processes that have partitions, another in each round.
    async fn interrupt(&mut self, round: usize, signal: &str) -> Interrupted {
        let owners = self.owners();
        let owning: BTreeSet<_> = owners.values().copied().collect();
        let index = *owning.iter().nth(round % owning.len()).unwrap();
        let process = Arc::clone(&self.world.workers.processes()[index].process);
        let at = monotonic();
        process.signal(signal);
        let infos = self.load.consumers().await.unwrap();
        let unacknowledged = |partition: u32| infos[usize::try_from(partition).unwrap()].num_ack_pending;
        let own = owners.into_iter().filter(|(_, owner)| *owner == index);
        let partitions = own.map(|(partition, _)| (partition, unacknowledged(partition))).collect();
        Interrupted { index, process, at, partitions }
    }

    /// How long it took until another began an event of each of its partitions.
    async fn taken_over(&mut self, interrupted: &Interrupted) -> BTreeMap<u32, Duration> {
        let Interrupted { index, at, partitions, .. } = interrupted;
        let is_taken = |entry: &&Entry| {
            let is_of_another = entry.process != *index && partitions.contains_key(&entry.partition);
            is_of_another && entry.step == Step::Begin && entry.at > *at
        };
        loop {
            let mut taken = BTreeMap::new();
            for entry in self.history().entries.iter().filter(is_taken) {
                taken.entry(entry.partition).or_insert(entry.at.saturating_sub(*at));
            }
            if taken.len() == partitions.len() {
                return taken;
            }
            assert!(monotonic() < *at + SETTLED, "{taken:?} of {partitions:?}");
            sleep(POLL_INTERVAL).await;
        }
    }
}

/// With the next event published when the owner has ended: nothing is unacknowledged then.
async fn of_idle_owners(signal: &str) -> Vec<Duration> {
    let mut loaded = Loaded::with_pods(SHORT.0).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let publishing = loaded.load.clone().publish_all_the_time(SHORT.1);
        loaded.await_settled().await;
        loaded.load = publishing.stop().await;
        loaded.load.await_drained(SETTLED).await;
        let interrupted = loaded.interrupt(round, signal).await;
        let publishing = loaded.load.clone().publish_all_the_time(SHORT.1);
        times.extend(loaded.taken_over(&interrupted).await.into_values());
        loaded.load = publishing.stop().await;
    }
    times
}

/// With events all the time; of partitions in which something is unacknowledged when the owner is interrupted.
async fn of_busy_owners((handling, pace): (u64, Pace), signal: &str) -> Vec<Duration> {
    let mut loaded = Loaded::with_pods(handling).await;
    let publishing = loaded.load.clone().publish_all_the_time(pace);
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        loaded.await_settled().await;
        let interrupted = loaded.interrupt(round, signal).await;
        let taken = loaded.taken_over(&interrupted).await;
        interrupted.process.signal("CONT");
        let owed = taken.into_iter().filter(|(partition, _)| interrupted.partitions[partition] > 0);
        times.extend(owed.map(|(_, time)| time));
    }
    publishing.stop().await;
    times
}

pub async fn of_ended_processes() {
    for (of_what, times) in
        [("nothing", of_idle_owners("KILL").await), ("something", of_busy_owners(LONG, "KILL").await)]
    {
        let what = format!(
            "a partition of a process that is killed with {of_what} unacknowledged, until another begins an event of it"
        );
        print_times(&what, times);
    }
}

pub async fn of_silent_processes() {
    let times = of_busy_owners(LONG, "STOP").await;
    let what = "a partition of a process that is frozen with something unacknowledged, until another begins an event of it";
    print_times(what, times);
}
