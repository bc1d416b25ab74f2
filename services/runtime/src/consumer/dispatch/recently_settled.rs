//! Events whose end JetStream has just confirmed. An event that was redelivered before the server received its acknowledgement arrives
//! after the confirmation, and after later events of its key. Pure.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// How long such a redelivery may take to arrive.
const LIFETIME: Duration = Duration::from_secs(5);
/// Maximum events that are remembered. A prime: whatever part of a stream a consumer has, its sequences spread over all places.
const MAX_EVENTS: u64 = 8_191;

/// One event whose end was confirmed.
#[derive(Clone, Copy, Debug)]
struct Ended {
    sequence: u64,
    /// When the event was stored.
    time: Timestamp,
    at: Instant,
}

/// Each in a place that its sequence determines; a later event replaces it.
#[derive(Debug, Default)]
pub(super) struct RecentlySettled(Vec<Option<Ended>>);

impl RecentlySettled {
    /// JetStream confirmed that this event is never redelivered.
    pub(super) fn insert(&mut self, sequence: u64, time: Timestamp, now: Instant) {
        if self.0.is_empty() {
            self.0 = (0..MAX_EVENTS).map(|_| None).collect();
        }
        if let Some(place) = self.0.get_mut(place(sequence)) {
            *place = Some(Ended { sequence, time, at: now });
        }
    }

    /// Whether a delivery is of such an event. One that counts as the first of its event is not: a user reset the consumer, or a server
    /// forgot what it had delivered.
    pub(super) fn contains(&self, sequence: u64, time: Timestamp, attempt: u32, now: Instant) -> bool {
        let is_it =
            |ended: &Ended| ended.sequence == sequence && ended.time == time && now < ended.at + LIFETIME;
        attempt > 1 && self.0.get(place(sequence)).is_some_and(|ended| ended.as_ref().is_some_and(is_it))
    }
}

fn place(sequence: u64) -> usize {
    usize::try_from(sequence % MAX_EVENTS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_ended_just_now_is_known_when_it_is_delivered_again() {
        let (mut ended, now) = (RecentlySettled::default(), Instant::now());
        let time = Timestamp::UNIX_EPOCH;
        assert!(!ended.contains(7, time, 2, now));
        ended.insert(7, time, now);
        let nearly = now + LIFETIME - Duration::from_millis(1);
        assert!(ended.contains(7, time, 2, nearly) && !ended.contains(7, time, 2, now + LIFETIME));
        // It was reset, is another event, or one of another stream of the name.
        for (sequence, time, attempt) in [(7, time, 1), (8, time, 2), (7, Timestamp::MAX, 2)] {
            assert!(!ended.contains(sequence, time, attempt, now), "{sequence} {time} {attempt}");
        }
        ended.insert(7 + MAX_EVENTS, time, now);
        assert!(!ended.contains(7, time, 2, now) && ended.contains(7 + MAX_EVENTS, time, 2, now));
    }
}
