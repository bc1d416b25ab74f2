//! Carries out what the coordinator asks of the bucket, each once, and brings its answer. Reads and writes the bucket.

use std::time::Duration;

use jetwright_nats::{Bucket, Found, Written};
use jetwright_partitions::{
    actions::{Action, Value},
    keys::Key,
    write::Answer,
};
use tokio::sync::Semaphore;

/// Requests at once.
const MAX_CONCURRENT_REQUESTS: usize = 64;
/// How long a deletion is known: longer than anything that comes late.
const DELETION_KEPT: Duration = Duration::from_hours(1);

/// What a request brought.
#[derive(Debug)]
pub enum Answered {
    Write(Key, Answer),
    Read(Key, Found),
    /// A key that is over was deleted, or is another than it was.
    Removed,
}

/// What a key has, as the coordinator is told.
#[must_use]
pub fn value_of(found: &Found) -> Value<'_> {
    match found {
        Found::Value { revision, value } => Value::Bytes(*revision, value),
        Found::Deleted { revision } => Value::Absent(*revision),
        Found::Absent => Value::Absent(0),
        Found::Unknown(_) => Value::Unavailable,
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
        match action {
            Action::Write { key, value, expected } => {
                let written = self.bucket.write(&key.to_string(), value, expected).await;
                Some(Answered::Write(key, answer(written)))
            }
            Action::Put { key, value } => {
                let written = self.bucket.put(&key.to_string(), value).await;
                Some(Answered::Write(key, answer(written)))
            }
            Action::Read(key) => {
                let found = self.bucket.read(&key.to_string()).await;
                if let Found::Unknown(why) = &found {
                    tracing::debug!(%key, why, "failed to read a key of the bucket, will retry");
                }
                Some(Answered::Read(key, found))
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

fn answer(written: Written) -> Answer {
    match written {
        Written::Stored(revision) => Answer::Stored(revision),
        Written::Refused(_) => Answer::Unsure,
        Written::Unknown(why) => {
            tracing::debug!(why, "a write to the bucket may not have been stored");
            Answer::Unsure
        }
    }
}
