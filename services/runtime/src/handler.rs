//! What a service writes: its handlers.

use std::{fmt, future::Future};

use tokio::task::spawn_blocking;

use crate::{Event, Metadata};

/// Handles the events of one EventConsumer.
///
/// Everything around it is the runtime's: pulling, decoding, tracing, acknowledging, trying again. A handler may be
/// called more than once with the same event (after a lost acknowledgement, a restart, a failure), so its effects must
/// bear that: an append with an expected sequence, compare-and-set, a call with an idempotency key, or a message whose
/// id comes from [`Metadata::message_id`].
///
/// ```
/// use jetwright_runtime::{Failure, Handler, Metadata};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "2")] email: String }
/// # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
///
/// struct Greet;
///
/// impl Handler for Greet {
///     type Event = UserCreated;
///     const BINDING: &'static str = "greetings";
///
///     async fn handle(&self, user: UserCreated, metadata: &Metadata) -> Result<(), Failure> {
///         if user.email.is_empty() {
///             return Err(Failure::permanent("a user without an address"));
///         }
///         println!("hello {}, number {}", user.email, metadata.sequence);
///         Ok(())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// What is handled: a protobuf message, or an enum of several.
    type Event: Event;

    /// Name of the EventConsumer, by which the operator's bindings file names the JetStream consumer.
    const BINDING: &'static str;

    /// Handles one event.
    ///
    /// # Errors
    ///
    /// [`Failure::Transient`] where trying again may help, [`Failure::Permanent`] where it cannot.
    fn handle(
        &self,
        event: Self::Event,
        metadata: &Metadata,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Why an event was not handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Something that may pass: the event is delivered again after a delay, until its attempts are used up.
    Transient(String),
    /// Something that trying again cannot mend.
    Permanent(String),
}

impl Failure {
    /// Something that may pass.
    pub fn transient(why: impl fmt::Display) -> Self {
        Self::Transient(why.to_string())
    }

    /// Something that trying again cannot mend.
    pub fn permanent(why: impl fmt::Display) -> Self {
        Self::Permanent(why.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transient(why) => write!(formatter, "transient: {why}"),
            Self::Permanent(why) => write!(formatter, "permanent: {why}"),
        }
    }
}

/// A request to JetStream that failed may succeed later, or see newer state: it is worth another attempt.
impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Self::transient(error)
    }
}

/// How a handler's events are taken and acknowledged. How long one attempt may take is the binding's: `spec.handlerDeadline` of the
/// EventConsumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Events that are handled at once by this process. It takes no more from JetStream than that, or where the binding keeps order,
    /// 16 times as many, which wait for those of their key; and never more than the consumer's `maxAckPending`.
    pub concurrency: u32,
    /// Bytes of events, with their headers, that this process takes from JetStream at once. All handlers of a process together hold
    /// no more than the largest of their limits, and none takes the part of another. An event that is larger than that is taken
    /// alone; while the order of events is recovered what was delivered before is taken whatever its size, and until it comes up to
    /// 16 events in an ackWait (of 4 s or more) that are new.
    pub bytes: usize,
    /// What is waited for once an event is handled.
    pub acknowledge: Acknowledge,
}

/// When an event that was handled counts as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// When JetStream confirms it. An acknowledgement that was lost is sent again.
    #[default]
    Confirmed,
    /// When it is sent. One that is lost has the event delivered and handled again after `ackWait`: for handlers to which that
    /// matters less than speed. What was not handled is settled with confirmation all the same.
    Sent,
}

/// Of all handlers of a process together: a pod of 128 MiB has room for it.
const DEFAULT_BYTES: usize = 32 * 1024 * 1024;

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: 64, bytes: DEFAULT_BYTES, acknowledge: Acknowledge::default() }
    }
}

/// Runs code that blocks its thread, such as a driver without async or a long computation, where it holds up no other event.
///
/// A handler that blocks its thread itself holds up other events of the same handler, and one that does so for longer than its deadline
/// has its process restarted. The code goes on to its end even where the attempt is given up at its deadline.
///
/// ```
/// # async fn handle() -> Result<(), jetwright_runtime::Failure> {
/// let sum = jetwright_runtime::blocking(|| (1..=1_000_000_u64).sum::<u64>()).await?;
/// # assert_eq!(sum, 500_000_500_000);
/// # Ok(())
/// # }
/// # tokio::runtime::Runtime::new().unwrap().block_on(handle()).unwrap();
/// ```
///
/// # Errors
///
/// [`Failure::Transient`] where the code panics.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    spawn_blocking(work)
        .await
        .map_err(|error| Failure::transient(format_args!("blocking code failed: {error}")))
}
