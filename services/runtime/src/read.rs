//! Reading streams: the events under a subject in the order in which they were stored, and up to the newest one that the
//! stream's leader has.
//!
//! The leader is asked for its newest event under the subject, and then whichever replica answers first gives the events, a
//! thousand at a time, until that one is among them. Where a stream does not offer that (`allowDirect`), its leader is asked
//! for one after another.

mod direct;
mod pages;
mod raw;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::{ErrorCode, message::StreamMessage, stream::RawMessage},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

pub(crate) use self::{pages::Pages, raw::RawEvent};
use crate::{
    Error, ErrorKind, Event, Undecodable,
    connection::{Connection, Request, RequestError},
    event::EVENT_TYPE,
};

/// How long one request may take.
const BOUND: Duration = Duration::from_secs(3);
/// How long a whole history may take.
const WHOLE: Duration = Duration::from_secs(10);
/// A history of more events is not held in memory.
const LONGEST: usize = 100_000;
/// Pages that are read at once, each of about a MiB; more wait for their turn.
const PAGES: usize = 64;
/// How long a stream that may not be read in pages is read without trying.
const NOT_PERMITTED: Duration = Duration::from_mins(1);

/// Reads from streams. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Reader {
    connection: Connection,
    turns: Arc<Semaphore>,
    /// Streams that this program's user may not read in pages, and until when that is believed.
    not_permitted: Arc<Mutex<HashMap<String, Instant>>>,
}

/// An event as its stream holds it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Subject under which it is stored.
    pub subject: String,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When JetStream stored it.
    pub time: Timestamp,
    headers: HeaderMap,
    payload: Bytes,
}

/// Where an event is: by its sequence alone it could be taken for another one, since in a stream that was deleted and made
/// again the sequences begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// When JetStream stored it.
    pub time: Timestamp,
    /// Its sequence in the stream.
    pub sequence: u64,
}

/// The events under one subject.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order in which they were stored.
    pub events: Vec<Recorded>,
}

impl History {
    /// Sequence of the newest event; 0 where there is none. The next write expects it.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.events.last().map_or(0, |event| event.sequence)
    }
}

impl Recorded {
    /// The full name of its protobuf message; empty where the event does not say.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.header(EVENT_TYPE).unwrap_or_default()
    }

    /// The event itself.
    ///
    /// # Errors
    ///
    /// It is of another type, or not readable.
    pub fn decode<E: Event>(&self) -> Result<E, Undecodable> {
        E::decode(self.event_type(), self.payload.clone())
    }

    /// Where it is.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { time: self.time, sequence: self.sequence }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(crate) fn into_payload(self) -> Bytes {
        self.payload
    }

    fn from_message(message: StreamMessage) -> Result<Self, String> {
        let nanoseconds = message.time.unix_timestamp_nanos();
        Ok(Self {
            subject: message.subject.to_string(),
            sequence: message.sequence,
            time: Timestamp::from_nanosecond(nanoseconds).map_err(|error| error.to_string())?,
            headers: message.headers,
            payload: message.payload,
        })
    }
}

/// JetStream's answer to MSG.GET.
#[derive(Deserialize)]
struct Answer {
    message: RawMessage,
}

impl Reader {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, turns: Arc::new(Semaphore::new(PAGES)), not_permitted: Arc::default() }
    }

    /// All events of the stream under this subject, which may have wildcards: what was published before is in.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) where NATS does not answer in time or there is no such stream,
    /// [`Refused`](ErrorKind::Refused) where there are more than 100,000 events.
    pub async fn history(&self, stream: &str, filter_subject: &str) -> Result<History, Error> {
        let mut pages = self.pages(stream, filter_subject);
        let read = async {
            let mut events = Vec::new();
            while let Some(page) = pages.next().await? {
                events.extend(page);
                if events.len() > LONGEST {
                    let reason = format!("more than {LONGEST} events");
                    return Err(Error::new(ErrorKind::Refused, object(stream, filter_subject), reason));
                }
            }
            Ok(History { events })
        };
        self.within(stream, filter_subject, read).await
    }

    /// Bounds the reading of a whole history in time.
    pub(crate) async fn within<T, E: From<Error>>(
        &self,
        stream: &str,
        filter_subject: &str,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(WHOLE, read).await.unwrap_or_else(|_| {
            let reason = format!("its events cannot be read within {WHOLE:?}");
            Err(Error::new(ErrorKind::Unavailable, object(stream, filter_subject), reason).into())
        })
    }

    /// The newest message of the stream under this subject, which may have wildcards, as the stream's leader has it.
    pub(crate) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Recorded>, Error> {
        self.get(stream, subject, &serde_json::json!({"last_by_subj": subject})).await
    }

    /// The first message of the stream under this subject that has at least this sequence, as the stream's leader has it.
    pub(crate) async fn next(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<Recorded>, Error> {
        self.get(stream, subject, &serde_json::json!({"seq": from, "next_by_subj": subject})).await
    }

    async fn get(
        &self,
        stream: &str,
        subject: &str,
        wanted: &serde_json::Value,
    ) -> Result<Option<Recorded>, Error> {
        let object = object(stream, subject);
        let request = Request {
            subject: format!("$JS.API.STREAM.MSG.GET.{stream}"),
            headers: None,
            payload: wanted.to_string().into(),
            object: object.clone(),
            deadline: Instant::now() + BOUND,
        };
        match self.connection.request::<Answer>(request).await {
            Ok(answer) => StreamMessage::try_from(answer.message)
                .map_err(|error| error.to_string())
                .and_then(Recorded::from_message)
                .map(Some)
                .map_err(|why| Error::new(ErrorKind::Refused, object, why)),
            Err(RequestError::Refused(error)) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Err(other) => Err(other.into_error(&object)),
        }
    }

    /// Whether to try to read this stream in pages.
    fn may_page(&self, stream: &str) -> bool {
        let not_permitted = self.not_permitted.lock().unwrap_or_else(PoisonError::into_inner);
        not_permitted.get(stream).is_none_or(|until| *until <= Instant::now())
    }

    fn may_not_page(&self, stream: &str) {
        let mut not_permitted = self.not_permitted.lock().unwrap_or_else(PoisonError::into_inner);
        not_permitted.insert(stream.to_owned(), Instant::now() + NOT_PERMITTED);
    }
}

/// What is read, as errors name it.
fn object(stream: &str, subject: &str) -> String {
    format!("{stream}: {subject}")
}
