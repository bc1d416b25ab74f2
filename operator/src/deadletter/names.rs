//! Names of what keeps a stream's dead letters: all come from the EventStream and its stream, and are checked here alone. Pure.

use jetwright_crds::dead_letter;

use crate::outcome::{Problem, problem};

/// Label of an EventStream that was made for dead letters; its value names the EventStream whose consumers write them.
pub const LABEL: &str = "jetwright.dev/dead-letters-of";

/// Longest value of a label (a DNS label, RFC 1035); the name of an object may be longer.
const LONGEST_VALUE: usize = 63;
/// Longest subject that the schema of an EventStream takes; the name of a stream may be no longer either.
const LONGEST_SUBJECT: usize = 255;

/// Names that Kubernetes and JetStream take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Of the EventStream whose consumers write the dead letters.
    pub source: String,
    /// Of the EventStream that keeps them.
    pub object: String,
    /// Of its stream in JetStream.
    pub stream: String,
    /// What that stream keeps.
    pub subjects: String,
}

impl Names {
    /// The names for an EventStream of this name, and its stream in JetStream.
    ///
    /// # Errors
    ///
    /// What is wrong with them; nothing can be there under them.
    pub fn of(source: &str, stream: &str) -> Result<Self, Problem> {
        let names = Self {
            source: source.to_owned(),
            object: object_name(source),
            stream: dead_letter::stream(stream),
            subjects: dead_letter::subjects(stream),
        };
        let longest_stream = LONGEST_SUBJECT - dead_letter::subjects("").len();
        let too_long = |what: &str, name: &str, longest: usize| {
            let message = format!(
                "no dead letters can be kept for {what} {name}, since their stream would have too long a name: make one of at most \
                 {longest} characters, or set spec.deadLetter.policy to Drop"
            );
            Err(problem("spec.streamRef", message))
        };
        if source.len() > LONGEST_VALUE {
            return too_long("EventStream", source, LONGEST_VALUE);
        }
        if names.subjects.len() > LONGEST_SUBJECT {
            return too_long("stream", stream, longest_stream);
        }
        Ok(names)
    }
}

/// Name of the EventStream that keeps the dead letters of the consumers of this one.
#[must_use]
pub fn object_name(source: &str) -> String {
    dead_letter::stream(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_those_of_the_stream() {
        let expected = Names {
            source: "orders".into(),
            object: "orders-dlq".into(),
            stream: "ORDERS-dlq".into(),
            subjects: "jetwright.dlq.ORDERS.>".into(),
        };
        assert_eq!(Names::of("orders", "ORDERS"), Ok(expected));
    }

    #[test]
    fn names_that_would_be_too_long_are_told_with_the_longest() {
        let name = |length: usize| "a".repeat(length);
        let longest = Names::of(&name(63), &name(239)).unwrap();
        assert_eq!((longest.object.len(), longest.stream.len(), longest.subjects.len()), (67, 243, 255));
        for (source, stream, told) in
            [(name(64), name(9), "at most 63 characters"), (name(9), name(240), "at most 239 characters")]
        {
            let Problem { field, message } = Names::of(&source, &stream).unwrap_err();
            assert!(field == "spec.streamRef" && message.contains(told), "{message}");
        }
    }
}
