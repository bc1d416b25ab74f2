//! What an event-driven service stands on: it connects to NATS, gives a handler its events, settles them, and publishes.
//!
//! A service is a handler and a few lines around it:
//!
//! ```no_run
//! use std::{process::ExitCode, sync::Arc};
//!
//! use jetwright_process::{admin, health::Health, metrics, shutdown::Shutdown, telemetry::Telemetry};
//! use jetwright_runtime::{Environment, HandlerError, Handler, Metadata, PublishOptions, Publisher, Service};
//! use prometheus_client::registry::Registry;
//! use tokio_util::sync::CancellationToken;
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
//!         let options = PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
//!         self.publisher.publish(&subject, &Welcome {}, options).await?;
//!         Ok(())
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
//!     let telemetry = Telemetry::start("greetings")?; // logs, and traces where OTEL_EXPORTER_OTLP_ENDPOINT says
//!     let environment = Environment::from_env(&["greetings"])?; // what the operator tells its pods
//!     let (health, shutdown, ended) = (Health::new(), Shutdown::on_signals()?, CancellationToken::new());
//!     let mut registry = Registry::default();
//!     metrics::register(&mut registry, "greetings");
//!     let mut service = Service::connect(environment, &health, &mut registry).await?;
//!     let publisher = service.publisher();
//!     service.handle("greetings", Greet { publisher })?;
//!     // /livez, /readyz and /metrics, until all else has ended.
//!     let admin = admin::bind(admin::address()?).await?;
//!     let probes = tokio::spawn(admin.serve(health, Arc::new(registry), ended.clone()));
//!     let result = service.run(shutdown.token()).await;
//!     ended.cancel();
//!     probes.await??;
//!     Ok(telemetry.finish(result))
//! }
//! ```

mod aggregate;
mod app;
mod consumer;
pub mod environment;
mod error;
mod event;
mod handler;
mod metadata;
mod metrics;
mod problem;
mod projection;
mod publish;
mod readiness;
mod service;
mod store;
mod trace;

pub use aggregate::{Aggregate, AggregateError, Aggregates, Decision, Loaded, NewEvent, Snapshot, Updated};
pub use app::{App, Setup};
pub use async_nats::{HeaderMap, Subject};
pub use environment::Environment;
pub use error::{Error, ErrorKind};
pub use event::{CONTENT_TYPE, DecodeError, EVENT_TYPE, Event, PROTOBUF, decode};
pub use handler::{AckMode, Handler, HandlerError, HandlerOptions, UnknownTypes, blocking};
pub use metadata::{Metadata, Source};
pub use projection::{ApplyError, Projection, Rebuilt, Versioned, View, ViewError};
pub use publish::{Expected, PublishOptions, Published, Publisher};
pub use service::{Service, ServiceError};
pub use store::{Entry, History, KeyValue, Position, Reader, StoredEvent};
