//! Shares out the partitions of ordered consumers while this process leads: one task per connection, which feeds a coordinator and carries out what
//! it decides. Reads and writes the bucket; what to write is decided in `jetwright-partitions`.
//!
//! While no consumer of a connection is ordered, it asks NATS nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    FutureExt as _, Stream, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use jetwright_crds::names::partition_consumer;
use jetwright_nats::{Bucket, Watch, WatchEvent};
use jetwright_partitions::{
    actions::Value,
    coordinator::{Coordinator, Whereabouts},
    keys::{BUCKET, BUCKET_STREAM, ConsumerId, Key, MemberId, PartitionId},
    lease::Clocks,
    observer::Verdict,
    records::{DeathReason, MemberRecord},
    write::Answer,
};
use serde::de::IgnoredAny;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    bucket,
    cleaning::{Cleaner, Due},
    declared::{OrderedConsumer, is_at_rest, ordered_consumers},
    registry::Known,
    requests::{Answered, Requests, value_of},
    sharing::{Emptying, Sharing, Tracker, emptying},
};
use crate::{
    context::Context,
    error::error_chain,
    jetstream::{
        cache::{Cache, Change},
        connections::Connection,
        info::StreamInfo,
        reconcile,
    },
    kubernetes::stores::Name,
    outcome::{OperationResult, Outcome},
};

/// How often it is looked for ordered consumers where there are none.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the coordinator is asked what to do although nothing came.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often what is declared is looked at, and what became known is published.
const DECLARE_INTERVAL: Duration = Duration::from_millis(500);
/// How often the watch begins again, whatever it missed.
const WATCH_INTERVAL: Duration = Duration::from_mins(5);
/// How often the bucket is compared with what is known of it; before its entry leaves the cache, with its highest revision.
const KEEP_INTERVAL: Duration = Duration::from_mins(1);
/// Delay before the bucket is tried again after a failure.
const KEEP_RETRY: Duration = Duration::from_secs(5);
/// How long the bucket is looked after when its last consumer is gone: what belongs to that is deleted meanwhile.
const LINGER: Duration = Duration::from_mins(30);
/// Least time between two warnings of what others wrote into the bucket.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);
/// Most events of the watch that are taken over before anything is decided.
const MAX_BATCH: usize = 256;

/// Shares out the partitions of every connection for ever.
pub async fn run(context: &Context) {
    join_all(context.connections.all().map(|connection| drive(context, connection))).await;
}

async fn drive(context: &Context, connection: &Connection) {
    let bucket = Bucket::new(&connection.nats, BUCKET);
    let requests = Requests::new(bucket.clone());
    loop {
        if ordered_consumers(&context.scopes, connection).is_empty() {
            tokio::time::sleep(IDLE_INTERVAL).await;
        } else {
            Session::new(context, connection, &bucket, &requests).run().await;
        }
    }
}

/// What came of something that was begun.
enum Done {
    Answered(Option<Answered>),
    Kept(Box<Result<Outcome<StreamInfo>, reconcile::Error>>),
    /// Whether JetStream has a consumer, where it answered.
    Asked(ConsumerId, Option<bool>),
}

/// What is known of the bucket.
struct Keeping {
    /// When it has to be compared next.
    due: Instant,
    is_under_way: bool,
    created: Option<String>,
    /// Why it may not be there.
    problem: Option<String>,
}

/// One time of sharing out, from the first ordered consumer on.
struct Session<'a> {
    context: &'a Context,
    connection: &'a Connection,
    bucket: &'a Bucket,
    requests: &'a Requests,
    begun: Instant,
    coordinator: Coordinator,
    watch: Watch,
    watch_due: Instant,
    is_synced: bool,
    keeping: Keeping,
    consumers: Vec<OrderedConsumer>,
    /// When there was one last.
    used: Instant,
    trackers: BTreeMap<ConsumerId, Tracker>,
    cleaner: Cleaner,
    /// Ends of containers that the coordinator was told.
    told_ends: HashMap<String, u64>,
    warned: Option<Instant>,
    under_way: FuturesUnordered<BoxFuture<'a, Done>>,
}

impl<'a> Session<'a> {
    fn new(
        context: &'a Context,
        connection: &'a Connection,
        bucket: &'a Bucket,
        requests: &'a Requests,
    ) -> Self {
        let begun = Instant::now();
        Self {
            context,
            connection,
            bucket,
            requests,
            begun,
            coordinator: Coordinator::new(connection.nats.name(), clocks(begun)),
            watch: bucket.watch(&[">".to_owned()]),
            watch_due: begun + WATCH_INTERVAL,
            is_synced: false,
            keeping: Keeping { due: begun, is_under_way: false, created: None, problem: None },
            consumers: Vec::new(),
            used: begun,
            trackers: BTreeMap::new(),
            cleaner: Cleaner::default(),
            told_ends: HashMap::new(),
            warned: None,
            under_way: FuturesUnordered::new(),
        }
    }

    /// Runs until nothing is left to look after.
    async fn run(mut self) {
        tracing::info!("sharing out partitions");
        let mut changes = Box::pin(bucket_changes(&self.connection.cache));
        let mut declaring = interval(DECLARE_INTERVAL);
        let mut polling = interval(POLL_INTERVAL);
        for ticks in [&mut declaring, &mut polling] {
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        // What the watch tells of a consumer that is not declared is not taken over.
        self.declare();
        while !self.consumers.is_empty() || self.used.elapsed() < LINGER {
            let acts = tokio::select! {
                event = self.watch.next() => self.hear_all(event),
                Some(done) = self.under_way.next() => self.done(done),
                Some(()) = changes.next() => {
                    self.keeping.due = Instant::now();
                    true
                }
                _ = declaring.tick() => {
                    self.declare();
                    self.clean();
                    self.publish();
                    true
                }
                _ = polling.tick() => true,
            };
            if acts {
                self.act();
            }
        }
        let gone = |namespace: &str| self.connection.serves.contains(namespace);
        self.context.partitions.retain(&HashSet::new(), gone);
        tracing::info!("no partitions to share out any more");
    }

    /// Takes over what the watch tells, and what else it has already; whether that may call for an action.
    fn hear_all(&mut self, first: WatchEvent) -> bool {
        let mut acts = self.hear(first);
        for _ in 1..MAX_BATCH {
            let Some(event) = self.watch.next().now_or_never() else { break };
            acts |= self.hear(event);
        }
        acts
    }

    fn hear(&mut self, event: WatchEvent) -> bool {
        match event {
            WatchEvent::Value { key, revision, value } => self.stored(&key, revision, &value),
            WatchEvent::Deleted { key, revision } => {
                if let Ok(key) = key.parse() {
                    self.cleaner.deleted(&key);
                    let _ = self.coordinator.observed(&key, Value::Absent(revision), clocks(self.begun));
                }
                true
            }
            WatchEvent::Synced => {
                self.is_synced = true;
                self.coordinator.synced();
                true
            }
            WatchEvent::Missing => {
                self.reset();
                self.keeping.due = Instant::now();
                true
            }
            WatchEvent::Lost(why) => {
                tracing::debug!(why, "the watch of the bucket begins again");
                false
            }
        }
    }

    fn stored(&mut self, text: &str, revision: u64, value: &[u8]) -> bool {
        let key = match text.parse::<Key>() {
            Ok(key) => key,
            Err(error) => {
                self.warn(&error.to_string());
                return false;
            }
        };
        self.cleaner.stored(&key, revision, value, self.begun.elapsed());
        let before = self.shape(&key);
        let observed = self.coordinator.observed(&key, Value::Bytes(revision, value), clocks(self.begun));
        if let Err(error) = observed {
            self.warn(&error_chain(&error));
        }
        let is_another = self.has_changed(&key, before.as_ref());
        match key {
            Key::Operator => false,
            // A renewal changes nothing that is decided.
            Key::Member(_) => is_another,
            Key::Map(_) | Key::Held(_) => true,
        }
    }

    /// What is known of a member; None of any other key.
    fn shape(&self, key: &Key) -> Option<Shape> {
        let Key::Member(id) = key else { return None };
        self.coordinator.observer().record(id).map(Shape::of)
    }

    /// Whether something else is known of a member now; counts it where it is dead since.
    fn has_changed(&self, key: &Key, before: Option<&Shape>) -> bool {
        let after = self.shape(key);
        if let (Some(Shape { death: None, .. }), Some(Shape { death: Some(reason), .. })) = (before, &after) {
            self.context.partitions.died(*reason);
        }
        before != after.as_ref()
    }

    fn warn(&mut self, message: &str) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!("{message}");
        }
    }

    fn done(&mut self, done: Done) -> bool {
        let now = clocks(self.begun);
        match done {
            Done::Answered(None | Some(Answered::Removed)) => false,
            Done::Answered(Some(Answered::Write(key, answer))) => {
                if key == Key::Operator && matches!(answer, Answer::Stored(_)) {
                    self.context.partitions.beat();
                }
                let before = self.shape(&key);
                self.coordinator.answered(&key, answer, now);
                self.has_changed(&key, before.as_ref());
                true
            }
            Done::Answered(Some(Answered::Read(key, found))) => {
                let before = self.shape(&key);
                if let Err(error) = self.coordinator.read(&key, value_of(&found), now) {
                    self.warn(&error_chain(&error));
                }
                self.has_changed(&key, before.as_ref());
                true
            }
            Done::Kept(kept) => {
                self.kept(*kept);
                true
            }
            Done::Asked(consumer, is_there) => {
                if let Some(is_there) = is_there {
                    self.cleaner.asked(&consumer, is_there);
                }
                false
            }
        }
    }

    fn kept(&mut self, kept: Result<Outcome<StreamInfo>, reconcile::Error>) {
        let now = Instant::now();
        self.keeping.is_under_way = false;
        self.keeping.due = now + KEEP_RETRY;
        match kept {
            Ok(Outcome::Reconciled(reconciled)) => {
                self.keeping.due = now + KEEP_INTERVAL;
                self.keeping.problem = None;
                match &reconciled.result {
                    OperationResult::Unchanged => {}
                    // It is used as it is.
                    OperationResult::Blocked(blocked) => tracing::debug!("{}", blocked.message),
                    result => tracing::info!(?result, "brought the bucket {BUCKET} to what it has to be"),
                }
                let created = reconciled.info.map(|info| info.created);
                if let (Some(before), Some(after)) = (&self.keeping.created, &created)
                    && before != after
                {
                    self.reset();
                    self.watch_again();
                }
                self.keeping.created = created.or(self.keeping.created.take());
            }
            Ok(Outcome::Pending(pending)) => self.keeping.problem = Some(pending.message),
            Ok(Outcome::Invalid(_)) => {}
            Err(error) => self.keeping.problem = Some(error_chain(&error)),
        }
        if let Some(problem) = self.keeping.problem.clone() {
            self.warn(&format!("the bucket {BUCKET} cannot be kept: {problem}"));
        }
    }

    /// What was known of the bucket is not true of the one that takes its place.
    fn reset(&mut self) {
        self.coordinator = Coordinator::new(self.connection.nats.name(), clocks(self.begun));
        self.cleaner = Cleaner::default();
        self.told_ends.clear();
        self.is_synced = false;
        self.consumers.clear();
        self.declare();
    }

    fn watch_again(&mut self) {
        self.watch = self.bucket.watch(&[">".to_owned()]);
        self.watch_due = Instant::now() + WATCH_INTERVAL;
    }

    /// Takes over what the EventConsumers and their pods say.
    fn declare(&mut self) {
        let consumers = ordered_consumers(&self.context.scopes, self.connection);
        let ids: BTreeSet<_> = consumers.iter().map(|consumer| &consumer.id).collect();
        for gone in self.consumers.iter().filter(|before| !ids.contains(&before.id)) {
            self.coordinator.remove(&gone.id);
            self.trackers.remove(&gone.id);
        }
        let known: BTreeSet<_> = self.consumers.iter().map(|consumer| &consumer.id).collect();
        // Their keys came before they were declared.
        let has_missed = ids.iter().any(|id| !known.contains(id) && self.cleaner.knows(id));
        for consumer in &consumers {
            self.coordinator.declare(consumer.id.clone(), consumer.declared(self.context));
        }
        if !consumers.is_empty() {
            self.used = Instant::now();
        }
        self.consumers = consumers;
        if has_missed {
            self.watch_again();
        }
    }

    /// Begins what is due.
    fn act(&mut self) {
        let now = Instant::now();
        if now >= self.watch_due {
            self.watch_again();
        }
        if now >= self.keeping.due && !self.keeping.is_under_way && !self.consumers.is_empty() {
            self.keeping.is_under_way = true;
            let (context, connection, age) = (self.context, self.connection, self.begun.elapsed());
            self.under_way.push(
                async move { Done::Kept(Box::new(bucket::keep(context, connection, age).await)) }.boxed(),
            );
        }
        // Nor does it say that it is there: while it can decide nothing, members help themselves.
        if !self.is_synced {
            return;
        }
        self.report_ends();
        let requests = self.requests;
        for action in self.coordinator.poll(clocks(self.begun)) {
            self.under_way.push(async move { Done::Answered(requests.perform(action).await) }.boxed());
        }
    }

    fn report_ends(&mut self) {
        let ends = self.context.pods.ends();
        for (uid, at) in &ends {
            if self.told_ends.get(uid) != Some(at) {
                self.coordinator.container_ended(uid, *at);
            }
        }
        self.told_ends = ends.into_iter().collect();
    }

    /// Begins to delete what is over.
    fn clean(&mut self) {
        if !self.is_synced {
            return;
        }
        let declared = self.consumers.iter().map(|consumer| consumer.id.clone()).collect();
        let (requests, connection) = (self.requests, self.connection);
        for due in self.cleaner.due(&declared, self.begun.elapsed()) {
            let doing = match due {
                Due::Remove(key, revision) => {
                    async move { Done::Answered(Some(requests.remove(key, revision).await)) }.boxed()
                }
                Due::Ask(partition) => async move {
                    let is_there = has_consumer(connection, &partition).await;
                    Done::Asked(partition.consumer, is_there)
                }
                .boxed(),
            };
            self.under_way.push(doing);
        }
    }

    /// Publishes how the partitions are shared out.
    fn publish(&mut self) {
        let (now, partitions) = (clocks(self.begun), &self.context.partitions);
        let observer = self.coordinator.observer();
        let name = |id: &MemberId| {
            let is_alive = !matches!(observer.verdict(id, now), Verdict::Dead | Verdict::Unknown);
            let record = observer.record(id).filter(|_| is_alive)?;
            Some(record.pod.clone().unwrap_or_else(|| id.to_string()))
        };
        for OrderedConsumer { object, id, workload, .. } in &self.consumers {
            // What was seen of a bucket that is away is no news of who has what.
            let mut emptying = Vec::new();
            if let Some(problem) = &self.keeping.problem {
                let handovers = self.trackers.get(id).map_or(0, |tracker| tracker.handovers);
                partitions.publish(object, Known::Unavailable(problem.clone()), handovers);
            } else if let Some(places) = self.coordinator.whereabouts(id, now) {
                emptying =
                    workload.as_ref().map(|workload| self.emptying(workload, &places)).unwrap_or_default();
                let tracker = self.trackers.entry(id.clone()).or_default();
                let at_rest = workload.as_ref().is_some_and(|workload| is_at_rest(self.context, workload));
                let sharing = tracker.see(&places, name, (jiff::Timestamp::now(), at_rest));
                let sharing = Sharing { emptying: emptying.clone(), ..sharing };
                partitions.publish(object, Known::Shared(sharing), tracker.handovers);
            }
            if let Some(workload) = workload {
                let left = emptying.into_iter().map(|pod| (pod.uid, pod.left)).collect();
                self.context.scale_downs.see(workload, object, &left);
            }
        }
        let objects: HashSet<_> = self.consumers.iter().map(|consumer| consumer.object.clone()).collect();
        partitions.retain(&objects, |namespace| self.connection.serves.contains(namespace));
    }

    /// What the pods have that a scale-down empties.
    fn emptying(&self, workload: &Name, places: &[Whereabouts]) -> Vec<Emptying> {
        let retiring = self.context.scale_downs.retiring(workload);
        if retiring.is_empty() {
            return Vec::new();
        }
        let mut pods = self.context.pods.processes(workload);
        pods.retain(|pod| retiring.contains(&pod.uid));
        emptying(pods, places, |id| self.coordinator.observer().record(id)?.uid.as_deref())
    }
}

/// Tells when the bucket may be another than it was.
fn bucket_changes(cache: &Cache) -> impl Stream<Item = ()> {
    cache.changes().filter_map(async |change| match change {
        Change::Stream(name) => (name == BUCKET_STREAM).then_some(()),
        Change::Everything => Some(()),
        Change::Consumer(_) | Change::Availability(_) => None,
    })
}

/// What of a member's record decides.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    uid: Option<String>,
    consumers: Vec<ConsumerId>,
    is_leaving: bool,
    death: Option<DeathReason>,
}

impl Shape {
    fn of(record: &MemberRecord) -> Self {
        Self {
            uid: record.uid.clone(),
            consumers: record.consumers.keys().cloned().collect(),
            is_leaving: record.leaving,
            death: record.dead.as_ref().map(|dead| dead.reason),
        }
    }
}

/// Whether JetStream has the consumer of a partition; None where it does not answer.
async fn has_consumer(connection: &Connection, id: &PartitionId) -> Option<bool> {
    let PartitionId { consumer: ConsumerId { stream, consumer }, partition } = id;
    let name = partition_consumer(consumer, *partition);
    let answer = connection.cache.api().consumer_info::<IgnoredAny>(stream, &name).await;
    answer.ok().map(|found| found.is_some())
}

/// The time since `begun`, which stands still with the machine: then others seem to be silent for a shorter time, and this process is as patient
/// as it would be otherwise.
fn clocks(begun: Instant) -> Clocks {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { boot: begun.elapsed(), wall }
}
