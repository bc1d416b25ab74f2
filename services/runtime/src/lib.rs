//! What an event-driven service stands on: it connects to NATS, gives a handler its events, settles them, and publishes.
//!
//! A service is a handler and a few lines around it:
//!
//! ```no_run
//! use jetwright_process::{health::Health, shutdown::Shutdown};
//! use jetwright_runtime::{Environment, Failure, Handler, Metadata, PublishOptions, Publisher, Service};
//! # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "1")] user_id: String }
//! # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
//! # #[derive(Clone, PartialEq, prost::Message)] pub struct Welcome {}
//! # impl prost::Name for Welcome { const NAME: &'static str = "Welcome"; const PACKAGE: &'static str = "events.v1"; }
//!
//! struct Greet {
//!     publisher: Publisher,
//! }
//!
//! impl Handler for Greet {
//!     type Event = UserCreated;
//!     const BINDING: &'static str = "greetings";
//!
//!     async fn handle(&self, user: UserCreated, metadata: &Metadata) -> Result<(), Failure> {
//!         let subject = format!("notifications.{}.welcome", user.user_id);
//!         let options = PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
//!         self.publisher.publish(&subject, &Welcome {}, options).await?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (health, shutdown) = (Health::new(), Shutdown::on_signals()?);
//!     let environment = Environment::from_env(&[Greet::BINDING])?;
//!     let mut registry = prometheus_client::registry::Registry::default();
//!     let mut service = Service::connect(environment, &health, &mut registry).await?;
//!     let publisher = service.publisher();
//!     service.handle(Greet { publisher })?;
//!     service.run(shutdown.token()).await?;
//!     Ok(())
//! }
//! ```

mod aggregate;
mod connection;
mod consume;
pub mod environment;
mod error;
mod event;
mod handler;
mod key_value;
mod metadata;
mod metrics;
mod problem;
mod projection;
mod publish;
mod read;
mod requests;
mod service;
mod trace;

pub use aggregate::{Aggregate, AggregateError, Aggregates, Decision, Loaded, NewEvent, Snapshot, Updated};
pub use environment::Environment;
pub use error::{Error, ErrorKind};
pub use event::{CONTENT_TYPE, EVENT_TYPE, Event, PROTOBUF, Undecodable, decode};
pub use handler::{Acknowledge, Failure, Handler, Limits};
pub use key_value::{Entry, KeyValue};
pub use metadata::Metadata;
pub use projection::{Inapplicable, Projection, Rebuilt, Seen, View, ViewError};
pub use publish::{Expected, PublishOptions, Published, Publisher};
pub use read::{History, Position, Reader, Recorded};
pub use service::{Service, ServiceError};
