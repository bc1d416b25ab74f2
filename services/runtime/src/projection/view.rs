//! Reads a projection.

use std::{fmt, marker::PhantomData, time::Duration};

use jetwright_process::http::Problem;
use tokio::time::{Instant, sleep_until};

use super::{
    Projection,
    entry::{StoredEntry, parse},
};
use crate::{Error, KeyValue, Position};

/// Pause before a key that is behind is looked at again, which grows to the longest.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The entries of a projection. Clones share one connection.
pub struct View<P> {
    bucket: KeyValue,
    projection: PhantomData<fn() -> P>,
}

/// What a projection knows of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned<E> {
    /// What the key's events made; `None` where it has ended.
    pub entry: Option<E>,
    /// The newest of the key's events that is in it.
    pub position: Position,
}

/// Why a projection is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The bucket cannot be read.
    #[error(transparent)]
    JetStream(#[from] Error),
    /// The event that is to be in it is not.
    #[error("bucket {bucket}, key {key}: at event {sequence}, and not at {minimum_sequence} yet")]
    Behind {
        /// The bucket of the projection.
        bucket: &'static str,
        /// Which key.
        key: String,
        /// Sequence of the newest of the key's events that is in it; 0 where there is none.
        sequence: u64,
        /// Sequence of the event that was asked for.
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

    /// What is known of a key by now: the newest events may not be in it yet. `None` where there is nothing, or what
    /// cannot be read.
    ///
    /// # Errors
    ///
    /// As of [`KeyValue::get`].
    pub async fn get(&self, key: &str) -> Result<Option<Versioned<P::Entry>>, Error> {
        let found = self.bucket.get(key).await?;
        let kept = found.and_then(|found| parse::<P>(key, &found.value));
        Ok(kept.map(|StoredEntry { position, entry, .. }| Versioned { entry, position }))
    }

    /// What is known of a key with its event of this sequence in it, such as one that the caller has just appended: waits
    /// for it until `within` is over. It is looked at once in any case, and 0 asks for nothing.
    ///
    /// Sequences of a stream that was deleted and made again say nothing about an entry of the one before.
    ///
    /// # Errors
    ///
    /// [`Behind`](ViewError::Behind) when the time is over; else as [`get`](Self::get).
    pub async fn get_at_least(
        &self,
        key: &str,
        minimum_sequence: u64,
        within: Duration,
    ) -> Result<Option<Versioned<P::Entry>>, ViewError> {
        let (deadline, mut pause) = (Instant::now() + within, PAUSE);
        loop {
            let seen = self.get(key).await?;
            let sequence = seen.as_ref().map_or(0, |seen| seen.position.sequence);
            if sequence >= minimum_sequence {
                return Ok(seen);
            }
            if Instant::now() >= deadline {
                let (bucket, key) = (P::BUCKET, key.to_owned());
                return Err(ViewError::Behind { bucket, key, sequence, minimum_sequence });
            }
            sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

/// What is behind may have caught up when the caller comes again.
impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::JetStream(error) => error.into(),
            ViewError::Behind { .. } => {
                tracing::info!(%error, "a caller is told to come again");
                Self::unavailable("what was written is not shown yet: try again")
            }
        }
    }
}
