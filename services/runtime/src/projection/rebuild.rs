//! Rebuilds a projection from its stream, key by key, while services keep it up to date.
//!
//! Every key is folded from its whole history and written by compare-and-set, with the id of this rebuild, so that no key is
//! rebuilt twice and no entry loses events. An interrupted rebuild leaves every entry as correct as it was before; run it
//! again.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{
    Projection,
    entry::{Fold, is_by_rebuild},
    projector::{Projector, key_of},
};
use crate::{Error, ErrorKind, StoredEvent, store::Pages};

/// Maximum tries of a key, against other writers and while NATS is unavailable.
const MAX_TRIES: u32 = 10;
/// Maximum keys that are rebuilt at once.
const MAX_CONCURRENT_KEYS: usize = 16;
/// Maximum keys that are remembered as rebuilt; for others the entry is read.
const MAX_REMEMBERED_KEYS: usize = 100_000;
/// How often the log shows the progress.
const PROGRESS_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// The result of a rebuild.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Events of the stream that were read for their keys.
    pub events: u64,
    /// Keys that were rebuilt.
    pub rebuilt: u64,
    /// Keys that were removed, since the stream has no applicable events of them.
    pub removed: u64,
}

/// The result for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyResult {
    Rebuilt,
    Removed,
    /// Nothing to do, or done already.
    Unchanged,
}

/// A rebuild in progress.
struct Rebuild<'a, P: Projection> {
    projector: &'a Projector<P>,
    id: String,
    /// Keys that are done, so that most need no second read.
    done: HashSet<String>,
    progress: Rebuilt,
    last_logged: Instant,
}

/// Rebuilds all keys, and removes those that have no events.
pub(crate) async fn rebuild<P: Projection>(projector: &Projector<P>) -> Result<Rebuilt, Error> {
    let id = format!("{:016x}", rand::random::<u64>());
    tracing::info!(bucket = P::BUCKET, stream = projector.stream, rebuild = id, "rebuilding projection");
    let (done, progress, last_logged) = (HashSet::new(), Rebuilt::default(), Instant::now());
    let mut rebuild = Rebuild { projector, id, done, progress, last_logged };
    rebuild.over_stream().await?;
    rebuild.over_bucket().await?;
    let Rebuilt { events, rebuilt, removed } = rebuild.progress;
    tracing::info!(bucket = P::BUCKET, events, rebuilt, removed, "rebuilt projection");
    Ok(rebuild.progress)
}

impl<P: Projection> Rebuild<'_, P> {
    /// Rebuilds the keys of all events that exist when it begins; later events are handled by the services.
    async fn over_stream(&mut self) -> Result<(), Error> {
        let projector = self.projector;
        let mut pages = projector.reader.pages(&projector.stream, ">");
        while let Some(page) = next(&mut pages).await? {
            let keys = page.iter().filter_map(|stored| key_of::<P>(&stored.subject));
            let keys: BTreeSet<&str> = keys.filter(|key| !self.done.contains(*key)).collect();
            self.rebuild_keys(keys).await?;
            self.progress.events += u64::try_from(page.len()).unwrap_or(u64::MAX);
            self.log_progress(page.last().map_or(0, |last| last.sequence), pages.newest());
        }
        Ok(())
    }

    /// Rebuilds the remaining keys of the bucket: the stream has no events of them, or had none.
    async fn over_bucket(&mut self) -> Result<(), Error> {
        let projector = self.projector;
        let mut pages = projector.bucket.pages();
        while let Some(page) = next(&mut pages).await? {
            let entries = page.iter().filter_map(|stored| projector.bucket.entry(stored));
            let keys =
                entries.filter(|(_, value)| !is_by_rebuild(value, &self.id)).map(|(key, _)| key).collect();
            self.rebuild_keys(keys).await?;
            self.log_progress(page.last().map_or(0, |last| last.sequence), pages.newest());
        }
        Ok(())
    }

    async fn rebuild_keys(&mut self, keys: BTreeSet<&str>) -> Result<(), Error> {
        let (projector, id) = (self.projector, self.id.as_str());
        let rebuilding = keys.into_iter().map(|key| async move {
            rebuild_with_retries(projector, key, id).await.map(|result| (key, result))
        });
        let results: Vec<_> =
            stream::iter(rebuilding).buffer_unordered(MAX_CONCURRENT_KEYS).try_collect().await?;
        for (key, result) in results {
            match result {
                KeyResult::Rebuilt => self.progress.rebuilt += 1,
                KeyResult::Removed => self.progress.removed += 1,
                KeyResult::Unchanged => {}
            }
            if self.done.len() >= MAX_REMEMBERED_KEYS {
                self.done.clear();
            }
            self.done.insert(key.to_owned());
        }
        Ok(())
    }

    fn log_progress(&mut self, sequence: u64, of: u64) {
        if self.last_logged.elapsed() >= PROGRESS_LOG_INTERVAL {
            self.last_logged = Instant::now();
            let Rebuilt { events, rebuilt, removed } = self.progress;
            tracing::info!(
                bucket = P::BUCKET,
                sequence,
                of,
                events,
                rebuilt,
                removed,
                "rebuilding projection"
            );
        }
    }
}

/// The next page, with retries while NATS is unavailable.
async fn next(pages: &mut Pages<'_>) -> Result<Option<Vec<StoredEvent>>, Error> {
    for attempt in 1..MAX_TRIES {
        match pages.next().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "failed to read events, will retry");
                sleep(Duration::from_millis(rand::random_range(0..=500)) * attempt).await;
            }
            done => return done,
        }
    }
    pages.next().await
}

/// Rebuilds a key, with retries after conflicts and while NATS is unavailable.
async fn rebuild_with_retries<P: Projection>(
    projector: &Projector<P>,
    key: &str,
    id: &str,
) -> Result<KeyResult, Error> {
    for attempt in 1..MAX_TRIES {
        match rebuild_key(projector, key, id).await {
            Err(error) if error.kind() != ErrorKind::Refused => {
                tracing::debug!(bucket = P::BUCKET, key, %error, "failed to rebuild a key, will retry");
                let max_pause = if error.kind() == ErrorKind::Conflict { 20 } else { 500 };
                sleep(Duration::from_millis(rand::random_range(0..=max_pause)) * attempt).await;
            }
            done => return done,
        }
    }
    rebuild_key(projector, key, id).await
}

async fn rebuild_key<P: Projection>(
    projector: &Projector<P>,
    key: &str,
    id: &str,
) -> Result<KeyResult, Error> {
    // Before the stream is read, so that a concurrent delivery makes the write below a conflict.
    let found = projector.bucket.get(key).await?;
    if found.as_ref().is_some_and(|found| is_by_rebuild(&found.value, id)) {
        return Ok(KeyResult::Unchanged);
    }
    let filter = P::filter(key);
    let (mut pages, mut fold) = (projector.reader.pages(&projector.stream, &filter), Fold::<P>::new());
    while let Some(page) = pages.next().await? {
        fold.advance(&page);
    }
    let entry = if fold.is_empty() { None } else { fold.finish(Some(id.to_owned())) };
    match (found, entry) {
        (None, None) => Ok(KeyResult::Unchanged),
        (Some(found), None) => {
            projector.bucket.delete(key, found.revision).await.map(|()| KeyResult::Removed)
        }
        (found, Some(entry)) => {
            let revision = found.map_or(0, |found| found.revision);
            projector.write(key, &entry, revision).await.map(|_| KeyResult::Rebuilt)
        }
    }
}
