//! What JetStream has over one connection, as far as it is known: filled by lists and answers, kept true by [`super::advisories`].
//!
//! Each stream and consumer has one entry. A reconcile locks it for as long as it works, so that no two write to the same thing, and
//! one that finds nothing to change asks NATS nothing. An answer, also that something does not exist, is knowledge; only silence makes
//! an entry stale.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::{Stream as Items, stream};
use jetwright_nats::{Api, ApiError, Violation};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast, watch},
    time::Instant,
};

use super::{
    asset::{Asset, Consumer, ConsumerKey, Stream},
    entries::{CacheEntry, Entries, Entry, EntryGuard, Slot, same},
    info::{ConsumerInfo, StreamInfo},
    marks::{Marks, Names},
    ownership::Owner,
};
use crate::{
    contest::{ForeignWrites, Writer},
    outcome::CreationTime as _,
};

/// Changes that a listener may lag behind before everything counts as changed for it.
const MAX_PENDING_CHANGES: usize = 4096;

/// Something in JetStream is other than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Stream(String),
    Consumer(ConsumerKey),
    /// JetStream does not answer for these streams, or does again; or a server that keeps copies of them went or came back.
    Availability(Arc<[String]>),
    /// Anything: the connection came, went, or may have missed something.
    Everything,
}

/// An asset that is cached.
pub trait Cached: Asset {
    fn entries(cache: &Cache) -> &Entries<Self>;
    fn change(key: &Self::Key) -> Change;
    /// One was created, or another one has its name.
    fn created(cache: &Cache, key: &Self::Key);
    /// Takes note of whose it is.
    fn observe_mark(cache: &Cache, info: &Self::Info);
    /// Another one that is the owner's, by its mark: the owner was renamed since.
    fn elsewhere(
        cache: &Cache,
        owner: &Owner,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Option<String>, ApiError>> + Send;
}

impl Cached for Stream {
    fn entries(cache: &Cache) -> &Entries<Self> {
        &cache.0.streams
    }

    fn change(key: &String) -> Change {
        Change::Stream(key.clone())
    }

    fn created(cache: &Cache, key: &String) {
        cache.invalidate_consumers(key);
    }

    fn observe_mark(cache: &Cache, info: &StreamInfo) {
        cache.0.marks.observe(info);
    }

    async fn elsewhere(cache: &Cache, owner: &Owner, key: &String) -> Result<Option<String>, ApiError> {
        cache.0.marks.elsewhere(cache.api(), owner, key).await
    }
}

impl Cached for Consumer {
    fn entries(cache: &Cache) -> &Entries<Self> {
        &cache.0.consumers
    }

    fn change(key: &ConsumerKey) -> Change {
        Change::Consumer(key.clone())
    }

    fn created(_: &Cache, _: &ConsumerKey) {}

    fn observe_mark(_: &Cache, _: &ConsumerInfo) {}

    /// Neither the name of a consumer nor its stream's ever changes.
    async fn elsewhere(_: &Cache, _: &Owner, _: &ConsumerKey) -> Result<Option<String>, ApiError> {
        Ok(None)
    }
}

/// What JetStream has over one connection. Clones share it.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    api: Api,
    streams: Entries<Stream>,
    consumers: Entries<Consumer>,
    changes: broadcast::Sender<Change>,
    /// Whether it was said that consumers may not be listed.
    lists_forbidden: AtomicBool,
    doubts: Notify,
    outages: watch::Sender<()>,
    missed: Mutex<BTreeSet<String>>,
    /// Whether it was filled, as far as JetStream answered.
    filled: watch::Sender<bool>,
    /// The most messages that the servers allow to be unacknowledged at once, where they refused more.
    max_ack_pending: Mutex<Option<u32>>,
    marks: Marks,
}

impl Cache {
    /// A cache that knows nothing yet.
    #[must_use]
    pub fn new(api: Api) -> Self {
        let (changes, _) = broadcast::channel(MAX_PENDING_CHANGES);
        Self(Arc::new(Inner {
            api,
            streams: Entries::default(),
            consumers: Entries::default(),
            changes,
            lists_forbidden: AtomicBool::new(false),
            doubts: Notify::default(),
            outages: watch::Sender::default(),
            missed: Mutex::default(),
            filled: watch::Sender::default(),
            max_ack_pending: Mutex::default(),
            marks: Marks::default(),
        }))
    }

    /// The API behind it.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    /// The most messages that the servers allow to be unacknowledged at once, where they refused more since the last connect; 0 where they
    /// did not say how many.
    #[must_use]
    pub fn max_ack_pending(&self) -> Option<u32> {
        *self.0.max_ack_pending.lock()
    }

    pub fn set_max_ack_pending(&self, limit: Option<u32>) {
        *self.0.max_ack_pending.lock() = limit;
    }

    /// Changes from now on; a listener that lags too far behind gets [`Change::Everything`].
    pub fn changes(&self) -> impl Items<Item = Change> + Send + 'static {
        stream::unfold(self.0.changes.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(change) => Some((change, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::Everything, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }

    /// Notifies every listener.
    pub fn notify(&self, change: Change) {
        // Nobody listens while no controller runs, as on a standby.
        let _ = self.0.changes.send(change);
    }

    /// Locks an entry; JetStream is asked only where nothing is known.
    ///
    /// # Errors
    ///
    /// When JetStream has to be asked and does not answer.
    pub async fn lock<A: Cached>(&self, key: &A::Key) -> Result<EntryGuard<A>, ApiError> {
        Ok(self.lock_to_write::<A>(key).await?.0)
    }

    /// The same, with whether JetStream was asked just now: what a write is decided on has to be that new.
    ///
    /// # Errors
    ///
    /// When JetStream has to be asked and does not answer.
    pub async fn lock_to_write<A: Cached>(&self, key: &A::Key) -> Result<(EntryGuard<A>, bool), ApiError> {
        let mut entry = A::entries(self).to_lock(key).lock_owned().await;
        let is_stale = matches!(entry.entry, CacheEntry::Stale);
        // The holder acts on what it learns by this: to notify would wake the holder again, and for ever where JetStream refuses what
        // it does.
        if is_stale {
            let answer = A::info(self.api(), key).await?;
            entry.set(answer.as_ref());
            self.announce_recovery::<A>(key);
        }
        Ok((entry, is_stale))
    }

    /// Asks JetStream about a locked entry, and notifies where it is other than it was: other objects may wait for it.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer; the entry is stale then.
    pub async fn refresh_locked<A: Cached>(
        &self,
        key: &A::Key,
        entry: &mut EntryGuard<A>,
    ) -> Result<(), ApiError> {
        let before = entry.invalidate();
        let answer = A::info(self.api(), key).await?;
        self.take_over(key, &before, answer.as_ref(), entry);
        Ok(())
    }

    /// Takes an answer into an entry that was taken out of it before.
    fn take_over<A: Cached>(
        &self,
        key: &A::Key,
        before: &CacheEntry<A::Info>,
        answer: Option<&A::Info>,
        entry: &mut Slot<A>,
    ) {
        entry.set(answer);
        self.announce_recovery::<A>(key);
        let is_another = !same(before, &entry.entry, |one, other| one.created() == other.created());
        if is_another && !matches!(before, CacheEntry::Stale) {
            A::created(self, key);
        }
        // Where no reconcile asked for it yet, nobody waits for it.
        if A::entries(self).is_used(key) && !same(before, &entry.entry, A::same_status) {
            self.notify(A::change(key));
        }
    }

    /// Tells what JetStream said of it last from anything else; None where it said nothing yet.
    #[must_use]
    pub fn seen<A: Cached>(&self, key: &A::Key) -> Option<u64> {
        A::entries(self).with_facts(key, |facts| facts.seen)?
    }

    /// What JetStream is known to have, without waiting for who writes it: what is being written is stale.
    #[must_use]
    pub fn peek<A: Cached>(&self, key: &A::Key) -> CacheEntry<A::Info> {
        let entry = A::entries(self).known(key);
        let locked = entry.as_ref().and_then(|entry| entry.try_lock().ok());
        locked.map(|slot| slot.entry.clone()).unwrap_or_default()
    }

    /// What others wrote of it.
    #[must_use]
    pub fn foreign_writes<A: Cached>(&self, key: &A::Key) -> ForeignWrites {
        A::entries(self).with_facts(key, |facts| facts.foreign.clone()).unwrap_or_default()
    }

    /// Another client wrote it.
    pub fn wrote<A: Cached>(&self, key: &A::Key, writer: Writer) {
        A::entries(self).with_facts(key, |facts| facts.foreign.add(writer));
    }

    /// Tells where JetStream answered for a stream that it did not answer for before: others than who asked wait for it.
    fn announce_recovery<A: Cached>(&self, key: &A::Key) {
        let recovered = A::entries(self).with_facts(key, |facts| std::mem::take(&mut facts.recovered));
        if recovered == Some(true) {
            self.notify(Change::Availability(Arc::new([A::name(key).to_owned()])));
        }
    }

    /// Where it is told that streams may have lost their leaders.
    #[must_use]
    pub fn doubts(&self) -> &Notify {
        &self.0.doubts
    }

    /// Where it is told that streams were marked as away.
    #[must_use]
    pub fn outages(&self) -> &watch::Sender<()> {
        &self.0.outages
    }

    /// Names of the servers that leaders of streams do not hear from.
    #[must_use]
    pub fn missed(&self) -> &Mutex<BTreeSet<String>> {
        &self.0.missed
    }

    /// Where it is told that it was filled by lists, as far as JetStream answered.
    #[must_use]
    pub fn filled(&self) -> &watch::Sender<bool> {
        &self.0.filled
    }

    /// Makes room for what lists may have of this, which an object declares.
    pub fn expect<A: Cached>(&self, key: A::Key) {
        A::entries(self).expect(key);
    }

    /// Whether anything asked for it, or is about to.
    #[must_use]
    pub fn knows<A: Cached>(&self, key: &A::Key) -> bool {
        A::entries(self).known(key).is_some()
    }

    /// Asks JetStream, and notifies where it is other than it was.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer.
    pub async fn refresh<A: Cached>(&self, key: &A::Key) -> Result<(), ApiError> {
        let Some(entry) = A::entries(self).known(key) else { return Ok(()) };
        self.refresh_locked::<A>(key, &mut entry.lock_owned().await).await
    }

    /// Invalidates the consumers of a stream, which went with it when it was deleted, whether or not an advisory said so. That happens in
    /// the background: their entries may be locked.
    fn invalidate_consumers(&self, stream: &str) {
        let of_stream: Vec<_> =
            self.0.consumers.all().into_iter().filter(|(key, _)| key.stream == stream).collect();
        if of_stream.is_empty() {
            return;
        }
        let cache = self.clone();
        tokio::spawn(async move {
            for (key, entry) in of_stream {
                entry.lock().await.invalidate();
                cache.notify(Change::Consumer(key));
            }
        });
    }

    /// Drops the entries that no reconcile has locked for this long: nothing declares them any more.
    pub fn evict_idle(&self, idle: Duration) {
        self.0.streams.evict_idle(idle);
        self.0.consumers.evict_idle(idle);
    }

    /// Invalidates every entry: while the connection was away, anything may have changed, also what JetStream had refused.
    pub async fn invalidate_all(&self) {
        self.set_max_ack_pending(None);
        for (_, entry) in self.0.streams.all() {
            let mut entry = entry.lock().await;
            entry.invalidate();
            entry.history_mut().forget_refusal(Duration::ZERO);
        }
        for (_, entry) in self.0.consumers.all() {
            entry.lock().await.invalidate();
        }
    }

    /// Takes over which streams are whose, from a list of them all.
    pub fn replace_marks(&self, names: Names) {
        self.0.marks.replace(names);
    }

    /// Takes over what a list says that was asked for then. What was heard since is newer: another one's write, of which no advisory comes
    /// a second time, or an own one.
    pub async fn take_over_listed<A: Cached>(
        &self,
        key: &A::Key,
        (info, asked): (&A::Info, Instant),
        entry: &Entry<A>,
    ) {
        let mut entry = entry.lock().await;
        if entry.is_newer_than(asked) {
            return;
        }
        let before = entry.invalidate();
        self.take_over(key, &before, Some(info), &mut entry);
    }

    /// The operator may not list consumers; said once.
    pub fn lists_are_forbidden(&self, violation: &Violation) {
        if !self.0.lists_forbidden.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %violation,
                "asking for each consumer alone, since lists of them are not permitted: permit the operator's user to publish to \
                 $JS.API.CONSUMER.LIST.* too"
            );
        }
    }
}
