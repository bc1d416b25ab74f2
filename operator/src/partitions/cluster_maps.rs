//! In: the maps of the bucket, and who has an object. Out: the consumers that are shared out although no object declares them any more. Pure.
//!
//! Pods of an EventConsumer that was deleted without them (`--cascade=orphan`) or is unreadable do not share out partitions themselves while the operator
//! of the cluster in their map renews its key. So that operator goes on.

use std::collections::BTreeMap;

use jetwright_crds::environment::{HANDLER_DEADLINE, STOP_MARGIN};
use jetwright_partitions::{
    coordinator::Declared,
    keys::{ConsumerId, Key},
    records::{MapRecord, Record as _},
};

/// The consumers whose map was last written by an operator of one cluster.
#[derive(Debug)]
pub struct ClusterMaps {
    cluster: String,
    /// How many partitions each has.
    counts: BTreeMap<ConsumerId, u32>,
}

impl ClusterMaps {
    /// Nothing is known of the bucket.
    #[must_use]
    pub fn new(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), counts: BTreeMap::new() }
    }

    /// A key has this value, or none. Returns whether its consumer was this cluster's, and is not any more.
    pub fn observed(&mut self, key: &Key, value: Option<&[u8]>) -> bool {
        let Key::Map(consumer) = key else { return false };
        match value.map(|value| MapRecord::read(key, value)) {
            // What cannot be read is replaced.
            Some(Err(_)) => false,
            Some(Ok(map)) if map.cluster.as_deref() == Some(&self.cluster) && map.count > 0 => {
                self.counts.insert(consumer.clone(), map.count);
                false
            }
            Some(Ok(_)) | None => self.counts.remove(consumer).is_some(),
        }
    }

    /// Those of which no object speaks: all members that handle them get partitions.
    pub fn orphaned(
        &self,
        may_be_declared: impl Fn(&ConsumerId) -> bool,
    ) -> impl Iterator<Item = (ConsumerId, Declared)> {
        let orphaned = self.counts.iter().filter(move |(consumer, _)| !may_be_declared(consumer));
        let drain = HANDLER_DEADLINE.0 + STOP_MARGIN.0;
        orphaned
            .map(move |(consumer, count)| (consumer.clone(), Declared { count: *count, drain, pods: None }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_clusters_operators_shared_out_last_and_no_object_declares_is_orphaned() {
        let mut maps = ClusterMaps::new("east");
        let mut stored =
            |key: &str, value: &str| maps.observed(&key.parse().unwrap(), Some(value.as_bytes()));
        for (consumer, value) in [
            ("fulfilment", r#"{"generation":1,"count":8,"cluster":"east"}"#),
            ("mails", r#"{"generation":1,"count":8,"cluster":"east"}"#),
            ("others", r#"{"generation":1,"count":8,"cluster":"west"}"#),
            ("early", r#"{"generation":1,"count":8}"#),
            ("empty", r#"{"generation":1,"count":0,"cluster":"east"}"#),
            ("broken", "{"),
        ] {
            assert!(!stored(&format!("map.orders.{consumer}"), value), "{consumer}");
        }
        assert!(!stored("held.orders.fulfilment.0", r#"{"member":"shop.a","state":"held"}"#));
        // What somebody breaks is still this cluster's, and replaced.
        assert!(!stored("map.orders.mails", "{"));
        let names = |maps: &ClusterMaps, declared: &str| -> Vec<_> {
            let orphaned = maps.orphaned(|consumer| consumer.consumer == declared);
            orphaned.map(|(consumer, declared)| (consumer.consumer, declared.count)).collect()
        };
        assert_eq!(names(&maps, "mails"), [("fulfilment".to_owned(), 8)]);
        assert_eq!(names(&maps, "fulfilment"), [("mails".to_owned(), 8)]);

        let mut stored =
            |key: &str, value: Option<&str>| maps.observed(&key.parse().unwrap(), value.map(str::as_bytes));
        let of_west = Some(r#"{"generation":2,"count":8,"cluster":"west"}"#);
        assert!(stored("map.orders.fulfilment", of_west));
        assert!(!stored("map.orders.fulfilment", of_west));
        assert!(!stored("held.orders.mails.0", None));
        assert_eq!(names(&maps, ""), [("mails".to_owned(), 8)]);
        assert!(maps.observed(&"map.orders.mails".parse().unwrap(), None));
        assert_eq!(names(&maps, ""), []);
    }
}
