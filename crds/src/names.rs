//! Names that are derived from those of the custom resources, and their bounds. Pure.

use crate::dead_letter;

/// Longest name of a Service, and longest value of a label (a DNS label, RFC 1035). Of the others' names Kubernetes takes 253, and those
/// of ReplicaSets and pods it makes itself.
const MAX_DNS_LABEL_LENGTH: usize = 63;
/// Longest subject that the schema of an EventStream takes; the name of a stream may be no longer either.
const MAX_SUBJECT_LENGTH: usize = 255;

/// What stands between the name of a consumer and the number of its partition.
const PARTITION: &str = "-p";

/// Why no object can have the name that it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The workload's objects cannot be named like the EventConsumer.
    #[error(
        "metadata.name is used as a Service name and must be a DNS label: 1 to {MAX_DNS_LABEL_LENGTH} characters a-z, 0-9 or '-', \
         starting with a letter, not ending with '-'"
    )]
    Workload,
    /// The stream of the dead letters would have too long a name.
    #[error(
        "dead letters of {what} {name} need a stream whose name would be too long: use a name of at most {max} characters, or set \
         spec.deadLetter.policy to Drop"
    )]
    DeadLetters {
        /// `EventStream` or `stream`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Most characters that it may have.
        max: usize,
    },
}

/// Names of the objects of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadNames {
    /// Of the Deployment, the Service, the ServiceAccount and the PodDisruptionBudget; and the value of the pods' label.
    pub workload: String,
    /// Of the ConfigMap with the bindings file.
    pub bindings: String,
}

impl WorkloadNames {
    /// The names for an EventConsumer of this name.
    ///
    /// # Errors
    ///
    /// When Kubernetes takes no Service of this name; then no workload of it exists either.
    pub fn of(consumer: &str) -> Result<Self, NameError> {
        let starts_with_letter = consumer.starts_with(|c: char| c.is_ascii_lowercase());
        let plain = consumer.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if consumer.len() > MAX_DNS_LABEL_LENGTH || !starts_with_letter || !plain || consumer.ends_with('-') {
            return Err(NameError::Workload);
        }
        Ok(Self { workload: consumer.to_owned(), bindings: format!("{consumer}-bindings") })
    }
}

/// Names of what keeps the dead letters of an EventStream's consumers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterNames {
    /// Of the EventStream whose consumers write the dead letters.
    pub source: String,
    /// Of the EventStream that keeps them.
    pub object: String,
    /// Of its stream in JetStream.
    pub stream: String,
    /// Subjects of that stream.
    pub subjects: String,
}

impl DeadLetterNames {
    /// The names for an EventStream of this name, and its stream in JetStream.
    ///
    /// # Errors
    ///
    /// When one of them would be too long.
    pub fn of(source: &str, stream: &str) -> Result<Self, NameError> {
        let names = Self {
            source: source.to_owned(),
            object: dead_letter_object(source),
            stream: dead_letter::stream(stream),
            subjects: dead_letter::subjects(stream),
        };
        if source.len() > MAX_DNS_LABEL_LENGTH {
            let (what, name) = ("EventStream", source.to_owned());
            return Err(NameError::DeadLetters { what, name, max: MAX_DNS_LABEL_LENGTH });
        }
        if names.subjects.len() > MAX_SUBJECT_LENGTH {
            let max = MAX_SUBJECT_LENGTH - dead_letter::subjects("").len();
            return Err(NameError::DeadLetters { what: "stream", name: stream.to_owned(), max });
        }
        Ok(names)
    }
}

/// Name of the JetStream consumer of one partition of a consumer with ordering PerKey.
#[must_use]
pub fn partition_consumer(consumer: &str, partition: u32) -> String {
    format!("{consumer}{PARTITION}{partition}")
}

/// Names in JetStream of a consumer with so many partitions; None of one that has one JetStream consumer for all events.
#[must_use]
pub fn consumer_names(consumer: &str, partitions: Option<u32>) -> Vec<String> {
    match partitions {
        Some(count) => (0..count).map(|partition| partition_consumer(consumer, partition)).collect(),
        None => vec![consumer.to_owned()],
    }
}

/// The consumer with ordering PerKey, and its partition, that would have a JetStream consumer of this name; None of a name that none has.
#[must_use]
pub fn consumer_of_partition(name: &str) -> Option<(&str, u32)> {
    let (consumer, number) = name.rsplit_once(PARTITION)?;
    let partition = number.parse().ok().filter(|_| !consumer.is_empty())?;
    // Of several ways to write a number, one is its name.
    (partition_consumer(consumer, partition) == name).then_some((consumer, partition))
}

/// Name of the EventStream that keeps the dead letters of the consumers of this one.
#[must_use]
pub fn dead_letter_object(source: &str) -> String {
    dead_letter::stream(source)
}

/// Name of the EventStream whose consumers' dead letters an EventStream of this name would keep.
#[must_use]
pub fn dead_letter_source(object: &str) -> Option<&str> {
    object.strip_suffix(dead_letter::stream("").as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_service_may_have_is_everybodys() {
        let longest = "a".repeat(63);
        for name in ["a", "order-fulfilment", "v2", &longest] {
            let names = WorkloadNames { workload: name.to_owned(), bindings: format!("{name}-bindings") };
            assert_eq!(WorkloadNames::of(name), Ok(names));
        }
    }

    #[test]
    fn any_other_name_is_refused_with_what_it_may_be() {
        for name in ["", "2nd", "-a", "a-", "a.b", "A", "a_b", &"a".repeat(64)] {
            let message = WorkloadNames::of(name).unwrap_err().to_string();
            assert!(message.contains("1 to 63 characters"), "{name:?}: {message}");
        }
    }

    #[test]
    fn names_of_dead_letters_are_made_of_those_of_the_stream() {
        let expected = DeadLetterNames {
            source: "orders".into(),
            object: "orders-dlq".into(),
            stream: "ORDERS-dlq".into(),
            subjects: "jetwright.dlq.ORDERS.>".into(),
        };
        assert_eq!(DeadLetterNames::of("orders", "ORDERS"), Ok(expected));
        assert_eq!((dead_letter_source("orders-dlq"), dead_letter_source("orders")), (Some("orders"), None));
    }

    #[test]
    fn a_partitions_consumer_tells_its_consumer_and_number() {
        for (consumer, partition, name) in
            [("fulfilment", 0, "fulfilment-p0"), ("a-p1", 12, "a-p1-p12"), ("-p", 7, "-p-p7")]
        {
            assert_eq!(partition_consumer(consumer, partition), name);
            assert_eq!(consumer_of_partition(name), Some((consumer, partition)));
        }
        for name in ["fulfilment", "a-p", "-p1", "a-p01", "a-p+1", "a-p-1", "a-px", "a-p99999999999"] {
            assert_eq!(consumer_of_partition(name), None, "{name}");
        }
    }

    #[test]
    fn names_that_would_be_too_long_are_refused_with_the_longest() {
        let name = |length: usize| "a".repeat(length);
        let longest = DeadLetterNames::of(&name(63), &name(239)).unwrap();
        assert_eq!((longest.object.len(), longest.stream.len(), longest.subjects.len()), (67, 243, 255));
        for (source, stream, expected) in
            [(name(64), name(9), "at most 63 characters"), (name(9), name(240), "at most 239 characters")]
        {
            let message = DeadLetterNames::of(&source, &stream).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
