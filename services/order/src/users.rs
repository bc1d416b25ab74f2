//! The users that this service knows: a projection of their events, kept by its own consumer.

use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{ErrorKind, Failure, Handler, KeyValue, Metadata, Reader};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The bucket of the projection.
pub const BUCKET: &str = "order-users";

/// What is known of a user: that there is one, and since which event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    /// Sequence of the event in the stream of users; the position up to which this entry is right.
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
        let user_id: Uuid = user.user_id.parse().map_err(|_| Failure::permanent("user_id is no UUID"))?;
        let known = serde_json::to_vec(&Known { sequence: metadata.sequence }).map_err(Failure::permanent)?;
        match self.bucket.create(&user_id.to_string(), known).await {
            Ok(_) => {
                tracing::info!(%user_id, "learned of a user");
                Ok(())
            }
            // A user is created once: an entry that is there is this event's, delivered again.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            Err(error) => Err(error.into()),
        }
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
