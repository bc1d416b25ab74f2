//! Metadata keys with which streams and consumers in JetStream say whose they are. They are never renamed: an operator of another
//! version would no longer know its own.

/// The owner, as clusterName/namespace/name.
pub const OWNER: &str = "jetwright.dev/owner";
/// The uid of the object that was applied last.
pub const UID: &str = "jetwright.dev/uid";
/// The generation at which something was last changed.
pub const GENERATION: &str = "jetwright.dev/generation";
/// The owner that it was taken over from last.
pub const TAKEN_FROM: &str = "jetwright.dev/taken-from";
/// The uid of the object that took it over last: each does so once.
pub const TAKEN_BY_UID: &str = "jetwright.dev/taken-by-uid";
/// Owners that it was taken over from before [`TAKEN_FROM`], newest first, with blanks between them.
pub const FORMER_OWNERS: &str = "jetwright.dev/former-owners";
/// Fields that the declaration set when something was last changed, of those that are the server's choice otherwise, by JetStream's names
/// with commas between. Marks of earlier versions do not have it.
pub const DECLARED: &str = "jetwright.dev/declared";
/// A hash of what was applied last, by which a change of the declaration is told from that of another writer.
pub const APPLIED: &str = "jetwright.dev/applied";
/// How the partitions of a stream that exists were changed last: what from, what to, and once that is known, the sequence up to which an event
/// may have a number of before.
pub const PARTITIONS_CHANGED: &str = "jetwright.dev/partitions-changed";
/// Of how many partitions a consumer delivers one. Absent on consumers of a stream whose partitions never changed.
pub const PARTITION_COUNT: &str = "jetwright.dev/partition-count";
/// A consumer is paused by its owner, which divides it.
pub const DIVIDING: &str = "jetwright.dev/dividing";
