//! How a reconcile of something in JetStream ends without failing: what was done, what is wrong with the spec, or what it waits for.
//! Pure.

use std::time::Duration;

use jetwright_crds::{
    EventConsumer, EventStream,
    conditions::{Reason, State},
};
use jiff::Timestamp;

use crate::field_error::FieldError;

/// Nothing can be done yet, and nothing is wrong with the operator. Waiting is a value, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub reason: Reason,
    /// What it waits for, with what to do.
    pub message: String,
    /// Whether it takes a change by a user.
    pub stalled: bool,
    /// When to reconcile next, where nothing else wakes the object.
    pub requeue_after: Option<Duration>,
}

/// Nothing can be done as things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    pub reason: Reason,
    /// Why, with what to do.
    pub message: String,
}

/// What a status says of something in JetStream: a status describes only what is its object's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// When JetStream created it, in whole seconds since 1970.
    pub created: Option<i64>,
    /// The replicas that were settled, of a stream.
    pub replicas: Option<u8>,
    /// The highest sequence that was ever seen, of a stream.
    pub highest_sequence: Option<u64>,
}

/// Sequences beyond this are not believed: no stream has so many messages, and one that began there would soon have none left.
const MAX_SEQUENCE: u64 = 1 << 53;
/// More copies than these are not believed: JetStream refuses them, and with them every other change of the stream.
const MAX_REPLICAS: u8 = 5;

impl Recorded {
    /// A sequence that a status names, which others than the operator can write.
    #[must_use]
    pub fn sequence(recorded: Option<u64>) -> Option<u64> {
        recorded.filter(|sequence| *sequence <= MAX_SEQUENCE)
    }

    /// What the object's status says of the stream.
    #[must_use]
    pub fn of_stream(object: &EventStream) -> Self {
        let status = object.status.as_ref();
        let stream = status.and_then(|status| status.stream.as_ref());
        Self {
            created: stream.and_then(|stream| stream.created.as_ref()).map(|time| time.0.as_second()),
            replicas: stream
                .map(|stream| stream.replicas)
                .filter(|replicas| (1..=MAX_REPLICAS).contains(replicas)),
            // A status that an older version wrote has the last sequence alone.
            highest_sequence: Self::sequence(status.and_then(|status| status.highest_sequence))
                .max(Self::sequence(stream.map(|stream| stream.last_sequence))),
        }
    }

    /// What the object's status says of the consumer.
    #[must_use]
    pub fn of_consumer(object: &EventConsumer) -> Self {
        let consumer = object.status.as_ref().and_then(|status| status.consumer.as_ref());
        let created = consumer.and_then(|consumer| consumer.created.as_ref());
        Self { created: created.map(|time| time.0.as_second()), ..Self::default() }
    }

    /// Whether the status is about the one that was created at this time (RFC 3339).
    #[must_use]
    pub fn matches(&self, created: &str) -> bool {
        let created = created.parse::<Timestamp>().ok().map(Timestamp::as_second);
        self.created.is_some() && self.created == created
    }
}

/// How something became the object's that was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// It had no owner.
    Unowned,
    /// It was taken from this owner.
    TakenFrom(String),
}

/// What was done in JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    Unchanged,
    Created,
    /// These fields changed with the declaration.
    Updated(Vec<&'static str>),
    /// These fields, which another writer had changed, were corrected.
    Corrected(Vec<&'static str>),
    /// It is the object's now; these fields changed with that.
    Adopted {
        adoption: Adoption,
        fields: Vec<&'static str>,
    },
    Blocked(Blocked),
}

impl OperationResult {
    /// Whether something was written.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Unchanged | Self::Blocked(_))
    }
}

/// Something that JetStream created at some time.
pub trait CreationTime {
    /// RFC 3339.
    fn created(&self) -> &str;
}

/// A plan that was carried out.
#[derive(Clone, Debug)]
pub struct Reconciled<I> {
    pub result: OperationResult,
    /// What JetStream has afterwards; None where it is not this object's.
    pub info: Option<I>,
    /// Whether it is another one than the status describes: that one is gone, whoever created this one.
    pub recreated: bool,
    /// Why JetStream does not give it the replicas that are preferred.
    pub refusal: Option<String>,
    /// What is to be said instead of that all is well, since others write the same thing.
    pub contested: Option<Pending>,
    /// How a change of its partitions goes, of a stream.
    pub changing: Option<State>,
    /// When to reconcile next, where nothing else wakes the object.
    pub requeue_after: Option<Duration>,
}

impl<I: CreationTime + Clone> Reconciled<I> {
    #[must_use]
    pub fn new(result: OperationResult, info: Option<&I>, recorded: &Recorded) -> Self {
        let foreign =
            matches!(&result, OperationResult::Blocked(blocked) if blocked.reason == Reason::NameConflict);
        let info = info.filter(|_| !foreign).cloned();
        // Times in statuses are whole seconds: what was created again within one looks the same.
        let another = info.as_ref().is_some_and(|info| !recorded.matches(info.created()));
        let recreated = recorded.created.is_some() && (another || result == OperationResult::Created);
        Self { result, info, recreated, refusal: None, contested: None, changing: None, requeue_after: None }
    }

    /// The fields that were corrected, `*` for something that had been deleted; None where no other writer had changed anything.
    #[must_use]
    pub fn corrected(&self) -> Option<Vec<String>> {
        match &self.result {
            _ if self.recreated => Some(vec!["*".to_owned()]),
            OperationResult::Corrected(fields) => Some(fields.iter().map(ToString::to_string).collect()),
            _ => None,
        }
    }
}

/// How a reconcile ended that did not fail.
#[derive(Clone, Debug)]
pub enum Outcome<I> {
    Reconciled(Reconciled<I>),
    /// The spec cannot be.
    Invalid(Vec<FieldError>),
    Pending(Pending),
}

impl<I> Outcome<I> {
    /// Whether it was created just now.
    #[must_use]
    pub fn is_creation(&self) -> bool {
        matches!(self, Self::Reconciled(Reconciled { result: OperationResult::Created, .. }))
    }

    /// Whether it waits for the connection to NATS.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Pending(pending) if pending.reason == Reason::Disconnected)
    }
}
