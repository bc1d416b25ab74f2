//! Reading an aggregate: the events under its subjects, in the order in which they were stored.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{ErrorCode, message::StreamMessage, stream::RawMessage},
};
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    Error, ErrorKind, Event, Undecodable,
    connection::{Ask, Connection, NotDone},
    event::EVENT_TYPE,
};

/// How long one event may take to be read.
const BOUND: Duration = Duration::from_secs(3);
/// More events than this under one filter are no aggregate; reading them one by one would take seconds.
const LONGEST: usize = 10_000;

/// Reads from streams. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Reader {
    connection: Connection,
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

/// The events of one aggregate.
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
        self.headers.get(EVENT_TYPE).map_or("", |name| name.as_str())
    }

    /// The event itself.
    ///
    /// # Errors
    ///
    /// It is of another type, or not readable.
    pub fn decode<E: Event>(&self) -> Result<E, Undecodable> {
        E::decode(self.event_type(), self.payload.clone())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    pub(crate) fn into_payload(self) -> Bytes {
        self.payload
    }
}

/// JetStream's answer to MSG.GET.
#[derive(Deserialize)]
struct Answer {
    message: RawMessage,
}

impl Reader {
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// All events of the stream under these subjects, as the stream's leader has them: what was published before is in.
    ///
    /// This asks once for each event, which suits aggregates with short histories.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) where NATS does not answer in time, [`Refused`](ErrorKind::Refused)
    /// where there is no such stream, or more than 10,000 events.
    pub async fn history(&self, stream: &str, filter_subject: &str) -> Result<History, Error> {
        let mut events = Vec::new();
        let mut from = 1;
        loop {
            let wanted = serde_json::json!({"seq": from, "next_by_subj": filter_subject});
            let Some(event) = self.get(stream, filter_subject, &wanted).await? else {
                return Ok(History { events });
            };
            from = event.sequence + 1;
            events.push(event);
            if events.len() > LONGEST {
                let reason = format!("more than {LONGEST} events");
                return Err(Error::new(ErrorKind::Refused, format!("{stream}: {filter_subject}"), reason));
            }
        }
    }

    /// The newest message of the stream under this subject, as the stream's leader has it.
    pub(crate) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Recorded>, Error> {
        self.get(stream, subject, &serde_json::json!({"last_by_subj": subject})).await
    }

    async fn get(
        &self,
        stream: &str,
        subject: &str,
        wanted: &serde_json::Value,
    ) -> Result<Option<Recorded>, Error> {
        let object = format!("{stream}: {subject}");
        let ask = Ask {
            subject: format!("$JS.API.STREAM.MSG.GET.{stream}"),
            headers: None,
            payload: wanted.to_string().into(),
            object: object.clone(),
            deadline: Instant::now() + BOUND,
        };
        match self.connection.ask::<Answer>(ask).await {
            Ok(answer) => {
                recorded(answer.message).map(Some).map_err(|why| Error::new(ErrorKind::Refused, object, why))
            }
            Err(NotDone::Refused(error)) if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
            Err(other) => Err(other.about(&object)),
        }
    }
}

fn recorded(raw: RawMessage) -> Result<Recorded, String> {
    let message = StreamMessage::try_from(raw).map_err(|error| error.to_string())?;
    let nanoseconds = message.time.unix_timestamp_nanos();
    Ok(Recorded {
        subject: message.subject.to_string(),
        sequence: message.sequence,
        time: Timestamp::from_nanosecond(nanoseconds).map_err(|error| error.to_string())?,
        headers: message.headers,
        payload: message.payload,
    })
}
