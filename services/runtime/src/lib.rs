//! The library that an event-driven service is built on: it connects to NATS, calls handlers with their events, acknowledges, retries, keeps
//! dead letters, publishes, and keeps aggregates and projections.
//!
//! A service is a handler, and an [`App`] that runs it:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use jetwright_runtime::{App, Handler, HandlerError, Metadata, PublishOptions, Publisher};
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
//!
//!     async fn handle(&self, user: UserCreated, metadata: &Metadata) -> Result<(), HandlerError> {
//!         let subject = format!("notifications.{}.welcome", user.user_id);
//!         // The same id at every attempt, so that the stream stores one message.
//!         let options = PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
//!         self.publisher.publish(&subject, &Welcome {}, options).await?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> ExitCode {
//!     let app = App::new("greeter", &["greetings"]); // the EventConsumers that it consumes
//!     app.run(Ok(()), async |setup, ()| {
//!         let publisher = setup.service.publisher();
//!         setup.service.handle("greetings", Greet { publisher }).map(drop)
//!     })
//!     .await
//! }
//! ```
//!
//! | for | see |
//! | --- | --- |
//! | the program around a service: settings, telemetry, probes, HTTP, the end | [`App`], [`Setup`] |
//! | handling events | [`Handler`], [`HandlerError`], [`HandlerOptions`], [`Metadata`], [`Event`] |
//! | publishing | [`Publisher`], [`PublishOptions`] |
//! | state that events make, and decisions about it | [`Aggregate`], [`Aggregates`] |
//! | tables for reading | [`Projection`], [`View`] |
//! | state by key, with compare-and-set | [`KeyValue`] |
//! | tests of handlers and projections without a server | [`testing`] |
//! | a service without [`App`] | [`Environment`], [`Service`] |
//!
//! `docs/writing-a-service.md` is the guide, and its program is the example `club`; `docs/runtime.md` says what each part promises, and
//! `docs/consumer-internals.md` how the consumer works inside.

mod aggregate;
mod app;
mod blocking;
mod consumer;
pub mod environment;
mod error;
mod event;
#[cfg(test)]
mod guide;
mod handler;
mod known_headers;
mod metadata;
mod metrics;
mod partitions;
mod problem;
mod projection;
mod publish;
mod readiness;
mod service;
mod store;
mod subject;
pub mod testing;
mod trace;

pub use aggregate::{Aggregate, AggregateError, Aggregates, Decision, Loaded, NewEvent, Snapshot, Updated};
pub use app::{App, Setup};
pub use async_nats::{HeaderMap, Subject};
pub use blocking::blocking;
pub use environment::{Environment, Pod};
pub use error::{Error, ErrorKind};
pub use event::{CONTENT_TYPE, DecodeError, EVENT_TYPE, Event, PROTOBUF, decode};
pub use handler::{AckMode, Handler, HandlerError, HandlerOptions, UnknownTypes};
pub use metadata::{Metadata, Source};
pub use metrics::catalogue::CATALOGUE as METRICS;
pub use projection::{ApplyError, Projection, Rebuilt, Versioned, View, ViewError};
pub use publish::{Expected, PublishOptions, Published, Publisher};
pub use service::{Service, ServiceError};
pub use store::{Entry, History, KeyValue, Position, Reader, StoredEvent};
pub use subject::PartitionsError;
