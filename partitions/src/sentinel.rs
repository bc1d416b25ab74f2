//! Checks that the events of a key begin in order, one at a time: in production, and over all processes of the simulation. It changes
//! nothing: a violation is a bug of this program, or of a server that forgot an acknowledgement, and is counted. Pure.

use rustc_hash::FxHashMap;

/// Maximum keys that are remembered; beyond that, keys without unsettled events are forgotten.
const REMEMBERED_KEYS: usize = 65_536;

/// A violation of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderViolation {
    /// A later event began although an earlier one of its key is not settled.
    Gap,
    /// Two events of a key are handled at once.
    Overlap,
    /// An event began after a later one of its key.
    Back,
}

impl OrderViolation {
    /// Its name in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Overlap => "overlap",
            Self::Back => "back",
        }
    }
}

/// The newest event of a key that began.
#[derive(Clone, Copy, Debug)]
struct Newest {
    sequence: u64,
    is_running: bool,
    is_settled: bool,
    /// It began before the current comparison period.
    is_of_before: bool,
}

/// The last event that began, by key.
#[derive(Debug, Default)]
pub struct OrderSentinel(FxHashMap<u64, Newest>);

impl OrderSentinel {
    /// An attempt begins. Another attempt of the newest event of its key is in order.
    pub fn begin(&mut self, key: u64, sequence: u64) -> Option<OrderViolation> {
        if self.0.len() >= REMEMBERED_KEYS {
            self.0.retain(|_, newest| newest.is_running || !newest.is_settled);
        }
        let newest = Newest { sequence, is_running: true, is_settled: false, is_of_before: false };
        let before = self.0.insert(key, newest)?;
        if before.is_running {
            Some(OrderViolation::Overlap)
        } else if before.is_of_before {
            None
        } else if sequence < before.sequence || (sequence == before.sequence && before.is_settled) {
            Some(OrderViolation::Back)
        } else if sequence > before.sequence && !before.is_settled {
            Some(OrderViolation::Gap)
        } else {
            None
        }
    }

    /// An attempt ended.
    pub fn end(&mut self, key: u64, sequence: u64) {
        if let Some(newest) = self.0.get_mut(&key).filter(|newest| newest.sequence == sequence) {
            newest.is_running = false;
        }
    }

    /// An event is never redelivered.
    pub fn settle(&mut self, key: u64, sequence: u64) {
        if let Some(newest) = self.0.get_mut(&key).filter(|newest| newest.sequence == sequence) {
            newest.is_settled = true;
        }
    }

    /// Begins a new comparison period: a server that was killed forgets acknowledgements, and in a recreated stream
    /// sequences mean other events.
    pub fn reset(&mut self) {
        self.0.retain(|_, newest| newest.is_running);
        for newest in self.0.values_mut() {
            newest.is_of_before = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_one_after_another_and_attempts_at_the_newest_are_in_order() {
        let mut sentinel = OrderSentinel::default();
        let mut attempt = |key, sequence, settled| {
            let violation = sentinel.begin(key, sequence);
            sentinel.end(key, sequence);
            if settled {
                sentinel.settle(key, sequence);
            }
            violation
        };
        let attempts = [(1, 3, false), (2, 1, true), (1, 3, true), (1, 7, true), (2, 8, false), (2, 8, true)];
        for (key, sequence, settled) in attempts {
            assert_eq!(attempt(key, sequence, settled), None, "{key} {sequence}");
        }
    }

    #[test]
    fn what_is_out_of_order_has_its_kind() {
        let mut sentinel = OrderSentinel::default();
        assert_eq!(sentinel.begin(1, 5), None);
        assert_eq!(sentinel.begin(1, 6), Some(OrderViolation::Overlap));
        sentinel.end(1, 6);
        assert_eq!(sentinel.begin(1, 7), Some(OrderViolation::Gap));
        sentinel.end(1, 7);
        sentinel.settle(1, 7);
        assert_eq!(sentinel.begin(1, 6), Some(OrderViolation::Back));
        sentinel.end(1, 6);
        sentinel.settle(1, 6);
        assert_eq!(sentinel.begin(1, 6), Some(OrderViolation::Back));
    }

    #[test]
    fn nothing_is_compared_over_a_reset() {
        let mut sentinel = OrderSentinel::default();
        sentinel.begin(1, 5);
        sentinel.end(1, 5);
        sentinel.begin(2, 6);
        sentinel.reset();
        assert_eq!(sentinel.begin(1, 3), None);
        assert_eq!(sentinel.begin(2, 7), Some(OrderViolation::Overlap));
    }

    #[test]
    fn an_attempt_that_runs_over_a_reset_overlaps_with_none_after_its_end() {
        let mut sentinel = OrderSentinel::default();
        sentinel.begin(1, 5);
        sentinel.reset();
        sentinel.end(1, 5);
        assert_eq!(sentinel.begin(1, 4), None);
    }

    #[test]
    fn keys_of_which_everything_is_settled_are_forgotten_in_time() {
        let mut sentinel = OrderSentinel::default();
        for key in 0..=u64::try_from(REMEMBERED_KEYS).unwrap() {
            sentinel.begin(key, 1);
            sentinel.end(key, 1);
            if key > 0 {
                sentinel.settle(key, 1);
            }
        }
        assert_eq!(sentinel.0.len(), 2);
    }
}
