//! The interface of a service: its handlers.

use std::{fmt, future::Future, time::Duration};

use crate::{Event, Metadata};

/// Handles the events of one EventConsumer, by whose name [`Service::handle`](crate::Service::handle) adds it.
///
/// Everything around it is the runtime's: pulling, decoding, tracing, acknowledging, retrying. A handler may be
/// called more than once with the same event (after a lost acknowledgement, a restart, a failure), so its effects must
/// be idempotent: an append with an expected sequence, compare-and-set, a call with an idempotency key, or a message whose
/// id comes from [`Metadata::message_id`].
///
/// ```
/// use jetwright_runtime::{HandlerError, Handler, Metadata};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "2")] email: String }
/// # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
///
/// struct Greet;
///
/// impl Handler for Greet {
///     type Event = UserCreated;
///
///     async fn handle(&self, user: UserCreated, metadata: &Metadata) -> Result<(), HandlerError> {
///         if user.email.is_empty() {
///             return Err(HandlerError::permanent("a user without an address"));
///         }
///         println!("hello {}, number {}", user.email, metadata.sequence);
///         Ok(())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// The handled events: a protobuf message, or an enum of several.
    type Event: Event;

    /// Handles one event.
    ///
    /// # Errors
    ///
    /// [`HandlerError::Transient`] if a retry may help, [`HandlerError::Permanent`] if it cannot.
    fn handle(
        &self,
        event: Self::Event,
        metadata: &Metadata,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// Why an event was not handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerError {
    /// Something that may pass: the event is tried again after the delay of its EventConsumer, until its attempts are used up.
    Transient(String),
    /// Something that passes after a known time: the event is tried again after exactly this delay, until its attempts are used up.
    RetryAfter(Duration, String),
    /// Something that trying again cannot change: the event becomes a dead letter at once.
    Permanent(String),
}

impl HandlerError {
    /// A failure that may pass.
    pub fn transient(why: impl fmt::Display) -> Self {
        Self::Transient(why.to_string())
    }

    /// A failure that passes after a known time, such as that of a `Retry-After` header.
    pub fn retry_after(after: Duration, why: impl fmt::Display) -> Self {
        Self::RetryAfter(after, why.to_string())
    }

    /// Something that trying again cannot change.
    pub fn permanent(why: impl fmt::Display) -> Self {
        Self::Permanent(why.to_string())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transient(why) => write!(formatter, "transient: {why}"),
            Self::RetryAfter(after, why) => write!(formatter, "transient, to retry after {after:?}: {why}"),
            Self::Permanent(why) => write!(formatter, "permanent: {why}"),
        }
    }
}

/// A failed request to JetStream may succeed later, or see newer state: it is worth another attempt.
impl From<crate::Error> for HandlerError {
    fn from(error: crate::Error) -> Self {
        Self::transient(error)
    }
}

/// How a handler's events are taken and acknowledged. The time limit of one attempt is the binding's: `spec.handlerDeadline` of
/// the EventConsumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandlerOptions {
    /// Events that this process handles at once. It takes no more than that from JetStream, or in order 16 times as many (of each partition, where they
    /// are shared), which wait for earlier events of their key; and never more than the consumer's `maxAckPending`. Default: 64.
    pub concurrency: u32,
    /// Bytes of events, with their headers, that this process takes from JetStream at once. All handlers of a process together hold
    /// no more than the largest of their limits, and each has a part of it that the others cannot use. An event larger than the limit
    /// is taken alone. While the order of events is recovered, deliveries that are owed are taken whatever their size, and until they
    /// come up to 16 new events in an `ackWait` of 4 s or more. Default: 32 MiB.
    pub bytes: usize,
    /// When an event that was handled counts as acknowledged.
    pub ack_mode: AckMode,
    /// What happens to events whose types the handler does not know.
    pub unknown_types: UnknownTypes,
}

/// What happens to events whose types a handler does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownTypes {
    /// Make them dead letters, from which they can be handled once a newer version knows them. Nothing is lost if a publisher is
    /// updated before its consumers.
    #[default]
    DeadLetter,
    /// Acknowledge them and count them as `ignored`: for a handler of some of the types under its subjects.
    Ignore,
}

/// When a handled event counts as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckMode {
    /// When JetStream confirms it. A lost acknowledgement is sent again.
    #[default]
    Confirmed,
    /// When it is sent. After a lost one the event is delivered and handled again after `ackWait`: for handlers that prefer speed.
    /// Events that were not handled, and ordered events, are settled with confirmation all the same.
    FireAndForget,
}

/// Fits into a pod of 128 MiB.
const DEFAULT_MAX_BYTES: usize = 32 * 1024 * 1024;

impl Default for HandlerOptions {
    fn default() -> Self {
        Self {
            concurrency: 64,
            bytes: DEFAULT_MAX_BYTES,
            ack_mode: AckMode::default(),
            unknown_types: UnknownTypes::default(),
        }
    }
}
