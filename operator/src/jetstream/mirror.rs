//! What JetStream has, as far as it is known: filled by lists and answers, kept true by [`super::watch`].
//!
//! A reconcile holds the entry of its stream or consumer while it works, so that no two write to the same thing, and a
//! reconcile that finds nothing to change asks NATS nothing.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, future, stream};
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast},
    time::Instant,
};

use super::{Api, ApiError, Config, ConsumerInfo, StreamInfo, sequences::Sequences};

/// Changes that a listener may lag behind before it is told to look at everything.
const CHANGES: usize = 4096;
/// Questions to JetStream at once while the mirror is brought up to date.
const AT_ONCE: usize = 16;

/// What is known of a stream or a consumer.
#[derive(Clone, Debug, Default)]
pub enum Seen<T> {
    /// Nothing: JetStream has to be asked.
    #[default]
    Unknown,
    /// JetStream said that it does not exist.
    Absent,
    /// It is as JetStream last described it.
    Present(Arc<T>),
}

impl<T> Seen<T> {
    /// What JetStream has, where it has it.
    #[must_use]
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(info) => Some(info),
            Self::Unknown | Self::Absent => None,
        }
    }
}

impl<T> From<Option<T>> for Seen<T> {
    fn from(found: Option<T>) -> Self {
        found.map_or(Self::Absent, |info| Self::Present(Arc::new(info)))
    }
}

/// Something in JetStream is other than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The stream of this name.
    Stream(String),
    /// The consumer of this durable name.
    Consumer(String),
    /// Anything: the connection came, went, or may have missed something.
    Everything,
}

/// Stream and durable name.
pub type ConsumerKey = (String, String);

type Entry<T> = Arc<AsyncMutex<Seen<T>>>;

/// Entries, with the time when a reconcile last held them.
type Entries<K, T> = Mutex<HashMap<K, (Entry<T>, Instant)>>;

/// An entry that is held: nobody else reads or writes it, nor the thing it stands for.
pub type Held<T> = OwnedMutexGuard<Seen<T>>;

/// What JetStream has over one connection. Clones share it.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    api: Api,
    streams: Entries<String, StreamInfo>,
    sequences: Sequences,
    consumers: Entries<ConsumerKey, ConsumerInfo>,
    changes: broadcast::Sender<Change>,
}

impl Mirror {
    /// A mirror that knows nothing yet.
    #[must_use]
    pub fn new(api: Api) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        Self(Arc::new(Inner {
            api,
            streams: Mutex::default(),
            sequences: Sequences::default(),
            consumers: Mutex::default(),
            changes,
        }))
    }

    /// The API behind it.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.0.api
    }

    /// Changes from now on; a listener that falls behind is told [`Change::Everything`].
    pub fn changes(&self) -> impl Stream<Item = Change> + Send + 'static {
        stream::unfold(self.0.changes.subscribe(), |mut receiver| async move {
            match receiver.recv().await {
                Ok(change) => Some((change, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::Everything, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }

    /// Tells every listener.
    pub fn announce(&self, change: Change) {
        // Nobody listens while no controller runs, as on a standby.
        let _ = self.0.changes.send(change);
    }

    /// Holds a stream's entry; JetStream is asked only where nothing is known.
    ///
    /// # Errors
    ///
    /// When JetStream has to be asked and does not answer.
    pub async fn hold_stream(&self, name: &str) -> Result<Held<StreamInfo>, ApiError> {
        let mut held = held_now(&self.0.streams, name.to_owned()).lock_owned().await;
        // What the holder learns by this, it acts on: to announce it would wake the holder again, and for ever where JetStream
        // refuses what it does.
        if matches!(*held, Seen::Unknown) {
            let found = self.0.api.stream_info(name).await?;
            self.set_stream(name, &mut held, found);
        }
        Ok(held)
    }

    /// Asks JetStream again about a held stream, and announces it where it is other than it was: other objects may wait for it.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer; the entry is unknown then.
    pub async fn look_at_stream(&self, name: &str, held: &mut Held<StreamInfo>) -> Result<(), ApiError> {
        let before = std::mem::take(&mut **held);
        let found = self.0.api.stream_info(name).await?;
        self.set_stream(name, held, found);
        self.tell_of_stream(name, &before, held);
        Ok(())
    }

    /// Takes what JetStream said of a held stream into its entry.
    pub fn set_stream(&self, name: &str, held: &mut Seen<StreamInfo>, found: Option<StreamInfo>) {
        if let Some(info) = &found {
            self.0.sequences.observe(name, info);
        }
        *held = found.into();
    }

    /// How far the sequences of streams ever were.
    #[must_use]
    pub fn sequences(&self) -> &Sequences {
        &self.0.sequences
    }

    /// Holds a consumer's entry; JetStream is asked only where nothing is known.
    ///
    /// # Errors
    ///
    /// When JetStream has to be asked and does not answer.
    pub async fn hold_consumer(&self, stream: &str, name: &str) -> Result<Held<ConsumerInfo>, ApiError> {
        let key = (stream.to_owned(), name.to_owned());
        let mut held = held_now(&self.0.consumers, key).lock_owned().await;
        if matches!(*held, Seen::Unknown) {
            *held = self.0.api.consumer_info(stream, name).await?.into();
        }
        Ok(held)
    }

    /// Asks JetStream again about a held consumer, and announces it where it is other than it was.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer; the entry is unknown then.
    pub async fn look_at_consumer(
        &self,
        stream: &str,
        name: &str,
        held: &mut Held<ConsumerInfo>,
    ) -> Result<(), ApiError> {
        let before = std::mem::take(&mut **held);
        **held = self.0.api.consumer_info(stream, name).await?.into();
        if !same(&before, held, ConsumerInfo::essence) {
            self.announce(Change::Consumer(name.to_owned()));
        }
        Ok(())
    }

    /// Whether anything asked for this stream.
    #[must_use]
    pub fn knows_stream(&self, name: &str) -> bool {
        locked(&self.0.streams).contains_key(name)
    }

    /// Whether anything asked for this consumer.
    #[must_use]
    pub fn knows_consumer(&self, key: &ConsumerKey) -> bool {
        locked(&self.0.consumers).contains_key(key)
    }

    /// Asks JetStream about a stream, and announces it where it is other than it was.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer.
    pub async fn refresh_stream(&self, name: &str) -> Result<(), ApiError> {
        let Some(entry) = known(&self.0.streams, name) else { return Ok(()) };
        self.look_at_stream(name, &mut entry.lock_owned().await).await
    }

    /// Asks JetStream about a consumer, and announces it where it is other than it was.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer.
    pub async fn refresh_consumer(&self, key: &ConsumerKey) -> Result<(), ApiError> {
        let Some(entry) = known(&self.0.consumers, key) else { return Ok(()) };
        self.look_at_consumer(&key.0, &key.1, &mut entry.lock_owned().await).await
    }

    /// Forgets what is known of the consumers of a stream, which went with it when it was deleted, whether or not anybody told. They
    /// are asked about in the background: their entries may be held.
    pub fn doubt_consumers(&self, stream: &str) {
        let of_stream: Vec<_> = {
            let consumers = locked(&self.0.consumers);
            let found = consumers.iter().filter(|((of, _), _)| of == stream);
            found.map(|((_, name), (entry, _))| (name.clone(), entry.clone())).collect()
        };
        if of_stream.is_empty() {
            return;
        }
        let mirror = self.clone();
        tokio::spawn(async move {
            for (name, entry) in of_stream {
                *entry.lock().await = Seen::Unknown;
                mirror.announce(Change::Consumer(name));
            }
        });
    }

    /// Forgets the entries that no reconcile has held for this long: nothing declares them any more.
    pub fn forget_unused(&self, for_long: Duration) {
        forget_unused(&self.0.streams, for_long);
        forget_unused(&self.0.consumers, for_long);
        let streams = locked(&self.0.streams);
        self.0.sequences.retain(|name| streams.contains_key(name));
    }

    /// Forgets what is known of every stream and consumer: while the connection was away, anything may have changed.
    pub async fn doubt_everything(&self) {
        for held in all(&self.0.streams) {
            *held.1.lock().await = Seen::Unknown;
        }
        for held in all(&self.0.consumers) {
            *held.1.lock().await = Seen::Unknown;
        }
    }

    /// Compares all that is known with JetStream: streams by lists of 256, what a list misses and the consumers one by one.
    /// A stream that a list misses is not gone: its servers may be away. What is not answered is asked about the next time.
    ///
    /// # Errors
    ///
    /// When JetStream does not answer to a list; the consumers are compared all the same.
    pub async fn refresh_everything(&self) -> Result<(), ApiError> {
        let mut missed: HashMap<_, _> = all(&self.0.streams).into_iter().collect();
        let listed = self.refresh_by_list(&mut missed).await;
        // Without a list, each stream would be asked for alone, and JetStream is slow already.
        let missed = if listed.is_ok() { missed } else { HashMap::new() };
        let streams = stream::iter(missed.into_keys());
        let streams = streams.map(|name| async move { self.refresh_stream(&name).await });
        let consumers = stream::iter(all(&self.0.consumers));
        let consumers = consumers.map(|(key, _)| async move { self.refresh_consumer(&key).await });
        let both = streams.map(future::Either::Left).chain(consumers.map(future::Either::Right));
        let log = |answer: Result<(), ApiError>| {
            if let Err(error) = answer {
                tracing::debug!(%error, "not compared");
            }
            future::ready(())
        };
        both.buffer_unordered(AT_ONCE).for_each(log).await;
        listed
    }

    /// Compares what a list has, and leaves in `missed` what it does not have.
    async fn refresh_by_list(&self, missed: &mut HashMap<String, Entry<StreamInfo>>) -> Result<(), ApiError> {
        let mut offset = 0;
        loop {
            let streams: Vec<StreamInfo> = self.0.api.list_streams(offset).await?;
            if streams.is_empty() {
                return Ok(());
            }
            offset += streams.len();
            for info in streams {
                let name = name_of(&info.config);
                if let Some(entry) = missed.remove(&name) {
                    let mut held = entry.lock().await;
                    let before = std::mem::take(&mut *held);
                    self.set_stream(&name, &mut held, Some(info));
                    self.tell_of_stream(&name, &before, &held);
                }
            }
        }
    }

    /// Announces a stream that is other than it was, and its consumers where it is another stream.
    fn tell_of_stream(&self, name: &str, before: &Seen<StreamInfo>, after: &Seen<StreamInfo>) {
        if !matches!(before, Seen::Unknown) && !same(before, after, |info| &info.created) {
            self.doubt_consumers(name);
        }
        if !same(before, after, StreamInfo::essence) {
            self.announce(Change::Stream(name.to_owned()));
        }
    }
}

fn name_of(config: &Config) -> String {
    config.get("name").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}

fn locked<K, T>(entries: &Entries<K, T>) -> MutexGuard<'_, HashMap<K, (Entry<T>, Instant)>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The entry of this key, made where there is none, for a reconcile to hold.
fn held_now<K: Eq + Hash, T>(entries: &Entries<K, T>, key: K) -> Entry<T> {
    let mut entries = locked(entries);
    let (entry, held) = entries.entry(key).or_insert_with(|| (Entry::default(), Instant::now()));
    *held = Instant::now();
    entry.clone()
}

fn forget_unused<K, T>(entries: &Entries<K, T>, for_long: Duration) {
    // One that is held, or about to be, is in use.
    locked(entries).retain(|_, (entry, held)| held.elapsed() < for_long || Arc::strong_count(entry) > 1);
}

fn known<K, Q, T>(entries: &Entries<K, T>, key: &Q) -> Option<Entry<T>>
where
    K: Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    locked(entries).get(key).map(|(entry, _)| entry.clone())
}

fn all<K: Clone + Eq + Hash, T>(entries: &Entries<K, T>) -> Vec<(K, Entry<T>)> {
    locked(entries).iter().map(|(key, (entry, _))| (key.clone(), entry.clone())).collect()
}

/// Whether what is known is the same in this part.
fn same<'a, T, P: PartialEq>(before: &'a Seen<T>, after: &'a Seen<T>, part: impl Fn(&'a T) -> P) -> bool {
    match (before, after) {
        (Seen::Present(before), Seen::Present(after)) => part(before) == part(after),
        (Seen::Absent, Seen::Absent) => true,
        _ => false,
    }
}
