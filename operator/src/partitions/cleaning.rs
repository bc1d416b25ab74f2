//! In: the keys of the bucket, and which consumers are declared. Out: keys that are over, to be deleted, and consumers to ask JetStream for. Pure.
//!
//! A dead member is over after a while: then nobody waits for its key any more. What belongs to a consumer is over when JetStream has no such
//! consumer, nothing was written since that was asked, and no living member holds a partition of it: operators of several clusters share a bucket
//! where they share an account, and another one may declare the consumer, or make it again at any moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jetwright_partitions::{
    keys::{ConsumerId, Key, MemberId, PartitionId},
    records::{HeldRecord, HeldState, MemberRecord, Record as _},
};

/// How long a member is dead, or a consumer not declared, before anything of it is deleted.
const PATIENCE: Duration = Duration::from_mins(10);
/// Most keys that are deleted at once.
const MAX_REMOVALS: usize = 8;

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Delete this key, where it has this revision yet.
    Remove(Key, u64),
    /// Ask JetStream whether this consumer is there, by one of its partitions.
    Ask(PartitionId),
}

/// What is known of keys that may be over. Times are those since the driver began.
#[derive(Debug, Default)]
pub struct Cleaner {
    /// Dead members: their revision, and since when.
    dead: BTreeMap<Key, (u64, Duration)>,
    /// Members whose keys do not say that they are dead.
    living: BTreeSet<MemberId>,
    of_consumers: BTreeMap<ConsumerId, BTreeMap<Key, Kept>>,
    /// Consumers that nobody declares here.
    undeclared: BTreeMap<ConsumerId, Undeclared>,
}

/// What the bucket has under a key of a consumer.
#[derive(Clone, Debug)]
struct Kept {
    revision: u64,
    /// Who holds the partition, where it is one.
    holder: Option<MemberId>,
}

/// A consumer that nobody declares here.
#[derive(Clone, Copy, Debug)]
struct Undeclared {
    /// Since when, or since when JetStream was asked for it.
    since: Duration,
    /// The newest revision of its keys when JetStream was asked.
    asked_at: u64,
    /// JetStream had no such consumer then.
    is_gone: bool,
}

impl Cleaner {
    /// A key has this value.
    pub fn stored(&mut self, key: &Key, revision: u64, value: &[u8], at: Duration) {
        match key {
            Key::Operator | Key::OperatorOf(_) => {}
            Key::Member(id) => {
                let is_dead = MemberRecord::read(key, value).is_ok_and(|record| record.dead.is_some());
                if is_dead {
                    self.living.remove(id);
                } else {
                    self.living.insert(id.clone());
                }
                match self.dead.get(key) {
                    _ if !is_dead => drop(self.dead.remove(key)),
                    Some((known, _)) if *known == revision => {}
                    _ => drop(self.dead.insert(key.clone(), (revision, at))),
                }
            }
            Key::Map(consumer) => self.keep(consumer, key, Kept { revision, holder: None }),
            Key::Held(PartitionId { consumer, .. }) => {
                let record = HeldRecord::read(key, value).ok();
                let held = record.filter(|record| record.state != HeldState::Free);
                self.keep(consumer, key, Kept { revision, holder: held.map(|record| record.member) });
            }
        }
    }

    fn keep(&mut self, consumer: &ConsumerId, key: &Key, kept: Kept) {
        self.of_consumers.entry(consumer.clone()).or_default().insert(key.clone(), kept);
    }

    /// A key was deleted.
    pub fn deleted(&mut self, key: &Key) {
        match key {
            Key::Operator | Key::OperatorOf(_) => {}
            Key::Member(id) => {
                self.living.remove(id);
                self.dead.remove(key);
            }
            Key::Map(consumer) | Key::Held(PartitionId { consumer, .. }) => {
                let Some(keys) = self.of_consumers.get_mut(consumer) else { return };
                keys.remove(key);
                if keys.is_empty() {
                    self.of_consumers.remove(consumer);
                }
            }
        }
    }

    /// Whether the bucket has anything of a consumer.
    #[must_use]
    pub fn knows(&self, consumer: &ConsumerId) -> bool {
        self.of_consumers.contains_key(consumer)
    }

    /// JetStream has a consumer, or had none when it was asked.
    pub fn asked(&mut self, consumer: &ConsumerId, is_there: bool) {
        if let Some(undeclared) = self.undeclared.get_mut(consumer) {
            undeclared.is_gone = !is_there;
        }
    }

    /// What to do now, while these consumers are declared.
    pub fn due(&mut self, declared: &BTreeSet<ConsumerId>, at: Duration) -> Vec<Due> {
        let is_over = |since: Duration| at.saturating_sub(since) >= PATIENCE;
        let known = &self.of_consumers;
        self.undeclared.retain(|consumer, _| known.contains_key(consumer) && !declared.contains(consumer));
        for consumer in known.keys().filter(|consumer| !declared.contains(consumer)) {
            let new = Undeclared { since: at, asked_at: 0, is_gone: false };
            self.undeclared.entry(consumer.clone()).or_insert(new);
        }
        let dead = self.dead.iter().filter(|(_, (_, since))| is_over(*since));
        let dead = dead.map(|(key, (revision, _))| Due::Remove(key.clone(), *revision));
        let of_gone = self.undeclared.iter().filter(|(_, undeclared)| undeclared.is_gone);
        let of_gone =
            of_gone.flat_map(|(consumer, undeclared)| self.removable(consumer, undeclared.asked_at));
        let mut due: Vec<_> = dead.chain(of_gone).take(MAX_REMOVALS).collect();
        let to_ask = self.undeclared.iter_mut().find(|(_, undeclared)| is_over(undeclared.since));
        if let Some((consumer, undeclared)) = to_ask {
            let keys = self.of_consumers.get(consumer).into_iter().flatten();
            let asked_at = keys.clone().map(|(_, kept)| kept.revision).max().unwrap_or_default();
            *undeclared = Undeclared { since: at, asked_at, is_gone: false };
            let first = keys.filter_map(|(key, _)| match key {
                Key::Held(PartitionId { partition, .. }) => Some(*partition),
                _ => None,
            });
            let partition = first.min().unwrap_or_default();
            due.push(Due::Ask(PartitionId { consumer: consumer.clone(), partition }));
        }
        due
    }

    /// The keys of a consumer that JetStream did not have when this was the newest revision of them; none where it may be there again, or
    /// somebody holds on to it.
    fn removable(&self, consumer: &ConsumerId, asked_at: u64) -> Vec<Due> {
        let Some(keys) = self.of_consumers.get(consumer) else { return Vec::new() };
        let is_used = |kept: &Kept| {
            kept.revision > asked_at
                || kept.holder.as_ref().is_some_and(|holder| self.living.contains(holder))
        };
        if keys.values().any(is_used) {
            return Vec::new();
        }
        keys.iter().map(|(key, kept)| Due::Remove(key.clone(), kept.revision)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: &[u8] = br#"{"consumers":{},"dead":{"by":"x","reason":"Silent"}}"#;

    fn key(text: &str) -> Key {
        text.parse().unwrap()
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_mins(minutes)
    }

    fn none() -> BTreeSet<ConsumerId> {
        BTreeSet::new()
    }

    #[test]
    fn a_member_is_deleted_when_it_has_been_dead_for_a_while_and_no_living_one_ever() {
        let mut cleaner = Cleaner::default();
        cleaner.stored(&key("member.shop.a"), 5, DEAD, minutes(1));
        cleaner.stored(&key("member.shop.b"), 6, br#"{"consumers":{}}"#, minutes(1));
        cleaner.stored(&key("member.shop.c"), 7, b"\xff", minutes(1));
        assert_eq!(cleaner.due(&none(), minutes(10)), []);
        // A watch that begins again tells it once more.
        cleaner.stored(&key("member.shop.a"), 5, DEAD, minutes(10));
        let expected = [Due::Remove(key("member.shop.a"), 5)];
        assert_eq!(cleaner.due(&none(), minutes(11)), expected);
        cleaner.deleted(&key("member.shop.a"));
        assert_eq!(cleaner.due(&none(), minutes(99)), []);
    }

    #[test]
    fn what_is_of_a_consumer_is_deleted_when_nobody_declares_it_and_jetstream_has_it_no_more() {
        let consumer: ConsumerId = "orders.fulfilment".parse().unwrap();
        let declared = BTreeSet::from([consumer.clone()]);
        let mut cleaner = Cleaner::default();
        for (revision, text) in
            [(5, "map.orders.fulfilment"), (6, "held.orders.fulfilment.3"), (7, "held.orders.fulfilment.2")]
        {
            cleaner.stored(&key(text), revision, b"{}", minutes(0));
        }
        assert_eq!(cleaner.due(&declared, minutes(20)), []);
        assert_eq!(cleaner.due(&none(), minutes(20)), []);
        assert_eq!(cleaner.due(&none(), minutes(29)), []);
        let ask = [Due::Ask(PartitionId { consumer: consumer.clone(), partition: 2 })];
        assert_eq!(cleaner.due(&none(), minutes(30)), ask);
        cleaner.asked(&consumer, true);
        assert_eq!(cleaner.due(&none(), minutes(39)), [], "another operator may declare it");
        assert_eq!(cleaner.due(&none(), minutes(40)), ask);
        cleaner.asked(&consumer, false);
        let mut removed: Vec<_> = cleaner
            .due(&none(), minutes(40))
            .into_iter()
            .map(|due| match due {
                Due::Remove(_, revision) => revision,
                Due::Ask(_) => 0,
            })
            .collect();
        removed.sort_unstable();
        assert_eq!(removed, [5, 6, 7]);
        assert_eq!(cleaner.due(&declared, minutes(41)), [], "it is declared again");
    }

    /// A cleaner whose consumer was not declared for so long that it asks for it; held by a member.
    fn asking(cleaner: &mut Cleaner) -> ConsumerId {
        let consumer: ConsumerId = "orders.fulfilment".parse().unwrap();
        let held = br#"{"member":"shop.a","state":"held"}"#;
        cleaner.stored(&key("map.orders.fulfilment"), 5, b"{}", minutes(0));
        cleaner.stored(&key("held.orders.fulfilment.0"), 6, held, minutes(0));
        assert_eq!(cleaner.due(&none(), minutes(0)), []);
        let ask = Due::Ask(PartitionId { consumer: consumer.clone(), partition: 0 });
        assert_eq!(cleaner.due(&none(), minutes(10)), [ask]);
        consumer
    }

    #[test]
    fn what_is_written_after_jetstream_was_asked_stays() {
        let mut cleaner = Cleaner::default();
        let consumer = asking(&mut cleaner);
        // Another cluster makes the consumer again, and shares it out, before or after the answer comes.
        cleaner.stored(&key("map.orders.fulfilment"), 8, b"{}", minutes(10));
        cleaner.asked(&consumer, false);
        assert_eq!(cleaner.due(&none(), minutes(10)), []);
        let ask = [Due::Ask(PartitionId { consumer: consumer.clone(), partition: 0 })];
        assert_eq!(cleaner.due(&none(), minutes(20)), ask, "it is asked again");
        cleaner.asked(&consumer, false);
        assert_eq!(cleaner.due(&none(), minutes(20)).len(), 2);
        cleaner.stored(&key("held.orders.fulfilment.0"), 9, b"{}", minutes(20));
        assert_eq!(cleaner.due(&none(), minutes(20)), []);
    }

    #[test]
    fn what_a_living_member_holds_stays_although_jetstream_has_no_consumer() {
        let mut cleaner = Cleaner::default();
        cleaner.stored(&key("member.shop.a"), 4, br#"{"consumers":{}}"#, minutes(0));
        let consumer = asking(&mut cleaner);
        cleaner.asked(&consumer, false);
        assert_eq!(cleaner.due(&none(), minutes(10)), []);
        cleaner.stored(&key("member.shop.a"), 7, DEAD, minutes(11));
        assert_eq!(cleaner.due(&none(), minutes(11)).len(), 2);
    }
}
