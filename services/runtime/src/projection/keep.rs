//! Keeps a projection: brings the key that a delivery is about up to date.

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

/// How often a key is brought up to date against others who do the same, before its event is tried again as a whole.
const TRIES: u32 = 5;
/// How often an entry that takes long is written on the way, so that the next attempt goes on from there.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the entries of one projection. Clones share one connection.
pub(crate) struct Projector<P: Projection> {
    pub(super) bucket: KeyValue,
    pub(super) reader: Reader,
    /// The stream of its events.
    pub(super) stream: String,
    /// Keys that are being brought up to date.
    keys: Shared<Result<Option<StoredEntry<P::Entry>>, Error>>,
    projection: PhantomData<fn() -> P>,
}

impl<P: Projection> Projector<P> {
    pub(crate) fn new(bucket: KeyValue, reader: Reader, stream: String) -> Self {
        Self { bucket, reader, stream, keys: Shared::default(), projection: PhantomData }
    }

    /// Brings a key's entry up to what its stream has, unless it is past this position already, and returns it. Of two that do
    /// so at once, one is told of a conflict.
    async fn catch_up(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        // Before the stream is looked at, so that what is read there is never less than what is in the entry.
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
                && let Some(kept) = fold.so_far(rebuild.as_ref())
            {
                revision = self.write(key, &kept, revision).await?;
                written = Instant::now();
            }
            fold.advance(&page);
        }
        let news = fold.events() > 0 && !(fold.is_nothing() && found.is_none());
        let Some(kept) = fold.finish(rebuild) else { return Ok(None) };
        if news {
            self.write(key, &kept, revision).await?;
        }
        Ok(Some(kept))
    }

    /// Whether the stream is still the one that an entry was made of, so that it is to be brought up from its position; then the
    /// pages go on there, and else they begin with the first.
    async fn can_resume(&self, pages: &mut Pages<'_>, position: Position) -> Result<bool, Error> {
        if pages.resume_after(position).await? {
            return Ok(true);
        }
        // The event at the position is gone. That is so in a stream that was made again, where everything is later than in the
        // one before, and also where events are kept for a time: what they made stays in the entry.
        let first = self.reader.next(&self.stream, ">", 1).await?;
        let made_again =
            first.is_some_and(|first| first.sequence <= position.sequence && first.time > position.time);
        if !made_again {
            pages.begin_after(position.sequence);
        }
        Ok(!made_again)
    }

    pub(super) async fn write(
        &self,
        key: &str,
        kept: &StoredEntry<P::Entry>,
        revision: u64,
    ) -> Result<u64, Error> {
        let value = serde_json::to_vec(kept).map_err(|error| {
            Error::new(ErrorKind::Refused, format!("bucket {}, key {key}", P::BUCKET), error)
        })?;
        match revision {
            0 => self.bucket.create(key, value).await,
            revision => self.bucket.update(key, value, revision).await,
        }
    }

    /// As [`catch_up`](Self::catch_up), once at a time for a key in this process, and again where another one was faster.
    async fn catch_up_among_others(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        loop {
            let mut own = false;
            let work = async {
                own = true;
                self.catch_up_among_processes(key, wanted).await
            };
            let kept = self.keys.run(key, work).await?;
            // Another delivery's work ends where that one's event is in the entry already.
            if own || wanted.is_none_or(|wanted| kept.as_ref().is_some_and(|kept| kept.covers(wanted))) {
                return Ok(kept);
            }
        }
    }

    async fn catch_up_among_processes(
        &self,
        key: &str,
        wanted: Option<Position>,
    ) -> Result<Option<StoredEntry<P::Entry>>, Error> {
        for _ in 1..TRIES {
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

/// The key that an event is about, if it is one that a bucket can have.
pub(super) fn key_of<P: Projection>(subject: &str) -> Option<&str> {
    P::key(subject).filter(|key| is_key(key))
}

impl<P: Projection> Handler for Projector<P> {
    type Event = P::Event;

    async fn handle(&self, _event: P::Event, metadata: &Metadata) -> Result<(), HandlerError> {
        let Some(key) = key_of::<P>(&metadata.subject) else {
            return Err(HandlerError::permanent("its subject names no key"));
        };
        // Of a position in another stream nothing is known here.
        let wanted = (*metadata.source.stream == *self.stream)
            .then_some(Position { time: metadata.time, sequence: metadata.sequence });
        let kept = self.catch_up_among_others(key, wanted).await?;
        let Some(wanted) = wanted else { return Ok(()) };
        match kept {
            Some(kept) if kept.position.sequence >= wanted.sequence => {
                if let Some(why) = kept.skipped(wanted.sequence) {
                    return Err(HandlerError::permanent(why));
                }
                let (bucket, sequence) = (P::BUCKET, kept.position.sequence);
                tracing::info!(bucket, key, sequence, "projected");
                Ok(())
            }
            _ => Err(HandlerError::transient(format_args!(
                "its stream has nothing of this sequence under {}",
                P::filter(key)
            ))),
        }
    }
}
