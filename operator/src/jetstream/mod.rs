//! What the operator knows of JetStream, and how it asks for more.
//!
//! [`api`] speaks `$JS.API` as JSON and keeps fields that it does not know; [`fields`] is the table of what a configuration
//! consists of and what the server lets change; [`mirror`] remembers what JetStream has; [`watch`] keeps the mirror
//! true by listening to advisories.

pub mod api;
pub mod config;
pub mod diff;
pub mod fields;
pub mod info;
pub mod mirror;
pub mod sequences;
pub mod subjects;
pub mod watch;

pub use api::{Api, ApiError};
pub use config::Config;
pub use info::{ConsumerInfo, StreamInfo};
pub use mirror::{Change, Mirror, Seen};
