//! Whose a stream or consumer is. The owner is kept in its metadata in JetStream, so that it survives the operator, its
//! cluster and the object. Pure.

use kube::{Resource, ResourceExt};
use serde_json::json;
use uuid::Uuid;

use crate::jetstream::{Config, config::METADATA};

/// Metadata key of the owner, as clusterName/namespace/name.
const OWNER: &str = "jetwright.dev/owner";
/// Metadata key of the uid of the object that was applied last.
const UID: &str = "jetwright.dev/uid";
/// Metadata key of the generation at which something was last changed.
pub const GENERATION: &str = "jetwright.dev/generation";
/// Metadata key of a hash of what was applied last, by which a change of the declaration is told from somebody else's.
const APPLIED: &str = "jetwright.dev/applied";

/// An object, as what it owns in JetStream knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the Kubernetes cluster.
    pub cluster: String,
    /// metadata.namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
    /// metadata.generation.
    pub generation: i64,
}

/// How an object relates to what JetStream has under the name that it declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is this object's, as it was applied at this generation; None where another object of the same name applied it.
    Own(Option<i64>),
    /// It is the object's that is named.
    Others(String),
    /// It is nobody's.
    Unowned,
}

impl Identity {
    /// The identity of an object in the cluster of this name.
    pub fn of<K: Resource>(cluster: &str, object: &K) -> Self {
        Self {
            cluster: cluster.to_owned(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
            generation: object.meta().generation.unwrap_or_default(),
        }
    }

    /// The owner as metadata have it.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("{}/{}/{}", self.cluster, self.namespace, self.name)
    }

    /// A configuration with the metadata that say whose it is, and what was applied.
    #[must_use]
    pub fn mark(&self, config: Config) -> Config {
        let text = json!(config).to_string();
        let applied = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        let generation = self.generation.to_string();
        config.with(
            METADATA,
            json!({ OWNER: self.owner(), UID: self.uid, GENERATION: generation, APPLIED: applied.to_string() }),
        )
    }

    /// How this object relates to what has this configuration. A tool that writes configurations whole takes our metadata away;
    /// what `remembered` says that we made (it has the same time of creation) is ours all the same.
    #[must_use]
    pub fn claim(&self, config: &Config, remembered: bool) -> Claim {
        let metadata = config.metadata();
        match metadata.get(OWNER) {
            Some(owner) if **owner == self.owner() => {
                let same_object = metadata.get(UID).is_some_and(|uid| **uid == self.uid);
                let generation = metadata.get(GENERATION).and_then(|text| text.parse().ok());
                Claim::Own(generation.filter(|_| same_object))
            }
            Some(owner) => Claim::Others((*owner).to_owned()),
            None if remembered => Claim::Own(Some(self.generation)),
            None => Claim::Unowned,
        }
    }
}

/// The uid of the object that was applied last to what has this configuration.
#[must_use]
pub fn applied_uid(config: &Config) -> Option<&str> {
    config.metadata().get(UID).copied()
}

/// Whether this very configuration was applied last: what differs from it now, somebody else changed. Where all marks are gone,
/// somebody took them away.
#[must_use]
pub fn was_applied(desired: &Config, actual: &Config) -> bool {
    match actual.metadata().get(APPLIED) {
        Some(applied) => desired.metadata().get(APPLIED) == Some(applied),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn identity() -> Identity {
        Identity {
            cluster: "east".into(),
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "u1".into(),
            generation: 3,
        }
    }

    fn config(metadata: Value) -> Config {
        Config::default().with("metadata", metadata)
    }

    #[test]
    fn what_an_object_made_is_its_own_at_that_generation() {
        assert_eq!(identity().claim(&identity().mark(Config::default()), false), Claim::Own(Some(3)));
    }

    #[test]
    fn an_object_made_again_resumes_without_a_generation() {
        let before = Identity { uid: "u0".into(), generation: 9, ..identity() };
        assert_eq!(identity().claim(&before.mark(Config::default()), false), Claim::Own(None));
    }

    #[test]
    fn the_same_name_in_another_cluster_is_another_owner() {
        let west = Identity { cluster: "west".into(), ..identity() };
        let theirs = west.mark(Config::default());
        assert_eq!(identity().claim(&theirs, true), Claim::Others("west/shop/orders".into()));
    }

    #[test]
    fn the_mark_tells_a_new_declaration_from_somebody_elses_change() {
        let marked = |age: i64| identity().mark(Config::default().with("max_age", age));
        assert!(was_applied(&marked(1), &marked(1).with("max_age", 5)));
        assert!(!was_applied(&marked(2), &marked(1)));
        assert!(was_applied(&marked(1), &Config::default()));
    }

    #[test]
    fn what_lost_its_metadata_is_own_only_if_it_is_remembered() {
        assert_eq!(identity().claim(&config(json!({"team": "red"})), true), Claim::Own(Some(3)));
        assert_eq!(identity().claim(&config(json!({"team": "red"})), false), Claim::Unowned);
    }
}
