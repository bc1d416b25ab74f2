//! How long to wait before an attempt is repeated. In: the attempt, and a random number. Out: the pause. Pure.

use std::time::Duration;

/// Maximum pause between two attempts, before jitter.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The pause before this attempt: almost none before the first, then exponential with full jitter, so that the clients of a server
/// that comes back do not all reconnect at once. `jitter` is a random number from 0 to 1.
#[must_use]
pub fn pause(attempt: usize, jitter: f64) -> Duration {
    if attempt <= 1 {
        return Duration::from_millis(20).mul_f64(jitter);
    }
    let exponent = u32::try_from(attempt.min(16)).unwrap_or(16);
    let whole = Duration::from_millis(25).saturating_mul(2_u32.saturating_pow(exponent)).min(MAX_PAUSE);
    whole.mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_whatever_the_attempt() {
        let milliseconds = |attempt| pause(attempt, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4].map(milliseconds), [20, 100, 200, 400]);
        assert_eq!([9, 100, usize::MAX].map(milliseconds), [5000, 5000, 5000]);
        assert_eq!(pause(9, 0.0), Duration::ZERO);
    }
}
