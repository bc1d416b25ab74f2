//! The users that this service knows: a projection of their events, kept up to date by its own consumer.

use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{ApplyError, HandlerError, Projection, Reader, StoredEvent, View};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::order::is_of;

/// The users that have registered.
pub struct OrderUsers;

/// A known user: it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUser {}

impl Projection for OrderUsers {
    type Event = UserCreated;
    type Entry = KnownUser;
    const BUCKET: &'static str = "order-users";

    fn key(subject: &str) -> Option<&str> {
        subject.split('.').nth(1)
    }

    fn filter(user_id: &str) -> String {
        format!("users.{user_id}.>")
    }

    fn apply(
        _: Option<KnownUser>,
        user: UserCreated,
        stored: &StoredEvent,
    ) -> Result<Option<KnownUser>, ApplyError> {
        if !is_of(&stored.subject, &user.user_id) {
            return Err(ApplyError::new("user_id is not the subject's"));
        }
        Ok(Some(KnownUser {}))
    }
}

/// Checks whether a user exists.
#[derive(Clone, Debug)]
pub struct Users {
    /// The projection.
    pub known: View<OrderUsers>,
    /// Reads the stream, which has the truth.
    pub reader: Reader,
    /// JetStream stream of users.
    pub stream: String,
}

impl Users {
    /// Whether this user exists. The projection may be behind, so after a miss the stream is read.
    ///
    /// # Errors
    ///
    /// Neither can be read now.
    pub async fn exists(&self, user_id: Uuid) -> Result<bool, HandlerError> {
        let user_id = user_id.to_string();
        if self.known.get(&user_id).await?.is_some_and(|seen| seen.entry.is_some()) {
            return Ok(true);
        }
        let history = self.reader.history(&self.stream, &OrderUsers::filter(&user_id)).await?;
        Ok(!history.events.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use jetwright_runtime::testing::{self, Projected};

    use super::*;

    const ID: &str = "0193f0a6-7d2b-7c3e-8a4f-0123456789ab";

    fn created(user_id: &str) -> UserCreated {
        UserCreated { user_id: user_id.to_owned(), email: "ann@example.org".to_owned(), created_at: 1 }
    }

    #[test]
    fn a_user_is_known_once_it_is_created_under_its_own_subject() {
        let subject = format!("users.{ID}.created");
        let another = created("0193f0a6-7d2b-7c3e-8a4f-000000000000");
        let events = [testing::event(&subject, &another), testing::event(&subject, &created(ID))];
        let skipped = vec![(1, "user_id is not the subject's".to_owned())];
        let expected = Projected { entry: Some(KnownUser {}), skipped };
        assert_eq!(testing::project::<OrderUsers>(events), expected);
    }
}
