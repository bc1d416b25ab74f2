//! In: a consumer's last count of its dead letters, and what the stream that keeps them has. Out: whether they have to be counted again. Pure.

use super::answer::Contents;

/// How many dead letters of a consumer wait, and what their stream had then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub count: u64,
    pub contents: Contents,
}

/// What is known without asking; None where JetStream has to count.
pub fn known(counted: Option<Counted>, contents: Contents) -> Option<Counted> {
    if contents.messages == 0 {
        return Some(Counted { count: 0, contents });
    }
    counted.filter(|counted| counted.contents == contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_that_changed_and_is_not_empty_is_counted() {
        let contents =
            |messages, first_sequence, last_sequence| Contents { messages, first_sequence, last_sequence };
        let counted = Some(Counted { count: 2, contents: contents(5, 1, 5) });
        assert_eq!(known(counted, contents(5, 1, 5)), counted);
        for changed in [contents(6, 1, 6), contents(4, 1, 5), contents(4, 2, 5), contents(5, 2, 6)] {
            assert_eq!(known(counted, changed), None);
        }
        assert_eq!(known(None, contents(0, 6, 5)).map(|counted| counted.count), Some(0));
    }
}
