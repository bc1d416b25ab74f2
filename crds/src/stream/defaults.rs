//! What an EventStream's fields are where they are left out, and the names that are derived from it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use std::time;

use kube::ResourceExt as _;

use super::{Discard, EventStream, EventStreamSpec, PartitionsSpec, Profile, Retention, Storage};
use crate::{AdoptionPolicy, DeletionPolicy, Duration};

/// How many servers keep a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// So many: the spec says the number.
    Exactly(u8),
    /// So many where there are as many servers, else 1 for a new stream; a stream that has more keeps them.
    Prefer(u8),
}

/// Partitions of a stream that has some.
const PARTITIONS: u32 = 8;

/// What a profile has for the fields that are left out.
struct Defaults {
    storage: Storage,
    replicas: Replicas,
    max_age: Option<time::Duration>,
    discard: Discard,
}

fn defaults(profile: Option<Profile>) -> Defaults {
    let jetstream = Defaults {
        storage: Storage::File,
        replicas: Replicas::Prefer(1),
        max_age: None,
        discard: Discard::Old,
    };
    match profile {
        None => jetstream,
        Some(Profile::Critical) => {
            Defaults { replicas: Replicas::Prefer(3), discard: Discard::New, ..jetstream }
        }
        Some(Profile::Standard) => Defaults {
            replicas: Replicas::Prefer(3),
            max_age: Some(time::Duration::from_hours(7 * 24)),
            ..jetstream
        },
        Some(Profile::Ephemeral) => {
            Defaults { storage: Storage::Memory, max_age: Some(time::Duration::from_hours(1)), ..jetstream }
        }
    }
}

impl EventStream {
    /// Name of the stream in JetStream.
    #[must_use]
    pub fn stream_name(&self) -> String {
        self.spec.stream_name.clone().unwrap_or_else(|| self.name_any())
    }

    /// How many partitions its stream has, or will have where it has none yet; None where none are declared.
    #[must_use]
    pub fn partition_count(&self) -> Option<u32> {
        let declared = self.spec.partitions.as_ref()?.effective_count();
        let stream = self.status.as_ref().and_then(|status| status.stream.as_ref());
        // A status may be written by others.
        let may_be = |there: &u32| *there > 0 && declared.is_multiple_of(*there);
        Some(stream.and_then(|stream| stream.partitions).filter(may_be).unwrap_or(declared))
    }

    /// The conditions of its status; none before the first reconcile.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        self.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
    }
}

impl EventStreamSpec {
    /// Where messages are kept: as set, or as the profile says.
    #[must_use]
    pub fn effective_storage(&self) -> Storage {
        self.storage.unwrap_or_else(|| defaults(self.profile).storage)
    }

    /// How many servers keep a copy: as set, or as the profile says.
    #[must_use]
    pub fn effective_replicas(&self) -> Replicas {
        self.replicas.map_or_else(|| defaults(self.profile).replicas, Replicas::Exactly)
    }

    /// How long messages are kept: as set, or as the profile says; None for ever.
    #[must_use]
    pub fn effective_max_age(&self) -> Option<Duration> {
        let set = self.limits.as_ref().and_then(|limits| limits.max_age);
        set.or_else(|| defaults(self.profile).max_age.map(Duration))
    }

    /// What happens when a limit is reached: as set, or as the profile says.
    #[must_use]
    pub fn effective_discard(&self) -> Discard {
        self.discard.unwrap_or_else(|| defaults(self.profile).discard)
    }

    /// What lets JetStream remove a message.
    #[must_use]
    pub fn effective_retention(&self) -> Retention {
        self.retention.unwrap_or_default()
    }

    /// Whether deleting the object deletes the stream.
    #[must_use]
    pub fn deletes(&self) -> bool {
        self.deletion_policy == Some(DeletionPolicy::Delete)
    }

    /// What to do where JetStream has something of the name that is not the object's.
    #[must_use]
    pub fn effective_adoption_policy(&self) -> AdoptionPolicy {
        self.adoption_policy.unwrap_or_default()
    }
}

impl PartitionsSpec {
    /// How many partitions there are.
    #[must_use]
    pub fn effective_count(&self) -> u32 {
        self.count.unwrap_or(PARTITIONS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> EventStreamSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn profiles_are_defaults_and_a_field_that_is_set_wins() {
        let effective = |yaml: &str| {
            let spec = spec(yaml);
            let age = spec.effective_max_age().map(|age| age.to_string());
            (spec.effective_storage(), spec.effective_replicas(), age, spec.effective_discard())
        };
        let file = Storage::File;
        assert_eq!(effective("subjects: [a]"), (file, Replicas::Prefer(1), None, Discard::Old));
        assert_eq!(
            effective("{subjects: [a], profile: Critical}"),
            (file, Replicas::Prefer(3), None, Discard::New)
        );
        assert_eq!(
            effective("{subjects: [a], profile: Standard, replicas: 1, limits: {maxAge: 1d}, discard: New}"),
            (file, Replicas::Exactly(1), Some("1d".into()), Discard::New)
        );
        assert_eq!(
            effective("{subjects: [a], profile: Ephemeral}"),
            (Storage::Memory, Replicas::Prefer(1), Some("1h".into()), Discard::Old)
        );
    }

    #[test]
    fn there_are_8_partitions_unless_the_spec_says_how_many() {
        let count = |rest: &str| {
            let partitions = format!("{{subjects: [a.*], partitions: {{keyTokens: [2]{rest}}}}}");
            spec(&partitions).partitions.map(|partitions| partitions.effective_count())
        };
        assert_eq!((count(""), count(", count: 3")), (Some(8), Some(3)));
    }

    #[test]
    fn a_stream_is_named_like_its_object_unless_its_spec_names_it() {
        let named = |yaml: &str| EventStream::new("orders", spec(yaml)).stream_name();
        assert_eq!(named("subjects: [a]"), "orders");
        assert_eq!(named("{subjects: [a], streamName: ORDERS}"), "ORDERS");
    }

    #[test]
    fn a_stream_outlives_its_object_unless_its_spec_says_otherwise() {
        assert!(!spec("subjects: [a]").deletes());
        assert!(spec("{subjects: [a], deletionPolicy: Delete}").deletes());
    }
}
