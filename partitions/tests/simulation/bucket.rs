//! The bucket as its leader has it: revisions, compare-and-set, and being made again.

use std::collections::BTreeMap;

use jetwright_partitions::{keys::Key, write::Answer};

/// What a bucket that is made again adds to the revisions, as the operator's streams do.
const REVISION_GAP: u64 = 1_000_000_000;

#[derive(Debug)]
pub struct Bucket {
    pub values: BTreeMap<Key, (u64, String)>,
    pub created: u64,
    last: u64,
}

impl Bucket {
    /// Made long ago.
    pub fn old() -> Self {
        Self { values: BTreeMap::new(), created: 0, last: 100 }
    }

    pub fn make_again(&mut self, now: u64) {
        *self = Self { values: BTreeMap::new(), created: now, last: self.last + REVISION_GAP };
    }

    /// Stores the value if the key has the expected revision, or whatever it has.
    pub fn write(&mut self, key: &Key, value: String, expected: Option<u64>) -> Answer {
        let present = self.values.get(key).map_or(0, |(revision, _)| *revision);
        if expected.is_some_and(|expected| expected != present) {
            return Answer::Unsure;
        }
        self.last += 1;
        self.values.insert(key.clone(), (self.last, value));
        Answer::Stored(self.last)
    }
}
