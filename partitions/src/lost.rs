//! How many deliveries were lost and still have to come again, by the holes between their numbers. Pure.
//!
//! The number of what is unacknowledged does not say it: JetStream stops counting an event that is removed from its stream (by a limit of
//! its subject, a time to live, or somebody who deletes it), also where it waits here, and it would stand for one that is owed.

/// The lost deliveries of one consumer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lost {
    /// The number of the next delivery, if known: also over a new connection, on which some may be lost.
    next: Option<u64>,
    count: u64,
}

impl From<Option<u64>> for Lost {
    /// All that have a lower number are here.
    fn from(next: Option<u64>) -> Self {
        Self { next, count: 0 }
    }
}

impl Lost {
    /// A delivery of this number arrived. `is_owed` says that its event was delivered before and is not here. Returns whether there
    /// was a hole that it does not explain.
    pub(crate) fn received(&mut self, number: u64, is_owed: bool) -> bool {
        // A lower one is of a server that was killed: it delivers again what it forgot, but what was lost before that is still owed.
        let hole = self.next.replace(number + 1).map_or(0, |next| number.saturating_sub(next));
        self.count = (self.count + hole).saturating_sub(is_owed.into());
        hole > 0 && self.count > 0
    }

    /// One that was here is here no more, and comes again.
    pub(crate) fn released(&mut self) {
        self.count += 1;
    }

    /// Whether the delivery of this number, and each before it, came or was lost.
    pub(crate) fn knows(&self, number: u64) -> bool {
        self.next.is_none_or(|next| number < next)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hole_lacks_is_lost_until_as_much_comes_again() {
        let mut lost = Lost::from(Some(11));
        assert!(!lost.received(11, false));
        assert!(lost.is_empty() && lost.knows(11) && !lost.knows(12), "the last one may be lost");
        assert!(lost.received(14, false));
        assert!(!lost.received(15, true) && !lost.is_empty());
        lost.received(16, true);
        assert!(lost.is_empty());
    }

    #[test]
    fn a_delivery_that_comes_again_behind_a_hole_stands_for_one_of_it() {
        let mut lost = Lost::from(Some(11));
        assert!(!lost.received(12, true) && lost.is_empty());
        // It may be the one that was lost before.
        assert!(lost.received(14, false) && lost.received(16, true) && !lost.is_empty());
    }

    #[test]
    fn what_was_lost_before_a_killed_server_forgot_others_is_still_owed() {
        let mut lost = Lost::from(Some(11));
        lost.received(12, false);
        lost.received(13, false);
        // The server was killed, forgot number 13, and gives it again.
        lost.received(13, false);
        assert!(!lost.is_empty() && !lost.knows(14));
        lost.received(14, true);
        assert!(lost.is_empty());
    }

    #[test]
    fn before_the_first_number_is_known_none_is_lost() {
        let mut lost = Lost::default();
        assert!(lost.knows(7));
        lost.received(9, false);
        assert!(lost.is_empty() && lost.knows(9) && !lost.knows(10));
    }
}
