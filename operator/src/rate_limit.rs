//! How often something may be done: so many times a second, with a second's worth at once.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

/// A bucket of permits that refills with time.
pub struct RateLimit {
    per_second: f64,
    /// Permits that were left at a time; full before the first.
    left: Mutex<Option<(Instant, f64)>>,
}

impl RateLimit {
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second), left: Mutex::default() }
    }

    /// Takes a permit, if there is one.
    #[must_use]
    pub fn try_acquire(&self) -> bool {
        self.with_left(|left| {
            let granted = *left >= 1.0;
            *left -= f64::from(u8::from(granted));
            granted
        })
    }

    /// Takes the next permit that nobody has taken, and says how long it is until then.
    #[must_use]
    pub fn reserve(&self) -> Duration {
        self.with_left(|left| {
            *left -= 1.0;
            Duration::from_secs_f64((-*left / self.per_second).max(0.0))
        })
    }

    fn with_left<R>(&self, take: impl FnOnce(&mut f64) -> R) -> R {
        let mut bucket = self.left.lock();
        let now = Instant::now();
        let mut left = bucket.map_or(self.per_second, |(then, left)| {
            (left + (now - then).as_secs_f64() * self.per_second).min(self.per_second)
        });
        let taken = take(&mut left);
        *bucket = Some((now, left));
        taken
    }

    /// Waits for a permit.
    pub async fn acquire(&self) {
        while !self.try_acquire() {
            sleep(Duration::from_secs_f64(1.0 / self.per_second)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn permits_refill_with_time() {
        let limit = RateLimit::new(20);
        assert_eq!((0..100).filter(|_| limit.try_acquire()).count(), 20);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!((0..100).filter(|_| limit.try_acquire()).count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reserves_a_permit_knows_when_it_holds() {
        let limit = RateLimit::new(20);
        let waits: Vec<_> = (0..60).map(|_| limit.reserve().as_millis()).collect();
        assert_eq!((waits[19], waits[20], waits[59]), (0, 50, 2000));
        assert!(!limit.try_acquire());
        tokio::time::advance(Duration::from_millis(2060)).await;
        assert!(limit.try_acquire());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_permit_gets_one_in_its_time() {
        let limit = RateLimit::new(20);
        let begun = Instant::now();
        for _ in 0..60 {
            limit.acquire().await;
        }
        assert!((2000..2200).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
}
