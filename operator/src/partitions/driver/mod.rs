//! Shares out the partitions of ordered consumers while this process leads: one task per connection, which feeds a coordinator and carries out what
//! it decides. Reads and writes the bucket; what to write is decided in `jetwright-partitions`.
//!
//! [`hear`] takes over what the bucket tells, [`act`] begins what follows, [`keep`] keeps the bucket itself, and [`publish`] says what became known.
//!
//! While no consumer of a connection is ordered, it asks NATS nothing.

mod act;
mod hear;
mod keep;
mod publish;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures::{
    Stream, StreamExt as _,
    future::{BoxFuture, join_all},
    stream::FuturesUnordered,
};
use jetwright_nats::{Bucket, Watch};
use jetwright_partitions::{
    coordinator::Coordinator,
    keys::{BUCKET, BUCKET_STREAM, ConsumerId},
    lease::Clocks,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::keep::Keeping;
use super::{
    cleaning::Cleaner,
    cluster_maps::ClusterMaps,
    declared::{OrderedConsumer, may_be_declared, ordered_consumers},
    requests::{Answered, Requests},
    sharing::Tracker,
};
use crate::{
    context::Context,
    jetstream::{
        cache::{Cache, Change},
        connections::Connection,
        info::StreamInfo,
        reconcile,
    },
    outcome::Outcome,
};

/// How often it is looked for ordered consumers where there are none.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How often the coordinator is asked what to do although nothing came.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How often what is declared is looked at, and what became known is published.
const DECLARE_INTERVAL: Duration = Duration::from_millis(500);
/// How long the bucket is looked after when its last consumer is gone: what belongs to that is deleted meanwhile.
const LINGER: Duration = Duration::from_mins(30);
/// Least time between two warnings of what others wrote into the bucket.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

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

/// One time of sharing out, from the first ordered consumer on.
struct Session<'a> {
    context: &'a Context,
    connection: &'a Connection,
    bucket: &'a Bucket,
    requests: &'a Requests,
    begun: Instant,
    coordinator: Coordinator,
    watch: Watch,
    is_synced: bool,
    keeping: Keeping,
    consumers: Vec<OrderedConsumer>,
    cluster_maps: ClusterMaps,
    /// The consumers that the coordinator shares out: those that are declared, and orphaned ones.
    shared_out: BTreeSet<ConsumerId>,
    /// When a consumer was last declared; [`LINGER`] later the session ends.
    used: Instant,
    trackers: BTreeMap<ConsumerId, Tracker>,
    cleaner: Cleaner,
    /// Ends of containers that the coordinator was told.
    told_ends: HashMap<String, u64>,
    warned: Option<Instant>,
    under_way: FuturesUnordered<BoxFuture<'a, Done>>,
}

/// Nothing is known of the bucket.
fn coordinator(context: &Context, connection: &Connection, begun: Instant) -> Coordinator {
    Coordinator::new(connection.nats.name(), &context.cluster.current, clocks(begun))
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
            coordinator: coordinator(context, connection, begun),
            watch: bucket.watch(&[">".to_owned()]),
            is_synced: false,
            keeping: Keeping::new(begun),
            consumers: Vec::new(),
            cluster_maps: ClusterMaps::new(&context.cluster.current),
            shared_out: BTreeSet::new(),
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

    /// Takes over what the EventConsumers and their pods say.
    fn declare(&mut self) {
        let (context, connection) = (self.context, self.connection);
        let consumers = ordered_consumers(&context.scopes, connection);
        let mut declared: BTreeMap<_, _> =
            consumers.iter().map(|consumer| (consumer.id.clone(), consumer.declared(context))).collect();
        if self.is_synced {
            let has_object = |id: &ConsumerId| {
                declared.contains_key(id) || may_be_declared(&context.scopes, connection, id)
            };
            let orphaned: Vec<_> = self.cluster_maps.orphaned(has_object).collect();
            declared.extend(orphaned);
        }
        for gone in self.shared_out.iter().filter(|id| !declared.contains_key(id)) {
            self.coordinator.remove(gone);
        }
        // Their keys came before they were declared.
        let has_missed = declared.keys().any(|id| !self.shared_out.contains(id) && self.cleaner.knows(id));
        self.shared_out = declared.keys().cloned().collect();
        for (id, declared) in declared {
            self.coordinator.declare(id, declared);
        }
        if !consumers.is_empty() {
            self.used = Instant::now();
        }
        let ids: HashSet<_> = consumers.iter().map(|consumer| &consumer.id).collect();
        self.trackers.retain(|id, _| ids.contains(id));
        self.consumers = consumers;
        if has_missed {
            self.watch_again();
        }
    }

    fn warn(&mut self, message: &str) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            self.warned = Some(Instant::now());
            tracing::warn!("{message}");
        }
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

/// The time since `begun`, which stands still with the machine: then others seem to be silent for a shorter time, and this process is as patient
/// as it would be otherwise.
fn clocks(begun: Instant) -> Clocks {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clocks { boot: begun.elapsed(), wall }
}
