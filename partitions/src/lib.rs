//! Who handles which partition of an ordered consumer: keys, values and rules that the operator, services and other programs share.
//!
//! A stream with partitions stores the partition's number as the last token of each subject ([`subjects`]), and an ordered consumer
//! is one JetStream consumer per partition. One process handles a partition at a time. Which one is decided in a key-value bucket
//! ([`keys`], [`records`]):
//!
//! | key | value | written by |
//! | --- | --- | --- |
//! | `operator`, `operator.<cluster>` | `{identity}` | the leading operator, every five seconds |
//! | `member.<namespace>.<process id>` | `{pod?, uid?, joined?, renewal?, consumers, leaving?}`, or `{dead}` | the process, every five seconds; or the one that finds it dead |
//! | `map.<stream>.<consumer>` | `{generation, count, cluster?, partitions: {"7": {to, from?, deadline?}}}` | the operator |
//! | `held.<stream>.<consumer>.<partition>` | `{member, state, epoch?}` | the member that takes the partition, and then as its owner |
//!
//! The rules:
//!
//! 1. Each write but those of operators' own keys expects the revision that was read. After an answer that says nothing, the key is read, and what
//!    is there decides ([`write`]).
//! 2. A process acts for what it holds while its lease holds ([`lease`]), counted from the sending of its last confirmed renewal
//!    ([`membership`]).
//! 3. A member is dead when its container ended, or its key stood still for the lease and the skew ([`observer`]). That is written to
//!    its key at the revision that was seen, so that a late renewal fails; only then what it held is taken.
//! 4. A partition is taken where its key is free, missing, or names a dead member ([`owner`]). The revision of that write is the epoch: it
//!    grows over all partitions.
//! 5. What is taken is served after one more renewal of the membership, and in a bucket that is older than the lease and the skew.
//!    Otherwise a process that joined a bucket which was deleted since could still serve the same partition.
//! 6. A new owner recovers the order before it begins anything ([`recovery`]).
//! 7. The map says where a partition belongs ([`assignment`], [`coordinator`]). Its owner finishes what has begun, gives back the rest,
//!    and writes `free`; the member that the map names takes it then. Without a map that names a living member, an owner keeps it.
//! 8. Where no operator has written for thirty seconds, members take what is free or of dead members ([`alone`]).
//!
//! docs/partitions-protocol.md says the same to who writes a program in another language, with the reasons.
//!
//! Everything here is pure: times, answers and values in, actions out. [`participant::Participant`] is a whole process and
//! [`coordinator::Coordinator`] the operator's part; `tests/simulation` runs them in virtual time.

pub mod actions;
pub mod alone;
pub mod assignment;
pub mod coordinator;
mod deaths;
#[cfg(test)]
mod documentation;
pub mod keys;
pub mod lease;
mod lost;
pub mod membership;
pub mod observer;
pub mod owner;
pub mod participant;
pub mod records;
pub mod recovery;
pub mod sentinel;
pub mod subjects;
pub mod write;
