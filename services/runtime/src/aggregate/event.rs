//! An event to append, whatever its type.

use std::{borrow::Cow, fmt, pin::Pin};

use prost::{Message, Name};

use crate::{Error, PublishOptions, Published, Publisher, publish::own_message_id};

/// An event to append to an aggregate, under `<prefix>.<id>.<name>`.
pub struct NewEvent {
    name: Cow<'static, str>,
    event: Box<dyn Publishable>,
    message_id: Option<String>,
}

impl NewEvent {
    /// An event of this name, which is the last token of its subject.
    pub fn new<E>(name: impl Into<Cow<'static, str>>, event: E) -> Self
    where
        E: Message + Name + 'static,
    {
        Self { name: name.into(), event: Box::new(event), message_id: None }
    }

    /// With an id under which the stream keeps it once within its duplicate window, such as
    /// [`Metadata::message_id`](crate::Metadata::message_id).
    #[must_use]
    pub fn with_message_id(self, id: impl Into<String>) -> Self {
        Self { message_id: Some(id.into()), ..self }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The id under which the stream stores it once, and whether another writer may have used it.
    pub(super) fn message_id(&self) -> (String, bool) {
        match &self.message_id {
            Some(id) => (id.clone(), true),
            None => (own_message_id(), false),
        }
    }

    pub(super) async fn publish(
        &self,
        publisher: &Publisher,
        subject: &str,
        options: PublishOptions,
    ) -> Result<Published, Error> {
        self.event.publish(publisher, subject, options).await
    }
}

impl fmt::Debug for NewEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, event, message_id } = self;
        formatter
            .debug_struct("NewEvent")
            .field("name", name)
            .field("type", &event.type_name())
            .field("message_id", message_id)
            .finish()
    }
}

type Publishing<'a> = Pin<Box<dyn Future<Output = Result<Published, Error>> + Send + 'a>>;

/// An event without its type.
trait Publishable: Send + Sync {
    fn publish<'a>(
        &'a self,
        publisher: &'a Publisher,
        subject: &'a str,
        options: PublishOptions,
    ) -> Publishing<'a>;

    /// The full name of its protobuf message.
    fn type_name(&self) -> String;
}

impl<E: Message + Name> Publishable for E {
    fn publish<'a>(
        &'a self,
        publisher: &'a Publisher,
        subject: &'a str,
        options: PublishOptions,
    ) -> Publishing<'a> {
        Box::pin(publisher.publish(subject, self, options))
    }

    fn type_name(&self) -> String {
        E::full_name()
    }
}
