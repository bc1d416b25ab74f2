//! Who handles which partition of an ordered consumer: keys, values and rules that the operator, services and other programs share.
//!
//! A stream with partitions stores the partition's number as the last token of each subject ([`subjects`]), and an ordered consumer
//! is one JetStream consumer per partition. One process handles a partition at a time. Which one is decided in a key-value bucket
//! ([`keys`], [`records`]):
//!
//! | key | value | written by |
//! | --- | --- | --- |
//! | `operator` | `{identity}` | the leading operator, every five seconds |
//! | `member.<namespace>.<process id>` | `{pod?, uid?, consumers, leaving?}`, or `{dead}` | the process, every five seconds; who finds it dead |
//! | `map.<stream>.<consumer>` | `{generation, count, partitions: {"7": {to, from?, deadline?}}}` | the operator |
//! | `held.<stream>.<consumer>.<partition>` | `{member, state, epoch?}` | who takes the partition, and then its owner |

pub mod assignment;
pub mod keys;
pub mod records;
pub mod recovery;
pub mod sentinel;
pub mod subjects;
