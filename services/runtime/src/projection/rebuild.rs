//! Makes a projection anew from its stream, key by key, while whoever keeps it goes on.
//!
//! Every key is made from its whole history and written by compare-and-set, with the mark of this rebuild, so that no key is
//! made twice and none is made of less than it was. One that is interrupted leaves a projection that is right as far as it was
//! before, and is simply run again.

use std::{
    collections::{BTreeSet, HashSet},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{
    Projection,
    entry::{Fold, is_of},
    keep::{Projector, key_of},
};
use crate::{Error, ErrorKind, StoredEvent, store::Pages};

/// How often a key is tried, against others who write it and while NATS is away.
const TRIES: u32 = 10;
/// Keys that are made at once.
const AT_ONCE: usize = 16;
/// Keys that are remembered as made; of others the entry is looked at.
const REMEMBERED: usize = 100_000;
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(5);

/// What a rebuild did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Events of the stream that were looked at for their keys.
    pub events: u64,
    /// Keys whose entries were made again.
    pub made: u64,
    /// Keys that were removed, since the stream has no events of them that can be applied.
    pub removed: u64,
}

/// What became of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Made,
    TakenAway,
    /// There is nothing to be done, or it was done already.
    Unchanged,
}

/// A rebuild that is under way.
struct Rebuild<'a, P: Projection> {
    keeper: &'a Projector<P>,
    /// Its mark.
    id: String,
    /// Keys that were made, so that most need not be looked at again.
    made: HashSet<String>,
    so_far: Rebuilt,
    told: Instant,
}

/// Makes all keys anew, and takes those away that have no events.
pub(crate) async fn rebuild<P: Projection>(keeper: &Projector<P>) -> Result<Rebuilt, Error> {
    let id = format!("{:016x}", rand::random::<u64>());
    tracing::info!(bucket = P::BUCKET, stream = keeper.stream, rebuild = id, "is being made anew");
    let (made, so_far, told) = (HashSet::new(), Rebuilt::default(), Instant::now());
    let mut rebuild = Rebuild { keeper, id, made, so_far, told };
    rebuild.over_stream().await?;
    rebuild.over_bucket().await?;
    let Rebuilt { events, made, removed } = rebuild.so_far;
    tracing::info!(bucket = P::BUCKET, events, made, removed, "was made anew");
    Ok(rebuild.so_far)
}

impl<P: Projection> Rebuild<'_, P> {
    /// Makes the keys of all events that there are when it begins; whoever keeps the projection sees to later ones.
    async fn over_stream(&mut self) -> Result<(), Error> {
        let keeper = self.keeper;
        let mut pages = keeper.reader.pages(&keeper.stream, ">");
        while let Some(page) = next(&mut pages).await? {
            let keys = page.iter().filter_map(|recorded| key_of::<P>(&recorded.subject));
            let keys: BTreeSet<&str> = keys.filter(|key| !self.made.contains(*key)).collect();
            self.make(keys).await?;
            self.so_far.events += u64::try_from(page.len()).unwrap_or(u64::MAX);
            self.tell(page.last().map_or(0, |last| last.sequence), pages.newest());
        }
        Ok(())
    }

    /// Makes the keys that are in the bucket and not made yet: the stream has no events of them, or had none.
    async fn over_bucket(&mut self) -> Result<(), Error> {
        let keeper = self.keeper;
        let mut pages = keeper.bucket.pages();
        while let Some(page) = next(&mut pages).await? {
            let entries = page.iter().filter_map(|recorded| keeper.bucket.entry(recorded));
            let keys = entries.filter(|(_, value)| !is_of(value, &self.id)).map(|(key, _)| key).collect();
            self.make(keys).await?;
            self.tell(page.last().map_or(0, |last| last.sequence), pages.newest());
        }
        Ok(())
    }

    async fn make(&mut self, keys: BTreeSet<&str>) -> Result<(), Error> {
        let (keeper, id) = (self.keeper, self.id.as_str());
        let making = keys
            .into_iter()
            .map(|key| async move { remake_among_others(keeper, key, id).await.map(|became| (key, became)) });
        let made: Vec<_> = stream::iter(making).buffer_unordered(AT_ONCE).try_collect().await?;
        for (key, became) in made {
            match became {
                Key::Made => self.so_far.made += 1,
                Key::TakenAway => self.so_far.removed += 1,
                Key::Unchanged => {}
            }
            if self.made.len() >= REMEMBERED {
                self.made.clear();
            }
            self.made.insert(key.to_owned());
        }
        Ok(())
    }

    fn tell(&mut self, sequence: u64, of: u64) {
        if self.told.elapsed() >= PROGRESS {
            self.told = Instant::now();
            let Rebuilt { events, made, removed } = self.so_far;
            tracing::info!(bucket = P::BUCKET, sequence, of, events, made, removed, "is being made anew");
        }
    }
}

/// The next page, asked for again while NATS is away.
async fn next(pages: &mut Pages<'_>) -> Result<Option<Vec<StoredEvent>>, Error> {
    for attempt in 1..TRIES {
        match pages.next().await {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%error, "asked again");
                sleep(Duration::from_millis(rand::random_range(0..=500)) * attempt).await;
            }
            done => return done,
        }
    }
    pages.next().await
}

/// Makes a key anew, again where somebody else writes it too or NATS is away.
async fn remake_among_others<P: Projection>(
    keeper: &Projector<P>,
    key: &str,
    id: &str,
) -> Result<Key, Error> {
    for attempt in 1..TRIES {
        match rebuild_key(keeper, key, id).await {
            Err(error) if error.kind() != ErrorKind::Refused => {
                tracing::debug!(bucket = P::BUCKET, key, %error, "tried again");
                let longest = if error.kind() == ErrorKind::Conflict { 20 } else { 500 };
                sleep(Duration::from_millis(rand::random_range(0..=longest)) * attempt).await;
            }
            done => return done,
        }
    }
    rebuild_key(keeper, key, id).await
}

async fn rebuild_key<P: Projection>(keeper: &Projector<P>, key: &str, id: &str) -> Result<Key, Error> {
    // Before the stream is looked at, so that a delivery that comes meanwhile makes the write below a conflict.
    let found = keeper.bucket.get(key).await?;
    if found.as_ref().is_some_and(|found| is_of(&found.value, id)) {
        return Ok(Key::Unchanged);
    }
    let filter = P::filter(key);
    let (mut pages, mut fold) = (keeper.reader.pages(&keeper.stream, &filter), Fold::<P>::new());
    while let Some(page) = pages.next().await? {
        fold.advance(&page);
    }
    let kept = if fold.is_nothing() { None } else { fold.finish(Some(id.to_owned())) };
    match (found, kept) {
        (None, None) => Ok(Key::Unchanged),
        (Some(found), None) => keeper.bucket.delete(key, found.revision).await.map(|()| Key::TakenAway),
        (found, Some(kept)) => {
            let revision = found.map_or(0, |found| found.revision);
            keeper.write(key, &kept, revision).await.map(|_| Key::Made)
        }
    }
}
