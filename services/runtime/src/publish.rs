//! Publishing events: with a message id and the trace's context, and the server's word that they are kept.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderName, HeaderValue, Subject, header, message::OutboundMessage};
use bytes::Bytes;
use prost::{Message, Name};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    Error, ErrorKind,
    connection::Connection,
    event::{CONTENT_TYPE, EVENT_TYPE, PROTOBUF},
    metrics::{Metrics, WriteKind},
    trace,
};

/// How long a publish may take altogether, retries included.
const BOUND: Duration = Duration::from_secs(5);

/// Header that names the subjects over which an expected sequence is checked (NATS ADR-50; nats-server 2.12).
pub(crate) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Publishes events. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Publisher {
    connection: Connection,
    metrics: Metrics,
}

/// How an event is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublishOptions {
    /// Id under which the stream keeps this event once within its duplicate window. Without one the publisher makes one
    /// of its own, so that its retries store nothing twice.
    pub message_id: Option<String>,
    /// What the writer believes to be the newest event of an aggregate.
    pub expected: Option<Expected>,
}

/// The newest sequence that a writer saw among an aggregate's events.
///
/// All writers of an aggregate must name the same filter, and none may write without one: servers do not compare
/// writes in flight under different filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Sequence of the newest event; 0 where there is none yet.
    pub last_sequence: u64,
    /// The aggregate's subjects, as in `orders.42.>`.
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
    /// It was there already under this message id, and nothing was stored now.
    #[serde(default)]
    pub duplicate: bool,
}

/// What is written where.
pub(crate) struct Write {
    pub(crate) kind: WriteKind,
    pub(crate) subject: String,
    /// They must make it safe to send it twice.
    pub(crate) headers: HeaderMap,
}

impl Publisher {
    pub(crate) fn new(connection: Connection, metrics: Metrics) -> Self {
        Self { connection, metrics }
    }

    /// Publishes an event and awaits JetStream's word that it is stored. The current span's context travels with it.
    ///
    /// What fails for the moment (no connection, no leader, another write in flight) is tried again for at most five
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`Conflict`](crate::ErrorKind::Conflict) where the expected sequence is not the newest (it may be this event
    /// itself, stored by a try whose answer was lost: who reads again sees that it is there),
    /// [`Unavailable`](crate::ErrorKind::Unavailable) where the time is over, and
    /// [`Refused`](crate::ErrorKind::Refused) where JetStream says no.
    pub async fn publish<E>(
        &self,
        subject: &str,
        event: &E,
        options: PublishOptions,
    ) -> Result<Published, Error>
    where
        E: Message + Name,
    {
        let PublishOptions { message_id, expected } = options;
        let message_id = match message_id {
            Some(id) => header_value(subject, "message id", &id)?,
            None => own_message_id().into(),
        };
        let expected = expected.map(|expected| checked(subject, &expected)).transpose()?;
        let (span, trace) = trace::of_publish(subject, E::NAME);
        let message = || {
            let mut headers = headers(E::full_name(), message_id.clone(), expected.clone());
            trace::inject(&trace, &mut headers);
            OutboundMessage {
                subject: subject.into(),
                reply: None,
                payload: event.encode_to_vec().into(),
                headers: Some(headers),
            }
        };
        let published = if span.is_none() {
            self.store(WriteKind::Event, subject, &message).await
        } else {
            let storing = self.store(WriteKind::Event, subject, &message);
            Box::pin(storing.instrument(span.clone())).await
        };
        span.in_scope(|| match &published {
            Ok(Published { stream, sequence, .. }) => tracing::debug!(stream, sequence, subject, "published"),
            Err(error) => trace::failed(&span, error.kind().as_str(), error),
        });
        published
    }

    /// Stores a message of any kind.
    pub(crate) async fn append(&self, write: Write, payload: Bytes) -> Result<Published, Error> {
        let Write { kind, subject, headers } = write;
        let to = Subject::from(subject.as_str());
        let message = || OutboundMessage {
            subject: to.clone(),
            reply: None,
            payload: payload.clone(),
            headers: Some(headers.clone()),
        };
        self.store(kind, &subject, &message).await
    }

    /// Has a message stored, which is made anew for each time that it is sent.
    async fn store(
        &self,
        kind: WriteKind,
        subject: &str,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<Published, Error> {
        let begun = Instant::now();
        let published = self.connection.ask_until(begun + BOUND, subject, message).await;
        let published = published.map_err(|error| error.about(subject));
        let outcome = published.as_ref().map(|stored: &Published| stored.duplicate).map_err(Error::kind);
        self.metrics.published(kind, outcome, begun.elapsed());
        published
    }
}

/// An id of the publisher's own, by which its retries are recognised.
pub(crate) fn own_message_id() -> String {
    let mut id = String::with_capacity(32);
    trace::push_hex(&mut id, &rand::random::<[u8; 16]>());
    id
}

/// What a caller wants in a header.
///
/// # Errors
///
/// There is the end of a line in it, after which the server would read another header.
pub(crate) fn header_value(object: &str, name: &str, text: &str) -> Result<HeaderValue, Error> {
    text.parse().map_err(|error| Error::new(ErrorKind::Refused, object, format!("{name} {text:?}: {error}")))
}

/// The values of the headers with which a write is compared.
fn checked(subject: &str, expected: &Expected) -> Result<[HeaderValue; 2], Error> {
    let Expected { last_sequence, filter_subject } = expected;
    Ok([(*last_sequence).into(), header_value(subject, "filter subject", filter_subject)?])
}

fn headers(event_type: String, message_id: HeaderValue, expected: Option<[HeaderValue; 2]>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(EVENT_TYPE), event_type);
    headers.insert(HeaderName::from_static(CONTENT_TYPE), PROTOBUF);
    headers.insert(header::NATS_MESSAGE_ID, message_id);
    if let Some([last_sequence, filter_subject]) = expected {
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, last_sequence);
        headers.insert(EXPECTED_SUBJECT, filter_subject);
    }
    headers
}
