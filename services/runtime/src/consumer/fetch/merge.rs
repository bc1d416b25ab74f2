//! Restores the order in which a consumer delivered, over several subscriptions of one connection. Pure.
//!
//! The client passes every message to its subscription in the order of the connection. A reader that polls the subscriptions one after
//! another may see a later message in one before an earlier one in another, which arrived just after the poll. A
//! second poll of all of them finds everything that arrived before what the first one saw.

use std::mem;

/// A message with its place in the order of deliveries.
pub(super) trait Ordered {
    /// The consumer sequence of its delivery.
    fn consumer_sequence(&self) -> u64;
}

/// Deliveries of two polls.
#[derive(Debug)]
pub(super) struct Merge<M> {
    /// Seen by a second poll, and later than anything of the first: its predecessors may not have been seen.
    held_back: Vec<M>,
}

impl<M> Default for Merge<M> {
    fn default() -> Self {
        Self { held_back: Vec::new() }
    }
}

impl<M: Ordered> Merge<M> {
    /// The messages of a poll, with the remainder of the previous one.
    pub(super) fn first_pass(&mut self, seen: Vec<M>) -> Vec<M> {
        if self.held_back.is_empty() {
            return seen;
        }
        let mut first = mem::take(&mut self.held_back);
        first.extend(seen);
        first
    }

    /// Those whose predecessors were all seen, in their order.
    pub(super) fn in_order(&mut self, mut first: Vec<M>, second: Vec<M>) -> Vec<M> {
        let Some(last) = first.iter().map(Ordered::consumer_sequence).max() else {
            self.held_back.extend(second);
            return first;
        };
        for message in second {
            if message.consumer_sequence() <= last {
                first.push(message);
            } else {
                self.held_back.push(message);
            }
        }
        // Stable, and nearly always sorted already.
        first.sort_by_key(Ordered::consumer_sequence);
        first
    }

    /// Whether a message was seen that was not passed on yet.
    pub(super) fn holds_back(&self) -> bool {
        !self.held_back.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    impl Ordered for u64 {
        fn consumer_sequence(&self) -> u64 {
            *self
        }
    }

    #[test]
    fn an_earlier_message_that_the_second_look_finds_goes_first() {
        let mut merge = Merge::default();
        let first = merge.first_pass(vec![2, 5]);
        assert_eq!(merge.in_order(first, vec![4, 6, 3]), [2, 3, 4, 5]);
        assert!(merge.holds_back());
        let first = merge.first_pass(vec![]);
        assert_eq!(merge.in_order(first, vec![]), [6]);
        assert!(!merge.holds_back());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// A connection delivers messages one after another to changing subscriptions, between any two polls of one of them.
        #[test]
        fn what_is_handed_on_is_in_order_whenever_messages_come(
            turns in prop::collection::vec(0_usize..4, 1..60),
            pauses in prop::collection::vec(0_usize..4, 400),
        ) {
            let mut subscriptions = [(); 4].map(|()| VecDeque::new());
            let (mut coming, mut merge, mut handed_on) = (turns.iter().enumerate(), Merge::default(), Vec::new());
            let mut pauses = pauses.into_iter();
            let mut look = |subscriptions: &mut [VecDeque<u64>; 4]| {
                let mut seen = Vec::new();
                for subscription in 0..4 {
                    for _ in 0..pauses.next().unwrap_or(4) {
                        if let Some((number, turn)) = coming.next() {
                            subscriptions[*turn].push_back(number as u64);
                        }
                    }
                    seen.extend(subscriptions[subscription].drain(..));
                }
                seen
            };
            for _ in 0..200 {
                let first = merge.first_pass(look(&mut subscriptions));
                let second = look(&mut subscriptions);
                handed_on.extend(merge.in_order(first, second));
            }
            prop_assert_eq!(handed_on, (0..turns.len() as u64).collect::<Vec<_>>());
        }
    }
}
