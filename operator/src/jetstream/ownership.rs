//! Whose a stream or consumer is. The owner is kept in its metadata in JetStream, so that it survives the operator, its cluster and the
//! object; nothing else proves ownership, least of all a status, which others can write. Pure.

use std::{collections::BTreeMap, sync::Arc};

use jetwright_crds::marks::{APPLIED, DECLARED, GENERATION, OWNER, UID};
use kube::{Resource, ResourceExt};
use serde_json::json;
use uuid::Uuid;

use super::{
    config::{Config, DefaultValue, Field, METADATA},
    history::History,
};

/// The names under which this Kubernetes cluster owns things in JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNames {
    /// The name that is written.
    pub current: String,
    /// Names that count as this cluster's too, such as the one before it was named.
    pub others: Vec<String>,
}

/// An object, as what it owns in JetStream knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub cluster: Arc<ClusterNames>,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
}

/// How an object relates to what JetStream has under the name that it declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It is this object's, as it was applied at this generation; None where another object of the same name applied it.
    Ours(Option<i64>),
    /// It is the object's that is named.
    Foreign(String),
    Unowned,
}

impl Ownership {
    /// Whether an object of this generation may change or delete it as its own: not where a newer one was applied.
    #[must_use]
    pub fn permits(&self, generation: i64) -> bool {
        matches!(self, Self::Ours(applied) if applied.is_none_or(|applied| applied <= generation))
    }
}

impl Owner {
    /// The object as an owner in this cluster.
    pub fn new<K: Resource>(cluster: &Arc<ClusterNames>, object: &K) -> Self {
        Self {
            cluster: cluster.clone(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.meta().generation.unwrap_or_default(),
        }
    }

    /// Tells this declaration from any other.
    #[must_use]
    pub fn declaration(&self) -> (&str, i64) {
        (&self.uid, self.generation)
    }

    fn under(&self, cluster: &str) -> String {
        format!("{cluster}/{}/{}", self.namespace, self.name)
    }

    /// Whether metadata name this object, under any name of its cluster.
    #[must_use]
    pub fn is_named_by(&self, owner: &str) -> bool {
        let ClusterNames { current, others } = self.cluster.as_ref();
        std::iter::once(current).chain(others).any(|cluster| self.under(cluster) == owner)
    }

    /// The uid of another object of this one's cluster name, namespace and name, where the metadata name that one.
    #[must_use]
    pub fn twin<'a>(&self, config: &'a Config) -> Option<&'a str> {
        let metadata = config.metadata();
        let named = metadata.get(OWNER).is_some_and(|owner| self.is_named_by(owner));
        metadata.get(UID).copied().filter(|uid| named && *uid != self.uid)
    }

    /// A configuration with the metadata that say whose it is, and what was applied. `table` has its fields.
    #[must_use]
    pub fn stamp(&self, config: Config, table: &[Field]) -> Config {
        let text = json!(config).to_string();
        let applied = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        let generation = self.generation.to_string();
        let owner = self.under(&self.cluster.current);
        let chosen =
            |field: &&Field| field.default == DefaultValue::ServersChoice && !config.leaves_out(field);
        let fields = table.iter().filter(chosen).map(|field| field.name);
        let thresholds = config.metadata();
        let declared: Vec<_> = fields.chain(thresholds.keys().copied()).collect();
        let (applied, declared) = (applied.to_string(), declared.join(","));
        let marks = [
            (OWNER, &owner),
            (UID, &self.uid),
            (GENERATION, &generation),
            (APPLIED, &applied),
            (DECLARED, &declared),
        ];
        let marks = marks.map(|(key, value)| (key, value.as_str()));
        let metadata: BTreeMap<_, _> = thresholds.into_iter().chain(marks).collect();
        let metadata = json!(metadata);
        config.with(METADATA, metadata)
    }

    /// How this object relates to what has this configuration and was created then. A tool that writes configurations whole takes our
    /// metadata away; what was seen to have them is ours all the same.
    #[must_use]
    pub fn ownership(&self, config: &Config, created: &str, history: &History) -> Ownership {
        let metadata = config.metadata();
        match metadata.get(OWNER) {
            Some(owner) if self.is_named_by(owner) => {
                let same_object = metadata.get(UID).is_some_and(|uid| **uid == self.uid);
                let generation = metadata.get(GENERATION).and_then(|text| text.parse().ok());
                Ownership::Ours(generation.filter(|_| same_object))
            }
            Some(owner) => Ownership::Foreign((*owner).to_owned()),
            None if history.mark_at(created).is_some_and(|owner| self.is_named_by(owner)) => {
                Ownership::Ours(Some(self.generation))
            }
            None => Ownership::Unowned,
        }
    }
}

/// Whether this very configuration was applied last: what differs from it now, another writer changed. Where all marks are gone,
/// another writer took them away.
#[must_use]
pub fn matches_last_applied(desired: &Config, actual: &Config) -> bool {
    match actual.metadata().get(APPLIED) {
        Some(applied) => desired.metadata().get(APPLIED) == Some(applied),
        None => true,
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::Value;

    use super::*;

    /// shop/orders of cluster east, which was named uid-of-east before.
    pub fn owner(generation: i64) -> Owner {
        let cluster = ClusterNames { current: "east".into(), others: vec!["uid-of-east".into()] };
        Owner {
            cluster: Arc::new(cluster),
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "u1".into(),
            generation,
        }
    }

    fn in_cluster(name: &str) -> Owner {
        Owner { cluster: Arc::new(ClusterNames { current: name.into(), others: Vec::new() }), ..owner(3) }
    }

    fn config(metadata: Value) -> Config {
        Config::default().with("metadata", metadata)
    }

    fn ownership(config: &Config) -> Ownership {
        owner(3).ownership(config, "10:00", &History::default())
    }

    #[test]
    fn what_an_object_made_is_its_own_at_that_generation() {
        assert_eq!(ownership(&owner(3).stamp(Config::default(), &[])), Ownership::Ours(Some(3)));
    }

    #[test]
    fn an_object_made_again_resumes_without_a_generation() {
        let before = Owner { uid: "u0".into(), ..owner(9) };
        assert_eq!(ownership(&before.stamp(Config::default(), &[])), Ownership::Ours(None));
    }

    #[test]
    fn the_same_name_in_another_cluster_is_another_owner() {
        let theirs = in_cluster("west").stamp(Config::default(), &[]);
        assert_eq!(ownership(&theirs), Ownership::Foreign("west/shop/orders".into()));
    }

    #[test]
    fn what_was_made_before_the_cluster_had_its_name_is_its_own() {
        assert_eq!(
            ownership(&in_cluster("uid-of-east").stamp(Config::default(), &[])),
            Ownership::Ours(Some(3))
        );
    }

    #[test]
    fn the_mark_tells_a_new_declaration_from_another_writers_change() {
        let marked = |age: i64| owner(3).stamp(Config::default().with("max_age", age), &[]);
        assert!(matches_last_applied(&marked(1), &marked(1).with("max_age", 5)));
        assert!(!matches_last_applied(&marked(2), &marked(1)));
        assert!(matches_last_applied(&marked(1), &Config::default()));
    }

    #[test]
    fn what_lost_its_metadata_is_own_only_if_it_was_seen_to_have_them() {
        let mut history = History::default();
        history.observe(&owner(3).stamp(Config::default(), &[]), "10:00", None);
        let wiped = config(json!({"team": "red"}));
        let of = |created, history| owner(3).ownership(&wiped, created, history);
        assert_eq!(of("10:00", &history), Ownership::Ours(Some(3)));
        assert_eq!(of("10:05", &history), Ownership::Unowned, "another one of the name");
        assert_eq!(of("10:00", &History::default()), Ownership::Unowned, "after a restart");
    }
}
