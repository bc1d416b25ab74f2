//! The one way to connect to NATS and to ask it: credentials, permissions, a connection that comes back by itself, and requests that many
//! callers send over one inbox. It knows nothing of Kubernetes or the services.

mod address;
pub mod backoff;
mod connection;
mod credentials;
mod events;
mod jetstream_error;
mod mux;
mod observer;
mod permits;
mod reply;
mod state;
mod supervisor;
mod violation;

pub use address::{AddressError, parse_addresses};
pub use connection::{Connection, Request};
pub use credentials::Credentials;
pub use events::{ConnectionEvent, options};
pub use jetstream_error::{
    CONSUMER_NOT_FOUND, Disposition, JetStreamError, NO_MESSAGE_FOUND, STREAM_NOT_FOUND,
};
pub use mux::NoReply;
pub use reply::RequestError;
pub use state::{ConnectionState, Link};
pub use supervisor::ConnectionConfig;
pub use violation::{Violation, ViolationReceiver, Violations};
