//! Proof of order per key: a load of events, what processes wrote of their attempts, and whether that is in order.
//!
//! The processes under test write a line when an attempt begins and one when it ends ([`history`]); whoever interrupts them notes
//! that; [`check`] judges the whole. The programs may be of any language, so two kinds of tests share this: those of the worked example in
//! Python, and `make soak-order`.

pub mod check;
pub mod coordination;
pub mod history;
pub mod holders;
pub mod load;
