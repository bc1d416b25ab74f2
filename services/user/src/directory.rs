//! The directory: users by id as they are read, kept from their events by the service's own consumer.

use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{Error, Failure, Handler, KeyValue, Metadata};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::user::{Email, User};

/// Name of the bucket.
pub(crate) const BUCKET: &str = "user-directory";

/// Users by id. Clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    bucket: KeyValue,
}

/// A user as the bucket holds it, as JSON under the user's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    email: String,
    created_at: Timestamp,
    /// The newest event that is in here: what is delivered again is known by it.
    #[serde(flatten)]
    position: Position,
}

/// Where an event is in its stream. Positions are compared by time first: in a stream that was made again the sequences
/// begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Position {
    /// When the stream stored it.
    #[serde(default)]
    time: Timestamp,
    /// Its sequence there.
    #[serde(rename = "position")]
    sequence: u64,
}

impl Directory {
    pub(crate) fn new(bucket: KeyValue) -> Self {
        Self { bucket }
    }

    /// The user, if the directory knows it already. Where the directory cannot be asked, nobody is known: it is a copy, and
    /// the stream will tell.
    pub(crate) async fn get(&self, id: Uuid) -> Option<User> {
        match self.bucket.get(&id.to_string()).await {
            Ok(entry) => parse(&entry?.value).map(|entry| entry.user(id)),
            Err(error) => {
                tracing::warn!(%error, "the directory cannot be asked, the stream is asked instead");
                None
            }
        }
    }

    /// Puts the user into the directory as the event at this position made it, unless it is in there already. Of two that
    /// do so at once, one is told of a conflict and looks again when the event is delivered again.
    async fn put(&self, user: &User, position: Position) -> Result<(), Error> {
        let key = user.id.to_string();
        let entry = Entry { email: user.email.as_str().to_owned(), created_at: user.created_at, position };
        let value = serde_json::to_vec(&entry).unwrap_or_default();
        match self.bucket.get(&key).await? {
            None => self.bucket.create(&key, value).await.map(drop),
            Some(known) if parse(&known.value).is_some_and(|known| known.position >= position) => Ok(()),
            Some(known) => self.bucket.update(&key, value, known.revision).await.map(drop),
        }
    }
}

impl Entry {
    fn user(self, id: Uuid) -> User {
        User { id, email: Email::known(self.email), created_at: self.created_at }
    }
}

fn parse(value: &[u8]) -> Option<Entry> {
    serde_json::from_slice(value).inspect_err(|error| tracing::warn!(%error, "an unreadable entry")).ok()
}

/// Keeps the directory.
pub(crate) struct KeepDirectory {
    directory: Directory,
}

impl KeepDirectory {
    pub(crate) fn new(directory: Directory) -> Self {
        Self { directory }
    }
}

impl Handler for KeepDirectory {
    type Event = UserCreated;
    const BINDING: &'static str = "user-directory";

    async fn handle(&self, event: UserCreated, metadata: &Metadata) -> Result<(), Failure> {
        let user = User::try_from(&event).map_err(Failure::permanent)?;
        if metadata.subject.split('.').nth(1) != Some(event.user_id.as_str()) {
            return Err(Failure::permanent("user_id is not the subject's"));
        }
        let position = Position { time: metadata.time, sequence: metadata.sequence };
        self.directory.put(&user, position).await?;
        tracing::info!(user = %user.id, "in the directory");
        Ok(())
    }
}
