//! What becomes of an event after an attempt, as a test compares it. In: what was decided, and how the delivery ends. Pure.

use std::time::Duration;

use crate::consumer::{Decision, DeliveryEnd};

/// What becomes of an event after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The handler is content, and the event is acknowledged.
    Acknowledged,
    /// The handler was not called: its [options](crate::UnknownTypes::Ignore) have events of unknown types acknowledged.
    Ignored,
    /// It comes again.
    Retried {
        /// After this time: the whole of the delay, of which a pod waits between half and the whole at random; or what the handler asked for.
        after: Duration,
        /// What went wrong.
        error: String,
    },
    /// It is a dead letter, and terminated.
    DeadLettered {
        /// `permanent`, `undecodable`, `last-attempt` or `delivered-too-often`, as in the dead letter.
        reason: &'static str,
        /// What went wrong.
        error: String,
    },
    /// It is terminated without a dead letter, since none are kept.
    Terminated {
        /// As of a dead letter.
        reason: &'static str,
        /// What went wrong.
        error: String,
    },
    /// It is given up, and its dead letter could not be written: it comes again, and the handler is not called.
    DeadLetterDelayed {
        /// After this time.
        after: Duration,
        /// As of a dead letter.
        reason: &'static str,
        /// What went wrong with the event.
        error: String,
    },
}

impl Settled {
    /// Tried again, after an error like this.
    #[must_use]
    pub fn retried(after: Duration, error: impl Into<String>) -> Self {
        Self::Retried { after, error: error.into() }
    }

    /// Given up for this reason, after an error like this, and kept.
    #[must_use]
    pub fn dead_lettered(reason: &'static str, error: impl Into<String>) -> Self {
        Self::DeadLettered { reason, error: error.into() }
    }

    pub(super) fn of(decision: Option<Decision>, end: &DeliveryEnd) -> Self {
        let is_ignored = decision == Some(Decision::Ignored);
        let (reason, error) = match decision {
            Some(Decision::DeadLetter { reason, error }) => (Some(reason.as_str()), error),
            Some(Decision::Retry { error, .. }) => (None, error),
            Some(Decision::Done | Decision::Ignored) | None => (None, String::new()),
        };
        let given_up = reason.unwrap_or_default();
        match *end {
            DeliveryEnd::Acknowledged if is_ignored => Self::Ignored,
            DeliveryEnd::Acknowledged => Self::Acknowledged,
            DeliveryEnd::Terminated { is_kept: true } => Self::DeadLettered { reason: given_up, error },
            DeliveryEnd::Terminated { is_kept: false } => Self::Terminated { reason: given_up, error },
            DeliveryEnd::Redelivered { after } | DeliveryEnd::Repeated { after, .. } => match reason {
                Some(reason) => Self::DeadLetterDelayed { after, reason, error },
                None => Self::Retried { after, error },
            },
        }
    }
}
