//! The one way to connect to NATS and to send it requests: credentials, permissions, a connection that recovers by itself, requests
//! of many callers over one inbox, and JetStream's API. It knows nothing of Kubernetes or the services.

mod address;
mod api;
mod api_span;
mod api_subjects;
pub mod backoff;
mod bucket;
mod connection;
mod credentials;
mod events;
pub mod jetstream_error;
mod mux;
mod observer;
mod permits;
mod reply;
mod state;
mod stored;
mod supervisor;
mod violation;

pub use address::{AddressError, parse_addresses};
pub use api::{Api, ApiError, Page};
pub use api_subjects::{ACK_PREFIX, ApiSubjects, api_request};
pub use bucket::{Bucket, Found, Watch, WatchEvent, Written};
pub use connection::{Connection, Request};
pub use credentials::Credentials;
pub use jetstream_error::{Disposition, JetStreamError};
pub use mux::NoReply;
pub use reply::RequestError;
pub use state::{ConnectionState, Link};
pub use stored::StoredMessage;
pub use supervisor::ConnectionConfig;
pub use violation::{Violation, ViolationReceiver};
