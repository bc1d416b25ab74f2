//! In: the keys of the bucket, and which consumers are declared. Out: keys that are over, to be deleted, and consumers to ask JetStream for. Pure.
//!
//! A dead member is over after a while: then nobody waits for its key any more. What belongs to a consumer is over when JetStream has no such
//! consumer: another operator may declare it, or none.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jetwright_partitions::{
    keys::{ConsumerId, Key, PartitionId},
    records::{MemberRecord, Record as _},
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
    /// Revisions of the keys of consumers.
    of_consumers: BTreeMap<ConsumerId, BTreeMap<Key, u64>>,
    /// Consumers that nobody declares here, since when, or since when they were asked for.
    undeclared: BTreeMap<ConsumerId, Duration>,
    gone: BTreeSet<ConsumerId>,
}

impl Cleaner {
    /// A key has this value.
    pub fn stored(&mut self, key: &Key, revision: u64, value: &[u8], at: Duration) {
        match key {
            Key::Operator => {}
            Key::Member(_) => {
                let is_dead = MemberRecord::read(key, value).is_ok_and(|record| record.dead.is_some());
                match self.dead.get(key) {
                    _ if !is_dead => drop(self.dead.remove(key)),
                    Some((known, _)) if *known == revision => {}
                    _ => drop(self.dead.insert(key.clone(), (revision, at))),
                }
            }
            Key::Map(consumer) | Key::Held(PartitionId { consumer, .. }) => {
                self.of_consumers.entry(consumer.clone()).or_default().insert(key.clone(), revision);
            }
        }
    }

    /// A key was deleted.
    pub fn deleted(&mut self, key: &Key) {
        match key {
            Key::Operator => {}
            Key::Member(_) => drop(self.dead.remove(key)),
            Key::Map(consumer) | Key::Held(PartitionId { consumer, .. }) => {
                let Some(keys) = self.of_consumers.get_mut(consumer) else { return };
                keys.remove(key);
                if keys.is_empty() {
                    self.of_consumers.remove(consumer);
                    self.gone.remove(consumer);
                }
            }
        }
    }

    /// Whether the bucket has anything of a consumer.
    #[must_use]
    pub fn knows(&self, consumer: &ConsumerId) -> bool {
        self.of_consumers.contains_key(consumer)
    }

    /// JetStream has a consumer, or has not.
    pub fn asked(&mut self, consumer: &ConsumerId, is_there: bool) {
        if !is_there {
            self.gone.insert(consumer.clone());
        }
    }

    /// What to do now, while these consumers are declared.
    pub fn due(&mut self, declared: &BTreeSet<ConsumerId>, at: Duration) -> Vec<Due> {
        let is_over = |since: Duration| at.saturating_sub(since) >= PATIENCE;
        self.gone.retain(|consumer| !declared.contains(consumer));
        let known = &self.of_consumers;
        self.undeclared.retain(|consumer, _| known.contains_key(consumer) && !declared.contains(consumer));
        for consumer in known.keys().filter(|consumer| !declared.contains(consumer)) {
            self.undeclared.entry(consumer.clone()).or_insert(at);
        }
        let dead = self.dead.iter().filter(|(_, (_, since))| is_over(*since));
        let dead = dead.map(|(key, (revision, _))| Due::Remove(key.clone(), *revision));
        let of_gone = self.gone.iter().filter_map(|consumer| known.get(consumer)).flatten();
        let of_gone = of_gone.map(|(key, revision)| Due::Remove(key.clone(), *revision));
        let mut due: Vec<_> = dead.chain(of_gone).take(MAX_REMOVALS).collect();
        let to_ask = self
            .undeclared
            .iter_mut()
            .find(|(consumer, since)| is_over(**since) && !self.gone.contains(consumer));
        if let Some((consumer, since)) = to_ask {
            *since = at;
            let partitions = self.of_consumers.get(consumer).into_iter().flat_map(BTreeMap::keys);
            let first = partitions.filter_map(|key| match key {
                Key::Held(PartitionId { partition, .. }) => Some(*partition),
                _ => None,
            });
            let partition = first.min().unwrap_or_default();
            due.push(Due::Ask(PartitionId { consumer: consumer.clone(), partition }));
        }
        due
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
}
