//! How fast JetStream is asked: a round of requests fills an interval, and where that would be too many a second, the interval grows.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// Least time between two requests: at most 50 a second.
const MIN_GAP: Duration = Duration::from_millis(20);

/// The time that so many requests take at least, where they would fit into an interval or not.
pub fn grown(interval: Duration, requests: u32) -> Duration {
    interval.max(MIN_GAP * requests)
}

/// Spreads the requests of one round.
pub struct Pace {
    gap: Duration,
    /// When the next request may be sent, and how many were.
    state: Mutex<(Instant, u32)>,
}

impl Pace {
    /// So many requests over this time.
    pub fn over(interval: Duration, requests: u32) -> Self {
        Self { gap: (interval / requests.max(1)).max(MIN_GAP), state: Mutex::new((Instant::now(), 0)) }
    }

    /// At most one request in this time.
    pub fn with_gap(gap: Duration) -> Self {
        Self { gap, state: Mutex::new((Instant::now(), 0)) }
    }

    /// As fast as is permitted.
    pub fn at_once() -> Self {
        Self::over(Duration::ZERO, 1)
    }

    /// Waits until the next request may be sent.
    pub async fn turn(&self) {
        let at = {
            let mut state = self.state.lock();
            let at = state.0.max(Instant::now());
            *state = (at + self.gap, state.1 + 1);
            at
        };
        sleep_until(at).await;
    }

    /// Requests that were sent.
    pub fn sent(&self) -> u32 {
        self.state.lock().1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_fill_the_interval_and_never_exceed_50_a_second() {
        let seconds = Duration::from_secs;
        for (requests, expected) in [(10, seconds(27)), (100, seconds(30)), (3000, seconds(60))] {
            assert_eq!(grown(seconds(30), requests), expected.max(seconds(30)));
            let pace = Pace::over(seconds(30), requests);
            let begun = Instant::now();
            for _ in 0..requests {
                pace.turn().await;
            }
            let took = begun.elapsed();
            assert!(took <= expected && took >= expected.mul_f64(0.98), "{requests}: {took:?}");
        }
        let pace = Pace::at_once();
        let begun = Instant::now();
        for _ in 0..51 {
            pace.turn().await;
        }
        assert_eq!((begun.elapsed(), pace.sent()), (seconds(1), 51));
    }
}
