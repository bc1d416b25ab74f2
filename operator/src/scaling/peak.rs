//! In: wishes over time. Out: the highest one of a time span, where all of it is known. Pure.

use std::{collections::VecDeque, time::Duration};

/// Wishes over time, without those that a later and higher one hides.
#[derive(Clone, Debug, Default)]
pub struct Peak {
    /// Since when wishes are known without a gap, and the last one.
    known: Option<(Duration, Duration)>,
    wishes: VecDeque<(Duration, u32)>,
}

impl Peak {
    /// Adds a wish; after a gap longer than this, what was known before is void.
    pub fn add(&mut self, at: Duration, wish: u32, longest_gap: Duration) {
        match self.known {
            Some((since, last)) if at.saturating_sub(last) <= longest_gap => self.known = Some((since, at)),
            _ => (self.known, self.wishes) = (Some((at, at)), VecDeque::new()),
        }
        while self.wishes.back().is_some_and(|(_, last)| *last <= wish) {
            self.wishes.pop_back();
        }
        self.wishes.push_back((at, wish));
    }

    /// The highest wish of the last `span`; None where it is not known for all of it.
    pub fn highest(&mut self, at: Duration, span: Duration) -> Option<u32> {
        let (since, _) = self.known?;
        let begin = at.checked_sub(span).filter(|begin| *begin >= since)?;
        while self.wishes.len() > 1 && self.wishes.front().is_some_and(|(wished, _)| *wished < begin) {
            self.wishes.pop_front();
        }
        self.wishes.front().map(|(_, wish)| *wish)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_secs(10);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_highest_wish_of_a_span_counts_and_a_gap_makes_it_unknown() {
        let mut peak = Peak::default();
        for (second, wish) in [(0, 3), (2, 7), (4, 5), (6, 4), (8, 5), (10, 2)] {
            peak.add(seconds(second), wish, GAP);
        }
        assert_eq!(peak.highest(seconds(10), seconds(60)), None);
        assert_eq!(peak.highest(seconds(10), seconds(9)), Some(7));
        assert_eq!(peak.highest(seconds(10), seconds(7)), Some(5));
        assert_eq!(peak.highest(seconds(10), seconds(1)), Some(2));
        peak.add(seconds(30), 1, GAP);
        assert_eq!(peak.highest(seconds(30), seconds(7)), None);
    }

    #[test]
    fn what_a_higher_wish_hides_takes_no_room() {
        let mut peak = Peak::default();
        for second in 0..10_000 {
            peak.add(seconds(second), 5, GAP);
        }
        assert_eq!(peak.wishes.len(), 1);
    }
}
