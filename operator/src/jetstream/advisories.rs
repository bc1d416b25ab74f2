//! Keeps the cache true: fills it by lists before the first reconcile, listens to JetStream's advisories, and refreshes everything at each
//! connect and at an interval.
//!
//! Streams and consumers announce their creation, changes and end by advisories of their own, except for changes of consumers, which only
//! the audit of the API reports. Advisories are plain messages that can be lost, hence the resync.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jetwright_nats::Connection;
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::sync::mpsc;

use super::{
    advisory::{News, Target, news},
    asset::{Consumer, Stream},
    availability::Prober,
    cache::{Cache, Change},
    comparison,
};
use crate::{contest::Writer, error::error_chain, metrics::Metrics};

/// Advisories of streams and consumers, and the audit of the API.
const SUBJECTS: [&str; 10] = [
    "$JS.EVENT.ADVISORY.STREAM.CREATED.*",
    "$JS.EVENT.ADVISORY.STREAM.UPDATED.*",
    "$JS.EVENT.ADVISORY.STREAM.DELETED.*",
    "$JS.EVENT.ADVISORY.STREAM.RESTORE_COMPLETE.*",
    "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.*",
    "$JS.EVENT.ADVISORY.STREAM.QUORUM_LOST.*",
    "$JS.EVENT.ADVISORY.CONSUMER.CREATED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.DELETED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.PAUSE.*.*",
    "$JS.EVENT.ADVISORY.API",
];
/// Requests to JetStream at once.
const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Targets that may wait for their request; a resync finds what is beyond that.
const MAX_PENDING_TARGETS: usize = 8192;
/// Delay before a resync that failed is tried again.
const RESYNC_RETRY_DELAY: Duration = Duration::from_secs(15);
/// Least time between two resyncs because advisories were lost.
const RESYNC_DELAY_AFTER_LOSS: Duration = Duration::from_secs(30);

/// How long the first lists wait for the connection: without it, the objects say that NATS is away.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// How often everything is refreshed, and what that means for what no object declares.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Time between two resyncs; up to a fifth is added, so that several operators do not ask together.
    pub resync: Duration,
    /// Time after which an entry that no reconcile locked is dropped.
    pub idle: Duration,
}

/// The objects that declare what is in JetStream.
pub trait Declarations: Sync {
    /// Ends when all of them are known, or as many as are waited for.
    fn listed(&self) -> impl Future<Output = ()> + Send;
    /// Makes room in the cache for what they declare.
    fn expect(&self, cache: &Cache);
}

/// JetStream's advisories.
pub struct Advisories {
    messages: stream::SelectAll<async_nats::Subscriber>,
    /// Of the client that subscribed, or of an earlier one.
    generation: u64,
}

impl Advisories {
    /// Advisories from now on. Subscribe before anything is cached, so that no change falls between the two; after a lost connection the
    /// client subscribes again before it asks for anything else.
    pub async fn subscribe(nats: &Connection) -> Self {
        let generation = nats.link().borrow().generation;
        let (client, mut all) = (nats.client(), Vec::new());
        for subject in SUBJECTS {
            match client.subscribe(subject).await {
                Ok(messages) => all.push(messages),
                Err(error) => {
                    tracing::error!(subject, %error, "failed to subscribe; a resync alone finds changes");
                }
            }
        }
        Self { messages: stream::select_all(all), generation }
    }
}

/// Runs until it is dropped: follows advisories, refreshes everything at each connect and at the interval, and finds what is not answered
/// for.
pub async fn run(
    advisories: Advisories,
    (cache, nats): (&Cache, &Connection),
    metrics: &Metrics,
    intervals: Intervals,
    declarations: &impl Declarations,
) {
    let (targets, queue) = mpsc::channel(MAX_PENDING_TARGETS);
    let pending = PendingSet::default();
    let listener = Listener { cache, nats, pending: &pending, targets };
    let prober = Prober::new(cache, nats, metrics);
    tokio::join!(
        listener.follow(advisories),
        refresh(cache, &pending, queue),
        resync(cache, nats, intervals, declarations),
        prober.run(),
    );
}

/// Targets that wait for their request, so that ten advisories of one stream make one request.
#[derive(Clone, Default)]
struct PendingSet(Arc<Mutex<HashSet<Target>>>);

struct Listener<'a> {
    cache: &'a Cache,
    nats: &'a Connection,
    pending: &'a PendingSet,
    targets: mpsc::Sender<Target>,
}

impl Listener<'_> {
    /// Listens for as long as there is a client, and again with each that takes its place: subscriptions end with their client.
    async fn follow(self, mut advisories: Advisories) {
        loop {
            self.listen(&mut advisories).await;
            let ended = advisories.generation;
            if self.nats.link().wait_for(|link| link.generation != ended).await.is_err() {
                return;
            }
            advisories = Advisories::subscribe(self.nats).await;
            // What changed in between was not announced.
            self.cache.invalidate_all().await;
            self.cache.notify(Change::Everything);
        }
    }

    async fn listen(&self, advisories: &mut Advisories) {
        while let Some(message) = advisories.messages.next().await {
            match news(&message.subject, &message.payload, self.nats.name()) {
                Some(News::Changed { target, writer }) => self.changed(&target, writer),
                Some(News::Elected { stream, leader }) => self.elected(stream, &leader),
                Some(News::QuorumLost { stream }) => self.cache.lost_quorum(&stream),
                None => {}
            }
        }
    }

    fn elected(&self, stream: String, leader: &str) {
        if self.cache.elected(&stream, leader) {
            self.enqueue(&Target::Stream(stream));
        }
    }

    fn changed(&self, target: &Target, writer: Option<Writer>) {
        let known = match target {
            Target::Stream(name) => self.cache.knows::<Stream>(name),
            Target::Consumer(key) => self.cache.knows::<Consumer>(key),
        };
        if !known {
            return;
        }
        match (target, writer) {
            (Target::Stream(name), Some(writer)) => self.cache.wrote::<Stream>(name, writer),
            (Target::Consumer(key), Some(writer)) => self.cache.wrote::<Consumer>(key, writer),
            (_, None) => {}
        }
        self.enqueue(target);
    }

    fn enqueue(&self, target: &Target) {
        if self.pending.0.lock().insert(target.clone()) && self.targets.try_send(target.clone()).is_err() {
            self.pending.0.lock().remove(target);
            self.nats.slow_consumer().notify_one();
        }
    }
}

async fn refresh(cache: &Cache, pending: &PendingSet, queue: mpsc::Receiver<Target>) {
    let queue = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let refresh_one = |target: Target| async move {
        pending.0.lock().remove(&target);
        let refreshed = match &target {
            Target::Stream(name) => cache.refresh::<Stream>(name).await,
            Target::Consumer(key) => cache.refresh::<Consumer>(key).await,
        };
        if let Err(error) = refreshed {
            tracing::debug!(?target, error = error_chain(&error), "failed to refresh; its object asks again");
            cache.notify(match target {
                Target::Stream(name) => Change::Stream(name),
                Target::Consumer(key) => Change::Consumer(key),
            });
        }
    };
    queue.for_each_concurrent(MAX_CONCURRENT_REQUESTS, refresh_one).await;
}

async fn resync(cache: &Cache, nats: &Connection, intervals: Intervals, declarations: &impl Declarations) {
    declarations.listed().await;
    let mut state = nats.state();
    let connecting = state.wait_for(|state| state.connected);
    // One that ended in an error is not connected either.
    let _ = tokio::time::timeout(CONNECT_TIME, connecting).await;
    declarations.expect(cache);
    let mut is_back = false;
    loop {
        cache.evict_idle(intervals.idle);
        // Not within the next line: what is borrowed is locked, and the connection could not report changes meanwhile.
        let connected = state.borrow_and_update().connected;
        let pause = if resync_once(cache, connected).await {
            intervals.resync.mul_f64(rand::rng().random_range(1.0..1.2))
        } else {
            RESYNC_RETRY_DELAY
        };
        cache.filled().send_replace(true);
        if std::mem::take(&mut is_back) {
            // What is not compared yet is asked about by its object.
            cache.notify(Change::Everything);
        }
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                cache.invalidate_all().await;
                // Once it is back, lists come first: they take fewer requests than a reconcile of each object.
                is_back = state.borrow().connected;
                if is_back {
                    declarations.expect(cache);
                } else {
                    cache.notify(Change::Everything);
                }
            }
            () = lost_advisories(nats) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether everything could be refreshed, or there is no server to ask.
async fn resync_once(cache: &Cache, connected: bool) -> bool {
    if !connected {
        return true;
    }
    let refreshed = comparison::compare(cache).await;
    if let Err(error) = &refreshed {
        tracing::warn!(error = error_chain(error), "failed to compare with JetStream; trying again");
    }
    refreshed.is_ok()
}

/// Ends when advisories were lost, but not so often that a flood of them would ask for ever more.
async fn lost_advisories(nats: &Connection) {
    nats.slow_consumer().notified().await;
    tracing::warn!("lost advisories, which came faster than they were read; comparing everything");
    tokio::time::sleep(RESYNC_DELAY_AFTER_LOSS).await;
}
