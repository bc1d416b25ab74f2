//! Runs what a service writes against events, without a server.

mod publisher;

pub use self::publisher::{RecordedEvent, RecordedPublisher};
