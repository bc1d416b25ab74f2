//! Compares everything that is cached with what JetStream has: streams by lists, the consumers of each stream by lists of their own, and one by one
//! what a list does not have. What is not listed is not gone: its servers may be away. Bounded: a JetStream that hangs is left alone after a few
//! requests, and what was not compared is compared the next time. What no reconcile asked for yet, lists alone are to fill: its own reconcile asks for
//! what they do not have. Asks JetStream and writes the cache.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    pin::pin,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use jetwright_nats::ApiError;
use tokio::time::{Instant, timeout};

use super::{
    asset::{Consumer, ConsumerKey, Stream},
    cache::{Cache, Cached},
    entries,
    info::ConsumerInfo,
    listed::Listed,
    marks::Names,
    pages::{PAGE, pages},
};

/// Longest time of a comparison.
const COMPARISON_TIMEOUT: Duration = Duration::from_mins(1);
/// Requests at once.
const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Unanswered requests in a row after which JetStream is left alone.
const MAX_UNANSWERED: usize = 3;

/// Compares everything.
///
/// # Errors
///
/// When JetStream does not answer, or refuses to list streams.
pub async fn compare(cache: &Cache) -> Result<(), Incomplete> {
    let comparison = Comparison { cache, unanswered: AtomicUsize::new(0), forbidden: AtomicBool::new(false) };
    timeout(COMPARISON_TIMEOUT, comparison.run()).await.map_err(|_| Incomplete::TooLong)?
}

/// Why not everything could be compared.
#[derive(Debug, thiserror::Error)]
pub enum Incomplete {
    #[error(transparent)]
    List(#[from] ApiError),
    #[error("JetStream left {MAX_UNANSWERED} requests in a row unanswered")]
    Unanswered,
    #[error("it took longer than {COMPARISON_TIMEOUT:?}")]
    TooLong,
}

struct Comparison<'a> {
    cache: &'a Cache,
    /// Requests in a row without an answer.
    unanswered: AtomicUsize,
    /// Consumers may not be listed.
    forbidden: AtomicBool,
}

/// The consumers of one stream that are cached.
struct OfStream {
    name: String,
    cached: HashMap<ConsumerKey, entries::Entry<Consumer>>,
    /// Pages that a list of them all has; None where the stream is not listed.
    pages: Option<u64>,
}

impl Comparison<'_> {
    async fn run(&self) -> Result<(), Incomplete> {
        let mut missed: HashMap<_, _> = Stream::entries(self.cache).all().into_iter().collect();
        let (mut counts, mut names) = (HashMap::new(), Names::default());
        let mut is_complete = true;
        let mut pages = pin!(pages(|offset| self.cache.api().list_streams(offset), Listed::name));
        loop {
            let asked = Instant::now();
            let Some(page) = pages.try_next().await? else { break };
            is_complete &= page.missing.is_empty();
            for listed in page.items {
                let Some(info) = listed.read() else {
                    is_complete = false;
                    continue;
                };
                names.add(&info);
                let name = listed.name().to_owned();
                if let Some(entry) = missed.remove(&name) {
                    self.cache.take_over_listed::<Stream>(&name, (&info, asked), &entry).await;
                }
                counts.insert(name, info.state.consumer_count);
            }
        }
        if is_complete {
            self.cache.replace_marks(names);
        }
        // Whether those that are away answer again, is asked apart from this.
        let (away, missed): (Vec<_>, _) =
            missed.into_keys().partition(|name| self.cache.outage(name).is_some());
        let missed = missed.into_iter().filter(|name| Stream::entries(self.cache).is_used(name)).collect();
        let mut silent = self.streams(missed).await;
        silent.extend(away);
        self.consumers(counts, &silent).await;
        if self.is_over() { Err(Incomplete::Unanswered) } else { Ok(()) }
    }

    /// Asks about the streams that the list does not have, and returns those that are not answered for. That their servers are away says
    /// nothing of the others, since the list was answered.
    async fn streams(&self, missed: Vec<String>) -> HashSet<String> {
        let silent = &AtomicUsize::new(0);
        let asked = stream::iter(missed).map(|name| async move {
            let is_asked = silent.load(Relaxed) < MAX_CONCURRENT_REQUESTS;
            let answered = is_asked && self.cache.refresh::<Stream>(&name).await.is_ok();
            silent.fetch_add(usize::from(!answered), Relaxed);
            (!answered).then_some(name)
        });
        asked.buffer_unordered(MAX_CONCURRENT_REQUESTS).filter_map(async |silent| silent).collect().await
    }

    /// Compares the consumers of each stream but those that were not answered for, whose consumers would not be either.
    async fn consumers(&self, counts: HashMap<String, u64>, silent: &HashSet<String>) {
        let mut streams = BTreeMap::<String, HashMap<_, _>>::new();
        for (key, entry) in Consumer::entries(self.cache).all() {
            streams.entry(key.stream.clone()).or_default().insert(key, entry);
        }
        streams.retain(|name, _| !silent.contains(name));
        let of_stream = |(name, cached)| {
            let pages = counts.get(&name).map(|count| count.div_ceil(PAGE as u64));
            OfStream { name, cached, pages }
        };
        let mut streams: Vec<_> = streams.into_iter().map(of_stream).collect();
        // The first alone: where lists are not permitted, the servers complain of each.
        if let Some(first) = streams.iter().position(|of_stream| self.is_listed(of_stream)) {
            self.consumers_of(streams.remove(first)).await;
        }
        let others = stream::iter(streams).map(|others| self.consumers_of(others));
        others.buffer_unordered(MAX_CONCURRENT_REQUESTS).collect::<()>().await;
    }

    async fn consumers_of(&self, mut of_stream: OfStream) {
        if self.is_over() {
            return;
        }
        if self.is_listed(&of_stream) && !self.forbidden.load(Relaxed) {
            match self.list_consumers(&mut of_stream).await {
                Err(ApiError::NotPermitted { violation }) => {
                    self.forbidden.store(true, Relaxed);
                    self.cache.lists_are_forbidden(&violation);
                }
                Err(error @ ApiError::Unanswered { .. }) => {
                    tracing::debug!(stream = of_stream.name, %error, "failed to list consumers");
                    return;
                }
                Err(_) | Ok(()) => {}
            }
        }
        for key in of_stream.cached.into_keys() {
            self.refresh(&key).await;
        }
    }

    /// Takes over what lists of a stream's consumers have, and leaves the others.
    async fn list_consumers(&self, OfStream { name, cached, .. }: &mut OfStream) -> Result<(), ApiError> {
        let stream = name.as_str();
        let ask = |offset| async move { self.noted(self.cache.api().list_consumers(stream, offset).await) };
        let mut pages = pin!(pages(ask, Listed::<ConsumerInfo>::name));
        loop {
            let asked = Instant::now();
            let Some(page) = pages.try_next().await? else { return Ok(()) };
            for listed in page.items {
                let key = ConsumerKey { stream: name.clone(), name: listed.name().to_owned() };
                // One that cannot be read is asked for.
                if let Entry::Occupied(entry) = cached.entry(key)
                    && let Some(info) = listed.read()
                {
                    let (key, entry) = entry.remove_entry();
                    self.cache.take_over_listed::<Consumer>(&key, (&info, asked), &entry).await;
                }
            }
        }
    }

    /// Asks about one consumer that no list has.
    async fn refresh(&self, key: &ConsumerKey) {
        if self.is_over() || !Consumer::entries(self.cache).is_used(key) {
            return;
        }
        if let Err(error) = self.noted(self.cache.refresh::<Consumer>(key).await) {
            tracing::debug!(%error, "failed to refresh an entry");
        }
    }

    /// Counts requests in a row that are not answered.
    fn noted<T>(&self, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        match &answer {
            Err(ApiError::Unanswered { .. }) => {
                self.unanswered.fetch_add(1, Relaxed);
            }
            _ if self.is_over() => {}
            _ => self.unanswered.store(0, Relaxed),
        }
        answer
    }

    /// Whether a list takes fewer requests than one for each.
    fn is_listed(&self, OfStream { cached, pages, .. }: &OfStream) -> bool {
        let entries = Consumer::entries(self.cache);
        let (wanted, pages) = match pages {
            Some(pages @ 1..) => (cached.len(), *pages),
            // Perhaps it has none, so that a list is of no use to those that no reconcile asked for yet.
            None | Some(0) => (cached.keys().filter(|key| entries.is_used(key)).count(), 1),
        };
        wanted as u64 > pages
    }

    fn is_over(&self) -> bool {
        self.unanswered.load(Relaxed) >= MAX_UNANSWERED
    }
}
