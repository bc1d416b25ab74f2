//! The mark of a stream whose partitions were changed: written with the transform in one update, so that neither is there without the other. Pure.

use std::fmt;

use jetwright_crds::marks::PARTITIONS_CHANGED;

use crate::jetstream::config::Config;

/// The last change of a stream's partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// How many there were; None where events had no number.
    pub from: Option<u32>,
    /// How many there are.
    pub to: u32,
    /// Sequence up to which events may have a number of before; None while that is not known.
    pub at: Option<u64>,
}

impl Mark {
    /// The mark of a stream; None where its partitions never changed.
    #[must_use]
    pub fn of(config: &Config) -> Option<Self> {
        let metadata = config.metadata();
        let (counts, at) = match metadata.get(PARTITIONS_CHANGED)?.split_once('@') {
            Some((counts, at)) => (counts, Some(at.parse().ok()?)),
            None => (*metadata.get(PARTITIONS_CHANGED)?, None),
        };
        let (from, to) = counts.split_once('>')?;
        let from = Some(from.parse().ok()?).filter(|from| *from > 0);
        Some(Self { from, to: to.parse().ok()?, at })
    }

    /// A configuration with this mark.
    #[must_use]
    pub fn put_on(self, config: Config) -> Config {
        config.with_mark(PARTITIONS_CHANGED, &self.to_string())
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}>{}", self.from.unwrap_or_default(), self.to)?;
        self.at.map_or(Ok(()), |at| write!(f, "@{at}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_reads_as_it_was_written_and_what_is_none_says_nothing() {
        for mark in [
            Mark { from: None, to: 8, at: None },
            Mark { from: Some(8), to: 16, at: None },
            Mark { from: Some(8), to: 16, at: Some(0) },
            Mark { from: Some(16), to: 48, at: Some(1_000_000_007) },
        ] {
            assert_eq!(Mark::of(&mark.put_on(Config::default())), Some(mark));
        }
        for text in ["", "8", "8>", ">8", "8>16@", "8>16@x", "a>b"] {
            let config = Config::default().with_mark(PARTITIONS_CHANGED, text);
            assert_eq!(Mark::of(&config), None, "{text}");
        }
        assert_eq!(Mark::of(&Config::default()), None);
    }
}
