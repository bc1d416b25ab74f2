//! What differs between a desired and an actual configuration, and whether the server lets it change. Pure.

use serde_json::Value;

use super::{
    config::{Config, METADATA},
    fields::{Field, Mutability},
};
use crate::identity::GENERATION;

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Fields that can be put right, by the server's names, in the order of the table.
    pub changed: Vec<&'static str>,
    /// Fields that the server never changes that way.
    pub stuck: Vec<&'static str>,
}

impl Difference {
    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.stuck.is_empty()
    }
}

/// Compares what is owned: every field of the table, and the metadata that is desired.
#[must_use]
pub fn difference(desired: &Config, actual: &Config, table: &[Field]) -> Difference {
    let mut found = Difference::default();
    for field in table {
        let (wanted, there) = (desired.effective(field), actual.effective(field));
        if wanted == there || matches!(field.mutability, Mutability::AtCreation | Mutability::Unowned) {
            continue;
        }
        if may_change(field.mutability, &there, &wanted) {
            found.changed.push(field.name);
        } else {
            found.stuck.push(field.name);
        }
    }
    let there = actual.metadata();
    // A generation that changed nothing here is not worth a write: `kubectl scale` makes one too.
    let mut wanted = desired.metadata().into_iter().filter(|(key, _)| *key != GENERATION);
    if wanted.any(|(key, value)| there.get(key) != Some(&value)) {
        found.changed.push(METADATA);
    }
    found
}

fn may_change(mutability: Mutability, from: &Value, to: &Value) -> bool {
    match mutability {
        Mutability::Free | Mutability::AtCreation | Mutability::Unowned => true,
        Mutability::Never => false,
        Mutability::OneWay => to == &Value::Bool(true),
        Mutability::Retention => from != "workqueue" && to != "workqueue",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jetstream::fields;

    fn config(value: Value) -> Config {
        serde_json::from_value(value).unwrap()
    }

    fn compare(desired: Value, actual: Value) -> Difference {
        difference(&config(desired), &config(actual), fields::STREAM)
    }

    #[test]
    fn what_the_server_fills_in_is_no_difference() {
        let desired =
            json!({"name": "orders", "subjects": ["orders.>"], "duplicate_window": 120_000_000_000_i64});
        let actual = json!({
            "name": "orders", "subjects": ["orders.>"], "retention": "limits", "max_consumers": -1, "max_msgs": -1,
            "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1, "discard": "old",
            "storage": "file", "num_replicas": 1, "duplicate_window": 120_000_000_000_i64, "compression": "none",
            "allow_direct": false, "mirror_direct": false, "sealed": false, "deny_delete": false, "deny_purge": false,
            "allow_rollup_hdrs": false, "consumer_limits": {}, "allow_msg_ttl": false,
            "metadata": {"_nats.level": "3", "_nats.ver": "2.15.2"}, "from_the_future": true,
        });
        assert_eq!(compare(desired, actual), Difference::default());
    }

    #[test]
    fn an_unset_field_differs_from_a_set_one() {
        let found =
            compare(json!({}), json!({"max_age": 5, "republish": {"dest": "x"}, "compression": "s2"}));
        assert_eq!(found.changed, ["max_age", "compression", "republish"]);
        assert_eq!(found.stuck, Vec::<&str>::new());
    }

    #[test]
    fn what_the_server_never_changes_is_stuck() {
        let found = compare(json!({"storage": "memory"}), json!({"storage": "file", "max_msgs": 5}));
        assert_eq!((found.changed, found.stuck), (vec!["max_msgs"], vec!["storage"]));
        assert_eq!(compare(json!({"deny_delete": true}), json!({})).changed, ["deny_delete"]);
        assert_eq!(compare(json!({}), json!({"deny_delete": true})).stuck, ["deny_delete"]);
        assert_eq!(compare(json!({"retention": "interest"}), json!({})).changed, ["retention"]);
        assert_eq!(compare(json!({"retention": "workqueue"}), json!({})).stuck, ["retention"]);
    }

    #[test]
    fn where_a_stream_began_is_no_difference() {
        assert_eq!(compare(json!({}), json!({"first_seq": 1_000_000_000})), Difference::default());
    }

    #[test]
    fn only_desired_metadata_count() {
        let found = compare(json!({"metadata": {"a": "1"}}), json!({"metadata": {"a": "1", "b": "2"}}));
        assert!(found.is_empty());
        let found = compare(json!({"metadata": {"a": "1"}}), json!({"metadata": {"a": "2"}}));
        assert_eq!(found.changed, ["metadata"]);
        let generation = |n: &str| json!({"metadata": {"jetwright.dev/generation": n}});
        assert!(compare(generation("2"), generation("1")).is_empty());
    }
}
