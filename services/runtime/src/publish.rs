//! Publishes events, with a message id and the trace's context, and waits for the server's confirmation.

pub(crate) mod recorder;

use std::{borrow::Cow, sync::Arc, time::Duration};

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject, header, message::OutboundMessage};
use bytes::Bytes;
use jetwright_nats::Connection;
use prometheus_client::registry::Registry;
use prost::{Message, Name};
use serde::Deserialize;
use tokio::time::Instant;

use self::recorder::{Recorder, Stored};
use crate::{
    Error, ErrorKind,
    event::{CONTENT_TYPE, EVENT_TYPE, EXPECTED_SUBJECT, PROTOBUF},
    metrics::{Metrics, WriteKind},
    subject::PartitionedStreams,
    trace,
};

/// Timeout of a publish, retries included.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest message that a server takes where its configuration does not say (`max_payload`), in bytes.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;

/// Publishes events. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Publisher {
    target: Target,
    streams: PartitionedStreams,
    metrics: Metrics,
}

/// What stores the events.
#[derive(Clone, Debug)]
enum Target {
    JetStream(Connection),
    /// Memory, in a test of a handler.
    Recorder(Arc<Recorder>),
}

/// How an event is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// Id under which the stream stores this event once within its duplicate window: not empty, and without white space at its
    /// ends. Default: a random id for each publish, so that its retries store nothing twice.
    pub message_id: Option<String>,
    /// The newest event of an aggregate as the writer knows it.
    pub expected: Option<Expected>,
    /// Name of the stream that must store the event. Any other stream whose subjects match refuses it, and nothing is stored.
    /// Default: any stream with the subject.
    pub expected_stream: Option<String>,
    /// The subject with `*` for what is another at each event, as in `orders.*.placed`. It names the span: a name for every order would be
    /// too many for whoever keeps traces. Default: the span is named by the type of the event.
    pub subject_template: Option<Cow<'static, str>>,
}

/// The newest sequence that a writer saw among an aggregate's events.
///
/// All writers of an aggregate must name the same filter, and none may write without one: servers do not compare
/// writes in flight under different filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Sequence of the newest event; 0 if there is none yet.
    pub last_sequence: u64,
    /// The aggregate's subjects, as in `orders.42.>`. On a stream with partitions it must end in `>`: stored subjects have one more token.
    pub filter_subject: String,
}

impl Expected {
    /// No event yet under these subjects.
    pub fn none(filter_subject: impl Into<String>) -> Self {
        Self::last(0, filter_subject)
    }

    /// Nothing newer than this sequence under these subjects.
    pub fn last(last_sequence: u64, filter_subject: impl Into<String>) -> Self {
        Self { last_sequence, filter_subject: filter_subject.into() }
    }
}

/// Where an event was stored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Published {
    /// JetStream stream that took it.
    pub stream: String,
    /// Its sequence there.
    #[serde(rename = "seq")]
    pub sequence: u64,
    /// The stream had it already under this message id, and stored nothing now.
    #[serde(default)]
    pub duplicate: bool,
}

impl From<Stored> for Published {
    fn from(Stored { stream, sequence, duplicate }: Stored) -> Self {
        Self { stream, sequence, duplicate }
    }
}

/// A write and its target.
pub(crate) struct Write<'a> {
    pub(crate) kind: WriteKind,
    /// Name of the stream that must store it.
    pub(crate) stream: &'a str,
    pub(crate) subject: String,
    /// They must make it safe to send it twice.
    pub(crate) headers: HeaderMap,
}

impl Publisher {
    pub(crate) fn new(connection: Connection, streams: PartitionedStreams, metrics: Metrics) -> Self {
        Self { target: Target::JetStream(connection), streams, metrics }
    }

    /// Stores in memory.
    pub(crate) fn recording(recorder: Arc<Recorder>) -> Self {
        let metrics = Metrics::register(&mut Registry::default());
        Self { target: Target::Recorder(recorder), streams: PartitionedStreams::default(), metrics }
    }

    /// Publishes an event and waits for JetStream's confirmation that it is stored. The current span's context travels with it.
    ///
    /// What may pass (no connection, no leader, another write in flight) is repeated for at most five seconds.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) where the expected sequence is not the newest (the newest may be this event itself, if
    /// the answer to a first try was lost: a caller that reads again finds it there),
    /// [`Unavailable`](crate::ErrorKind::Unavailable) where the time is over, and
    /// [`Refused`](crate::ErrorKind::Refused) where JetStream says no, where another stream than the expected one has the
    /// subject, or where an option is empty or cannot be sent.
    pub async fn publish<E>(
        &self,
        subject: &str,
        event: &E,
        mut options: PublishOptions,
    ) -> Result<Published, Error>
    where
        E: Message + Name,
    {
        let (stream, template) = (options.expected_stream.clone(), options.subject_template.take());
        if let Some(expected) = &options.expected {
            self.streams.check_expected(subject, &expected.filter_subject)?;
        }
        let checked = checked_headers(subject, options)?;
        let (span, trace) = trace::of_publish(subject, template.as_deref(), Some(E::NAME));
        let message = || {
            let mut headers = headers(E::full_name(), &checked);
            trace::inject(&trace, &mut headers);
            OutboundMessage {
                subject: subject.into(),
                reply: None,
                payload: event.encode_to_vec().into(),
                headers: Some(headers),
            }
        };
        let storing = async {
            let published = self.store(WriteKind::Event, subject, stream.as_deref(), &message).await?;
            let Published { stream, sequence, .. } = &published;
            tracing::debug!(stream, sequence, subject, "published");
            Ok(published)
        };
        trace::publishing(span, storing).await
    }

    /// The largest message that the server takes, in bytes, with its headers.
    pub(crate) fn max_payload(&self) -> usize {
        match &self.target {
            Target::JetStream(connection) => connection.client().max_payload(),
            Target::Recorder(_) => DEFAULT_MAX_PAYLOAD,
        }
    }

    /// Stores a message of any kind.
    pub(crate) async fn append(&self, write: Write<'_>, payload: Bytes) -> Result<Published, Error> {
        let Write { kind, stream, subject, mut headers } = write;
        headers.insert(header::NATS_EXPECTED_STREAM, header_value(&subject, "expected stream", stream)?);
        let to = Subject::from(subject.as_str());
        let message = || OutboundMessage {
            subject: to.clone(),
            reply: None,
            payload: payload.clone(),
            headers: Some(headers.clone()),
        };
        self.store(kind, &subject, Some(stream), &message).await
    }

    /// Stores a message, which is built again for each attempt.
    async fn store(
        &self,
        kind: WriteKind,
        subject: &str,
        stream: Option<&str>,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<Published, Error> {
        let begun = Instant::now();
        let published = match &self.target {
            Target::JetStream(connection) => {
                connection.request_until(begun + PUBLISH_TIMEOUT, subject, stream, message).await
            }
            Target::Recorder(recorder) => recorder.store(stream, message()).map(Published::from),
        };
        let published = published.map_err(|error| Error::of_request(subject, &error));
        let outcome = published.as_ref().map(|stored: &Published| stored.duplicate).map_err(Error::kind);
        self.metrics.published(kind, outcome, begun.elapsed());
        published
    }
}

/// A random id, by which the server recognises retries.
pub(crate) fn own_message_id() -> String {
    let mut id = String::with_capacity(32);
    trace::push_hex(&mut id, &rand::random::<[u8; 16]>());
    id
}

/// A caller's text as the value of a header.
///
/// # Errors
///
/// The server would read another value: it treats an empty one as absent, it skips spaces before a value, and the end of a line
/// begins another header.
pub(crate) fn header_value(object: &str, name: &str, text: &str) -> Result<HeaderValue, Error> {
    let refused = |why: &str| Error::new(ErrorKind::Refused, object, format!("{name} {text:?} {why}"));
    if text.is_empty() {
        return Err(refused("must not be empty"));
    }
    if text.trim() != text {
        return Err(refused("must not begin or end with white space"));
    }
    text.parse().map_err(|_| refused("must not contain the end of a line"))
}

/// Headers from the options of a publish.
fn checked_headers(subject: &str, options: PublishOptions) -> Result<Vec<(HeaderName, HeaderValue)>, Error> {
    let PublishOptions { message_id, expected, expected_stream, subject_template: _ } = options;
    let message_id = match message_id {
        Some(id) => header_value(subject, "message id", &id)?,
        None => own_message_id().into(),
    };
    let mut headers = vec![(header::NATS_MESSAGE_ID, message_id)];
    if let Some(Expected { last_sequence, filter_subject }) = expected {
        let filter_subject = header_value(subject, "filter subject", &filter_subject)?;
        headers.push((header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last_sequence.into()));
        headers.push((HeaderName::from_static(EXPECTED_SUBJECT), filter_subject));
    }
    if let Some(stream) = expected_stream {
        headers.push((header::NATS_EXPECTED_STREAM, header_value(subject, "expected stream", &stream)?));
    }
    Ok(headers)
}

fn headers(event_type: String, checked: &[(HeaderName, HeaderValue)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(EVENT_TYPE), event_type);
    headers.insert(HeaderName::from_static(CONTENT_TYPE), PROTOBUF);
    for (name, value) in checked {
        headers.insert(name.clone(), value.clone());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_the_server_would_read_otherwise_is_refused() {
        for (text, why) in [
            ("", "must not be empty"),
            (" ", "must not begin or end with white space"),
            (" a", "must not begin or end with white space"),
            ("a\t", "must not begin or end with white space"),
            ("a\r\nb", "must not contain the end of a line"),
            ("a\rb", "must not contain the end of a line"),
        ] {
            let error = header_value("orders.1", "message id", text).unwrap_err();
            let expected = format!("orders.1: refused: message id {text:?} {why}");
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Refused, expected));
        }
        assert_eq!(header_value("orders.1", "message id", "a b").unwrap().as_str(), "a b");
    }

    #[test]
    fn options_become_the_headers_by_which_the_server_compares() {
        let options = PublishOptions {
            message_id: Some("7".to_owned()),
            expected: Some(Expected::last(3, "orders.1.>")),
            expected_stream: Some("orders".to_owned()),
            ..PublishOptions::default()
        };
        let headers = checked_headers("orders.1.placed", options).unwrap();
        let mut headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{}: {}", name.as_ref() as &str, value.as_str()))
            .collect();
        headers.sort();
        let expected = [
            "Nats-Expected-Last-Subject-Sequence-Subject: orders.1.>",
            "Nats-Expected-Last-Subject-Sequence: 3",
            "Nats-Expected-Stream: orders",
            "Nats-Msg-Id: 7",
        ];
        assert_eq!(headers, expected);
        let own = checked_headers("orders.1.placed", PublishOptions::default()).unwrap();
        assert!(own.len() == 1 && own[0].1.as_str().len() == 32, "{own:?}");
    }
}
