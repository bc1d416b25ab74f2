//! Until when it is certain that the consumer is still the one that delivered the events in flight. Pure.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

/// Maximum age of JetStream's proof that the consumer is still the same, for an acknowledgement to be sent without asking. A
/// stream can be deleted and recreated within milliseconds; asking for each acknowledgement would double its cost.
const PROOF_LIFETIME: Duration = Duration::from_millis(20);

/// Until when it is certain that the consumer is still the same.
#[derive(Debug)]
pub(super) struct Proof {
    began: Instant,
    /// After JetStream's proof, in microseconds after that.
    shown_until: AtomicU64,
    /// While the server has a pull request, whose last one it ends with the consumer.
    open_until: AtomicU64,
}

impl Proof {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), shown_until: AtomicU64::new(0), open_until: AtomicU64::new(0) }
    }

    /// JetStream proved it at this time.
    pub(super) fn renew(&self, at: Instant) {
        self.shown_until.fetch_max(self.micros(at + PROOF_LIFETIME), Ordering::Relaxed);
    }

    /// The server has a pull request until then, or none.
    pub(super) fn hold_until(&self, open_until: Option<Instant>) {
        self.open_until.store(open_until.map_or(0, |until| self.micros(until)), Ordering::Relaxed);
    }

    /// There is doubt. A request that was open is no longer open.
    pub(super) fn revoke(&self) {
        self.shown_until.store(0, Ordering::Relaxed);
        self.open_until.store(0, Ordering::Relaxed);
    }

    pub(super) fn holds(&self, now: Instant) -> bool {
        let until = self.shown_until.load(Ordering::Relaxed).max(self.open_until.load(Ordering::Relaxed));
        self.micros(now) <= until
    }

    /// Never 0, which is no proof.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        since.as_secs() * 1_000_000 + u64::from(since.subsec_micros()) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jetstream_showed_holds_for_a_moment_and_while_a_request_is_open() {
        let proof = Proof::new();
        let now = proof.began + Duration::from_secs(7);
        assert!(!proof.holds(now));
        proof.renew(now);
        proof.renew(now - Duration::from_secs(1));
        assert!(proof.holds(now) && proof.holds(now + PROOF_LIFETIME));
        assert!(!proof.holds(now + PROOF_LIFETIME + Duration::from_millis(1)));
        proof.hold_until(Some(now + Duration::from_secs(1)));
        assert!(proof.holds(now + Duration::from_secs(1)));
        // It was served completely: the server no longer reports the consumer's end.
        proof.hold_until(None);
        assert!(!proof.holds(now + Duration::from_secs(1)));
        proof.hold_until(Some(now + Duration::from_secs(1)));
        proof.revoke();
        assert!(!proof.holds(proof.began));
    }
}
