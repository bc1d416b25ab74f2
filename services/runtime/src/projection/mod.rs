//! Projections: entries by key in a bucket, folded from events, for frequent reads. A delivery says only which key has new events;
//! the events are read from the stream, from the position of the key's entry. So the order and the number of deliveries do not
//! matter.

mod entry;
mod projector;
mod rebuild;
mod testing;
mod view;

use std::fmt;

use serde::{Serialize, de::DeserializeOwned};

pub(crate) use self::{projector::Projector, rebuild::rebuild, testing::fold};
pub use self::{
    rebuild::Rebuilt,
    view::{Versioned, View, ViewError},
};
use crate::{Event, StoredEvent};

/// Entries by key, folded from events.
///
/// ```no_run
/// use jetwright_runtime::{ApplyError, Projection, StoredEvent, Service};
/// use serde::{Deserialize, Serialize};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "2")] email: String }
/// # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
///
/// struct Directory;
///
/// #[derive(Clone, Serialize, Deserialize)]
/// struct Contact {
///     email: String,
/// }
///
/// impl Projection for Directory {
///     type Event = UserCreated;
///     type Entry = Contact;
///     const BUCKET: &'static str = "user-directory";
///
///     fn key(subject: &str) -> Option<&str> {
///         subject.split('.').nth(1)
///     }
///
///     fn filter(id: &str) -> String {
///         format!("users.{id}.>")
///     }
///
///     fn apply(_: Option<Contact>, user: UserCreated, _: &StoredEvent) -> Result<Option<Contact>, ApplyError> {
///         if user.email.is_empty() {
///             return Err(ApplyError::new("a user without an address"));
///         }
///         Ok(Some(Contact { email: user.email }))
///     }
/// }
///
/// # fn project(service: &mut Service) -> Result<(), jetwright_runtime::ServiceError> {
/// service.project::<Directory>("user-directory")?;
/// let view = service.view::<Directory>();
/// # Ok(())
/// # }
/// ```
pub trait Projection: Send + Sync + 'static {
    /// The events that it is folded from.
    type Event: Event;

    /// The value of a key, as JSON.
    type Entry: Clone + Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Name of the bucket for its entries, and for nothing else.
    const BUCKET: &'static str;

    /// The key that an event is about, from its subject; `None` if it is about none. Keys consist of letters, digits and
    /// `-/_=.`.
    fn key(subject: &str) -> Option<&str>;

    /// The subject of all events about a key, with wildcards: the key's history.
    fn filter(key: &str) -> String;

    /// The entry after this event; `None` ends it. It depends on its arguments alone: the same entry and event always make the
    /// same result.
    ///
    /// # Errors
    ///
    /// The event cannot be applied. Its delivery becomes a dead letter, and the entry goes on without it.
    fn apply(
        entry: Option<Self::Entry>,
        event: Self::Event,
        stored: &StoredEvent,
    ) -> Result<Option<Self::Entry>, ApplyError>;
}

/// Why a readable event cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(String);

impl ApplyError {
    /// For this reason.
    #[must_use]
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}
