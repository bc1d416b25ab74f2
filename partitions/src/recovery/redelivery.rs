//! Whether JetStream has redelivered everything that was unacknowledged at some time. Pure.
//!
//! ackWait alone does not say so. JetStream redelivers what is due only to an open pull request (there is none while the process stands still, has no
//! lease or no room, or waits after a failure), while the consumer is not paused, and while its leader runs and has a quorum. So JetStream has to
//! show it. Once responses show that it may have redelivered what was due for [`MAX_REDELIVERY_DELAY`], one of two things does:
//!
//! - an event is delivered for the first time, with a number above that of such a response: what is due goes first (`getNextMsg` of nats-server 2.15);
//! - all responses of [`MAX_REDELIVERY_DELAY`] have an open pull request and the same newest delivery. Of a consumer with replicas that is the newest that a quorum has:
//!   one that a follower has not confirmed yet is not seen.
//!
//! Not seen is what makes something due later: a purge of the stream, which empties the queue of redeliveries (what was in it is due ackWait later, or
//! later still), an in-progress acknowledgement of a predecessor that comes late, and a server's clock that is set back. Nor is a leader seen that lacks
//! a part of the stream, or the only server of a consumer that restarts within [`MAX_REDELIVERY_DELAY`] while the process is connected to another.

use std::time::{Duration, Instant};

use super::Response;
use crate::lease::MAX_PULL;

/// Maximum time that a server takes to redeliver what is due. One that has just loaded a consumer's state waits for up to 1.5 s (`applyState`), and a
/// leader hears each 2 s at least from those that follow it.
pub(super) const MAX_REDELIVERY_DELAY: Duration = Duration::from_secs(3);

/// The proof of one redelivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedeliveryProof {
    due_at: Instant,
    answered_at: Option<Instant>,
    /// Since when responses show that the consumer may deliver.
    serving_since: Option<Instant>,
    /// A response since then had the consumer paused.
    was_paused: bool,
    /// Number of the newest delivery by the first response after the delay.
    delivered: Option<u64>,
    /// The newest delivery by all responses with an open pull request since then, and since when.
    idle: Option<(u64, Instant)>,
    is_complete: bool,
}

impl RedeliveryProof {
    /// Of what is due at that time.
    pub(super) fn new(due_at: Instant) -> Self {
        Self {
            due_at,
            answered_at: None,
            serving_since: None,
            was_paused: false,
            delivered: None,
            idle: None,
            is_complete: false,
        }
    }

    /// When it is due.
    pub(super) fn due_at(&self) -> Instant {
        self.due_at
    }

    /// An event was delivered for the first time, with this number.
    pub(super) fn received_new(&mut self, number: u64) {
        self.is_complete |= self.delivered.is_some_and(|delivered| number > delivered);
    }

    /// JetStream was asked, and answered.
    pub(super) fn observed(&mut self, response: Response) {
        let Response { state, asked_at, answered_at } = response;
        // It stood still, or was started again.
        let was_away = self.answered_at.is_some_and(|before| answered_at > before + MAX_REDELIVERY_DELAY);
        self.answered_at = Some(answered_at);
        let may_deliver = !state.is_paused && state.has_quorum;
        if was_away || !may_deliver {
            (self.serving_since, self.delivered, self.idle) = (None, None, None);
        }
        self.was_paused |= state.is_paused;
        // A pause that is taken back wakes no pull request that is open.
        let delay = if self.was_paused { MAX_PULL + MAX_REDELIVERY_DELAY } else { MAX_REDELIVERY_DELAY };
        if !may_deliver
            || asked_at < self.due_at
            || asked_at < *self.serving_since.get_or_insert(answered_at) + delay
        {
            return;
        }
        let number = state.delivered.consumer_sequence;
        self.delivered.get_or_insert(number);
        self.idle = match self.idle {
            _ if state.pull_requests == 0 => None,
            Some((before, since)) if before == number => Some((number, since)),
            _ => Some((number, answered_at)),
        };
        self.is_complete |= self.idle.is_some_and(|(_, since)| asked_at >= since + MAX_REDELIVERY_DELAY);
    }

    /// Whether everything was redelivered, to any client.
    pub(super) fn is_complete(&self) -> bool {
        self.is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::{ConsumerState, Delivered};

    const STEP: Duration = Duration::from_millis(750);

    fn state(number: u64, pull_requests: u64) -> ConsumerState {
        ConsumerState {
            delivered: Delivered { consumer_sequence: number, stream_sequence: number },
            ack_floor: 0,
            ack_pending: 1,
            ack_wait: Duration::from_secs(10),
            pull_requests,
            is_paused: false,
            has_quorum: true,
        }
    }

    fn at_once(state: ConsumerState, at: Instant) -> Response {
        Response { state, asked_at: at, answered_at: at }
    }

    /// Of responses in steps of a quarter of the slack, from when it is due.
    fn after(states: &[ConsumerState]) -> RedeliveryProof {
        let now = Instant::now();
        let mut proof = RedeliveryProof::new(now);
        (0..).zip(states).for_each(|(step, state)| proof.observed(at_once(*state, now + step * STEP)));
        proof
    }

    fn times(count: usize, state: ConsumerState) -> Vec<ConsumerState> {
        vec![state; count]
    }

    #[test]
    fn as_long_as_an_open_request_gets_nothing_there_is_nothing_to_redeliver() {
        // The slack, and as long once more.
        assert!(after(&times(9, state(7, 1))).is_complete());
        assert!(!after(&times(8, state(7, 1))).is_complete());
        assert!(!after(&times(20, state(7, 0))).is_complete());
        for other in [state(7, 0), state(8, 1)] {
            let same = times(3, state(other.delivered.consumer_sequence, 1));
            let between = [times(8, state(7, 1)), vec![other], same.clone()].concat();
            assert!(!after(&between).is_complete(), "{other:?}");
            assert!(after(&[between, same].concat()).is_complete());
        }
    }

    #[test]
    fn what_is_new_comes_after_what_is_due() {
        let mut early = after(&times(4, state(7, 0)));
        early.received_new(9);
        assert!(!early.is_complete());
        let mut proof = after(&[times(5, state(7, 0)), vec![state(8, 0)]].concat());
        proof.received_new(7);
        assert!(!proof.is_complete(), "it was delivered before");
        proof.received_new(8);
        assert!(proof.is_complete());
    }

    #[test]
    fn while_a_consumer_may_not_deliver_nothing_is_shown() {
        let paused = ConsumerState { is_paused: true, ..state(7, 1) };
        let without_quorum = ConsumerState { has_quorum: false, ..state(7, 1) };
        let longest_request = usize::try_from(MAX_PULL.as_millis().div_ceil(STEP.as_millis())).unwrap();
        for (silent, more) in [(paused, longest_request), (without_quorum, 0)] {
            assert!(!after(&times(20, silent)).is_complete());
            let again = [times(8, state(7, 1)), vec![silent], times(more + 8, state(7, 1))].concat();
            let mut proof = after(&again);
            assert!(!proof.is_complete());
            proof.received_new(8);
            assert!(proof.is_complete());
            assert!(after(&[again, times(1, state(7, 1))].concat()).is_complete());
        }
    }

    #[test]
    fn a_server_that_stood_still_shows_nothing_of_the_time_before() {
        let now = Instant::now();
        let late = now + 15 * MAX_REDELIVERY_DELAY;
        let mut proof = RedeliveryProof::new(now);
        proof.observed(at_once(state(7, 1), now));
        // Asked in time, and answered late.
        proof.observed(Response {
            state: state(7, 1),
            asked_at: now + MAX_REDELIVERY_DELAY,
            answered_at: late,
        });
        proof.received_new(8);
        proof.observed(Response {
            state: state(8, 1),
            asked_at: now + 2 * MAX_REDELIVERY_DELAY,
            answered_at: late,
        });
        proof.received_new(9);
        assert!(!proof.is_complete());
        for step in 1..=3 {
            proof.observed(at_once(state(9, 1), late + step * MAX_REDELIVERY_DELAY / 2));
        }
        assert!(!proof.is_complete());
        proof.observed(at_once(state(9, 1), late + 2 * MAX_REDELIVERY_DELAY));
        assert!(proof.is_complete());
    }
}
