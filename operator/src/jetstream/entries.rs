//! The entries of the cache: what is known of each stream and consumer, and the lock under which it is read and written.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    marker::PhantomData,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

use super::{asset::Asset, history::History, info::Standing, outage::Outage};
use crate::{contest::ForeignWrites, outcome::CreationTime as _};

/// A description of a stream or consumer as one JSON text: as a tree of values it takes many times the memory, and there are thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed<T>(Box<[u8]>, PhantomData<fn() -> T>);

impl<T: Serialize + DeserializeOwned> Packed<T> {
    /// None for what cannot be written as JSON.
    fn new(info: &T) -> Option<Self> {
        Some(Self(serde_json::to_vec(info).ok()?.into(), PhantomData))
    }

    fn unpack(&self) -> Option<T> {
        serde_json::from_slice(&self.0).ok()
    }
}

/// What is known of a stream or a consumer.
#[derive(Clone, Debug, Default)]
pub enum CacheEntry<T> {
    /// JetStream has to be asked.
    #[default]
    Stale,
    /// JetStream said that it does not exist.
    Absent,
    /// It is as JetStream last described it.
    Present(Packed<T>),
}

/// What is known of a thing while its entry is locked, too.
#[derive(Debug, Default)]
pub struct Facts {
    /// Tells what JetStream said last from anything else, whether or not it is stale.
    pub seen: Option<u64>,
    /// What other clients wrote.
    pub foreign: ForeignWrites,
    /// Who leads a stream, as it was heard last.
    pub standing: Option<Standing>,
    /// When a leader was elected last, as far as it was heard.
    pub elected: Option<Instant>,
    /// Whether it was heard that it has no leader.
    pub doubtful: bool,
    /// Why JetStream does not answer for it.
    pub outage: Option<Outage>,
    /// JetStream answers for it again, and nobody was told.
    pub recovered: bool,
}

impl Facts {
    /// Takes note of who leads a stream; None where it does not exist.
    pub fn observe(&mut self, standing: Option<&Standing>) {
        if let Some(Standing { is_led: false, .. }) = standing {
            self.doubtful = true;
            return;
        }
        self.standing = standing.cloned();
        self.doubtful = false;
        self.recovered |= self.outage.take().is_some();
    }
}

type SharedFacts = Arc<Mutex<Facts>>;

impl<T: Serialize + DeserializeOwned> CacheEntry<T> {
    /// What JetStream has, where it has it.
    #[must_use]
    pub fn present(&self) -> Option<T> {
        match self {
            Self::Present(info) => info.unpack(),
            Self::Stale | Self::Absent => None,
        }
    }
}

/// An entry, with what was seen of the thing before.
pub struct Slot<A: Asset> {
    pub entry: CacheEntry<A::Info>,
    history: History,
    facts: SharedFacts,
    /// When something was last said or heard of it.
    heard: Instant,
}

impl<A: Asset> Slot<A> {
    fn new(facts: SharedFacts) -> Self {
        Self { entry: CacheEntry::Stale, history: History::default(), facts, heard: Instant::now() }
    }

    /// Whether something was said or heard of it since.
    #[must_use]
    pub fn is_newer_than(&self, asked: Instant) -> bool {
        self.heard > asked
    }

    /// What JetStream has, where it has it.
    #[must_use]
    pub fn present(&self) -> Option<A::Info> {
        self.entry.present()
    }

    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    pub fn history_mut(&mut self) -> &mut History {
        &mut self.history
    }

    /// Takes over what JetStream said.
    pub fn set(&mut self, answer: Option<&A::Info>) {
        let mut hasher = DefaultHasher::new();
        if let Some(info) = answer {
            self.history.observe(A::config(info), info.created(), A::last_sequence(info));
            (info.created(), A::config(info).to_string()).hash(&mut hasher);
        }
        let mut facts = self.facts.lock();
        facts.seen = Some(hasher.finish());
        facts.observe(answer.and_then(A::standing).as_ref());
        drop(facts);
        self.heard = Instant::now();
        self.entry = match answer {
            None => CacheEntry::Absent,
            Some(info) => Packed::new(info).map_or(CacheEntry::Stale, CacheEntry::Present),
        };
    }

    /// What was known, which is perhaps no longer so.
    pub fn invalidate(&mut self) -> CacheEntry<A::Info> {
        self.heard = Instant::now();
        std::mem::take(&mut self.entry)
    }
}

pub type Entry<A> = Arc<AsyncMutex<Slot<A>>>;

struct Known<A: Asset> {
    entry: Entry<A>,
    facts: SharedFacts,
    /// When a reconcile last locked it, or it was made.
    locked: Instant,
    /// Whether a reconcile ever locked it.
    is_used: bool,
}

impl<A: Asset> Known<A> {
    fn new() -> Self {
        let facts = SharedFacts::default();
        let entry = Arc::new(AsyncMutex::new(Slot::new(facts.clone())));
        Self { entry, facts, locked: Instant::now(), is_used: false }
    }
}

/// All entries of a kind.
pub struct Entries<A: Asset>(Mutex<HashMap<A::Key, Known<A>>>);

impl<A: Asset> Default for Entries<A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

/// An entry that is locked: nobody else reads or writes it, nor the thing it stands for.
pub type EntryGuard<A> = OwnedMutexGuard<Slot<A>>;

impl<A: Asset> Entries<A> {
    /// The entry of this key, made where there is none, for a reconcile to lock.
    #[must_use]
    pub fn to_lock(&self, key: &A::Key) -> Entry<A> {
        let mut entries = self.0.lock();
        let known = entries.entry(key.clone()).or_insert_with(Known::new);
        (known.locked, known.is_used) = (Instant::now(), true);
        known.entry.clone()
    }

    /// Makes the entry of this key where there is none, so that nothing is missed of what is heard until a reconcile locks it.
    pub fn expect(&self, key: A::Key) {
        self.0.lock().entry(key).or_insert_with(Known::new);
    }

    /// Whether a reconcile ever locked the entry of this key.
    #[must_use]
    pub fn is_used(&self, key: &A::Key) -> bool {
        self.0.lock().get(key).is_some_and(|known| known.is_used)
    }

    #[must_use]
    pub fn known(&self, key: &A::Key) -> Option<Entry<A>> {
        self.0.lock().get(key).map(|known| known.entry.clone())
    }

    /// Reads or changes the facts of an entry, if there is one.
    pub fn with_facts<R>(&self, key: &A::Key, work: impl FnOnce(&mut Facts) -> R) -> Option<R> {
        let facts = self.0.lock().get(key)?.facts.clone();
        let mut facts = facts.lock();
        Some(work(&mut facts))
    }

    /// Reads the facts of all entries.
    pub fn for_each_facts(&self, mut work: impl FnMut(&A::Key, &Facts)) {
        for (key, known) in self.0.lock().iter() {
            work(key, &known.facts.lock());
        }
    }

    #[must_use]
    pub fn all(&self) -> Vec<(A::Key, Entry<A>)> {
        self.0.lock().iter().map(|(key, known)| (key.clone(), known.entry.clone())).collect()
    }

    /// Drops the entries that no reconcile has locked for this long.
    pub fn evict_idle(&self, idle: Duration) {
        // One that is locked, or about to be, is in use.
        self.0.lock().retain(|_, known| known.locked.elapsed() < idle || Arc::strong_count(&known.entry) > 1);
    }
}

/// Whether what is known is the same in this respect.
pub fn same<T: Serialize + DeserializeOwned>(
    before: &CacheEntry<T>,
    after: &CacheEntry<T>,
    respect: impl Fn(&T, &T) -> bool,
) -> bool {
    match (before, after) {
        (CacheEntry::Present(before), CacheEntry::Present(after)) => {
            // Most are the same in every respect.
            before.0 == after.0
                || before.unpack().zip(after.unpack()).is_some_and(|(before, after)| respect(&before, &after))
        }
        (CacheEntry::Absent, CacheEntry::Absent) => true,
        _ => false,
    }
}
