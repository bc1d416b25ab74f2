//! Events whose end JetStream has confirmed just now. One that was delivered again before the server had heard of its end arrives behind
//! the confirmation, and behind later events of its key. Pure.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use rustc_hash::FxHashMap;
use tokio::time::Instant;

/// How long a delivery may be under way beside the confirmation.
const LIFETIME: Duration = Duration::from_secs(5);
/// Events that are remembered at most.
const MAX_EVENTS: usize = 8_192;

/// By sequence, with the time at which the event was stored.
#[derive(Debug, Default)]
pub(super) struct EndedEvents {
    events: FxHashMap<u64, Timestamp>,
    /// Oldest first.
    by_age: VecDeque<(Instant, u64)>,
}

impl EndedEvents {
    /// JetStream confirmed that this event does not come again.
    pub(super) fn insert(&mut self, sequence: u64, time: Timestamp, now: Instant) {
        while let Some((ended_at, oldest)) = self.by_age.front().copied()
            && (now >= ended_at + LIFETIME || self.by_age.len() >= MAX_EVENTS)
        {
            self.by_age.pop_front();
            self.events.remove(&oldest);
        }
        self.events.insert(sequence, time);
        self.by_age.push_back((now, sequence));
    }

    /// Whether a delivery is of such an event. One that counts as the first of its event is not: somebody reset the consumer, or a server
    /// forgot what it had delivered.
    pub(super) fn contains(&self, sequence: u64, time: Timestamp, attempt: u32) -> bool {
        attempt > 1 && self.events.get(&sequence) == Some(&time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_ended_just_now_is_known_when_it_is_delivered_again() {
        let (mut ended, now) = (EndedEvents::default(), Instant::now());
        let time = Timestamp::UNIX_EPOCH;
        ended.insert(7, time, now);
        assert!(ended.contains(7, time, 2));
        assert!(
            !ended.contains(7, time, 1)
                && !ended.contains(8, time, 2)
                && !ended.contains(7, Timestamp::MAX, 2)
        );
        ended.insert(8, time, now + LIFETIME);
        assert!(!ended.contains(7, time, 2) && ended.contains(8, time, 2));
    }
}
