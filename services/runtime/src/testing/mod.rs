//! Runs a handler or a projection against events, without a server: for the tests of a service.
//!
//! A [`HandlerTest`] calls a handler as the runtime does in a pod. The same code decodes an event, bounds an attempt by its deadline, catches a
//! panic, decides whether and when the event is tried again, says which attempt is the last, and writes dead letters. A
//! [`RecordedPublisher`] gives the handler its [`Publisher`](crate::Publisher), and shows what was published with it. [`project`] makes the entry of a projection.
//!
//! ```
//! use std::time::Duration;
//!
//! use jetwright_runtime::{Handler, HandlerError, Metadata, PublishOptions, Publisher};
//! use jetwright_runtime::testing::{self, HandlerTest, RecordedPublisher, Settled};
//! # #[derive(Clone, PartialEq, prost::Message)] pub struct UserCreated { #[prost(string, tag = "1")] user_id: String }
//! # impl prost::Name for UserCreated { const NAME: &'static str = "UserCreated"; const PACKAGE: &'static str = "events.v1"; }
//! # #[derive(Clone, PartialEq, prost::Message)] pub struct Welcome { #[prost(string, tag = "1")] user_id: String }
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
//!         if user.user_id.is_empty() {
//!             return Err(HandlerError::permanent("a user without an id"));
//!         }
//!         let subject = format!("notifications.{}.welcome", user.user_id);
//!         let options = PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
//!         self.publisher.publish(&subject, &Welcome { user_id: user.user_id }, options).await?;
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // In a test: #[tokio::test] async fn a_user_is_greeted_once_though_an_answer_of_nats_is_lost()
//! let published = RecordedPublisher::new();
//! let mut greetings = HandlerTest::new("greetings", Greet { publisher: published.publisher() }).max_attempts(3);
//!
//! published.lose_next_answers(1);
//! let ann = UserCreated { user_id: "1".to_owned() };
//! let outcomes = greetings.deliver_until_settled(testing::event("users.1.created", &ann)).await;
//! let [Settled::Retried { after, .. }, Settled::Acknowledged] = outcomes.as_slice() else { panic!("{outcomes:?}") };
//! assert_eq!(*after, Duration::from_millis(500));
//!
//! let events = published.events();
//! assert_eq!(events.len(), 1);
//! assert_eq!(events[0].subject, "notifications.1.welcome");
//! assert_eq!(events[0].decode(), Ok(Welcome { user_id: "1".to_owned() }));
//!
//! let nobody = UserCreated { user_id: String::new() };
//! let outcome = greetings.deliver(testing::event("users.2.created", &nobody)).await;
//! assert_eq!(outcome, Settled::dead_lettered("permanent", "a user without an id"));
//! assert_eq!(greetings.dead_letters().events()[0].header("Dead-Letter-Sequence"), Some("2"));
//! # }
//! ```
//!
//! A delay has no jitter here and is as long as it may be. Where a test does not say, events have sequences from 1 and the time
//! 2026-01-01T00:00:00Z. Random are the message ids of publishes that name none, and a dead letter says when it was written.

mod event;
mod handler;
mod projection;
mod publisher;
mod settled;

pub use self::{
    event::{TestEvent, event, raw_event, untyped_event},
    handler::HandlerTest,
    projection::{Projected, project},
    publisher::{RecordedEvent, RecordedPublisher},
    settled::Settled,
};
