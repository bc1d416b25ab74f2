//! Subjects of a stream with partitions: the number of the partition is the last token of each stored subject. Pure.
//!
//! In: the stream's subject, the tokens that are the key, the number of partitions. Out: the server's subject transform, the filters
//! of consumers, and what a stored subject was before.
//!
//! The server computes `fnv32a(key) % count` over the key's tokens, one after another without a separator (server/subject_transform.go
//! of nats-server). A multiple of the count divides each partition and mixes none.

use std::borrow::Cow;

use crate::keys::{MAX_PARTITIONS, parse_number};

/// Why a stream cannot have these partitions, or a consumer these filters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    /// The count is 0 or too large.
    #[error("count must be 1 to {MAX_PARTITIONS}, and is {0}")]
    Count(u32),
    /// A subject has a `>`, so it has no depth.
    #[error("subject {0} must not have a '>': the number of the partition is added as its last token")]
    NoDepth(String),
    /// No token is the key.
    #[error("keyTokens must name at least one token of subject {0}")]
    NoKey(String),
    /// A token of the key is no wildcard of the subject.
    #[error(
        "token {token} of subject {subject} must be '*' to be a part of the key (tokens are counted from 1)"
    )]
    NoWildcard {
        /// The token, counted from 1.
        token: u32,
        /// The stream's subject.
        subject: String,
    },
    /// A filter has another depth than the subject.
    #[error("filter {filter} must have as many tokens as subject {subject}, or end in '>'")]
    Depth {
        /// The filter.
        filter: String,
        /// The stream's subject.
        subject: String,
    },
    /// A filter matches no event of the stream.
    #[error("filter {filter} matches nothing of subject {subject}")]
    NoOverlap {
        /// The filter.
        filter: String,
        /// The stream's subject.
        subject: String,
    },
}

/// The partitions of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitions {
    /// The stream's subject, as events are published.
    subject: String,
    /// Tokens that are the key, counted from 1, in the order in which they are hashed.
    key_tokens: Vec<u32>,
    count: u32,
}

impl Partitions {
    /// Partitions of a stream with this subject; `key_tokens` are counted from 1.
    ///
    /// # Errors
    ///
    /// The subject has no fixed depth, a token of the key is no `*`, or the count is not 1 to [`MAX_PARTITIONS`].
    pub fn new(subject: &str, key_tokens: &[u32], count: u32) -> Result<Self, SubjectError> {
        if count == 0 || count > MAX_PARTITIONS {
            return Err(SubjectError::Count(count));
        }
        if subject.split('.').any(|token| token == ">") {
            return Err(SubjectError::NoDepth(subject.to_owned()));
        }
        if key_tokens.is_empty() {
            return Err(SubjectError::NoKey(subject.to_owned()));
        }
        for token in key_tokens {
            let index = token.checked_sub(1).and_then(|index| usize::try_from(index).ok());
            if index.and_then(|index| subject.split('.').nth(index)) != Some("*") {
                return Err(SubjectError::NoWildcard { token: *token, subject: subject.to_owned() });
            }
        }
        Ok(Self { subject: subject.to_owned(), key_tokens: key_tokens.to_vec(), count })
    }

    /// Number of partitions.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The same with another count, as before or after a change.
    ///
    /// # Errors
    ///
    /// The count is not 1 to [`MAX_PARTITIONS`].
    pub fn with_count(&self, count: u32) -> Result<Self, SubjectError> {
        Self::new(&self.subject, &self.key_tokens, count)
    }

    /// The source of the stream's subject transform.
    #[must_use]
    pub fn transform_source(&self) -> &str {
        &self.subject
    }

    /// The destination of the stream's subject transform. The server counts the wildcards of the source, not its tokens.
    #[must_use]
    pub fn transform_destination(&self) -> String {
        let mut wildcards = 0;
        let mut key: Vec<(u32, u32)> = Vec::new();
        let mut tokens: Vec<String> = Vec::new();
        for (number, token) in (1..).zip(self.subject.split('.')) {
            if token == "*" {
                wildcards += 1;
                key.push((number, wildcards));
                tokens.push(format!("{{{{wildcard({wildcards})}}}}"));
            } else {
                tokens.push(token.to_owned());
            }
        }
        let wildcard_of = |token: &u32| {
            key.iter().find(|(number, _)| number == token).map(|(_, wildcard)| wildcard.to_string())
        };
        let key: Vec<_> = self.key_tokens.iter().filter_map(wildcard_of).collect();
        tokens.push(format!("{{{{partition({},{})}}}}", self.count, key.join(",")));
        tokens.join(".")
    }

    /// The partition of an event that is published to this subject, as the server computes it.
    #[must_use]
    pub fn partition_of(&self, subject: &str) -> u32 {
        let tokens: Vec<_> = subject.split('.').collect();
        let token_at = |number: &u32| tokens.get(usize::try_from(number.checked_sub(1)?).ok()?).copied();
        let key = self.key_tokens.iter().filter_map(token_at).flat_map(str::bytes);
        fnv32a(key) % self.count
    }

    /// Subject and partition of an event that is stored under this subject. Events from before the stream had partitions have none.
    #[must_use]
    pub fn published<'s>(&self, stored: &'s str) -> (&'s str, Option<u32>) {
        let depth = self.depth();
        match stored.rsplit_once('.') {
            Some((subject, number)) if subject.split('.').count() == depth => match parse_number(number) {
                Some(number) => (subject, Some(number)),
                None => (stored, None),
            },
            _ => (stored, None),
        }
    }

    /// The filter of published subjects that this filter of stored ones was made of.
    #[must_use]
    pub fn published_filter<'s>(&self, stored: &'s str) -> &'s str {
        match stored.rsplit_once('.') {
            Some((filter, number)) if number != ">" && filter.split('.').count() == self.depth() => filter,
            _ => stored,
        }
    }

    /// One filter of stored subjects that matches all events which were published under this filter: those with a number, and those from
    /// before the stream had partitions. It matches others too where the given filter has the depth of the stream's subject.
    #[must_use]
    pub fn covering_filter<'s>(&self, published: &'s str) -> Cow<'s, str> {
        match published.rsplit_once('.') {
            Some((parent, last)) if last != ">" && published.split('.').count() == self.depth() => {
                format!("{parent}.>").into()
            }
            // Of a subject with one token.
            None if published != ">" && self.depth() == 1 => ">".into(),
            _ => published.into(),
        }
    }

    /// What the JetStream consumer of one partition is to filter by.
    ///
    /// # Errors
    ///
    /// A filter has another depth than the stream's subject, or matches nothing of it.
    pub fn filters_of(&self, partition: u32, filters: &[String]) -> Result<Vec<String>, SubjectError> {
        if filters.is_empty() {
            return Ok(vec![format!("{}.{partition}", self.subject)]);
        }
        let of = |filter: &String| Ok(format!("{}.{partition}", self.of_full_depth(filter)?));
        filters.iter().map(of).collect()
    }

    /// What a consumer without order is to filter by. `has_earlier_events` says whether the stream holds events from before it had
    /// partitions.
    ///
    /// # Errors
    ///
    /// A filter has another depth than the stream's subject, or matches nothing of it.
    pub fn filters_of_all(
        &self,
        filters: &[String],
        has_earlier_events: bool,
    ) -> Result<Vec<String>, SubjectError> {
        let mut widened = Vec::new();
        for filter in filters {
            self.of_full_depth(filter)?;
            // It matches the last token too.
            let is_open = filter.ends_with('>');
            if is_open || has_earlier_events {
                widened.push(filter.clone());
            }
            if !is_open {
                widened.push(format!("{filter}.*"));
            }
        }
        Ok(widened)
    }

    /// The filter without a `>`, as deep as the subject.
    fn of_full_depth(&self, filter: &str) -> Result<String, SubjectError> {
        let (filter_owned, subject) = (filter.to_owned(), self.subject.clone());
        let own: Vec<_> = self.subject.split('.').collect();
        let given: Vec<_> = filter.split('.').collect();
        let is_open = given.last() == Some(&">");
        let fixed = if is_open { &given[..given.len() - 1] } else { &given[..] };
        let fits = if is_open { fixed.len() < own.len() } else { fixed.len() == own.len() };
        if !fits || fixed.contains(&">") {
            return Err(SubjectError::Depth { filter: filter_owned, subject });
        }
        let overlaps = |(given, own): (&&str, &&str)| given == own || *given == "*" || *own == "*";
        if !fixed.iter().zip(&own).all(overlaps) {
            return Err(SubjectError::NoOverlap { filter: filter_owned, subject });
        }
        let tokens: Vec<_> = fixed.iter().chain(&own[fixed.len()..]).copied().collect();
        Ok(tokens.join("."))
    }

    fn depth(&self) -> usize {
        self.subject.split('.').count()
    }
}

/// The hash of the server's `partition` (FNV-1a of 32 bits).
fn fnv32a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn orders(count: u32) -> Partitions {
        Partitions::new("orders.*.*", &[2], count).unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn the_transform_adds_the_number_as_the_last_token() {
        let destination =
            |subject: &str, key: &[u32]| Partitions::new(subject, key, 8).unwrap().transform_destination();
        assert_eq!(
            destination("orders.*.*", &[2]),
            "orders.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(8,1)}}"
        );
        assert_eq!(destination("*.eu.*", &[3, 1]), "{{wildcard(1)}}.eu.{{wildcard(2)}}.{{partition(8,2,1)}}");
        assert_eq!(orders(8).transform_source(), "orders.*.*");
    }

    #[test]
    fn partitions_that_cannot_work_are_refused_with_what_to_write() {
        let error =
            |subject: &str, key: &[u32], count| Partitions::new(subject, key, count).unwrap_err().to_string();
        assert_eq!(error("orders.*.*", &[2], 0), "count must be 1 to 1024, and is 0");
        assert_eq!(error("orders.*.*", &[2], 1_025), "count must be 1 to 1024, and is 1025");
        assert!(error("orders.>", &[2], 8).contains("must not have a '>'"));
        assert!(error("orders.*", &[], 8).contains("at least one token"));
        for token in [0, 1, 3] {
            assert!(error("orders.*", &[token], 8).contains(&format!("token {token} of subject")));
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        for (key, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv32a(key.bytes()), hash);
        }
        let tokens = Partitions::new("a.*.*", &[3, 2], 1_024).unwrap();
        assert_eq!(tokens.partition_of("a.bar.foo"), 0xbf9c_f968 % 1_024);
    }

    #[test]
    fn a_stored_subject_is_the_published_one_and_its_number() {
        let orders = orders(8);
        for (stored, expected) in [
            ("orders.42.placed.3", ("orders.42.placed", Some(3))),
            ("orders.42.placed", ("orders.42.placed", None)),
            ("orders.42.7", ("orders.42.7", None)),
            ("orders.42.placed.03", ("orders.42.placed.03", None)),
            ("orders.42.placed.x", ("orders.42.placed.x", None)),
            ("orders.42.placed.1.2", ("orders.42.placed.1.2", None)),
            ("orders", ("orders", None)),
        ] {
            assert_eq!(orders.published(stored), expected, "{stored}");
        }
    }

    #[test]
    fn a_filter_of_stored_subjects_is_the_published_one_with_a_last_token() {
        for (stored, expected) in [
            ("orders.*.placed.3", "orders.*.placed"),
            ("orders.*.placed.*", "orders.*.placed"),
            ("orders.*.*.0", "orders.*.*"),
            ("orders.*.placed", "orders.*.placed"),
            ("orders.42.>", "orders.42.>"),
            ("orders.*.*.>", "orders.*.*.>"),
            (">", ">"),
        ] {
            assert_eq!(orders(8).published_filter(stored), expected);
        }
    }

    #[test]
    fn one_filter_covers_what_was_published_under_another_with_and_without_a_number() {
        for (published, expected) in [
            ("orders.42.placed", "orders.42.>"),
            ("orders.*.*", "orders.*.>"),
            ("orders.42.>", "orders.42.>"),
            ("orders.42", "orders.42"),
            (">", ">"),
        ] {
            assert_eq!(orders(8).covering_filter(published), expected);
        }
        let one = Partitions::new("*", &[1], 8).unwrap();
        assert_eq!((one.covering_filter("a"), one.covering_filter(">")), (">".into(), ">".into()));
    }

    #[test]
    fn filters_of_a_partition_end_in_its_number() {
        let filters = |given: &[&str]| orders(8).filters_of(7, &texts(given)).unwrap();
        assert_eq!(filters(&[]), ["orders.*.*.7"]);
        assert_eq!(filters(&["orders.*.placed", "orders.42.*"]), ["orders.*.placed.7", "orders.42.*.7"]);
        assert_eq!(filters(&["orders.>"]), ["orders.*.*.7"]);
        assert_eq!(filters(&["orders.42.>"]), ["orders.42.*.7"]);
        assert_eq!(filters(&[">"]), ["orders.*.*.7"]);
    }

    #[test]
    fn filters_without_order_match_all_partitions_and_earlier_events() {
        let filters = |given: &[&str], earlier| orders(8).filters_of_all(&texts(given), earlier).unwrap();
        assert_eq!(filters(&[], true), Vec::<String>::new());
        assert_eq!(filters(&["orders.*.placed", "orders.42.>"], false), ["orders.*.placed.*", "orders.42.>"]);
        assert_eq!(
            filters(&["orders.*.placed", "orders.>"], true),
            ["orders.*.placed", "orders.*.placed.*", "orders.>"]
        );
    }

    #[test]
    fn filters_that_match_nothing_are_refused() {
        for filter in ["orders.*", "orders.*.placed.3", "orders.*.*.>", "orders.>.x"] {
            let error = orders(8).filters_of(0, &texts(&[filter])).unwrap_err().to_string();
            assert!(error.contains("as many tokens as subject orders.*.*"), "{error}");
        }
        let error = orders(8).filters_of_all(&texts(&["users.*.placed"]), false).unwrap_err().to_string();
        assert_eq!(error, "filter users.*.placed matches nothing of subject orders.*.*");
    }

    proptest! {
        #[test]
        fn a_multiple_of_the_count_divides_partitions_and_mixes_none(
            key in "[a-z0-9]{1,12}", count in 1..32_u32, factor in 1..32_u32,
        ) {
            let subject = format!("orders.{key}.placed");
            let (few, many) = (orders(count).partition_of(&subject), orders(count * factor).partition_of(&subject));
            prop_assert_eq!(many % count, few);
        }
    }
}
