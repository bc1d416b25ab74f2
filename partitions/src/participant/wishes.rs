//! What a process is to do with each partition of a consumer: by the map, and without an operator by its even share. Pure.

use std::collections::BTreeMap;

use super::{Participant, Shares};
use crate::{
    alone,
    keys::{ConsumerId, MemberId},
    lease::{Clocks, RENEWAL_INTERVAL},
    observer::Verdict,
    owner::{Owner, Wish},
};

/// What to do with a partition, and of whom more has to be known to say it.
type Wishes = BTreeMap<u32, (Wish, Option<MemberId>)>;

impl Participant {
    pub(super) fn wishes(&self, consumer: &ConsumerId, shares: &Shares, now: Clocks) -> Wishes {
        let of_map = |partition| (partition, self.wish_of_map(consumer, shares, partition, now));
        // A partition beyond the count may be held from before.
        let all =
            (0..shares.count()).chain(shares.owners.range(shares.count()..).map(|(partition, _)| *partition));
        let mut wishes: Wishes = all.map(of_map).collect();
        if !self.record.leaving && self.is_alone(shares, now) {
            for partition in self.share_without_operator(consumer, shares, &wishes, now) {
                wishes.insert(partition, (Wish::Have, None));
            }
        }
        wishes
    }

    /// The partitions whose keys have to be read again, by consumer: those that are waited for, and those of unanswered writes.
    pub(super) fn wanted(&self, now: Clocks) -> Vec<(ConsumerId, Vec<u32>)> {
        let wanted = |(consumer, shares): (&ConsumerId, &Shares)| {
            let is_wanted = |partition: &u32, wish: Wish| match shares.owners.get(partition) {
                None => wish == Wish::Have,
                Some(owner) => owner.is_doubtful() || (wish == Wish::Have && !owner.is_held()),
            };
            let wishes = self.wishes(consumer, shares, now).into_iter();
            let wanted = wishes.filter(|(partition, (wish, _))| is_wanted(partition, *wish));
            (consumer.clone(), wanted.map(|(partition, _)| partition).collect())
        };
        self.consumers.iter().map(wanted).collect()
    }

    /// Whether the key of a consumer's operators has stood still for long. It must have been read lately: a lost watch looks the same.
    fn is_alone(&self, shares: &Shares, now: Clocks) -> bool {
        let key = shares.operator();
        let read = self.operators_read.get(&key);
        let was_read = read.is_some_and(|read| now.since(*read) < 2 * RENEWAL_INTERVAL);
        was_read && self.observer.is_without_operator(&key, now)
    }

    fn wish_of_map(
        &self,
        consumer: &ConsumerId,
        shares: &Shares,
        partition: u32,
        now: Clocks,
    ) -> (Wish, Option<MemberId>) {
        if self.record.leaving {
            return (Wish::HandOver, None);
        }
        let Some(entry) = shares.record().and_then(|map| map.partitions.get(&partition)) else {
            return (Wish::Keep, None);
        };
        if entry.to == *self.id() {
            return (Wish::Have, None);
        }
        let is_held = shares.owners.get(&partition).is_some_and(Owner::is_held);
        match self.observer.verdict(&entry.to, now) {
            Verdict::Alive => {
                // Only to a member that takes it: otherwise no member would handle it.
                let takes =
                    self.observer.record(&entry.to).is_some_and(|record| record.is_candidate(consumer));
                (if takes { Wish::HandOver } else { Wish::Keep }, None)
            }
            Verdict::Unknown => (Wish::Keep, is_held.then(|| entry.to.clone())),
            Verdict::Suspect { .. } | Verdict::Dead => (Wish::Keep, None),
        }
    }

    fn share_without_operator(
        &self,
        consumer: &ConsumerId,
        shares: &Shares,
        wishes: &Wishes,
        now: Clocks,
    ) -> Vec<u32> {
        let is_other = |id: &&MemberId| *id != self.id() && self.observer.verdict(id, now) == Verdict::Alive;
        let others: Vec<_> =
            self.observer.candidates(consumer, now).map(|(id, _)| id).filter(is_other).collect();
        let rank = others.iter().filter(|id| **id < self.id()).count();
        let number = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let held = shares.owners.values().filter(|owner| owner.is_held()).count();
        let is_takeable = |partition: u32| {
            // The map means it for a member that is there.
            let is_meant = wishes.get(&partition).is_none_or(|(wish, _)| *wish != Wish::Keep);
            let owner = shares.owners.get(&partition);
            let holder = owner.and_then(Owner::holder);
            let is_held = owner.is_some_and(Owner::is_held)
                || holder.is_some_and(|holder| self.observer.verdict(holder, now) == Verdict::Alive);
            !is_meant && !is_held
        };
        alone::choose(shares.count(), number(others.len() + 1), number(rank), number(held), is_takeable)
    }
}
