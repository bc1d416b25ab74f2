//! How an attempt ends: what came of it and which attempt it was in, what is to be done out. Pure.

use std::time::Duration;

use jetwright_crds::environment::Retry;

use crate::{Failure, Undecodable};

/// What came of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The handler is content.
    Done,
    /// The handler said no.
    Failed(Failure),
    /// The payload or its type could not be read; the handler never saw it.
    Undecodable(Undecodable),
    /// The handler panicked.
    Panicked(String),
    /// The handler took longer than it may.
    TimedOut(Duration),
    /// It was delivered more often than it may be, and the handler was not asked.
    Exhausted,
    /// It was given up before for this reason and with this error, and its dead letter could not be kept.
    GivenUp(Reason, String),
}

/// What is to be done with the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is done.
    Done,
    /// It is to be tried again, not before this time has passed.
    Retry {
        /// Time until the next attempt.
        after: Duration,
        /// What went wrong.
        error: String,
    },
    /// It is not to be tried again, though it was not handled.
    Bury {
        /// Which rule gave it up.
        reason: Reason,
        /// What went wrong.
        error: String,
    },
}

/// Which rule gave an event up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The handler said that trying again cannot help.
    Permanent,
    /// It could not be read.
    Undecodable,
    /// All attempts were used.
    LastAttempt,
}

impl Reason {
    /// As logs, metrics and the server are told.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
            Self::LastAttempt => "last-attempt",
        }
    }
}

/// Whether a delivery comes so late that its handler is not asked any more: earlier ones never reached a decision, as
/// when the process died each time.
pub(crate) fn exhausted(attempt: u32, retry: &Retry) -> bool {
    attempt > retry.max_attempts
}

/// Decides. `attempt` is the delivery's number from 1, `jitter` a random number from 0 to 1.
pub(crate) fn settle(outcome: Outcome, attempt: u32, retry: &Retry, jitter: f64) -> Decision {
    let error = match outcome {
        Outcome::Done => return Decision::Done,
        Outcome::Failed(Failure::Permanent(why)) => {
            return Decision::Bury { reason: Reason::Permanent, error: why };
        }
        Outcome::Undecodable(why) => {
            return Decision::Bury { reason: Reason::Undecodable, error: why.to_string() };
        }
        Outcome::GivenUp(reason, error) => return Decision::Bury { reason, error },
        Outcome::Failed(Failure::Transient(why)) => why,
        Outcome::Panicked(message) => format!("the handler panicked: {message}"),
        Outcome::TimedOut(deadline) => format!("the handler took longer than {deadline:?}"),
        Outcome::Exhausted => format!("delivered {attempt} times without a decision"),
    };
    if attempt >= retry.max_attempts {
        return Decision::Bury { reason: Reason::LastAttempt, error };
    }
    Decision::Retry { after: delay(attempt, retry, jitter), error }
}

/// The delay after this attempt: exponential up to the longest, then between half and the whole of it, so that events
/// that failed together do not come back together.
fn delay(attempt: u32, retry: &Retry, jitter: f64) -> Duration {
    let backoff = &retry.backoff;
    let longest = backoff.max.0;
    let mut whole = backoff.initial.0.min(longest);
    for _ in 1..attempt {
        if whole >= longest || backoff.factor <= 1 {
            break;
        }
        whole = whole.saturating_mul(backoff.factor).min(longest);
    }
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use jetwright_crds::{Duration as Text, environment::Backoff};

    use super::*;

    const WHOLE: f64 = 1.0;

    fn three_attempts() -> Retry {
        let backoff = Backoff { initial: Text::from_millis(100), factor: 3, max: Text::from_millis(500) };
        Retry { max_attempts: 3, backoff }
    }

    fn transient() -> Outcome {
        Outcome::Failed(Failure::transient("busy"))
    }

    fn retry(milliseconds: u64, error: &str) -> Decision {
        Decision::Retry { after: Duration::from_millis(milliseconds), error: error.to_owned() }
    }

    fn bury(reason: Reason, error: &str) -> Decision {
        Decision::Bury { reason, error: error.to_owned() }
    }

    fn settled(outcome: Outcome, attempt: u32) -> Decision {
        settle(outcome, attempt, &three_attempts(), WHOLE)
    }

    #[test]
    fn what_is_done_is_acknowledged_even_at_the_last_attempt() {
        assert_eq!(settled(Outcome::Done, 1), Decision::Done);
        assert_eq!(settled(Outcome::Done, 3), Decision::Done);
    }

    #[test]
    fn a_transient_failure_is_tried_again_while_attempts_are_left() {
        assert_eq!(settled(transient(), 1), retry(100, "busy"));
        assert_eq!(settled(transient(), 2), retry(300, "busy"));
        assert_eq!(settled(transient(), 3), bury(Reason::LastAttempt, "busy"));
    }

    #[test]
    fn a_permanent_failure_is_buried_at_once() {
        let permanent = Outcome::Failed(Failure::permanent("no such thing"));
        assert_eq!(settled(permanent, 1), bury(Reason::Permanent, "no such thing"));
    }

    #[test]
    fn what_cannot_be_read_is_buried_at_once() {
        let outcome = Outcome::Undecodable(Undecodable::unknown_type("x.Y"));
        let expected = bury(Reason::Undecodable, "event type \"x.Y\" is not handled here");
        assert_eq!(settled(outcome, 1), expected);
    }

    #[test]
    fn a_panic_counts_as_transient() {
        let panicked = || Outcome::Panicked("index out of bounds".to_owned());
        assert_eq!(settled(panicked(), 1), retry(100, "the handler panicked: index out of bounds"));
        let last = bury(Reason::LastAttempt, "the handler panicked: index out of bounds");
        assert_eq!(settled(panicked(), 3), last);
    }

    #[test]
    fn a_missed_deadline_counts_as_transient() {
        let late = || Outcome::TimedOut(Duration::from_secs(2));
        assert_eq!(settled(late(), 1), retry(100, "the handler took longer than 2s"));
        assert_eq!(settled(late(), 3), bury(Reason::LastAttempt, "the handler took longer than 2s"));
    }

    #[test]
    fn what_was_delivered_too_often_is_buried_unhandled() {
        assert!(!exhausted(3, &three_attempts()));
        assert!(exhausted(4, &three_attempts()));
        let expected = bury(Reason::LastAttempt, "delivered 4 times without a decision");
        assert_eq!(settled(Outcome::Exhausted, 4), expected);
    }

    #[test]
    fn what_was_given_up_before_stays_given_up_for_the_same_reason() {
        let given_up = Outcome::GivenUp(Reason::Permanent, "no".to_owned());
        assert_eq!(settled(given_up, 2), bury(Reason::Permanent, "no"));
    }

    #[test]
    fn delays_grow_to_the_longest_and_stay_there() {
        let many = Retry { max_attempts: u32::MAX, ..three_attempts() };
        let milliseconds = |attempt| delay(attempt, &many, WHOLE).as_millis();
        assert_eq!([1, 2, 3, 4, 1_000_000].map(milliseconds), [100, 300, 500, 500, 500]);
    }

    #[test]
    fn jitter_takes_up_to_half_of_a_delay() {
        let milliseconds = |jitter| delay(2, &three_attempts(), jitter).as_millis();
        assert_eq!([0.0, 0.5, 1.0].map(milliseconds), [150, 225, 300]);
    }
}
