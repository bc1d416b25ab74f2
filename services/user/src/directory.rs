//! The directory: users by id in a bucket, kept up to date by the service's own consumer of their events.

use jetwright_runtime::{ApplyError, Projection, StoredEvent};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::user::{Email, User, UserEvent, subjects};

/// Users by id.
pub(crate) struct Directory;

/// A user as the directory stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contact {
    email: String,
    created_at: Timestamp,
}

impl Contact {
    pub(crate) fn user(self, id: Uuid) -> User {
        User { id, email: Email::known(self.email), created_at: self.created_at }
    }
}

impl From<User> for Contact {
    fn from(user: User) -> Self {
        Self { email: user.email.as_str().to_owned(), created_at: user.created_at }
    }
}

impl Projection for Directory {
    type Event = UserEvent;
    type Entry = Contact;
    const BUCKET: &'static str = "user-directory";

    fn key(subject: &str) -> Option<&str> {
        subject.split('.').nth(1)
    }

    fn filter(id: &str) -> String {
        subjects(id)
    }

    fn apply(
        contact: Option<Contact>,
        event: UserEvent,
        stored: &StoredEvent,
    ) -> Result<Option<Contact>, ApplyError> {
        match event {
            UserEvent::Created(user) if Self::key(&stored.subject) != Some(&user.id.to_string()) => {
                Err(ApplyError::new("user_id is not the subject's"))
            }
            // A second creation changes nothing.
            UserEvent::Created(user) => Ok(Some(contact.unwrap_or_else(|| user.into()))),
            UserEvent::Later => Ok(contact),
        }
    }
}

#[cfg(test)]
mod tests {
    use jetwright_proto::events::v1::UserCreated;
    use jetwright_runtime::testing::{self, Projected, TestEvent};

    use super::*;

    const ANN: &str = "1f5b3a5e-0a9c-5c3b-8a36-000000000001";

    fn created(user_id: &str, email: &str) -> TestEvent {
        let (user_id, email) = (user_id.to_owned(), email.to_owned());
        let created = UserCreated { user_id, email, created_at: 1_725_000_000_512 };
        testing::event(&format!("users.{ANN}.created"), &created)
    }

    fn ann() -> Contact {
        let created_at = Timestamp::from_millisecond(1_725_000_000_512).unwrap();
        Contact { email: "ann@example.org".to_owned(), created_at }
    }

    #[test]
    fn a_user_has_the_address_of_its_first_event_whatever_comes_later() {
        let events = [
            created(ANN, "ann@example.org"),
            created(ANN, "other@example.org"),
            testing::raw_event(&format!("users.{ANN}.moved"), "events.v1.UserMoved", "?"),
        ];
        let expected = Projected { entry: Some(ann()), skipped: Vec::new() };
        assert_eq!(testing::project::<Directory>(events), expected);
    }

    #[test]
    fn an_event_of_another_user_than_its_subject_says_is_skipped() {
        let bob = created("1f5b3a5e-0a9c-5c3b-8a36-000000000002", "bob@example.org");
        let skipped = vec![(1, "user_id is not the subject's".to_owned())];
        let expected = Projected { entry: Some(ann()), skipped };
        assert_eq!(testing::project::<Directory>([bob, created(ANN, "ann@example.org")]), expected);
    }
}
