//! A publisher that stores in memory, and what was published with it. No I/O.

use std::sync::Arc;

use async_nats::{HeaderMap, HeaderValue, header};
use bytes::Bytes;

use crate::{
    DecodeError, EVENT_TYPE, Event, Publisher,
    publish::recorder::{Fault, RecordedMessage, Recorder},
};

/// Stores what is published with its [`publisher`](Self::publisher). Clones share what is stored.
///
/// It answers as a stream of one replica does: sequences grow, a message id is stored once in a stream, and an
/// [expected](crate::Expected) sequence is compared. It has no duplicate window, since no time passes in it. Its subjects are in the
/// stream that [`PublishOptions::expected_stream`](crate::PublishOptions::expected_stream) names, and else in one that is named like
/// their first token.
#[derive(Clone, Debug, Default)]
pub struct RecordedPublisher(Arc<Recorder>);

impl RecordedPublisher {
    /// With nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For the handler under test.
    #[must_use]
    pub fn publisher(&self) -> Publisher {
        Publisher::recording(Arc::clone(&self.0))
    }

    /// Everything that is stored, in the order in which it was published.
    #[must_use]
    pub fn events(&self) -> Vec<RecordedEvent> {
        self.0.messages().into_iter().map(RecordedEvent::from).collect()
    }

    /// So many of the next publishes fail with [`Unavailable`](crate::ErrorKind::Unavailable), and store nothing. They do so at once, where a
    /// publisher on a connection tries for five seconds.
    pub fn fail_next(&self, times: usize) {
        self.0.fail_next(times, Fault::Unavailable);
    }

    /// So many of the next publishes store their event and fail with [`Unavailable`](crate::ErrorKind::Unavailable) all the same, as where
    /// the answer is lost: what a handler does then shows whether its effects happen once.
    pub fn lose_next_answers(&self, times: usize) {
        self.0.fail_next(times, Fault::AnswerLost);
    }
}

/// An event that was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Stream that stored it.
    pub stream: String,
    /// Subject under which it was published.
    pub subject: String,
    /// Its sequence. All streams of a [`RecordedPublisher`] have one count.
    pub sequence: u64,
    /// Its headers, with those that the publisher adds.
    pub headers: HeaderMap,
    /// Its bytes.
    pub payload: Bytes,
}

impl RecordedEvent {
    /// The full name of its protobuf message; empty where there is none.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.header(EVENT_TYPE).unwrap_or_default()
    }

    /// Id under which its stream stores it once; a random one where the handler names none. Dead letters have none.
    #[must_use]
    pub fn message_id(&self) -> Option<&str> {
        self.headers.get(header::NATS_MESSAGE_ID).map(HeaderValue::as_str)
    }

    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(HeaderValue::as_str)
    }

    /// What was published.
    ///
    /// # Errors
    ///
    /// It is of another type.
    pub fn decode<E: Event>(&self) -> Result<E, DecodeError> {
        E::decode(self.event_type(), self.payload.clone())
    }
}

impl From<RecordedMessage> for RecordedEvent {
    fn from(message: RecordedMessage) -> Self {
        let RecordedMessage { stream, subject, sequence, headers, payload } = message;
        Self { stream, subject, sequence, headers, payload }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErrorKind, Expected, PublishOptions, Published};

    #[derive(Clone, PartialEq, prost::Message)]
    struct Welcome {
        #[prost(string, tag = "1")]
        name: String,
    }

    impl prost::Name for Welcome {
        const NAME: &'static str = "Welcome";
        const PACKAGE: &'static str = "tests.v1";
    }

    fn ann() -> Welcome {
        Welcome { name: "ann".to_owned() }
    }

    fn with_id(id: &str) -> PublishOptions {
        PublishOptions { message_id: Some(id.to_owned()), ..PublishOptions::default() }
    }

    fn published(sequence: u64, duplicate: bool) -> Published {
        Published { stream: "mails".to_owned(), sequence, duplicate }
    }

    #[tokio::test]
    async fn sequences_grow_and_a_message_id_is_stored_once_in_a_stream() {
        let recorded = RecordedPublisher::new();
        let publisher = recorded.publisher();
        let publish = async |options| publisher.publish("mails.1.welcome", &ann(), options).await.unwrap();
        assert_eq!(publish(with_id("a")).await, published(1, false));
        assert_eq!(publish(PublishOptions::default()).await, published(2, false));
        assert_eq!(publish(with_id("a")).await, published(1, true));
        let elsewhere = PublishOptions { expected_stream: Some("archive".to_owned()), ..with_id("a") };
        let expected = Published { stream: "archive".to_owned(), ..published(3, false) };
        assert_eq!(publish(elsewhere).await, expected);
        assert_eq!(recorded.events().iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[tokio::test]
    async fn what_was_published_is_shown_as_it_would_be_stored() {
        let recorded = RecordedPublisher::new();
        recorded.publisher().publish("mails.1.welcome", &ann(), with_id("a")).await.unwrap();
        let events = recorded.events();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.stream.as_str(), event.subject.as_str()), ("mails", "mails.1.welcome"));
        assert_eq!((event.event_type(), event.message_id()), ("tests.v1.Welcome", Some("a")));
        assert_eq!(event.header("Content-Type"), Some("application/protobuf"));
        assert_eq!(event.decode::<Welcome>(), Ok(ann()));
    }

    #[tokio::test]
    async fn an_expected_sequence_is_compared_as_the_server_compares_it() {
        let publisher = RecordedPublisher::new().publisher();
        let publish = async |expected| {
            let options = PublishOptions { expected: Some(expected), ..PublishOptions::default() };
            publisher.publish("mails.1.welcome", &ann(), options).await
        };
        assert_eq!(publish(Expected::none("mails.1.>")).await, Ok(published(1, false)));
        let error = publish(Expected::none("mails.1.>")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let expected = "mails.1.welcome: conflict: wrong last sequence: 1 (code 400, error code 10071)";
        assert_eq!(error.to_string(), expected);
        assert_eq!(publish(Expected::last(1, "mails.1.>")).await, Ok(published(2, false)));
    }

    #[tokio::test]
    async fn a_publish_that_fails_stores_nothing_or_loses_its_answer() {
        let recorded = RecordedPublisher::new();
        let publisher = recorded.publisher();
        let publish = async || publisher.publish("mails.1.welcome", &ann(), with_id("a")).await;
        recorded.fail_next(1);
        recorded.lose_next_answers(1);
        assert_eq!(publish().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(recorded.events(), []);
        assert_eq!(publish().await.unwrap_err().kind(), ErrorKind::Unavailable);
        assert_eq!(recorded.events().len(), 1);
        assert_eq!(publish().await, Ok(published(1, true)));
    }

    #[tokio::test]
    async fn options_are_refused_as_on_a_connection() {
        let publisher = RecordedPublisher::new().publisher();
        let error = publisher.publish("mails.1.welcome", &ann(), with_id("")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}
