//! The users that this service knows: a projection of their events, kept by its own consumer.

use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{Failure, Handler, KeyValue, Metadata, Reader};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::order::is_of;

/// The bucket of the projection.
pub const BUCKET: &str = "order-users";

/// What is known of a user: that there is one, and since which event. Events are told apart by time before sequence: in a
/// stream that was made again the sequences begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Known {
    /// When the stream of users stored the event.
    #[serde(default)]
    time: Timestamp,
    /// Its sequence there.
    sequence: u64,
}

/// Learns of users from their events.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Where they are kept.
    pub bucket: KeyValue,
}

impl Handler for Projection {
    type Event = UserCreated;
    const BINDING: &'static str = "order-users";

    async fn handle(&self, user: UserCreated, metadata: &Metadata) -> Result<(), Failure> {
        if !is_of(&metadata.subject, &user.user_id) {
            return Err(Failure::permanent("user_id is not the subject's"));
        }
        let known = Known { time: metadata.time, sequence: metadata.sequence };
        if self.learn(&user.user_id, known).await? {
            tracing::info!(user_id = user.user_id, "learned of a user");
        }
        Ok(())
    }
}

impl Projection {
    /// Whether this was not known. Of two that learn at once, one is told of a conflict and looks again when its event is
    /// delivered again.
    async fn learn(&self, user_id: &str, now: Known) -> Result<bool, Failure> {
        let value = serde_json::to_vec(&now).map_err(Failure::permanent)?;
        match self.bucket.get(user_id).await? {
            None => self.bucket.create(user_id, value).await?,
            Some(entry) if serde_json::from_slice(&entry.value).is_ok_and(|known: Known| known >= now) => {
                return Ok(false);
            }
            Some(entry) => self.bucket.update(user_id, value, entry.revision).await?,
        };
        Ok(true)
    }
}

/// Answers whether a user exists.
#[derive(Clone, Debug)]
pub struct Users {
    /// The projection.
    pub bucket: KeyValue,
    /// Reads the truth.
    pub reader: Reader,
    /// JetStream stream of users.
    pub stream: String,
}

impl Users {
    /// Whether there is such a user. The projection may be behind, so a miss asks the stream.
    ///
    /// # Errors
    ///
    /// Neither can be read now.
    pub async fn exists(&self, user_id: Uuid) -> Result<bool, Failure> {
        let user_id = user_id.to_string();
        if self.bucket.get(&user_id).await?.is_some() {
            return Ok(true);
        }
        let history = self.reader.history(&self.stream, &format!("users.{user_id}.>")).await?;
        Ok(!history.events.is_empty())
    }
}
