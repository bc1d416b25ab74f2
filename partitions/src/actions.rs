//! What operators and members ask of the bucket, and what they find there. Pure.

use crate::{
    keys::{Key, PartitionId},
    records::{Record, RecordError},
    write::Reading,
};

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Store this value, expecting this revision of the key; 0 expects that the key has none.
    Write {
        /// The key.
        key: Key,
        /// The value, JSON.
        value: String,
        /// The revision.
        expected: u64,
    },
    /// Store this value, whatever the key has.
    Put {
        /// The key.
        key: Key,
        /// The value, JSON.
        value: String,
    },
    /// Read this key from the leader of the bucket's stream, never from another replica.
    Read(Key),
    /// Read the age of the bucket (STREAM.INFO).
    ReadBucket,
    /// Recover the order of the partition and handle its events.
    Serve {
        /// The partition.
        partition: PartitionId,
        /// The epoch, for handlers.
        epoch: u64,
    },
    /// The lease is over: begin nothing, pull nothing, interrupt what runs, and end the open pull request.
    Suspend(PartitionId),
    /// Begin nothing more, finish what has begun, give the rest back when the last own pull request is over. An acknowledgement that a
    /// server never confirms, since it forgot the delivery, is given up as CONSUMER.INFO says, or the drain would never end.
    Drain {
        /// The partition.
        partition: PartitionId,
        /// Until when acknowledgements are waited for, in seconds since 1970, where a map says so. What runs is waited for also beyond it.
        deadline: Option<u64>,
    },
    /// Another member has it: abandon everything, and end the open pull request.
    Stop(PartitionId),
    /// The membership is over. Everything was given up.
    Lost,
}

/// What was found at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'v> {
    /// No answer in time, or an error.
    Unavailable,
    /// No value. The revision is that of the deletion, or 0.
    Absent(u64),
    /// This value, as this revision.
    Bytes(u64, &'v [u8]),
}

impl Value<'_> {
    /// What it says.
    ///
    /// # Errors
    ///
    /// The bytes cannot be read; the reading says that, too.
    pub(crate) fn read<R: Record>(self, key: &Key) -> (Reading<R>, Result<(), RecordError>) {
        match self {
            Self::Unavailable => (Reading::Unavailable, Ok(())),
            Self::Absent(revision) => (Reading::Absent(revision), Ok(())),
            Self::Bytes(revision, bytes) => match R::read(key, bytes) {
                Ok(record) => (Reading::Present(revision, record), Ok(())),
                Err(error) => (Reading::Unreadable(revision), Err(error)),
            },
        }
    }
}
