//! Changes the partitions of a stream that exists, and divides the consumers on it. Pure, but for [`unchanged`], which remembers for how long
//! something stood still, and [`resumed`].
//!
//! Each server that keeps a copy transforms for itself what it applies, so a transform that changes under publishers leaves copies that differ for
//! good. And of what was stored before, the numbers stay. So the change has an order, and each step begins only where JetStream's own
//! configurations say that the one before is done: an operator that is killed between two of them goes on.
//!
//! 1. Each consumer of the stream takes the new numbers beside its own ([`filters`]). There are none yet, so nothing is skipped.
//! 2. Nobody publishes for a while, and every copy has everything ([`stream`]).
//! 3. The transform is another one, and the [`mark`] of the stream says so; a while later, the mark also has the sequence up to which an event
//!    may have either number.
//! 4. Each consumer goes on alone until it is beyond that sequence. There it is paused, finishes what it has begun, and is divided: each part
//!    begins behind what the whole one delivered ([`division`]). How far a consumer is, its [`form`] says.

pub mod division;
pub mod filters;
pub mod form;
pub mod mark;
pub mod resumed;
pub mod stream;
pub mod unchanged;
