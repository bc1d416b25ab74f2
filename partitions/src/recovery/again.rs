//! Whether JetStream has delivered everything again that was unacknowledged at some time. Pure.
//!
//! ackWait alone does not say so. What is due waits in the server while it has no pull request (the process stands still, has no lease or no room, or
//! waits after a failure), while the consumer is paused, and while the server itself stands still. So the server has to show it, once it is seen to run
//! after that time: by an event that it delivers for the first time, or by two responses in a row with an open pull request and no delivery between them.
//! It delivers what is due again before anything else (`getNextMsg` of nats-server 2.15).

use std::time::{Duration, Instant};

use super::ConsumerState;

/// How long a server may take for what is due.
const TIMER_SLACK: Duration = Duration::from_secs(1);

/// What is unacknowledged at some time, and due again at another.
#[derive(Clone, Copy, Debug)]
pub(super) struct DueAgain {
    at: Instant,
    /// When the first response came that was asked for after that, of a consumer that is not paused.
    runs_since: Option<Instant>,
    /// Number of the newest delivery by the first response after the slack.
    delivered: Option<u64>,
    /// The same by the newest response, if there was an open pull request, and when that came.
    idle: Option<(u64, Instant)>,
    is_delivered: bool,
}

impl DueAgain {
    pub(super) fn new(at: Instant) -> Self {
        Self { at, runs_since: None, delivered: None, idle: None, is_delivered: false }
    }

    /// When it is due.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// An event was delivered for the first time, with this number.
    pub(super) fn received_new(&mut self, number: u64) {
        self.is_delivered |= self.delivered.is_some_and(|delivered| number > delivered);
    }

    /// JetStream was asked, and answered.
    pub(super) fn observed(&mut self, state: ConsumerState, asked_at: Instant, answered_at: Instant) {
        if state.is_paused {
            (self.runs_since, self.delivered, self.idle) = (None, None, None);
            return;
        }
        if asked_at < self.at || asked_at < *self.runs_since.get_or_insert(answered_at) + TIMER_SLACK {
            return;
        }
        let number = state.delivered.consumer_sequence;
        self.delivered.get_or_insert(number);
        let is_same = |(before, answered): (u64, Instant)| before == number && asked_at >= answered;
        let is_open = state.pull_requests > 0;
        self.is_delivered |= is_open && self.idle.is_some_and(is_same);
        self.idle = is_open.then_some((number, answered_at));
    }

    /// Whether all of it was delivered again, to whomever.
    pub(super) fn is_delivered(&self) -> bool {
        self.is_delivered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::Delivered;

    const ASKS: Duration = Duration::from_millis(250);

    fn state(number: u64, pull_requests: u64) -> ConsumerState {
        ConsumerState {
            delivered: Delivered { consumer_sequence: number, stream_sequence: number },
            ack_floor: 0,
            ack_pending: 1,
            ack_wait: Duration::from_secs(10),
            pull_requests,
            is_paused: false,
        }
    }

    /// Due now, and seen to run since.
    fn due(now: Instant) -> DueAgain {
        let mut due = DueAgain::new(now);
        due.observed(state(7, 1), now, now);
        due
    }

    #[test]
    fn two_responses_without_a_delivery_between_them_show_it_if_there_is_a_request() {
        let now = Instant::now();
        let after = |quarters: u32| now + TIMER_SLACK + quarters * ASKS;
        let is_delivered = |responses: &[(u64, u64)]| {
            let mut due = due(now);
            for (quarters, (number, requests)) in (0..).zip(responses) {
                due.observed(state(*number, *requests), after(quarters), after(quarters));
            }
            due.is_delivered()
        };
        assert!(is_delivered(&[(7, 1), (7, 1)]));
        assert!(is_delivered(&[(7, 1), (8, 1), (8, 2)]));
        for neither in [
            &[(7, 1)][..],
            &[(7, 1), (8, 1)],
            &[(7, 0), (7, 0)],
            &[(7, 1), (7, 0)],
            &[(7, 0), (7, 1)],
            &[(7, 1), (7, 0), (7, 1)],
        ] {
            assert!(!is_delivered(neither), "{neither:?}");
        }
        let mut due = due(now);
        due.observed(state(7, 1), after(0), after(2));
        due.observed(state(7, 1), after(1), after(3));
        assert!(!due.is_delivered(), "asked before the response");
        due.observed(state(7, 1), after(3), after(4));
        assert!(due.is_delivered());
    }

    #[test]
    fn what_is_new_comes_after_what_is_due() {
        let now = Instant::now();
        let mut due = due(now);
        due.received_new(8);
        due.observed(state(8, 0), now + TIMER_SLACK / 2, now + TIMER_SLACK);
        due.received_new(9);
        assert!(!due.is_delivered());
        due.observed(state(9, 0), now + TIMER_SLACK, now + TIMER_SLACK);
        due.observed(state(10, 0), now + TIMER_SLACK + ASKS, now + TIMER_SLACK + ASKS);
        due.received_new(9);
        assert!(!due.is_delivered(), "it was delivered before");
        due.received_new(10);
        assert!(due.is_delivered());
    }

    #[test]
    fn a_server_that_stands_still_or_a_consumer_that_is_paused_shows_nothing() {
        let now = Instant::now();
        let later = now + 30 * TIMER_SLACK;
        let mut due = DueAgain::new(now);
        // Asked in time, and answered late, as the question after it.
        due.observed(state(7, 1), now, later);
        due.observed(state(7, 1), now + 2 * TIMER_SLACK, later);
        due.observed(state(7, 1), later, later);
        due.received_new(8);
        assert!(!due.is_delivered());
        due.observed(state(8, 1), later + TIMER_SLACK, later + TIMER_SLACK);
        due.observed(
            ConsumerState { is_paused: true, ..state(8, 1) },
            later + 2 * TIMER_SLACK,
            later + 2 * TIMER_SLACK,
        );
        due.observed(state(8, 1), later + 3 * TIMER_SLACK, later + 3 * TIMER_SLACK);
        due.received_new(9);
        assert!(!due.is_delivered());
        for slack in 4..6 {
            due.observed(state(9, 1), later + slack * TIMER_SLACK, later + slack * TIMER_SLACK);
        }
        assert!(due.is_delivered());
    }
}
