//! What differs between a desired and an actual configuration, and whether the server lets it change. Pure.

use jetwright_crds::marks::{APPLIED, DECLARED, GENERATION, OWNER};
use serde_json::Value;

use super::{
    config::{Config, DefaultValue, Field, METADATA, Mutability},
    ownership::Owner,
};

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Fields that can be changed, by the server's names, in the order of the table.
    pub changed: Vec<&'static str>,
    /// Fields that the server never changes that way.
    pub immutable: Vec<&'static str>,
}

impl Difference {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.immutable.is_empty()
    }
}

/// Compares what is owned: every field of the table, and the metadata that is desired.
#[must_use]
pub fn difference(desired: &Config, actual: &Config, owner: &Owner, table: &[Field]) -> Difference {
    let mut found = Difference::default();
    for field in table {
        if field.default == DefaultValue::ServersChoice && desired.leaves_out(field) {
            if actual.was_declared(field.name) {
                found.changed.push(field.name);
            }
            continue;
        }
        let (wanted, there) = (desired.effective(field), actual.effective(field));
        if wanted == there || matches!(field.mutability, Mutability::AtCreation | Mutability::Ignored) {
            continue;
        }
        if may_change(field.mutability, &there, &wanted) {
            found.changed.push(field.name);
        } else {
            found.immutable.push(field.name);
        }
    }
    if differs_in_metadata(desired, actual, owner) {
        found.changed.push(METADATA);
    }
    found
}

/// Marks that are only out of date are no reason to write: a generation may change nothing here (`kubectl scale` makes one too), another
/// version of the operator has another hash for the same fields, and a cluster may get another name. They are written together with a
/// real change. One that is gone is put back.
fn differs_in_metadata(desired: &Config, actual: &Config, owner: &Owner) -> bool {
    let there = actual.metadata();
    let gone = !desired.thresholds_gone_from(actual).is_empty();
    gone || desired.metadata().into_iter().any(|(key, value)| match (key, there.get(key)) {
        (GENERATION | APPLIED, Some(_)) | (DECLARED, _) => false,
        (_, None) => true,
        (OWNER, Some(known)) => !owner.is_named_by(known),
        (_, Some(known)) => *known != value,
    })
}

fn may_change(mutability: Mutability, from: &Value, to: &Value) -> bool {
    match mutability {
        Mutability::Free | Mutability::AtCreation | Mutability::Ignored => true,
        Mutability::Immutable => false,
        Mutability::OneWay => to == &Value::Bool(true),
        Mutability::Retention => from != "workqueue" && to != "workqueue",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::jetstream::{ownership::tests::owner, stream_config};

    fn config(value: Value) -> Config {
        serde_json::from_value(value).unwrap()
    }

    fn compare(desired: Value, actual: Value) -> Difference {
        difference(&config(desired), &config(actual), &owner(3), stream_config::FIELDS)
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
    fn what_is_the_servers_choice_differs_where_it_is_declared_or_was() {
        let window = |window: i64| json!({"duplicate_window": window});
        assert_eq!(compare(json!({}), window(5)), Difference::default());
        assert_eq!(compare(window(7), window(5)).changed, ["duplicate_window"]);
        let marked =
            |declared: &str| json!({"duplicate_window": 5, "metadata": {"jetwright.dev/declared": declared}});
        assert_eq!(compare(json!({}), marked("max_waiting,duplicate_window")).changed, ["duplicate_window"]);
        assert_eq!(compare(json!({}), marked("")), Difference::default());
        let silent = json!({"metadata": {"jetwright.dev/declared": ""}});
        assert_eq!(compare(silent, window(5)), Difference::default(), "a mark of an earlier version");
    }

    #[test]
    fn an_unset_field_differs_from_a_set_one() {
        let found =
            compare(json!({}), json!({"max_age": 5, "republish": {"dest": "x"}, "compression": "s2"}));
        assert_eq!(found.changed, ["max_age", "compression", "republish"]);
        assert_eq!(found.immutable, Vec::<&str>::new());
    }

    #[test]
    fn what_the_server_never_changes_is_named_apart() {
        let found = compare(json!({"storage": "memory"}), json!({"storage": "file", "max_msgs": 5}));
        assert_eq!((found.changed, found.immutable), (vec!["max_msgs"], vec!["storage"]));
        assert_eq!(compare(json!({"deny_delete": true}), json!({})).changed, ["deny_delete"]);
        assert_eq!(compare(json!({}), json!({"deny_delete": true})).immutable, ["deny_delete"]);
        assert_eq!(compare(json!({"retention": "interest"}), json!({})).changed, ["retention"]);
        assert_eq!(compare(json!({"retention": "workqueue"}), json!({})).immutable, ["retention"]);
    }

    #[test]
    fn where_a_stream_began_is_no_difference() {
        assert_eq!(compare(json!({}), json!({"first_seq": 1_000_000_000})), Difference::default());
    }

    #[test]
    fn only_desired_metadata_count() {
        let found = compare(json!({"metadata": {"a": "1"}}), json!({"metadata": {"a": "1", "b": "2"}}));
        assert!(found.is_empty());
        for (wanted, there) in [(json!({"a": "1"}), json!({"a": "2"})), (json!({"a": "1"}), json!({}))] {
            assert_eq!(
                compare(json!({"metadata": wanted}), json!({"metadata": there})).changed,
                ["metadata"]
            );
        }
    }

    #[test]
    fn a_threshold_that_was_declared_goes_with_its_declaration_and_that_of_somebody_else_stays() {
        let table = stream_config::FIELDS;
        let declared = |keys: Value| owner(3).stamp(config(json!({"metadata": keys})), table);
        let before = declared(json!({"io.nats.monitor.msgs-warn": "5", "io.nats.monitor.enabled": "true"}));
        let by_hand = Value::from("9");
        let mut metadata = before.get(METADATA).unwrap().clone();
        metadata["io.nats.monitor.seen-critical"] = by_hand;
        let before = before.with(METADATA, metadata);

        let fewer = declared(json!({"io.nats.monitor.enabled": "true"}));
        assert_eq!(difference(&fewer, &before, &owner(3), table).changed, [METADATA]);
        let after = fewer.merge_onto(&before, table);
        assert_eq!(after.metadata().get("io.nats.monitor.msgs-warn"), None);
        assert_eq!(after.metadata().get("io.nats.monitor.seen-critical"), Some(&"9"));
        assert_eq!(difference(&fewer, &after, &owner(3), table), Difference::default());

        let none = owner(3).stamp(Config::default(), table);
        assert_eq!(difference(&none, &after, &owner(3), table).changed, [METADATA]);
        let after = none.merge_onto(&after, table);
        assert_eq!(after.metadata().get("io.nats.monitor.enabled"), None);
        assert_eq!(difference(&none, &after, &owner(3), table), Difference::default());
    }

    #[test]
    fn marks_that_are_only_out_of_date_are_no_difference_and_lost_ones_are() {
        let marks = |owner: &str, generation: &str, applied: &str| {
            json!({"metadata": {
                "jetwright.dev/owner": owner, "jetwright.dev/generation": generation, "jetwright.dev/applied": applied,
            }})
        };
        let ours = || marks("east/shop/orders", "3", "a");
        for known in [
            marks("east/shop/orders", "2", "a"),
            marks("east/shop/orders", "3", "of another version"),
            marks("uid-of-east/shop/orders", "3", "a"),
        ] {
            assert_eq!(compare(ours(), known), Difference::default());
        }
        assert_eq!(compare(ours(), json!({})).changed, ["metadata"]);
        assert_eq!(compare(ours(), marks("west/shop/orders", "3", "a")).changed, ["metadata"]);
    }
}
