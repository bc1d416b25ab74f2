//! What is known after a write that expected a revision. Pure.

/// The answer to a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored, as this revision.
    Stored(u64),
    /// Nothing is known: a time-out, a lost connection, another revision than expected (10071: it may be that of the same write, sent
    /// before), or a write under way (10164). The key is read again, and the state decides.
    Unsure,
}

/// What the leader of the bucket's stream says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<R> {
    /// No answer, or none that can be trusted.
    Unavailable,
    /// The key has no value. The revision is that of its deletion, or 0.
    Absent(u64),
    /// The key has a value that cannot be read.
    Unreadable(u64),
    /// The key has this value.
    Present(u64, R),
}

impl<R> Reading<R> {
    /// The revision that the next write has to expect.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        match self {
            Self::Unavailable => None,
            Self::Absent(revision) | Self::Unreadable(revision) | Self::Present(revision, _) => {
                Some(*revision)
            }
        }
    }

    /// Replaces what is known, unless that is newer: messages of a watch may come after the answer to a later read.
    pub(crate) fn update(&mut self, newer: Self) {
        if newer.revision() > self.revision() || self.revision().is_none() {
            *self = newer;
        }
    }
}
