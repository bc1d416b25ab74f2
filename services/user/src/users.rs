//! Users as aggregates: reads their events, and appends to them.

use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{Error, ErrorKind, Expected, PublishOptions, Publisher, Reader, Undecodable};
use prost::Name;
use uuid::Uuid;

use crate::directory::Directory;
use crate::user::{self, AnotherEmail, Decision, Malformed, Register, User};

/// All users. Clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Users {
    publisher: Publisher,
    reader: Reader,
    directory: Directory,
    /// The stream that is the truth about users, where they are read. What is published goes by its subject, to the same.
    stream: String,
}

/// A user, and whether it is this registration that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) user: User,
    pub(crate) new: bool,
}

/// Why a user is not registered or not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsersError {
    #[error(transparent)]
    AnotherEmail(#[from] AnotherEmail),
    #[error(transparent)]
    JetStream(#[from] Error),
    #[error("an event of user {id} cannot be read: {reason}")]
    Unreadable { id: Uuid, reason: String },
}

/// A user as its events say, and the sequence of the last one (0 where there is none).
#[derive(Default)]
struct Loaded {
    user: Option<User>,
    sequence: u64,
}

impl Users {
    pub(crate) fn new(publisher: Publisher, reader: Reader, directory: Directory, stream: String) -> Self {
        Self { publisher, reader, directory, stream }
    }

    /// Registers a user. Done again with the same id and address, it is the same user.
    ///
    /// Most who register are new, so the first write expects that without having looked; JetStream says where it is not so.
    pub(crate) async fn register(&self, command: &Register) -> Result<Registered, UsersError> {
        let loaded = match self.decide_and_append(Loaded::default(), command).await {
            Err(UsersError::JetStream(error)) if error.kind() == ErrorKind::Conflict => {
                self.load(command.id).await?
            }
            done => return done,
        };
        self.decide_and_append(loaded, command).await
    }

    /// The user, if there is one. A user that was just registered may not be in the directory yet, so the stream has the last
    /// word.
    pub(crate) async fn get(&self, id: Uuid) -> Result<Option<User>, UsersError> {
        match self.directory.get(id).await {
            Some(user) => Ok(Some(user)),
            None => Ok(self.load(id).await?.user),
        }
    }

    async fn decide_and_append(&self, loaded: Loaded, command: &Register) -> Result<Registered, UsersError> {
        let (event, user) = match user::decide(loaded.user, command)? {
            Decision::Unchanged(user) => return Ok(Registered { user, new: false }),
            Decision::Append(event, user) => (event, user),
        };
        let id = command.id;
        let expected = Some(Expected::last(loaded.sequence, subjects(id)));
        let options = PublishOptions { expected, ..PublishOptions::default() };
        self.publisher.publish(&format!("users.{id}.created"), &event, options).await?;
        Ok(Registered { user, new: true })
    }

    async fn load(&self, id: Uuid) -> Result<Loaded, UsersError> {
        let history = self.reader.history(&self.stream, &subjects(id)).await?;
        let unreadable = |reason: String| UsersError::Unreadable { id, reason };
        // Events of types that came later say nothing about what is asked here.
        let created = history.events.iter().filter(|event| event.event_type() == UserCreated::full_name());
        let created: Vec<_> = created
            .map(jetwright_runtime::Recorded::decode)
            .collect::<Result<_, Undecodable>>()
            .map_err(|error| unreadable(error.to_string()))?;
        let user = user::fold(&created).map_err(|error: Malformed| unreadable(error.to_string()))?;
        Ok(Loaded { user, sequence: history.last_sequence() })
    }
}

/// All events of a user. Every write expects its last sequence among these, under this literal: servers do not compare writes
/// that expect it under different ones.
fn subjects(id: Uuid) -> String {
    format!("users.{id}.>")
}
