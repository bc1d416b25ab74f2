//! Decides about an event after an attempt. In: how the attempt ended. Out: acknowledge, retry, or dead-letter. Pure.

use std::time::Duration;

use jetwright_crds::environment::Retry;

use crate::{DecodeError, HandlerError};

/// The outcome of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The handler succeeded.
    Done,
    /// The handler returned an error.
    Failed(HandlerError),
    /// The payload or its type could not be decoded; the handler was not called.
    Undecodable(DecodeError),
    /// Its type is unknown, and the handler's options ignore such events.
    Ignored,
    /// The handler panicked.
    Panicked(String),
    /// The handler exceeded its deadline.
    TimedOut(Duration),
    /// It was delivered far more often than there are attempts, this often, and the handler was not called: it may kill its process.
    DeliveredTooOften(u32),
    /// It failed for good before, for this reason and with this error, and its dead letter could not be written.
    GivenUp(Reason, String),
}

/// The decision about the event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is handled.
    Done,
    /// It is not for this handler.
    Ignored,
    /// It is retried, not before this time has passed.
    Retry {
        /// Time until the next attempt.
        after: Duration,
        /// What went wrong.
        error: String,
    },
    /// It is not retried, though it was not handled.
    DeadLetter {
        /// The rule that decided so.
        reason: Reason,
        /// What went wrong.
        error: String,
    },
}

/// Why an event is not retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The handler reported that a retry cannot help.
    Permanent,
    /// It could not be decoded.
    Undecodable,
    /// All attempts were used.
    LastAttempt,
    /// It was delivered far more often than there are attempts.
    DeliveredTooOften,
}

impl Reason {
    /// Its name in logs, metrics and advisories.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Undecodable => "undecodable",
            Self::LastAttempt => "last-attempt",
            Self::DeliveredTooOften => "delivered-too-often",
        }
    }
}

/// Deliveries beyond the attempts that hand-overs, restarts and lost connections may cost an event.
const SPARE_DELIVERIES: u32 = 10;

/// How an event is handled, by the number of its deliveries. A delivery is no attempt: a process that NAKs an event, or dies, used none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Beside others.
    None,
    /// While nothing else is handled in its process: the handler may end the process with it.
    Alone,
    /// Not at all.
    NotCalled,
}

/// Classifies an event by the number of its deliveries.
pub(crate) fn isolation(deliveries: u32, retry: &Retry) -> Isolation {
    let usual = retry.max_attempts.saturating_add(SPARE_DELIVERIES);
    if deliveries > usual.saturating_mul(2) {
        Isolation::NotCalled
    } else if deliveries > usual {
        Isolation::Alone
    } else {
        Isolation::None
    }
}

/// Whether an event is not retried if the attempt of this delivery fails. `calls` says how often this process called the handler with it
/// before: those of other processes are unknown, and an event that may only have been handed over is tried once more, as long as
/// hand-overs can explain its deliveries.
pub(crate) fn is_last_attempt(deliveries: u32, calls: u32, retry: &Retry) -> bool {
    let is_only_handed_over = calls == 0 && deliveries > 1;
    let usual = retry.max_attempts.saturating_add(SPARE_DELIVERIES);
    deliveries > usual || (deliveries >= retry.max_attempts && !is_only_handed_over)
}

/// Decides. `attempt` is the attempt's number from 1, `jitter` a random number from 0 to 1.
pub(crate) fn decide(
    outcome: Outcome,
    attempt: u32,
    is_last_attempt: bool,
    retry: &Retry,
    jitter: f64,
) -> Decision {
    let mut asked_for = None;
    let error = match outcome {
        Outcome::Done => return Decision::Done,
        Outcome::Ignored => return Decision::Ignored,
        Outcome::Failed(HandlerError::Permanent(why)) => {
            return Decision::DeadLetter { reason: Reason::Permanent, error: why };
        }
        Outcome::Undecodable(why) => {
            return Decision::DeadLetter { reason: Reason::Undecodable, error: why.to_string() };
        }
        Outcome::DeliveredTooOften(deliveries) => {
            let error = format!("delivered {deliveries} times without being settled: it may end its process");
            return Decision::DeadLetter { reason: Reason::DeliveredTooOften, error };
        }
        Outcome::GivenUp(reason, error) => return Decision::DeadLetter { reason, error },
        Outcome::Failed(HandlerError::Transient(why)) => why,
        Outcome::Failed(HandlerError::RetryAfter(after, why)) => {
            asked_for = Some(after);
            why
        }
        Outcome::Panicked(message) => format!("the handler panicked: {message}"),
        Outcome::TimedOut(deadline) => format!("the handler took longer than {deadline:?}"),
    };
    if is_last_attempt {
        return Decision::DeadLetter { reason: Reason::LastAttempt, error };
    }
    Decision::Retry { after: asked_for.unwrap_or_else(|| delay(attempt, retry, jitter)), error }
}

/// The delay after this attempt: exponential up to the maximum, then between half and the whole of it, so that events
/// that failed together are not retried together.
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
        Outcome::Failed(HandlerError::transient("busy"))
    }

    fn retry(milliseconds: u64, error: &str) -> Decision {
        Decision::Retry { after: Duration::from_millis(milliseconds), error: error.to_owned() }
    }

    fn dead_letter(reason: Reason, error: &str) -> Decision {
        Decision::DeadLetter { reason, error: error.to_owned() }
    }

    fn decided(outcome: Outcome, attempt: u32) -> Decision {
        decide(outcome, attempt, attempt >= 3, &three_attempts(), WHOLE)
    }

    #[test]
    fn what_is_done_is_acknowledged_even_at_the_last_attempt() {
        assert_eq!(decided(Outcome::Done, 1), Decision::Done);
        assert_eq!(decided(Outcome::Done, 3), Decision::Done);
    }

    #[test]
    fn a_transient_failure_is_tried_again_while_attempts_are_left() {
        assert_eq!(decided(transient(), 1), retry(100, "busy"));
        assert_eq!(decided(transient(), 2), retry(300, "busy"));
        assert_eq!(decided(transient(), 3), dead_letter(Reason::LastAttempt, "busy"));
    }

    #[test]
    fn a_permanent_failure_is_given_up_at_once() {
        let permanent = Outcome::Failed(HandlerError::permanent("no such thing"));
        assert_eq!(decided(permanent, 1), dead_letter(Reason::Permanent, "no such thing"));
    }

    #[test]
    fn a_failure_that_names_its_time_is_tried_again_then_while_attempts_are_left() {
        let busy = || Outcome::Failed(HandlerError::retry_after(Duration::from_secs(7), "busy"));
        assert_eq!(decided(busy(), 1), retry(7000, "busy"));
        assert_eq!(decided(busy(), 3), dead_letter(Reason::LastAttempt, "busy"));
    }

    #[test]
    fn what_is_not_for_the_handler_is_ignored_also_at_the_last_attempt() {
        assert_eq!(
            [1, 3].map(|attempt| decided(Outcome::Ignored, attempt)),
            [const { Decision::Ignored }; 2]
        );
    }

    #[test]
    fn what_cannot_be_read_is_given_up_at_once() {
        let outcome = Outcome::Undecodable(DecodeError::unknown_type("x.Y"));
        let expected = dead_letter(Reason::Undecodable, "event type \"x.Y\" is not handled here");
        assert_eq!(decided(outcome, 1), expected);
    }

    #[test]
    fn a_panic_counts_as_transient() {
        let panicked = || Outcome::Panicked("index out of bounds".to_owned());
        assert_eq!(decided(panicked(), 1), retry(100, "the handler panicked: index out of bounds"));
        let last = dead_letter(Reason::LastAttempt, "the handler panicked: index out of bounds");
        assert_eq!(decided(panicked(), 3), last);
    }

    #[test]
    fn a_missed_deadline_counts_as_transient() {
        let late = || Outcome::TimedOut(Duration::from_secs(2));
        assert_eq!(decided(late(), 1), retry(100, "the handler took longer than 2s"));
        assert_eq!(decided(late(), 3), dead_letter(Reason::LastAttempt, "the handler took longer than 2s"));
    }

    #[test]
    fn what_was_delivered_far_too_often_runs_alone_and_then_not_at_all() {
        use Isolation::{Alone, None, NotCalled};
        let isolations = [1, 3, 13, 14, 26, 27].map(|deliveries| isolation(deliveries, &three_attempts()));
        assert_eq!(isolations, [None, None, None, Alone, Alone, NotCalled]);
        let error = "delivered 27 times without being settled: it may end its process";
        let expected = dead_letter(Reason::DeliveredTooOften, error);
        assert_eq!(decided(Outcome::DeliveredTooOften(27), 27), expected);
    }

    #[test]
    fn an_event_that_was_only_handed_over_is_not_at_its_last_attempt() {
        let last = |deliveries, calls| is_last_attempt(deliveries, calls, &three_attempts());
        assert!(!last(2, 1) && last(3, 2) && last(4, 1));
        assert!(!last(3, 0) && !last(13, 0) && last(14, 0));
        let once = Retry { max_attempts: 1, ..three_attempts() };
        assert!(is_last_attempt(1, 0, &once) && !is_last_attempt(2, 0, &once));
    }

    #[test]
    fn what_was_given_up_before_stays_given_up_for_the_same_reason() {
        let given_up = Outcome::GivenUp(Reason::Permanent, "no".to_owned());
        assert_eq!(decided(given_up, 2), dead_letter(Reason::Permanent, "no"));
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
