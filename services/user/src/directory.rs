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
