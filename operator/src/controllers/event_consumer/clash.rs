//! In: an EventConsumer, and the others of its stream. Out: those that want the same names, and whose they are, by what JetStream has: a consumer
//! with order has a JetStream consumer for each partition. Pure.

use std::sync::Arc;

use jetwright_crds::{
    EventConsumer,
    names::{consumer_of_partition, partition_consumer},
};
use kube::ResourceExt as _;

use crate::field_error::FieldError;

/// Another EventConsumer of the same stream that wants a name which an object wants, too.
#[derive(Clone, Debug)]
pub struct Contest {
    pub other: Arc<EventConsumer>,
    /// The consumer in JetStream by which the object has the name, if it carries its mark.
    pub own: String,
    /// The same of the other one.
    pub theirs: String,
    how: &'static str,
}

/// Whose mark the consumers of a contest carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    pub own: bool,
    pub theirs: bool,
}

/// The others that want a name of an object. Where none of both has order, their marks in JetStream alone decide.
pub fn contests(object: &EventConsumer, others: &[Arc<EventConsumer>]) -> Vec<Contest> {
    let is_another = |other: &&Arc<EventConsumer>| {
        other.metadata.uid != object.metadata.uid
            && other.metadata.deletion_timestamp.is_none()
            && other.spec.stream_ref == object.spec.stream_ref
    };
    others.iter().filter(is_another).filter_map(|other| contest(object, other)).collect()
}

fn contest(object: &EventConsumer, other: &Arc<EventConsumer>) -> Option<Contest> {
    let (own, theirs) = (object.consumer_name(), other.consumer_name());
    let is_one_of = |name: &str, of: &EventConsumer, consumer: &str| {
        of.spec.is_per_key() && consumer_of_partition(name).is_some_and(|(whose, _)| whose == consumer)
    };
    let ordered = object.spec.is_per_key() || other.spec.is_per_key();
    let first = |of: &EventConsumer, name: String| {
        if of.spec.is_per_key() { partition_consumer(&name, 0) } else { name }
    };
    let (own, theirs, how) = if own == theirs && ordered {
        (first(object, own), first(other, theirs), "has the same consumer name")
    } else if is_one_of(&own, other, &theirs) {
        let how = "has ordering PerKey, and a JetStream consumer of this name for one of its partitions";
        (first(object, own.clone()), own, how)
    } else if is_one_of(&theirs, object, &own) {
        let how = "has the name that one of the partitions of this object needs for its JetStream consumer";
        (theirs.clone(), first(other, theirs), how)
    } else {
        return None;
    };
    Some(Contest { other: Arc::clone(other), own, theirs, how })
}

impl Contest {
    /// Why the object cannot have its name, where the other one has it: who has a consumer in JetStream keeps it, and otherwise the older one
    /// gets it.
    #[must_use]
    pub fn lost(&self, object: &EventConsumer, marked: Marked) -> Option<FieldError> {
        let is_theirs = match marked {
            Marked { own: true, theirs: false } => false,
            Marked { own: false, theirs: true } => true,
            Marked { .. } => precedes(&self.other, object),
        };
        let message = format!(
            "{} is taken: EventConsumer {} ({}) {}. Recreate this object with a different spec.consumerName",
            object.consumer_name(),
            self.other.name_any(),
            self.other.consumer_name(),
            self.how
        );
        is_theirs.then(|| FieldError::new("spec.consumerName", message))
    }
}

/// Of two that want the same, the older one gets it; of two of the same second, the one with the lesser UID.
#[must_use]
pub fn precedes(one: &EventConsumer, other: &EventConsumer) -> bool {
    let key = |object: &EventConsumer| {
        let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, object.uid())
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
    const NONE: Marked = Marked { own: false, theirs: false };

    /// Why an object loses its name, where JetStream has none of both consumers.
    fn clash(object: &EventConsumer, others: &[Arc<EventConsumer>]) -> Option<FieldError> {
        contests(object, others).iter().find_map(|contest| contest.lost(object, NONE))
    }

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

    #[test]
    fn who_has_its_consumer_in_jetstream_keeps_the_name_whoever_is_older() {
        let (old, new) = (consumer("x", 1, ORDERED), consumer("x-p1", 2, ""));
        let of = |object: &EventConsumer, other: &EventConsumer| {
            let mut contests = contests(object, &[object.clone().into(), other.clone().into()]);
            assert_eq!(contests.len(), 1);
            contests.remove(0)
        };
        let (of_old, of_new) = (of(&old, &new), of(&new, &old));
        assert_eq!((of_old.own.as_str(), of_old.theirs.as_str()), ("x-p1", "x-p1"));
        assert_eq!((of_new.own.as_str(), of_new.theirs.as_str()), ("x-p1", "x-p1"));
        let (mine, theirs) = (Marked { own: true, theirs: false }, Marked { own: false, theirs: true });
        assert!(of_old.lost(&old, theirs).is_some() && of_new.lost(&new, mine).is_none());
        assert!(of_old.lost(&old, mine).is_none() && of_new.lost(&new, theirs).is_some());
        let both = Marked { own: true, theirs: true };
        assert!(of_old.lost(&old, both).is_none() && of_new.lost(&new, both).is_some());
    }

    #[test]
    fn of_two_that_have_order_the_consumers_that_tell_are_their_own() {
        let (one, other) = (consumer("x", 1, ORDERED), consumer("x-p1", 2, ORDERED));
        let contests = contests(&other, &[one.into()]);
        // x needs x-p1, and x-p1 needs x-p1-p0: the name alone cannot be both.
        assert_eq!((contests[0].own.as_str(), contests[0].theirs.as_str()), ("x-p1-p0", "x-p1"));
    }

    #[test]
    fn of_two_of_the_same_second_one_gets_the_name() {
        let (one, other) = (consumer("x", 1, ORDERED), consumer("x-p1", 1, ""));
        let both = [one.clone().into(), other.clone().into()];
        assert!(clash(&one, &both).is_some() != clash(&other, &both).is_some());
    }
}
