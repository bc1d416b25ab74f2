//! In: a consumer of a stream, and a change of the stream's partitions. Out: whether the consumer would miss events that it takes now. Pure.

use crate::jetstream::{config::Config, consumer_config, subjects::is_covered};

/// A change of a stream's partitions.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The stream's subject, as events are published.
    pub subject: &'a str,
    /// How many there are; None where events have no number.
    pub from: Option<u32>,
    pub to: u32,
}

impl Change<'_> {
    /// The first subject of which a consumer would miss events after the change; None where it takes all that it takes now.
    #[must_use]
    pub fn missed_by(&self, consumer: &Config) -> Option<String> {
        let filters = consumer_config::filters(consumer);
        let needed = filters.iter().flat_map(|filter| self.needed_beside(filter));
        needed.into_iter().find(|needed| !filters.iter().any(|filter| is_covered(needed, filter)))
    }

    /// What has to be taken beside a filter, so that it still means the same events.
    fn needed_beside(&self, filter: &str) -> Vec<String> {
        let depth = self.subject.split('.').count();
        let tokens = filter.split('.').count();
        if filter.ends_with('>') {
            return Vec::new();
        }
        if tokens == depth {
            return vec![format!("{filter}.*")];
        }
        let Some((base, last)) = filter.rsplit_once('.').filter(|_| tokens == depth + 1) else {
            // It takes nothing of this stream.
            return Vec::new();
        };
        let (Some(from), Ok(number)) = (self.from, last.parse::<u32>()) else { return Vec::new() };
        numbers(number, from, self.to).map(|number| format!("{base}.{number}")).collect()
    }
}

/// The partitions of `to` that are made of one of `from`: a multiple of the count divides each and mixes none.
pub fn numbers(partition: u32, from: u32, to: u32) -> impl Iterator<Item = u32> {
    (partition..to).step_by(usize::try_from(from.max(1)).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn missed(from: Option<u32>, filters: &[&str]) -> Option<String> {
        let consumer = Config::default().with("filter_subjects", json!(filters));
        Change { subject: "orders.*.*", from, to: 16 }.missed_by(&consumer)
    }

    #[test]
    fn a_consumer_needs_the_new_numbers_of_what_it_takes_by_the_old_ones() {
        for (from, filters, expected) in [
            (None, vec![], None),
            (None, vec![">"], None),
            (None, vec!["orders.>"], None),
            (None, vec!["orders.*.placed"], Some("orders.*.placed.*")),
            (None, vec!["orders.*.placed", "orders.*.placed.*"], None),
            (None, vec!["orders.*.placed", "orders.*.paid.*"], Some("orders.*.placed.*")),
            (None, vec!["orders.*.placed", "orders.*.*.*"], None),
            (None, vec!["mails.*"], None),
            (Some(8), vec!["orders.*.placed.*"], None),
            (Some(8), vec!["orders.*.placed.3"], Some("orders.*.placed.11")),
            (Some(8), vec!["orders.*.placed.3", "orders.*.placed.11"], None),
            (Some(4), vec!["orders.*.placed.3", "orders.*.placed.11"], Some("orders.*.placed.7")),
            (Some(16), vec!["orders.*.placed.3"], None),
        ] {
            assert_eq!(missed(from, &filters).as_deref(), expected, "{from:?} {filters:?}");
        }
        let one = Config::default().with("filter_subject", "orders.*.placed");
        let change = Change { subject: "orders.*.*", from: None, to: 16 };
        assert_eq!(change.missed_by(&one).as_deref(), Some("orders.*.placed.*"));
    }

    #[test]
    fn a_partition_becomes_those_that_have_its_rest() {
        assert_eq!(numbers(3, 8, 16).collect::<Vec<_>>(), [3, 11]);
        assert_eq!(numbers(15, 16, 48).collect::<Vec<_>>(), [15, 31, 47]);
        assert_eq!(numbers(3, 8, 8).collect::<Vec<_>>(), [3]);
        assert_eq!(numbers(0, 1, 3).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
