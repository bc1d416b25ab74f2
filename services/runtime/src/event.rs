//! Decodes events: an event type's name and bytes in, a value out. No I/O.

use bytes::Bytes;
use prost::{Message, Name};

/// Header that names an event's type: the full name of its protobuf message.
pub const EVENT_TYPE: &str = "Event-Type";
/// Header that names the encoding of the payload.
pub const CONTENT_TYPE: &str = "Content-Type";
/// The one encoding of events.
pub const PROTOBUF: &str = "application/protobuf";
/// Header that names the subjects over which an expected sequence is checked (NATS ADR-50; nats-server 2.12).
pub(crate) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// A value decoded from an event's type and payload.
///
/// Every protobuf message is one. A handler that takes several types of event has an enum:
///
/// ```
/// use bytes::Bytes;
/// use jetwright_runtime::{Event, DecodeError, decode};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated {}
/// # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserDeleted {}
/// # impl prost::Name for UserDeleted { const NAME: &'static str = "UserDeleted"; const PACKAGE: &'static str = "events.v1"; }
///
/// enum UserEvent {
///     Created(UserCreated),
///     Deleted(UserDeleted),
/// }
///
/// impl Event for UserEvent {
///     fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
///         match event_type {
///             "events.v1.UserCreated" => decode(payload).map(Self::Created),
///             "events.v1.UserDeleted" => decode(payload).map(Self::Deleted),
///             other => Err(DecodeError::unknown_type(other)),
///         }
///     }
/// }
/// # assert!(matches!(UserEvent::decode("events.v1.UserDeleted", Bytes::new()), Ok(UserEvent::Deleted(_))));
/// ```
pub trait Event: Sized + Send + 'static {
    /// Decodes the event.
    ///
    /// # Errors
    ///
    /// The type is unknown here, or the payload is not of that type.
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError>;
}

impl<M> Event for M
where
    M: Message + Name + Default + 'static,
{
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
        // Without an allocation for the name, if the message is declared at the top of its package.
        let name = event_type.strip_prefix(M::PACKAGE).and_then(|name| name.strip_prefix('.'));
        if name == Some(M::NAME) || event_type == M::full_name() {
            decode(payload)
        } else {
            Err(DecodeError::unknown_type(event_type))
        }
    }
}

/// Decodes a protobuf message of a known type.
///
/// # Errors
///
/// The payload is not of that type.
pub fn decode<M>(payload: Bytes) -> Result<M, DecodeError>
where
    M: Message + Name + Default,
{
    M::decode(payload).map_err(|error| {
        DecodeError::malformed(format_args!("failed to decode the payload as {}: {error}", M::full_name()))
    })
}

/// Why an event could not be decoded. Retries would not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct DecodeError {
    reason: String,
    is_unknown_type: bool,
}

impl DecodeError {
    /// The event is of a type that its reader does not know.
    #[must_use]
    pub fn unknown_type(event_type: &str) -> Self {
        Self {
            is_unknown_type: true,
            ..Self::malformed(format_args!("event type {event_type:?} is not handled here"))
        }
    }

    /// The event is of a known type, and its content is invalid.
    #[must_use]
    pub fn malformed(why: impl std::fmt::Display) -> Self {
        Self { reason: why.to_string(), is_unknown_type: false }
    }

    /// Whether another reader may know the event's type.
    #[must_use]
    pub fn is_unknown_type(&self) -> bool {
        self.is_unknown_type
    }

    pub(crate) fn missing_type() -> Self {
        Self::malformed(format_args!("header {EVENT_TYPE} is missing"))
    }
}
