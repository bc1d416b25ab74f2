//! How reconciles end, in words that every controller shares: what is wrong, what is waited for, and what an error means for the
//! next try. Pure.

use std::{error::Error as StdError, time::Duration};

use jetwright_crds::conditions::Reason;
use jetwright_nats::jetstream_error::{
    NO_SUITABLE_PEERS, RECONFIGURING, REPLICAS_NEED_CLUSTER, STREAM_NAME_IN_USE,
};
use jiff::Timestamp;

use crate::{
    identity::{Claim, Identity},
    jetstream::{ApiError, Config, remedy::remedy},
};

/// Something wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong with it, and what to do.
    pub message: String,
}

/// Names a problem.
pub fn problem(field: &'static str, message: impl Into<String>) -> Problem {
    Problem { field, message: message.into() }
}

/// All problems in one message.
#[must_use]
pub fn listed(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|Problem { field, message }| format!("{field}: {message}"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// Nothing can be done yet, and nothing is wrong with the operator. Waiting is a value, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// What for.
    pub reason: Reason,
    /// What for in words, with what to do.
    pub message: String,
    /// Whether it takes somebody's change.
    pub stalled: bool,
    /// When to look again, where nothing else will wake it.
    pub again: Option<Duration>,
}

/// Nothing can be done as things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Why.
    pub reason: Reason,
    /// Why in words, with what to do.
    pub message: String,
}

impl Blocked {
    fn by_claim(kind: &str, name: &str, claim: &Claim) -> Self {
        let owner = match claim {
            Claim::Others(owner) => format!("belongs to {owner} (cluster/namespace/name)"),
            Claim::Own(_) | Claim::Unowned => "was made by something else than Jetwright".to_owned(),
        };
        Self {
            reason: Reason::NameConflict,
            message: format!(
                "{kind} {name} {owner} and is left alone: make this object anew with another spec.{kind}Name, or delete that \
                 {kind} in JetStream"
            ),
        }
    }

    fn by_newer_generation(kind: &str, name: &str, applied: i64, generation: i64) -> Self {
        Self {
            reason: Reason::NewerGeneration,
            message: format!(
                "{kind} {name} has generation {applied} of this object applied, and this is {generation}: another operator is \
                 ahead, or the object was restored from a backup; then set deletionPolicy: Retain, delete the object and make \
                 it again"
            ),
        }
    }
}

/// The generation of the object that what JetStream has was applied at; None where an object of the same name that is gone applied
/// it.
///
/// # Errors
///
/// Why it is to be left alone: it is not the object's, or a newer generation was applied.
pub fn applied_generation(
    identity: &Identity,
    (kind, name): (&str, &str),
    config: &Config,
    made_by_us: bool,
) -> Result<Option<i64>, Blocked> {
    match identity.claim(config, made_by_us) {
        Claim::Own(Some(applied)) if applied > identity.generation => {
            Err(Blocked::by_newer_generation(kind, name, applied, identity.generation))
        }
        Claim::Own(applied) => Ok(applied),
        claim => Err(Blocked::by_claim(kind, name, &claim)),
    }
}

/// What a status says of something in JetStream: only what is one's own is in a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// When JetStream made it, in whole seconds since 1970.
    pub created: Option<i64>,
    /// The replicas that were settled, of a stream.
    pub replicas: Option<u8>,
    /// The highest sequence that was ever seen, of a stream.
    pub highest_sequence: Option<u64>,
}

impl Remembered {
    /// Whether something that was made at this time is what the status is about.
    #[must_use]
    pub fn is_of(&self, created: &str) -> bool {
        let created = created.parse::<Timestamp>().ok().map(Timestamp::as_second);
        self.created.is_some() && self.created == created
    }
}

/// What was done in JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Nothing had to be.
    Nothing,
    /// It was made.
    Created,
    /// These fields were changed.
    Updated(Vec<&'static str>),
    /// These fields, which somebody else had changed, were put right.
    Repaired(Vec<&'static str>),
    /// Nothing could be done.
    Blocked(Blocked),
}

/// A plan that was carried out.
#[derive(Clone, Debug)]
pub struct Applied<I> {
    /// What was done.
    pub done: Done,
    /// What JetStream has afterwards; None where it is not this object's.
    pub info: Option<I>,
    /// Whether it is another than the status remembers: what was before is gone, whoever made it again.
    pub remade: bool,
}

/// Something in JetStream that was made at some time.
pub trait Created {
    /// When, RFC 3339.
    fn created(&self) -> &str;
}

impl<I: Created + Clone> Applied<I> {
    /// What was done, and what there is now.
    #[must_use]
    pub fn of(done: Done, info: Option<&I>, remembered: &Remembered) -> Self {
        let foreign = matches!(&done, Done::Blocked(blocked) if blocked.reason == Reason::NameConflict);
        let info = info.filter(|_| !foreign).cloned();
        // Times in statuses are whole seconds: what was made again within one looks the same.
        let another = info.as_ref().is_some_and(|info| !remembered.is_of(info.created()));
        let remade = remembered.created.is_some() && (another || done == Done::Created);
        Self { done, info, remade }
    }

    /// The fields that were put right, `*` for something that had been deleted; None where nobody else had changed anything.
    #[must_use]
    pub fn repaired(&self) -> Option<Vec<String>> {
        match &self.done {
            _ if self.remade => Some(vec!["*".to_owned()]),
            Done::Repaired(fields) => Some(fields.iter().map(ToString::to_string).collect()),
            _ => None,
        }
    }
}

/// What a reconcile came to without failing.
#[derive(Clone, Debug)]
pub enum Told<I> {
    /// The plan was carried out.
    Applied(Applied<I>),
    /// The spec cannot be.
    Invalid(Vec<Problem>),
    /// Nothing could be done yet.
    Waiting(Waiting),
}

impl<I> Told<I> {
    /// Whether the connection to NATS is what is waited for.
    #[must_use]
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Waiting(waiting) if waiting.reason == Reason::Disconnected)
    }
}

/// The API server's words for server-side apply with a field that the kind does not have (typed.AsTyped in structured-merge-diff).
const UNKNOWN_FIELD: &str = "failed to create typed patch object";

/// What an error means for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Category {
    /// Somebody else was faster: look again soon.
    Conflict,
    /// It may pass by itself: try again, ever more slowly.
    Retry,
    /// The server does not want it: it takes a change somewhere, so try rarely.
    Refused,
}

impl Category {
    /// What an error of JetStream means.
    #[must_use]
    pub fn of_jetstream(error: &ApiError) -> Self {
        match error {
            ApiError::Refused { err_code, .. } if *err_code == STREAM_NAME_IN_USE => Self::Conflict,
            // A cluster may get its servers back, or finish a scaling, at any moment.
            ApiError::Refused { err_code, .. } if [NO_SUITABLE_PEERS, RECONFIGURING].contains(err_code) => {
                Self::Retry
            }
            // These come as 500, but mean a configuration that cannot be.
            ApiError::Refused { err_code: 10012 | 10052, .. } => Self::Refused,
            ApiError::Refused { err_code, .. } if *err_code == REPLICAS_NEED_CLUSTER => Self::Refused,
            ApiError::Refused { code: 400..500, .. } => Self::Refused,
            ApiError::Refused { .. } | ApiError::Unanswered { .. } | ApiError::Malformed { .. } => {
                Self::Retry
            }
        }
    }

    /// What an error of Kubernetes means.
    #[must_use]
    pub fn of_kubernetes(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Self::Refused,
            // An applied field that its kind does not have comes as 500.
            kube::Error::Api(status) if status.message.contains(UNKNOWN_FIELD) => Self::Refused,
            _ => Self::Retry,
        }
    }

    /// The category as a metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Retry => "retry",
            Self::Refused => "refused",
        }
    }
}

/// An error that ended a reconcile.
pub trait Failure: StdError + Send + Sync + 'static {
    /// What it means for the next try.
    fn category(&self) -> Category;
}

/// An error with all that it comes from, in one line.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // What the API server says is in the message; the rest of a Status is for programs.
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            parts.push(status.message.clone());
            break;
        }
        let remedy = error.downcast_ref().map(remedy).unwrap_or_default();
        parts.push(format!("{error}{remedy}"));
        next = error.source();
    }
    parts.join(": ")
}
