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
        let _permit = match action {
            // Where it waits for others, members take the operator for gone.
            Action::Put { key: Key::Operator | Key::OperatorOf(_), .. } => None,
            _ => Some(self.permits.acquire().await),
        };
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

#[cfg(test)]
mod tests {
    use jetwright_nats::{Connection, ConnectionConfig, parse_addresses};
    use jetwright_testing::NatsServer;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn the_operators_own_key_waits_for_no_other_request() {
        let nats = NatsServer::start().await;
        let stream = async_nats::jetstream::stream::Config {
            name: "KV_jetwright".into(),
            subjects: vec!["$KV.jetwright.>".into()],
            ..Default::default()
        };
        nats.jetstream().await.create_stream(stream).await.unwrap();
        let config = ConnectionConfig {
            name: "tests".into(),
            servers: parse_addresses(nats.url()).collect::<Result<_, _>>().unwrap(),
            credentials: None,
            credentials_setting: "",
            domain: None,
        };
        let connection = Connection::open(config).await.unwrap();
        let requests = Requests::new(Bucket::new(&connection, "jetwright"));
        let all = u32::try_from(MAX_CONCURRENT_REQUESTS).unwrap();
        let _others = requests.permits.acquire_many(all).await.unwrap();
        let beat = requests.perform(Action::Put { key: Key::Operator, value: "{}".into() });
        let answer = timeout(Duration::from_secs(15), beat).await.unwrap();
        assert!(matches!(answer, Some(Answered::Write(Key::Operator, Answer::Stored(1)))), "{answer:?}");
    }
}
