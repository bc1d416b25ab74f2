//! In: the maps of the bucket, and who has an object. Out: the consumers that are shared out although no object declares them any more. Pure.
//!
//! An EventConsumer that is deleted without its dependents (`--cascade=orphan`) leaves its pods, and one that this version cannot read has them too. They
//! wait for the operators of the cluster that wrote their map last, for as long as these write their own key. So these go on with what they shared out.

use std::collections::BTreeMap;

use jetwright_crds::environment::{HANDLER_DEADLINE, STOP_MARGIN};
use jetwright_partitions::{
    coordinator::Declared,
    keys::{ConsumerId, Key},
    records::{MapRecord, Record as _},
};

/// The consumers whose map was last written by an operator of one cluster.
#[derive(Debug)]
pub struct LeftBehind {
    cluster: String,
    /// How many partitions each has.
    counts: BTreeMap<ConsumerId, u32>,
}

impl LeftBehind {
    /// Nothing is known of the bucket.
    #[must_use]
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), counts: BTreeMap::new() }
    }

    /// A key has this value. Returns whether its consumer was this cluster's, and is not any more: another one shares it out.
    pub fn stored(&mut self, key: &Key, value: &[u8]) -> bool {
        let Key::Map(consumer) = key else { return false };
        let map = MapRecord::read(key, value).ok();
        match map.filter(|map| map.cluster.as_deref() == Some(&self.cluster) && map.count > 0) {
            Some(map) => {
                self.counts.insert(consumer.clone(), map.count);
                false
            }
            None => self.counts.remove(consumer).is_some(),
        }
    }

    /// A key was deleted.
    pub fn deleted(&mut self, key: &Key) {
        if let Key::Map(consumer) = key {
            self.counts.remove(consumer);
        }
    }

    /// Those of which no object speaks: all members that handle them get partitions.
    pub fn declared(
        &self,
        has_object: impl Fn(&ConsumerId) -> bool,
    ) -> impl Iterator<Item = (ConsumerId, Declared)> {
        let left = self.counts.iter().filter(move |(consumer, _)| !has_object(consumer));
        let drain = HANDLER_DEADLINE.0 + STOP_MARGIN.0;
        left.map(move |(consumer, count)| (consumer.clone(), Declared { count: *count, drain, pods: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_clusters_operators_shared_out_last_and_no_object_declares_is_left_behind() {
        let mut left_behind = LeftBehind::new("east");
        let mut stored = |key: &str, value: &str| {
            assert!(!left_behind.stored(&key.parse().unwrap(), value.as_bytes()), "{key}");
        };
        stored("map.orders.fulfilment", r#"{"generation":1,"count":8,"cluster":"east"}"#);
        stored("map.orders.mails", r#"{"generation":1,"count":8,"cluster":"east"}"#);
        stored("map.orders.others", r#"{"generation":1,"count":8,"cluster":"west"}"#);
        stored("map.orders.early", r#"{"generation":1,"count":8}"#);
        stored("map.orders.empty", r#"{"generation":1,"count":0,"cluster":"east"}"#);
        stored("map.orders.broken", "{");
        stored("held.orders.fulfilment.0", r#"{"member":"shop.a","state":"held"}"#);
        let names = |left_behind: &LeftBehind, with_object: &str| -> Vec<_> {
            let declared = left_behind.declared(|consumer| consumer.consumer == with_object);
            declared.map(|(consumer, declared)| (consumer.consumer, declared.count)).collect()
        };
        assert_eq!(names(&left_behind, "mails"), [("fulfilment".to_owned(), 8)]);
        assert_eq!(names(&left_behind, "fulfilment"), [("mails".to_owned(), 8)]);

        // The operator of another cluster shares one out now; the other one is removed.
        let fulfilment = "map.orders.fulfilment".parse().unwrap();
        let of_west = br#"{"generation":2,"count":8,"cluster":"west"}"#;
        assert!(left_behind.stored(&fulfilment, of_west));
        assert!(!left_behind.stored(&fulfilment, of_west));
        left_behind.deleted(&"held.orders.mails.0".parse().unwrap());
        assert_eq!(names(&left_behind, ""), [("mails".to_owned(), 8)]);
        left_behind.deleted(&"map.orders.mails".parse().unwrap());
        assert_eq!(names(&left_behind, ""), []);
    }
}
