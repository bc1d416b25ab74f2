//! Reads a projection.

use std::{fmt, marker::PhantomData, time::Duration};

use jetwright_process::http::Problem;
use tokio::time::{Instant, sleep_until};

use super::{
    Projection,
    entry::{StoredEntry, parse},
};
use crate::{Error, KeyValue, Position};

/// Initial and maximum pause before a key that is behind is read another time.
const INITIAL_PAUSE: Duration = Duration::from_millis(5);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// The entries of a projection. Clones share one connection.
pub struct View<P> {
    bucket: KeyValue,
    projection: PhantomData<fn() -> P>,
}

/// The entry of a key, with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<E> {
    /// The folded events; `None` after a deletion.
    pub entry: Option<E>,
    /// Position of the key's newest event in the entry.
    pub position: Position,
}

/// Why a projection is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The bucket cannot be read.
    #[error(transparent)]
    JetStream(#[from] Error),
    /// The entry does not have the wanted event yet.
    #[error("bucket {bucket}, key {key}: at event {sequence}, waiting for {minimum_sequence}")]
    Behind {
        /// The bucket of the projection.
        bucket: &'static str,
        /// The entry's key.
        key: String,
        /// Sequence of the newest of the key's events in the entry; 0 if there is none.
        sequence: u64,
        /// Sequence of the wanted event.
        minimum_sequence: u64,
    },
}

impl<P> Clone for View<P> {
    fn clone(&self) -> Self {
        Self { bucket: self.bucket.clone(), projection: PhantomData }
    }
}

impl<P> fmt::Debug for View<P> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("View").field(&self.bucket.name()).finish()
    }
}

impl<P: Projection> View<P> {
    pub(crate) fn new(bucket: KeyValue) -> Self {
        Self { bucket, projection: PhantomData }
    }

    /// The current entry of a key: the newest events may not be in it yet. `None` if there is no entry, or an unreadable one.
    ///
    /// # Errors
    ///
    /// As of [`KeyValue::get`].
    pub async fn get(&self, key: &str) -> Result<Option<Versioned<P::Entry>>, Error> {
        let found = self.bucket.get(key).await?;
        let stored = found.and_then(|found| parse::<P>(key, &found.value));
        Ok(stored.map(|StoredEntry { position, entry, .. }| Versioned { entry, position }))
    }

    /// The entry of a key with the event of this sequence in it, such as one that the caller has just appended: waits
    /// for it for at most `within`. The entry is read at least once, and 0 waits for nothing.
    ///
    /// Sequences of a stream that was deleted and recreated say nothing about an entry of its predecessor.
    ///
    /// # Errors
    ///
    /// [`Behind`](ViewError::Behind) when the time is over; otherwise as [`get`](Self::get).
    pub async fn get_at_least(
        &self,
        key: &str,
        minimum_sequence: u64,
        within: Duration,
    ) -> Result<Option<Versioned<P::Entry>>, ViewError> {
        let (deadline, mut pause) = (Instant::now() + within, INITIAL_PAUSE);
        loop {
            let versioned = self.get(key).await?;
            let sequence = versioned.as_ref().map_or(0, |versioned| versioned.position.sequence);
            if sequence >= minimum_sequence {
                return Ok(versioned);
            }
            if Instant::now() >= deadline {
                let (bucket, key) = (P::BUCKET, key.to_owned());
                return Err(ViewError::Behind { bucket, key, sequence, minimum_sequence });
            }
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = MAX_PAUSE.min(pause * 2);
        }
    }
}

/// An entry that is behind may be up to date when the caller retries.
impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::JetStream(error) => error.into(),
            ViewError::Behind { .. } => {
                tracing::info!(%error, "request failed: projection is behind");
                Self::unavailable("the projection does not have this write yet: try again")
            }
        }
    }
}
