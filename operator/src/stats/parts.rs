//! In: figures of the consumers that an object has in JetStream, one, or one for each partition. Out: those of the whole. Pure.

use super::sample::ConsumerFigures;

/// What was read of some consumers.
pub struct Parts {
    /// How many there have to be.
    wanted: usize,
    read: usize,
    figures: Option<ConsumerFigures>,
    is_unanswered: bool,
}

/// What is known of some consumers as one.
#[derive(Clone, Debug, PartialEq)]
pub enum Whole {
    Known(ConsumerFigures),
    /// One of them was not answered for.
    Unanswered,
    /// One of them does not exist.
    Missing,
}

impl Parts {
    /// Nothing was read yet, of so many.
    #[must_use]
    pub fn of(wanted: usize) -> Self {
        Self { wanted, read: 0, figures: None, is_unanswered: false }
    }

    /// Adds one that is wanted, or may be there: None where nobody answered for it.
    pub fn add(&mut self, figures: Option<ConsumerFigures>, is_wanted: bool) {
        self.read += usize::from(is_wanted);
        self.is_unanswered |= figures.is_none();
        self.figures = match (self.figures.take(), figures) {
            (Some(before), Some(figures)) => Some(together(&before, &figures)),
            (known, None) | (None, known) => known,
        };
    }

    /// All as one.
    #[must_use]
    pub fn whole(self) -> Whole {
        match self.figures {
            // A list that changes while it is read may have one twice.
            _ if self.read < self.wanted => Whole::Missing,
            Some(figures) if !self.is_unanswered => Whole::Known(figures),
            _ => Whole::Unanswered,
        }
    }
}

/// Two consumers as one: it has come as far as the one that has come least far.
fn together(one: &ConsumerFigures, other: &ConsumerFigures) -> ConsumerFigures {
    let latest = |one: Option<f64>, other: Option<f64>| match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (known, None) | (None, known) => known,
    };
    ConsumerFigures {
        pending: one.pending + other.pending,
        ack_pending: one.ack_pending + other.ack_pending,
        max_ack_pending: one.max_ack_pending.zip(other.max_ack_pending).map(|(one, other)| one + other),
        redelivered: one.redelivered + other.redelivered,
        waiting_pulls: one.waiting_pulls + other.waiting_pulls,
        delivered_sequence: one.delivered_sequence.max(other.delivered_sequence),
        delivered_at: latest(one.delivered_at, other.delivered_at),
        ack_floor_sequence: one.ack_floor_sequence.min(other.ack_floor_sequence),
        ack_floor_at: latest(one.ack_floor_at, other.ack_floor_at),
        is_paused: one.is_paused || other.is_paused,
        is_led: one.is_led && other.is_led,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(pending: u64) -> ConsumerFigures {
        ConsumerFigures {
            pending,
            ack_pending: 1,
            max_ack_pending: Some(256),
            redelivered: 2,
            waiting_pulls: 3,
            delivered_sequence: pending * 10,
            delivered_at: (pending > 1).then_some(5.0),
            ack_floor_sequence: pending * 5,
            ack_floor_at: Some(7.0),
            is_paused: false,
            is_led: true,
        }
    }

    fn whole(parts: &[Option<ConsumerFigures>], wanted: usize) -> Whole {
        let mut all = Parts::of(wanted);
        parts.iter().cloned().for_each(|part| all.add(part, true));
        all.whole()
    }

    #[test]
    fn figures_of_partitions_are_those_of_one_consumer() {
        let expected = ConsumerFigures {
            pending: 3,
            ack_pending: 2,
            max_ack_pending: Some(512),
            redelivered: 4,
            waiting_pulls: 6,
            delivered_sequence: 20,
            delivered_at: Some(5.0),
            ack_floor_sequence: 5,
            ack_floor_at: Some(7.0),
            is_paused: false,
            is_led: true,
        };
        assert_eq!(whole(&[Some(figures(1)), Some(figures(2))], 2), Whole::Known(expected));
        assert_eq!(whole(&[Some(figures(1))], 1), Whole::Known(figures(1)));
    }

    #[test]
    fn nothing_is_known_of_the_whole_where_one_is_away_or_missing() {
        assert_eq!(whole(&[Some(figures(1)), None, Some(figures(2))], 3), Whole::Unanswered);
        assert_eq!(whole(&[Some(figures(1))], 2), Whole::Missing);
        assert_eq!(whole(&[], 1), Whole::Missing);
        let mut divided = Parts::of(2);
        divided.add(Some(figures(1)), true);
        divided.add(Some(figures(1)), false);
        assert_eq!(
            divided.whole(),
            Whole::Missing,
            "one that may be there is in the place of none that has to be"
        );
        let paused = ConsumerFigures { is_paused: true, is_led: false, ..figures(1) };
        let found = whole(&[Some(figures(1)), Some(paused)], 2);
        assert!(matches!(found, Whole::Known(found) if found.is_paused && !found.is_led));
    }
}
