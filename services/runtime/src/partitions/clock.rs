//! The two clocks of a lease. Reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jetwright_partitions::lease::Clocks;
use rustix::time::{ClockId, clock_gettime};

/// What they say now.
pub(crate) fn clocks() -> Clocks {
    let boot = clock_gettime(ClockId::Boottime);
    let boot = Duration::new(
        boot.tv_sec.try_into().unwrap_or_default(),
        boot.tv_nsec.try_into().unwrap_or_default(),
    );
    Clocks { boot, wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_clocks_run() {
        let earlier = clocks();
        std::thread::sleep(Duration::from_millis(2));
        let now = clocks();
        assert!(now.since(earlier) >= Duration::from_millis(2));
        assert!(now.wall > Duration::from_hours(24 * 365 * 50));
    }
}
