//! What the operator knows of JetStream, and how it asks for more.
//!
//! [`Config`] keeps fields that this version does not know; [`fields`] is the table of what a configuration
//! consists of and what the server lets change; [`mirror`] remembers what JetStream has; [`watch`] keeps the mirror
//! true by listening to advisories.

pub mod config;
pub mod diff;
pub mod fields;
pub mod info;
pub mod mirror;
pub mod remedy;
pub mod sequences;
pub mod subjects;
pub mod watch;

pub use config::Config;
pub use info::{ConsumerInfo, StreamInfo};
pub use jetwright_nats::{Api, ApiError};
pub use mirror::{Change, Mirror, Seen};
