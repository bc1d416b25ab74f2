//! Whether the dead-letter stream responds. While it does not, only one event per [`PROBE_INTERVAL`] waits for it: each takes the slot
//! of an event that could be handled meanwhile.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How often one event tries it while it does not respond. Longer than the time-out of a write.
const PROBE_INTERVAL: Duration = Duration::from_secs(6);

/// When it may be tried next; `None` while it responds.
#[derive(Debug, Default)]
pub(in crate::consumer) struct CircuitBreaker(Mutex<Option<Instant>>);

impl CircuitBreaker {
    /// Whether it may be tried now; the caller [`record`s](Self::record) the result.
    pub(in crate::consumer) fn allow(&self) -> bool {
        let (mut next, now) = (self.0.lock(), Instant::now());
        let may = next.is_none_or(|next| now >= next);
        if may && next.is_some() {
            *next = Some(now + PROBE_INTERVAL);
        }
        may
    }

    /// Whether it responded.
    pub(in crate::consumer) fn record(&self, answered: bool) {
        let mut next = self.0.lock();
        *next = if answered { None } else { next.or_else(|| Some(Instant::now() + PROBE_INTERVAL)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn while_it_does_not_answer_one_in_a_while_tries_it() {
        let breaker = CircuitBreaker::default();
        assert!(breaker.allow() && breaker.allow());
        breaker.record(false);
        assert!(!breaker.allow());
        tokio::time::advance(PROBE_INTERVAL).await;
        assert_eq!([breaker.allow(), breaker.allow()], [true, false]);
        tokio::time::advance(PROBE_INTERVAL / 2).await;
        breaker.record(false);
        assert!(!breaker.allow());
        tokio::time::advance(PROBE_INTERVAL / 2).await;
        assert!(breaker.allow());
        breaker.record(true);
        assert!(breaker.allow() && breaker.allow());
    }
}
