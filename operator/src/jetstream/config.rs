//! A configuration of a stream or a consumer, as the JSON object that `$JS.API` has for it, and the fields that it consists of. Pure.

use std::{collections::BTreeMap, fmt};

use jetwright_crds::{
    marks::DECLARED,
    monitoring::{self, METADATA_PREFIX, Threshold},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Key prefix of the metadata that the server keeps for itself.
const SERVERS_OWN: &str = "_nats.";
/// Name of the field that holds metadata.
pub const METADATA: &str = "metadata";

/// What the server lets become of a field once it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutability {
    /// It may take any value.
    Free,
    /// It stays as it was created.
    Immutable,
    /// It may be switched on, but not off.
    OneWay,
    /// Between limits and interest only.
    Retention,
    /// It matters only when the thing is created: it is not compared, and an update carries what there is. A server takes another
    /// `first_seq` in an update without a word, and purges the stream up to it at its next start (`newFileStoreWithCreated` in
    /// server/filestore.go).
    AtCreation,
    /// It is not compared: the server chooses it.
    Ignored,
}

/// The value that the server takes a field to have where it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultValue {
    Nothing,
    False,
    Number(i64),
    Text(&'static str),
    /// Whatever the server makes of an absent one: by its own limits, the account's, and other fields. An absent field is not compared,
    /// unless the last declaration had it.
    ServersChoice,
}

impl DefaultValue {
    #[must_use]
    pub fn to_json(self) -> Value {
        match self {
            Self::Nothing | Self::ServersChoice => Value::Null,
            Self::False => json!(false),
            Self::Number(number) => json!(number),
            Self::Text(text) => json!(text),
        }
    }
}

/// One field of a configuration.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in `$JS.API`.
    pub name: &'static str,
    pub default: DefaultValue,
    pub mutability: Mutability,
}

/// A row of a table of fields.
pub const fn field(name: &'static str, default: DefaultValue, mutability: Mutability) -> Field {
    Field { name, default, mutability }
}

/// A configuration, whole: fields that this version does not know are kept as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Config(Map<String, Value>);

impl Config {
    /// Sets a field.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the metadata by which NATS' tools judge, where an object says anything of that.
    #[must_use]
    pub fn with_thresholds(self, thresholds: Option<Vec<Threshold>>) -> Self {
        match thresholds {
            Some(thresholds) => self.with(METADATA, json!(monitoring::metadata(&thresholds))),
            None => self,
        }
    }

    /// Sets a key of the metadata, beside those that are there.
    #[must_use]
    pub fn with_mark(self, key: &str, value: &str) -> Self {
        let mut metadata = self.metadata();
        metadata.insert(key, value);
        let metadata = json!(metadata);
        self.with(METADATA, metadata)
    }

    /// Takes a key out of the metadata.
    #[must_use]
    pub fn without_mark(self, key: &str) -> Self {
        let mut metadata = self.metadata();
        if metadata.remove(key).is_none() {
            return self;
        }
        if metadata.is_empty() {
            let mut fields = self.0;
            fields.remove(METADATA);
            return Self(fields);
        }
        let metadata = json!(metadata);
        self.with(METADATA, metadata)
    }

    /// The value of a field, if it is there.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// The value of a field, or its default where the field is absent or empty, since servers write one or the other.
    #[must_use]
    pub fn effective(&self, field: &Field) -> Value {
        match self.0.get(field.name) {
            Some(value) if !is_empty(value) => value.clone(),
            _ => field.default.to_json(),
        }
    }

    /// Whether the field is left out, or has a value for which servers fill in their own.
    #[must_use]
    pub fn leaves_out(&self, field: &Field) -> bool {
        self.0.get(field.name).is_none_or(is_empty)
    }

    /// The metadata, the server's own keys left out.
    #[must_use]
    pub fn metadata(&self) -> BTreeMap<&str, &str> {
        let pairs = self.0.get(METADATA).and_then(Value::as_object).into_iter().flatten();
        pairs
            .filter(|(key, _)| !key.starts_with(SERVERS_OWN))
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
            .collect()
    }

    /// Whether the declaration that was applied last set this field of those that are the server's choice otherwise, or this key of the metadata
    /// of those by which NATS' tools judge. A mark of an earlier version does not say.
    #[must_use]
    pub fn was_declared(&self, name: &str) -> bool {
        self.metadata().get(DECLARED).is_some_and(|names| names.split(',').any(|declared| declared == name))
    }

    /// Keys by which NATS' tools judge that the declaration had when it was applied to `actual`, and has no more. Those that somebody else
    /// set stay.
    #[must_use]
    pub fn thresholds_gone_from<'a>(&self, actual: &'a Self) -> Vec<&'a str> {
        let (wanted, there) = (self.metadata(), actual.metadata());
        let is_gone = |key: &&str| {
            key.starts_with(METADATA_PREFIX) && !wanted.contains_key(*key) && actual.was_declared(key)
        };
        there.into_keys().filter(is_gone).collect()
    }

    /// This configuration laid over what there is: every field of the table is as here or gone, so that a server chooses again what is its
    /// choice. What the thing was created with stays as it is, and so do fields that the table does not know and the metadata of others.
    #[must_use]
    pub fn merge_onto(&self, actual: &Self, table: &[Field]) -> Self {
        let mut merged = actual.clone();
        for field in table.iter().filter(|field| field.mutability != Mutability::AtCreation) {
            match self.0.get(field.name) {
                Some(value) => merged.0.insert(field.name.to_owned(), value.clone()),
                // A server refuses another choice than its first.
                None if field.mutability == Mutability::Immutable
                    && field.default == DefaultValue::ServersChoice =>
                {
                    None
                }
                None => merged.0.remove(field.name),
            };
        }
        let mut metadata = actual.metadata();
        for key in self.thresholds_gone_from(actual) {
            metadata.remove(key);
        }
        metadata.extend(self.metadata());
        merged.0.insert(METADATA.to_owned(), json!(metadata));
        merged
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", json!(self.0))
    }
}

/// Whether a server would leave the value out or fill in its default.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(value: Value) -> Config {
        serde_json::from_value(value).unwrap()
    }

    const TABLE: &[Field] = &[
        field("name", DefaultValue::Nothing, Mutability::Immutable),
        field("max_age", DefaultValue::Number(0), Mutability::Free),
        field("first_seq", DefaultValue::Number(0), Mutability::AtCreation),
        field("duplicate_window", DefaultValue::ServersChoice, Mutability::Free),
        field("max_waiting", DefaultValue::ServersChoice, Mutability::Immutable),
    ];

    #[test]
    fn the_server_chooses_again_what_is_left_out_unless_it_never_changes() {
        let actual = config(json!({"duplicate_window": 5, "max_waiting": 256}));
        let merged = Config::default().merge_onto(&actual, TABLE);
        assert_eq!(merged, config(json!({"max_waiting": 256, "metadata": {}})));
    }

    #[test]
    fn a_merge_drops_known_fields_and_keeps_where_it_began_and_unknown_ones_and_foreign_metadata() {
        let actual = config(json!({
            "name": "orders", "max_age": 5, "first_seq": 18_446_744_073_709_551_615_u64, "from_the_future": {"x": 1},
            "metadata": {"team": "red", "jetwright.dev/owner": "old", "_nats.level": "2"},
        }));
        let desired = config(json!({"name": "orders", "metadata": {"jetwright.dev/owner": "new"}}));
        assert_eq!(
            desired.merge_onto(&actual, TABLE),
            config(json!({
                "name": "orders", "first_seq": 18_446_744_073_709_551_615_u64, "from_the_future": {"x": 1},
                "metadata": {"team": "red", "jetwright.dev/owner": "new"},
            }))
        );
    }
}
