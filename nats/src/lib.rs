//! The one way to connect to NATS and to ask it: credentials, permissions, and what happens to a connection.

mod credentials;
mod events;
mod violation;

pub use credentials::Credentials;
pub use events::{ConnectionEvent, options, options_with};
pub use violation::{Violation, ViolationReceiver, Violations};
