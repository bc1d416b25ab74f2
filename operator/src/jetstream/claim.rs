//! Whether an object may change what JetStream has under its name: it is its own, or its adoptionPolicy lets it take it. Pure.

use jetwright_crds::{
    AdoptionPolicy,
    conditions::Reason,
    marks::{FORMER_OWNERS, TAKEN_BY_UID, TAKEN_FROM},
};
use serde_json::json;

use super::{
    asset::{Asset, Desired},
    config::{Config, METADATA},
    history::History,
    ownership::{Owner, Ownership},
};
use crate::outcome::{Adoption, Blocked};

/// Most former owners that metadata name, beside the last one.
const MAX_FORMER_OWNERS: usize = 16;

/// What an object may do with what JetStream has under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is its own, as it was applied at this generation; None where an object of the same name that is gone applied it.
    Ours(Option<i64>),
    /// It becomes its own.
    Adopt(Adoption),
}

/// What an object may do with something that has this configuration and was created then.
///
/// # Errors
///
/// Why it must not be touched, with what to do.
pub fn claim<A: Asset>(
    desired: &Desired<A>,
    (config, created): (&Config, &str),
    history: &History,
) -> Result<Claim, Blocked> {
    let owner = &desired.owner;
    let thing = Thing { kind: A::KIND, name: A::name(&desired.key) };
    match (owner.ownership(config, created, history), desired.adoption) {
        (Ownership::Ours(Some(applied)), _) if applied > owner.generation => {
            Err(thing.newer_generation(applied, owner.generation))
        }
        (Ownership::Ours(applied), _) => Ok(Claim::Ours(applied)),
        (Ownership::Unowned, AdoptionPolicy::AdoptUnowned) => Ok(Claim::Adopt(Adoption::Unowned)),
        (Ownership::Unowned, _) => Err(thing.unowned()),
        (Ownership::Foreign(other), AdoptionPolicy::TakeOver) => {
            thing.check_takeover(owner, &other, config)?;
            Ok(Claim::Adopt(Adoption::TakenFrom(other)))
        }
        (Ownership::Foreign(other), _) => Err(thing.owned_by(&other)),
    }
}

/// A configuration with what the metadata say of a takeover, so that none who had it takes it back.
#[must_use]
pub fn with_takeover(owner: &Owner, from: &str, config: Config, actual: &Config) -> Config {
    let mut metadata = json!(config.metadata());
    metadata[TAKEN_FROM] = json!(from);
    metadata[TAKEN_BY_UID] = json!(owner.uid);
    let former: Vec<_> = former_owners(actual).take(MAX_FORMER_OWNERS).collect();
    if !former.is_empty() {
        metadata[FORMER_OWNERS] = json!(former.join(" "));
    }
    config.with(METADATA, metadata)
}

/// The owners that something was taken over from, the last one first.
fn former_owners(config: &Config) -> impl Iterator<Item = &str> {
    let metadata = config.metadata();
    let named = [TAKEN_FROM, FORMER_OWNERS].map(|key| metadata.get(key).copied().unwrap_or_default());
    named.into_iter().flat_map(str::split_whitespace)
}

/// Something in JetStream, as messages name it.
struct Thing<'a> {
    kind: &'static str,
    name: &'a str,
}

impl Thing<'_> {
    /// Each object takes over once, and never what was taken from it: two clusters that both may would take turns for ever.
    fn check_takeover(&self, owner: &Owner, other: &str, config: &Config) -> Result<(), Blocked> {
        let Self { kind, name } = self;
        let before = if former_owners(config).any(|former| owner.is_named_by(former)) {
            format!("{other} has taken it over from this object")
        } else if config.metadata().get(TAKEN_BY_UID).is_some_and(|uid| **uid == owner.uid) {
            format!("it is owned by {other}, and this object has taken it over before")
        } else {
            return Ok(());
        };
        Err(name_conflict(format!(
            "{kind} {name} was not taken over: {before}. Delete this object; or, to have the {kind} back, delete the other object \
             (deletionPolicy: Retain), take the jetwright.dev/ keys out of the metadata of the {kind} in NATS, and set \
             spec.adoptionPolicy: AdoptUnowned"
        )))
    }

    fn unowned(&self) -> Blocked {
        let Self { kind, name } = self;
        self.conflict(
            &format!("{kind} {name} was not created by Jetwright and was not modified"),
            AdoptionPolicy::AdoptUnowned,
        )
    }

    fn owned_by(&self, other: &str) -> Blocked {
        let Self { kind, name } = self;
        self.conflict(
            &format!("{kind} {name} is owned by {other} (cluster/namespace/name) and was not modified"),
            AdoptionPolicy::TakeOver,
        )
    }

    fn conflict(&self, what: &str, remedy: AdoptionPolicy) -> Blocked {
        let kind = self.kind;
        name_conflict(format!(
            "{what}. To have it with what is in it, set spec.adoptionPolicy: {remedy:?}; else recreate this object with a different \
             spec.{kind}Name, or delete the {kind} in NATS"
        ))
    }

    fn newer_generation(&self, applied: i64, generation: i64) -> Blocked {
        let Self { kind, name } = self;
        Blocked {
            reason: Reason::NewerGeneration,
            message: format!(
                "{kind} {name} was last applied at generation {applied}, but this object is at generation {generation} (restored from a \
                 backup, or a second operator is running). To take over, set deletionPolicy: Retain, then delete and recreate this object"
            ),
        }
    }
}

fn name_conflict(message: String) -> Blocked {
    Blocked { reason: Reason::NameConflict, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jetwright_crds::marks::OWNER;

    use super::*;
    use crate::jetstream::{
        asset::Stream,
        ownership::{ClusterNames, tests::owner},
    };

    fn desired(adoption: AdoptionPolicy) -> Desired<Stream> {
        Desired {
            key: "orders".into(),
            owner: owner(3),
            adoption,
            config: Config::default(),
            replicas: None,
            max_ack_pending: None,
        }
    }

    /// shop/orders of another cluster.
    fn in_cluster(name: &str) -> Owner {
        let cluster = ClusterNames { current: name.into(), others: Vec::new() };
        Owner { cluster: Arc::new(cluster), uid: format!("uid in {name}"), ..owner(9) }
    }

    fn claimed(adoption: AdoptionPolicy, config: &Config) -> Result<Claim, (Reason, String)> {
        let claimed = claim(&desired(adoption), (config, "10:00"), &History::default());
        claimed.map_err(|Blocked { reason, message }| (reason, message))
    }

    fn refused(adoption: AdoptionPolicy, config: &Config) -> String {
        let (reason, message) = claimed(adoption, config).unwrap_err();
        assert_eq!(reason, Reason::NameConflict);
        message
    }

    #[test]
    fn nothing_of_others_is_touched_and_the_message_says_whose_it_is_and_what_to_do() {
        use AdoptionPolicy::{AdoptUnowned, Refuse, TakeOver};
        let theirs = in_cluster("west").stamp(Config::default(), &[]);
        for policy in [Refuse, AdoptUnowned] {
            let message = refused(policy, &theirs);
            assert!(message.starts_with("stream orders is owned by west/shop/orders"), "{message}");
            assert!(message.contains("set spec.adoptionPolicy: TakeOver"), "{message}");
        }
        for policy in [Refuse, TakeOver] {
            let message = refused(policy, &Config::default());
            assert!(message.contains("not created by Jetwright and was not modified"), "{message}");
            assert!(message.contains("set spec.adoptionPolicy: AdoptUnowned"), "{message}");
            assert!(message.contains("spec.streamName"), "{message}");
        }
    }

    #[test]
    fn a_newer_generation_of_the_object_is_not_touched_whatever_the_policy() {
        for policy in [AdoptionPolicy::Refuse, AdoptionPolicy::AdoptUnowned, AdoptionPolicy::TakeOver] {
            let (reason, message) = claimed(policy, &owner(7).stamp(Config::default(), &[])).unwrap_err();
            assert_eq!(reason, Reason::NewerGeneration);
            assert!(message.contains("at generation 7") && message.contains("at generation 3"), "{message}");
        }
    }

    #[test]
    fn each_policy_takes_its_own_kind_and_what_is_the_objects_stays_so() {
        use AdoptionPolicy::{AdoptUnowned, TakeOver};
        let adopted = |adoption| Ok(Claim::Adopt(adoption));
        assert_eq!(claimed(AdoptUnowned, &Config::default()), adopted(Adoption::Unowned));
        let theirs = in_cluster("west").stamp(Config::default(), &[]);
        assert_eq!(claimed(TakeOver, &theirs), adopted(Adoption::TakenFrom("west/shop/orders".into())));
        for policy in [AdoptUnowned, TakeOver] {
            assert_eq!(claimed(policy, &owner(3).stamp(Config::default(), &[])), Ok(Claim::Ours(Some(3))));
        }
    }

    /// What is there after this owner took it over.
    fn taken(by: &Owner, from: &str, actual: &Config) -> Config {
        with_takeover(by, from, by.stamp(Config::default(), &[]), actual).merge_onto(actual, &[])
    }

    #[test]
    fn a_takeover_is_in_the_metadata_with_all_that_were_taken_from_before() {
        let (west, north) = (in_cluster("west"), in_cluster("north"));
        let first = taken(&west, "east/shop/orders", &owner(1).stamp(Config::default(), &[]));
        let metadata = first.metadata();
        assert_eq!(
            [metadata[OWNER], metadata[TAKEN_FROM], metadata[TAKEN_BY_UID]],
            ["west/shop/orders", "east/shop/orders", "uid in west"]
        );
        assert_eq!(metadata.get(FORMER_OWNERS), None);
        let second = taken(&north, "west/shop/orders", &first);
        let metadata = second.metadata();
        assert_eq!(
            [metadata[TAKEN_FROM], metadata[TAKEN_BY_UID], metadata[FORMER_OWNERS]],
            ["west/shop/orders", "uid in north", "east/shop/orders"]
        );
        let many = (0..40).fold(second, |config, number| {
            let before = config.metadata()[OWNER].to_owned();
            taken(&in_cluster(&number.to_string()), &before, &config)
        });
        assert_eq!(former_owners(&many).count(), 1 + MAX_FORMER_OWNERS);
    }

    #[test]
    fn nobody_takes_back_what_was_taken_from_him_however_many_had_it_since_nor_twice() {
        let first = taken(&in_cluster("west"), "east/shop/orders", &owner(1).stamp(Config::default(), &[]));
        let second = taken(&in_cluster("north"), "west/shop/orders", &first);
        for (there, by) in [(first, "west"), (second, "north")] {
            let message = refused(AdoptionPolicy::TakeOver, &there);
            let words = format!("{by}/shop/orders has taken it over from this object");
            assert!(message.contains(&words) && message.contains("AdoptUnowned"), "{message}");
        }
        // Under a former name of the cluster, it is the same object.
        let of_former = taken(&in_cluster("west"), "uid-of-east/shop/orders", &Config::default());
        assert!(refused(AdoptionPolicy::TakeOver, &of_former).contains("from this object"));
        let ours = taken(&owner(3), "west/shop/orders", &Config::default());
        let mut given = json!(ours.metadata());
        given[OWNER] = json!("south/shop/orders");
        let message = refused(AdoptionPolicy::TakeOver, &ours.with("metadata", given));
        assert!(message.contains("owned by south/shop/orders, and this object has taken it over before"));
    }
}
