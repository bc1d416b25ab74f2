//! Subjects and filters of subjects, and which streams add the number of a partition to theirs. Pure.

use std::{collections::HashMap, sync::Arc};

use jetwright_crds::environment::{Binding, Bindings, StreamPartitions};
use jetwright_partitions::subjects::{Partitions, SubjectError};

use crate::{Error, ErrorKind};

/// The streams with partitions, by their names.
///
/// The bindings name them, and not the streams themselves: so a program needs no right to read the configuration of a stream, it knows of
/// partitions before the first event has one, and both sides of a change of partitions are known by the same file. A stream that no binding
/// names is taken for one without partitions.
#[derive(Clone, Debug, Default)]
pub(crate) struct PartitionedStreams(Arc<HashMap<String, Arc<Partitions>>>);

/// A binding has partitions that a stream cannot have.
#[derive(Debug, thiserror::Error)]
#[error("bindings.{binding}.partitions in JETWRIGHT_BINDINGS must be what the operator writes")]
pub struct PartitionsError {
    /// The binding.
    pub binding: String,
    /// What is wrong.
    pub source: SubjectError,
}

impl PartitionedStreams {
    /// # Errors
    ///
    /// A binding has partitions that a stream cannot have.
    pub(crate) fn of(bindings: &Bindings) -> Result<Self, PartitionsError> {
        let mut streams = HashMap::new();
        for (name, binding) in &bindings.bindings {
            let Binding { stream, partitions: Some(partitions), .. } = binding else { continue };
            let StreamPartitions { subject, key_tokens, count } = partitions;
            let partitions = Partitions::new(subject, key_tokens, *count)
                .map_err(|source| PartitionsError { binding: name.clone(), source })?;
            streams.insert(stream.clone(), Arc::new(partitions));
        }
        Ok(Self(Arc::new(streams)))
    }

    pub(crate) fn get(&self, stream: &str) -> Option<&Arc<Partitions>> {
        self.0.get(stream)
    }

    /// # Errors
    ///
    /// The server would compare an expected sequence with events of this filter, none of which it stores: so it would find none, and take
    /// every event that expects none.
    pub(crate) fn check_expected(&self, subject: &str, filter: &str) -> Result<(), Error> {
        let stores = |partitions: &&Arc<Partitions>| matches(partitions.transform_source(), subject);
        let Some(partitions) = self.0.values().find(stores) else { return Ok(()) };
        let covering = partitions.covering_filter(filter);
        if covering == filter {
            return Ok(());
        }
        let reason = format!(
            "the expected sequence must be one under a filter that ends in '>', as {covering} does, and not under {filter}: the stream \
             stores the number of the event's partition as one more token"
        );
        Err(Error::new(ErrorKind::Refused, subject, reason))
    }
}

/// Whether a filter, which may have wildcards, matches this subject.
pub(crate) fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", token) => return token.is_some(),
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Whether a filter stands for several subjects, and not for every one.
pub(crate) fn is_some_of_many(filter: &str) -> bool {
    filter != ">" && filter.split('.').any(|token| token == "*" || token == ">")
}

#[cfg(test)]
mod tests {
    use jetwright_crds::{Duration, environment::Retry};

    use super::*;

    fn bindings(key_tokens: &[u32]) -> Bindings {
        let partitions =
            StreamPartitions { subject: "orders.*.*".to_owned(), key_tokens: key_tokens.to_vec(), count: 8 };
        let binding = Binding {
            stream: "orders".to_owned(),
            consumer: "fulfilment".to_owned(),
            ack_wait: Duration::from_secs(30),
            max_ack_pending: 1,
            retry: Retry::default(),
            handler_deadline: Duration::from_secs(20),
            partitions: Some(partitions),
            ordering: None,
            dead_letters: None,
        };
        let other = Binding { stream: "users".to_owned(), partitions: None, ..binding.clone() };
        Bindings { bindings: [("fulfilment".to_owned(), binding), ("users".to_owned(), other)].into() }
    }

    #[test]
    fn the_bindings_name_the_streams_with_partitions() {
        let streams = PartitionedStreams::of(&bindings(&[2])).unwrap();
        assert_eq!(streams.get("orders").map(|partitions| partitions.count()), Some(8));
        assert!(streams.get("users").is_none() && streams.get("payments").is_none());
        let error = PartitionedStreams::of(&bindings(&[1])).unwrap_err();
        assert_eq!(
            (error.binding.as_str(), error.to_string().contains("bindings.fulfilment.partitions")),
            ("fulfilment", true)
        );
    }

    #[test]
    fn an_expected_sequence_is_one_of_events_that_the_stream_stores() {
        let streams = PartitionedStreams::of(&bindings(&[2])).unwrap();
        for (subject, filter) in [
            ("orders.42.placed", "orders.42.>"),
            ("users.42.created", "users.42.created"),
            ("orders.42", "orders.42"),
        ] {
            assert_eq!(streams.check_expected(subject, filter), Ok(()), "{subject} {filter}");
        }
        for filter in ["orders.42.placed", "orders.42.*"] {
            let error = streams.check_expected("orders.42.placed", filter).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("as orders.42.> does"), "{error}");
        }
    }

    #[test]
    fn a_filter_matches_by_tokens() {
        for (filter, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a.b.>", "a.bc.d", false),
        ] {
            assert_eq!(matches(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn a_filter_of_several_subjects_has_a_wildcard() {
        let several: Vec<_> =
            ["a.>", "a.*.b", "a.b", ">", "a*"].into_iter().filter(|filter| is_some_of_many(filter)).collect();
        assert_eq!(several, ["a.>", "a.*.b"]);
    }
}
