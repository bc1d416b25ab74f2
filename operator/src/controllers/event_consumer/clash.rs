//! In: an EventConsumer, and the others of its stream. Out: why it cannot have its name, where another one has it, or a JetStream consumer of that
//! one does: a consumer with order has one for each partition. Pure.

use std::sync::Arc;

use jetwright_crds::{EventConsumer, names::consumer_of_partition};
use kube::ResourceExt as _;

use crate::field_error::FieldError;

/// Why the name of an object is taken by an older one of the same stream. Where none of both has order, their marks in JetStream decide.
#[must_use]
pub fn clash(object: &EventConsumer, others: &[Arc<EventConsumer>]) -> Option<FieldError> {
    let is_older = |other: &&Arc<EventConsumer>| {
        other.metadata.uid != object.metadata.uid
            && other.metadata.deletion_timestamp.is_none()
            && precedes(other, object)
    };
    let older = others.iter().filter(is_older);
    older
        .filter(|other| other.spec.stream_ref == object.spec.stream_ref)
        .find_map(|other| taken_by(object, other))
}

fn taken_by(object: &EventConsumer, other: &EventConsumer) -> Option<FieldError> {
    let (own, theirs) = (object.consumer_name(), other.consumer_name());
    let is_one_of = |name: &str, of: &EventConsumer, consumer: &str| {
        of.spec.is_per_key() && consumer_of_partition(name).is_some_and(|(whose, _)| whose == consumer)
    };
    let ordered = object.spec.is_per_key() || other.spec.is_per_key();
    let how = if own == theirs && ordered {
        "has the same consumer name"
    } else if is_one_of(&own, other, &theirs) {
        "has ordering PerKey, and a JetStream consumer of this name for one of its partitions"
    } else if is_one_of(&theirs, object, &own) {
        "has the name that one of the partitions of this object needs for its JetStream consumer"
    } else {
        return None;
    };
    let message = format!(
        "{own} is taken: EventConsumer {} ({theirs}) {how}. Recreate this object with a different spec.consumerName",
        other.name_any()
    );
    Some(FieldError::new("spec.consumerName", message))
}

/// Of two that want the same, the older one gets it.
#[must_use]
pub fn precedes(one: &EventConsumer, other: &EventConsumer) -> bool {
    let key = |object: &EventConsumer| {
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, object.name_any())
    };
    key(one) < key(other)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    /// An EventConsumer that was made in this second.
    fn consumer(name: &str, second: i64, rest: &str) -> EventConsumer {
        let spec = format!("{{streamRef: {{name: orders}}{rest}}}");
        let mut object = EventConsumer::new(name, serde_saphyr::from_str(&spec).unwrap());
        object.metadata.uid = Some(name.to_owned());
        object.metadata.creation_timestamp = Some(Time(Timestamp::from_second(second).unwrap()));
        object
    }

    const ORDERED: &str = ", ordering: PerKey";

    #[test]
    fn a_name_that_a_partition_has_is_refused_to_the_newer_one_whichever_it_is() {
        for (one, other) in [(("x", ORDERED), ("x-p1", "")), (("x", ORDERED), ("x-p1", ORDERED))] {
            for (older, newer) in [(one, other), (other, one)] {
                let old = consumer(older.0, 1, older.1);
                let new = consumer(newer.0, 2, newer.1);
                let error = clash(&new, &[old.clone().into(), new.clone().into()]).unwrap();
                assert_eq!(error.field, "spec.consumerName");
                let words = format!("EventConsumer {}", older.0);
                assert!(
                    error.message.contains(&words) && error.message.contains("Recreate this object"),
                    "{}",
                    error.message
                );
                assert_eq!(clash(&old, &[old.clone().into(), new.into()]), None);
            }
        }
    }

    #[test]
    fn one_name_is_not_in_order_for_one_and_without_for_another() {
        let (old, new) =
            (consumer("a", 1, ", consumerName: c"), consumer("b", 2, ", consumerName: c, ordering: PerKey"));
        assert!(clash(&new, &[old.clone().into()]).is_some());
        let unordered = consumer("b", 2, ", consumerName: c");
        assert_eq!(clash(&unordered, &[old.into()]), None, "their marks decide");
    }

    #[test]
    fn other_names_and_other_streams_are_free() {
        let new = consumer("x-p1", 2, "");
        let mut of_users = consumer("x", 1, ORDERED);
        of_users.spec.stream_ref.name = "users".into();
        let mut deleted = consumer("x", 1, ORDERED);
        deleted.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(3).unwrap()));
        for other in [consumer("x", 1, ""), consumer("y", 1, ORDERED), of_users, deleted] {
            assert_eq!(clash(&new, &[other.into()]), None);
        }
    }
}
