//! Users: registers them as events, and reads them from the directory or from their events.

use std::time::Duration;

use jetwright_runtime::{AggregateError, Aggregates, Decision, NewEvent, Versioned, View, ViewError};
use uuid::Uuid;

use crate::directory::Directory;
use crate::user::{self, AnotherEmail, Register, Registration, User};

/// All users. Clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    /// The truth about users.
    events: Aggregates<Registration>,
    directory: View<Directory>,
}

/// A user, and whether this registration created it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) user: User,
    pub(crate) new: bool,
    /// Sequence of the user's newest event.
    pub(crate) sequence: u64,
}

/// A user with the position of its newest event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VersionedUser {
    pub(crate) user: User,
    /// Sequence of the user's newest event in it.
    pub(crate) sequence: u64,
}

/// Why a user is not registered or not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsersError {
    #[error(transparent)]
    AnotherEmail(#[from] AnotherEmail),
    #[error(transparent)]
    Events(#[from] AggregateError),
    #[error("the user's newest event is {0}")]
    NoSuchEvent(u64),
}

impl Users {
    pub(crate) fn new(events: Aggregates<Registration>, directory: View<Directory>) -> Self {
        Self { events, directory }
    }

    /// Registers a user. A repetition with the same id and address returns the same user.
    ///
    /// Most registrations are new, so the first write assumes that without a read; JetStream reports a conflict otherwise.
    pub(crate) async fn register(&self, command: &Register) -> Result<Registered, UsersError> {
        let presumed = self.events.assume_new(&command.id.to_string());
        let decide = |registration: &Registration| -> Result<Decision<User>, UsersError> {
            Ok(match user::decide(registration.user.as_ref(), command)? {
                user::Decision::Append(event, user) => {
                    Decision::Append(NewEvent::new("created", event), user)
                }
                user::Decision::Unchanged(user) => Decision::NoOp(user),
            })
        };
        let updated = self.events.update_from(presumed, decide).await?;
        Ok(Registered { user: updated.output, new: updated.appended, sequence: updated.sequence })
    }

    /// The user, if it exists, with its event of this sequence in it. The directory may be behind, or unavailable, so the stream
    /// has the last word.
    pub(crate) async fn get(
        &self,
        id: Uuid,
        minimum_sequence: u64,
    ) -> Result<Option<VersionedUser>, UsersError> {
        let key = id.to_string();
        match self.directory.get_at_least(&key, minimum_sequence, Duration::ZERO).await {
            Ok(Some(Versioned { entry: Some(contact), position })) => {
                return Ok(Some(VersionedUser { user: contact.user(id), sequence: position.sequence }));
            }
            Ok(_) | Err(ViewError::Behind { .. }) => {}
            Err(ViewError::JetStream(error)) => {
                tracing::warn!(%error, "failed to read the directory, reading the stream instead");
            }
        }
        let loaded = self.events.load(&key).await?;
        let sequence = loaded.last_sequence();
        match loaded.into_state().user {
            Some(_) if sequence < minimum_sequence => Err(UsersError::NoSuchEvent(sequence)),
            user => Ok(user.map(|user| VersionedUser { user, sequence })),
        }
    }
}
