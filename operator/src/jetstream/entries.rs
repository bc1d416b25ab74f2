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

use super::{asset::Asset, history::History};
use crate::outcome::CreationTime as _;

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

/// An entry, with what was seen of the thing before.
pub struct Slot<A: Asset> {
    pub entry: CacheEntry<A::Info>,
    history: History,
    /// Tells what JetStream said last from anything else, whether or not it is stale.
    pub seen: Option<u64>,
}

impl<A: Asset> Default for Slot<A> {
    fn default() -> Self {
        Self { entry: CacheEntry::Stale, history: History::default(), seen: None }
    }
}

impl<A: Asset> Slot<A> {
    /// What JetStream has, where it has it.
    #[must_use]
    pub fn present(&self) -> Option<A::Info> {
        match &self.entry {
            CacheEntry::Present(info) => info.unpack(),
            CacheEntry::Stale | CacheEntry::Absent => None,
        }
    }

    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Takes over what JetStream said.
    pub fn set(&mut self, answer: Option<&A::Info>) {
        let mut hasher = DefaultHasher::new();
        if let Some(info) = answer {
            self.history.observe(A::config(info), info.created(), A::last_sequence(info));
            (info.created(), A::config(info).to_string()).hash(&mut hasher);
        }
        self.seen = Some(hasher.finish());
        self.entry = match answer {
            None => CacheEntry::Absent,
            Some(info) => Packed::new(info).map_or(CacheEntry::Stale, CacheEntry::Present),
        };
    }

    /// What was known is perhaps no longer so.
    pub fn invalidate(&mut self) {
        self.entry = CacheEntry::Stale;
    }
}

pub type Entry<A> = Arc<AsyncMutex<Slot<A>>>;

/// Entries, with the time when a reconcile last locked them.
type EntryMap<A> = HashMap<<A as Asset>::Key, (Entry<A>, Instant)>;

/// All entries of a kind.
pub struct Entries<A: Asset>(Mutex<EntryMap<A>>);

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
        let (entry, locked) =
            entries.entry(key.clone()).or_insert_with(|| (Entry::default(), Instant::now()));
        *locked = Instant::now();
        entry.clone()
    }

    #[must_use]
    pub fn known(&self, key: &A::Key) -> Option<Entry<A>> {
        self.0.lock().get(key).map(|(entry, _)| entry.clone())
    }

    #[must_use]
    pub fn all(&self) -> Vec<(A::Key, Entry<A>)> {
        self.0.lock().iter().map(|(key, (entry, _))| (key.clone(), entry.clone())).collect()
    }

    /// Drops the entries that no reconcile has locked for this long.
    pub fn evict_idle(&self, idle: Duration) {
        // One that is locked, or about to be, is in use.
        self.0.lock().retain(|_, (entry, locked)| locked.elapsed() < idle || Arc::strong_count(entry) > 1);
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
