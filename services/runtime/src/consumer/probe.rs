//! What a test of a handler fixes, and what it sees that no acknowledgement says. Production has none.

use super::retry::Decision;
use parking_lot::Mutex;

/// Fixes the jitter of delays, and keeps what was decided of the last attempt.
#[derive(Debug, Default)]
pub(super) struct Probe(Mutex<Option<Decision>>);

impl Probe {
    /// No delay is shortened, so that a test knows each.
    pub(super) const JITTER: f64 = 1.0;

    pub(super) fn record(&self, decision: &Decision) {
        *self.0.lock() = Some(decision.clone());
    }

    /// What was decided since it was taken last.
    pub(super) fn take(&self) -> Option<Decision> {
        self.0.lock().take()
    }
}
