//! Keeps a projection up to date: the key of each delivery.

use std::{marker::PhantomData, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    Projection,
    entry::{Fold, StoredEntry, parse},
};
use crate::{
    Error, ErrorKind, Handler, HandlerError, KeyValue, Metadata, Position, Reader,
    store::{Pages, Shared, is_key},
};

/// Maximum tries to update a key against other writers, before its event is retried as a whole.
const MAX_TRIES: u32 = 5;
/// How often a long update stores its progress, so that the next attempt continues from there.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the entries of one projection up to date. Clones share one connection.
pub(crate) struct Projector<P: Projection> {
    pub(super) bucket: KeyValue,
    pub(super) reader: Reader,
    pub(super) stream: String,
    /// Keys that are being updated.
    keys: Shared<Result<Option<StoredEntry<P::Entry>>, Error>>,
    projection: PhantomData<fn() -> P>,
}

impl<P: Projection> Projector<P> {
    pub(crate) fn new(bucket: KeyValue, reader: Reader, stream: String) -> Self {
        Self { bucket, reader, stream, keys: Shared::default(), projection: PhantomData }
    }

    /// Updates a key's entry to the newest events in its stream, unless it covers this position already, and returns it. Of two
    /// concurrent updates, one gets a conflict.
    async fn catch_up(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        // Before the stream is read, so that the events read there are never fewer than those in the entry.
        let found = self.bucket.get(key).await?;
        let before = found.as_ref().and_then(|found| parse::<P>(key, &found.value));
        if let (Some(before), Some(wanted)) = (&before, wanted)
            && before.covers(wanted)
        {
            return Ok(Some(before.clone()));
        }
        let rebuild = before.as_ref().and_then(|before| before.rebuild.clone());
        let filter = P::filter(key);
        let mut pages = self.reader.pages(&self.stream, &filter);
        let mut fold = match before {
            Some(before) if self.can_resume(&mut pages, before.position).await? => Fold::<P>::after(before),
            _ => Fold::new(),
        };
        let (mut revision, mut written) = (found.as_ref().map_or(0, |found| found.revision), Instant::now());
        while let Some(page) = pages.next().await? {
            if written.elapsed() >= PROGRESS_INTERVAL
                && let Some(entry) = fold.progress(rebuild.as_ref())
            {
                revision = self.write(key, &entry, revision).await?;
                written = Instant::now();
            }
            fold.advance(&page);
        }
        let changed = fold.events() > 0 && !(fold.is_empty() && found.is_none());
        let Some(entry) = fold.finish(rebuild) else { return Ok(None) };
        if changed {
            self.write(key, &entry, revision).await?;
        }
        Ok(Some(entry))
    }

    /// Whether the stream is still the one that an entry was folded from, so that the update continues at its position; then the
    /// pages continue there, and otherwise they begin with the first.
    async fn can_resume(&self, pages: &mut Pages<'_>, position: Position) -> Result<bool, Error> {
        if pages.resume_after(position).await? {
            return Ok(true);
        }
        // The event at the position is deleted. That happens in a recreated stream, where everything is later than in its predecessor,
        // and also where events are kept for a limited time: their effect stays in the entry.
        let first = self.reader.next(&self.stream, ">", 1).await?;
        let recreated =
            first.is_some_and(|first| first.sequence <= position.sequence && first.time > position.time);
        if !recreated {
            pages.begin_after(position.sequence);
        }
        Ok(!recreated)
    }

    pub(super) async fn write(
        &self,
        key: &str,
        entry: &StoredEntry<P::Entry>,
        revision: u64,
    ) -> Result<u64, Error> {
        let value = serde_json::to_vec(entry).map_err(|error| {
            Error::new(ErrorKind::Refused, format!("bucket {}, key {key}", P::BUCKET), error)
        })?;
        match revision {
            0 => self.bucket.create(key, value).await,
            revision => self.bucket.update(key, value, revision).await,
        }
    }

    /// As [`catch_up`](Self::catch_up), once at a time for a key in this process, and again after a conflict.
    async fn catch_up_once_per_key(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        loop {
            let mut own = false;
            let work = async {
                own = true;
                self.catch_up_with_retries(key, wanted).await
            };
            let entry = self.keys.run(key, work).await?;
            // Another delivery's update is enough if its event is in the entry already.
            if own || wanted.is_none_or(|wanted| entry.as_ref().is_some_and(|entry| entry.covers(wanted))) {
                return Ok(entry);
            }
        }
    }

    async fn catch_up_with_retries(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        for _ in 1..MAX_TRIES {
            match self.catch_up(key, wanted).await {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    sleep(Duration::from_millis(rand::random_range(0..=10))).await;
                }
                done => return done,
            }
        }
        self.catch_up(key, wanted).await
    }
}

/// The key that an event is about, if it is valid for a bucket.
pub(super) fn key_of<P: Projection>(subject: &str) -> Option<&str> {
    P::key(subject).filter(|key| is_key(key))
}

impl<P: Projection> Handler for Projector<P> {
    type Event = P::Event;

    async fn handle(&self, _event: P::Event, metadata: &Metadata) -> Result<(), HandlerError> {
        let Some(key) = key_of::<P>(&metadata.subject) else {
            return Err(HandlerError::permanent("its subject has no key"));
        };
        // A position in another stream means nothing here.
        let wanted = (*metadata.source.stream == *self.stream)
            .then_some(Position { time: metadata.time, sequence: metadata.sequence });
        let entry = self.catch_up_once_per_key(key, wanted).await?;
        let Some(wanted) = wanted else { return Ok(()) };
        match entry {
            Some(entry) if entry.position.sequence >= wanted.sequence => {
                if let Some(why) = entry.skipped(wanted.sequence) {
                    return Err(HandlerError::permanent(why));
                }
                let (bucket, sequence) = (P::BUCKET, entry.position.sequence);
                tracing::info!(bucket, key, sequence, "updated projection");
                Ok(())
            }
            _ => Err(HandlerError::transient(format_args!(
                "its stream has no event of this sequence under {}",
                P::filter(key)
            ))),
        }
    }
}
