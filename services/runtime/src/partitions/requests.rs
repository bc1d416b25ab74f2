//! Asks the bucket, and brings each answer once.

use std::time::Duration;

use jetwright_nats::{Bucket, Found, Written};
use jetwright_partitions::{
    actions::Value, keys::Key, lease::Clocks, participant::Participant, write::Answer,
};
use tokio::task::JoinSet;

/// An answer.
#[derive(Debug)]
pub(super) enum Response {
    Written(Key, Written),
    Read(Key, Found),
    Age(Result<Duration, String>),
}

impl Response {
    /// Why it says nothing.
    pub(super) fn problem(&self) -> Option<&str> {
        match self {
            Self::Written(_, Written::Unknown(why))
            | Self::Read(_, Found::Unknown(why))
            | Self::Age(Err(why)) => Some(why),
            _ => None,
        }
    }

    /// Tells the participant.
    pub(super) fn tell(self, participant: &mut Participant, now: Clocks) {
        match self {
            Self::Written(key, written) => {
                let answer = match written {
                    Written::Stored(revision) => Answer::Stored(revision),
                    Written::Refused(_) | Written::Unknown(_) => Answer::Unsure,
                };
                participant.answered(&key, answer, now);
            }
            Self::Read(key, found) => {
                let value = match &found {
                    Found::Value { revision, value } => Value::Bytes(*revision, value),
                    Found::Deleted { revision } => Value::Absent(*revision),
                    Found::Absent => Value::Absent(0),
                    Found::Unknown(_) => Value::Unavailable,
                };
                if let Err(error) = participant.read(&key, value, now) {
                    tracing::warn!(%error, "ignored a value of the bucket");
                }
            }
            Self::Age(age) => participant.bucket_age(age.ok(), now),
        }
    }
}

/// The requests under way.
pub(super) struct Requests {
    bucket: Bucket,
    under_way: JoinSet<Response>,
}

impl Requests {
    pub(super) fn new(bucket: Bucket) -> Self {
        Self { bucket, under_way: JoinSet::new() }
    }

    pub(super) fn write(&mut self, key: Key, value: String, expected: u64) {
        self.spawn(async move |bucket| {
            let written = bucket.write(&key.to_string(), value, expected).await;
            Response::Written(key, written)
        });
    }

    pub(super) fn put(&mut self, key: Key, value: String) {
        self.spawn(async move |bucket| {
            let written = bucket.put(&key.to_string(), value).await;
            Response::Written(key, written)
        });
    }

    pub(super) fn read(&mut self, key: Key) {
        self.spawn(async move |bucket| {
            let found = bucket.read(&key.to_string()).await;
            Response::Read(key, found)
        });
    }

    pub(super) fn read_age(&mut self) {
        self.spawn(async move |bucket| Response::Age(bucket.age().await));
    }

    /// The next answer. Cancel safe.
    pub(super) async fn next(&mut self) -> Response {
        match self.under_way.join_next().await {
            Some(Ok(response)) => response,
            // A request does not panic, and is not aborted.
            Some(Err(_)) | None => std::future::pending().await,
        }
    }

    fn spawn<F>(&mut self, ask: impl FnOnce(Bucket) -> F + Send + 'static)
    where
        F: Future<Output = Response> + Send + 'static,
    {
        let bucket = self.bucket.clone();
        self.under_way.spawn(ask(bucket));
    }
}
