//! Until when a process may act for what it holds. Pure.
//!
//! In: what two clocks say, and when a renewal was sent. Out: how much is left of the lease.
//!
//! A process counts from the moment before it sent a renewal that was confirmed, others from the moment at which they saw it, which is
//! later. They wait for [`SKEW`] longer, so the process has stopped before another one begins, as long as their clocks run equally
//! fast to 1 in 16.

use std::time::Duration;

/// How often a membership is renewed, and the operator's key.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(5);
/// How long a process may act after it sent its last confirmed renewal.
pub const LEASE: Duration = Duration::from_secs(30);
/// How much longer others wait than the lease: their clocks may run at another speed.
pub const SKEW: Duration = Duration::from_secs(2);
/// How long a key may stand still before its member is taken for dead. In a bucket that is younger than this, a missing key proves nothing.
pub const PATIENCE: Duration = LEASE.saturating_add(SKEW);
/// Maximum duration of a pull request for a partition.
pub const MAX_PULL: Duration = Duration::from_secs(10);
/// How long before the end of the lease the last pull request ends: it may have been sent late.
pub const PULL_MARGIN: Duration = Duration::from_secs(2);

/// What the clocks of a process say at one moment. Both are needed: the first may stand still although the machine was suspended
/// (where CLOCK_BOOTTIME does not count it), the second may be set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// CLOCK_BOOTTIME, which also counts while the machine is suspended.
    pub boot: Duration,
    /// The time since 1970.
    pub wall: Duration,
}

impl Clocks {
    /// The time since an earlier moment, by CLOCK_BOOTTIME: for what others did or did not do. A wall clock that is set forward would
    /// make them dead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.boot.saturating_sub(earlier.boot)
    }

    /// The time since an earlier moment, by the clock that says more: for what this process may still do.
    #[must_use]
    pub fn at_most_since(self, earlier: Self) -> Duration {
        self.since(earlier).max(self.wall.saturating_sub(earlier.wall))
    }
}

/// The right to act, which ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    /// When the newest confirmed renewal was sent.
    renewed: Option<Clocks>,
}

impl Lease {
    /// A renewal that was sent at that moment is confirmed.
    pub fn confirm(&mut self, sent: Clocks) {
        // A confirmation may come late, and never shortens the lease.
        if self.renewed.is_none_or(|renewed| sent.boot >= renewed.boot) {
            self.renewed = Some(sent);
        }
    }

    /// It is over.
    pub fn end(&mut self) {
        self.renewed = None;
    }

    /// When the newest confirmed renewal was sent.
    #[must_use]
    pub fn renewed(&self) -> Option<Clocks> {
        self.renewed
    }

    /// What is left of it.
    #[must_use]
    pub fn left(&self, now: Clocks) -> Duration {
        self.renewed.map_or(Duration::ZERO, |renewed| LEASE.saturating_sub(now.at_most_since(renewed)))
    }

    /// Whether the process may begin a handler, send an in-progress acknowledgement, or pull. It looks right before each.
    #[must_use]
    pub fn holds(&self, now: Clocks) -> bool {
        !self.left(now).is_zero()
    }

    /// How long a pull request may last that is sent now; `None` if there is too little time for one. It ends before the lease: the
    /// server serves the open requests of a process that was stopped, too.
    #[must_use]
    pub fn pull_expiry(&self, now: Clocks) -> Option<Duration> {
        let longest = self.left(now).saturating_sub(PULL_MARGIN).min(MAX_PULL);
        (!longest.is_zero()).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: u64, wall: u64) -> Clocks {
        Clocks { boot: Duration::from_secs(boot), wall: Duration::from_secs(wall) }
    }

    fn renewed(sent: Clocks) -> Lease {
        let mut lease = Lease::default();
        lease.confirm(sent);
        lease
    }

    #[test]
    fn it_is_counted_from_the_sending_of_the_renewal() {
        let mut lease = Lease::default();
        assert!(!lease.holds(at(0, 0)));
        lease.confirm(at(100, 1_000));
        assert!(lease.holds(at(129, 1_029)));
        assert!(!lease.holds(at(130, 1_030)));
        lease.confirm(at(90, 990));
        assert!(lease.holds(at(129, 1_029)), "an older confirmation that comes late shortens nothing");
        lease.end();
        assert!(!lease.holds(at(100, 1_000)));
    }

    #[test]
    fn the_clock_that_says_first_that_it_is_over_is_right() {
        let lease = renewed(at(100, 1_000));
        assert!(!lease.holds(at(101, 1_031)), "a machine that was suspended");
        assert!(!lease.holds(at(131, 1_001)), "a wall clock that was set back");
        assert!(!lease.holds(at(130, 10)), "a wall clock that was set back far");
        assert!(lease.holds(at(110, 10)));
    }

    #[test]
    fn a_pull_ends_before_the_lease() {
        let lease = renewed(at(100, 1_000));
        let expiry = |boot: u64| lease.pull_expiry(at(boot, 1_000)).map(|expiry| expiry.as_secs());
        assert_eq!([100, 118, 120, 127].map(expiry), [Some(10), Some(10), Some(8), Some(1)]);
        assert_eq!([128, 129, 200].map(expiry), [None; 3]);
    }
}
