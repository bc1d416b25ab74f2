//! Carries out what the coordinator asks of the bucket, each once, and brings its answer. Reads and writes the bucket.

use std::time::Duration;

use bytes::Bytes;
use jetwright_nats::{Bucket, Found, Written};
use jetwright_partitions::{
    actions::{Action, Value},
    keys::Key,
    write::Answer,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};

/// Requests at once.
const MAX_CONCURRENT_REQUESTS: usize = 64;
/// Least time between a request and an answer that says nothing: what is not known is asked for again at once.
const LEAST_SILENCE: Duration = Duration::from_secs(1);
/// How long a deletion is known: longer than anything that comes late.
const DELETION_KEPT: Duration = Duration::from_hours(1);

/// What a request brought.
#[derive(Debug)]
pub enum Answered {
    Write(Key, Answer),
    Read(Key, ReadValue),
    /// A key that is over was deleted, or is another than it was.
    Removed,
}

/// What a key has.
#[derive(Debug)]
pub enum ReadValue {
    Unavailable,
    Absent(u64),
    Bytes(u64, Bytes),
}

impl ReadValue {
    #[must_use]
    pub fn as_value(&self) -> Value<'_> {
        match self {
            Self::Unavailable => Value::Unavailable,
            Self::Absent(revision) => Value::Absent(*revision),
            Self::Bytes(revision, bytes) => Value::Bytes(*revision, bytes),
        }
    }
}

/// Sends requests to the bucket.
#[derive(Debug)]
pub struct Requests {
    bucket: Bucket,
    permits: Semaphore,
}

impl Requests {
    #[must_use]
    pub fn new(bucket: Bucket) -> Self {
        Self { bucket, permits: Semaphore::new(MAX_CONCURRENT_REQUESTS) }
    }

    /// Carries one action out; None of what only members do.
    pub async fn perform(&self, action: Action) -> Option<Answered> {
        let _permit = self.permits.acquire().await;
        let sent = Instant::now();
        match action {
            Action::Write { key, value, expected } => {
                let written = self.bucket.write(&key.to_string(), value, expected).await;
                Some(Answered::Write(key, answer(written, sent).await))
            }
            Action::Put { key, value } => {
                let written = self.bucket.put(&key.to_string(), value).await;
                Some(Answered::Write(key, answer(written, sent).await))
            }
            Action::Read(key) => {
                let value = match self.bucket.read(&key.to_string()).await {
                    Found::Value { revision, value } => ReadValue::Bytes(revision, value),
                    Found::Deleted { revision } => ReadValue::Absent(revision),
                    Found::Absent => ReadValue::Absent(0),
                    Found::Unknown(why) => {
                        tracing::debug!(%key, why, "failed to read a key of the bucket, will retry");
                        sleep_until(sent + LEAST_SILENCE).await;
                        ReadValue::Unavailable
                    }
                };
                Some(Answered::Read(key, value))
            }
            Action::ReadBucket
            | Action::Serve { .. }
            | Action::Suspend(_)
            | Action::Drain { .. }
            | Action::Stop(_)
            | Action::Lost => None,
        }
    }

    /// Deletes a key that is over, where it has this revision yet.
    pub async fn remove(&self, key: Key, revision: u64) -> Answered {
        let _permit = self.permits.acquire().await;
        match self.bucket.delete(&key.to_string(), revision, DELETION_KEPT).await {
            Written::Stored(_) => tracing::info!(%key, "removed a key of the bucket that is over"),
            Written::Refused(_) => {}
            Written::Unknown(why) => tracing::debug!(%key, why, "failed to remove a key of the bucket"),
        }
        Answered::Removed
    }
}

async fn answer(written: Written, sent: Instant) -> Answer {
    match written {
        Written::Stored(revision) => Answer::Stored(revision),
        Written::Refused(_) => Answer::Unsure,
        Written::Unknown(why) => {
            tracing::debug!(why, "a write to the bucket may not have been stored");
            sleep_until(sent + LEAST_SILENCE).await;
            Answer::Unsure
        }
    }
}
