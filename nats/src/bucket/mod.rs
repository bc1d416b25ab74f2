//! A key-value bucket (NATS ADR-8) in which several programs agree: reads from the leader of its stream, writes that expect a revision,
//! and a watch. Each request is sent once, since a repeated write cannot be told from the write of another. Does I/O and decides nothing.
//!
//! | file | does |
//! | --- | --- |
//! | `entry` | says what a message does to its key |
//! | `watch` | tells what keys have, and each change |
//! | `deliveries` | the consumer of a watch |
//! | `reading` | reads what is not delivered |

mod deliveries;
mod entry;
mod reading;
mod watch;

use std::{sync::Arc, time::Duration};

use async_nats::{HeaderMap, HeaderValue, header, message::OutboundMessage};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep_until, timeout},
};

use self::entry::OPERATION_HEADER;
pub use self::{
    entry::Found,
    watch::{Watch, WatchEvent},
};
use crate::{
    connection::Connection,
    jetstream_error::{JetStreamError, NO_MESSAGE_FOUND, WRITE_UNDER_WAY, WRONG_LAST_SEQUENCE},
    mux::NoReply,
    reply::read,
    stored::StoredMessage,
};

/// How long a request waits for its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request takes at least that says nothing: who agrees by the bucket asks at once again for what is not known.
const MIN_SILENCE: Duration = Duration::from_secs(1);
/// Header of how long a server keeps a message.
const TTL_HEADER: &str = "Nats-TTL";

/// One bucket. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Bucket {
    connection: Connection,
    /// Another connection, from the first watch on, over which watches are delivered: anybody may write what the client cannot parse, and
    /// its connection ends when that is delivered.
    delivering: Arc<OnceCell<Connection>>,
    stream: String,
    /// What the subject of each key begins with.
    prefix: String,
}

/// The answer to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is stored, as this revision.
    Stored(u64),
    /// This request stored nothing: the key has another revision (10071), or a write of it is under way (10164). It may be that of the
    /// same write, sent before.
    Refused(JetStreamError),
    /// Whether it is stored is not known, and why.
    Unknown(String),
}

impl Bucket {
    /// The bucket of this name, which need not exist yet.
    #[must_use]
    pub fn new(connection: &Connection, name: &str) -> Self {
        let (stream, prefix) = (format!("KV_{name}"), format!("$KV.{name}."));
        Self { connection: connection.clone(), delivering: Arc::default(), stream, prefix }
    }

    /// Tells what the keys that match one of these filters have, and what is written to them from now on. Filters must not overlap;
    /// `*` and `>` stand for tokens as in subjects.
    #[must_use]
    pub fn watch(&self, filters: &[String]) -> Watch {
        Watch::begin(self.clone(), filters)
    }

    /// What a key has, as the leader of the bucket's stream says. An answer that says nothing takes a second at least.
    pub async fn read(&self, key: &str) -> Found {
        unhurried(self.find(key), |found| matches!(found, Found::Unknown(_))).await
    }

    async fn find(&self, key: &str) -> Found {
        let query = json!({ "last_by_subj": format!("{}{key}", self.prefix) });
        match self.get(&query).await {
            Ok(Some(message)) => message.into(),
            Ok(None) => Found::Absent,
            Err(failure) => Found::Unknown(failure.to_string()),
        }
    }

    /// A message as the leader of the bucket's stream has it.
    async fn get(&self, query: &Value) -> Result<Option<StoredMessage>, Failure> {
        let subject = self.connection.api_subjects().get_message(&self.stream);
        match self.ask(subject, query.to_string()).await {
            Ok(message) => Ok(Some(message)),
            Err(Failure::Refused(error)) if error.err_code == NO_MESSAGE_FOUND => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Stores a value where the key has this revision; 0 expects that it has none. An answer that says nothing takes a second at least.
    pub async fn write(&self, key: &str, value: impl Into<Bytes>, expected: u64) -> Written {
        self.store(key, value.into(), expecting(expected)).await
    }

    /// Stores a value, whatever the key has. An answer that says nothing takes a second at least.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Written {
        self.store(key, value.into(), HeaderMap::new()).await
    }

    async fn store(&self, key: &str, value: Bytes, headers: HeaderMap) -> Written {
        let publish = self.publish(key, value, headers);
        unhurried(publish, |written| matches!(written, Written::Unknown(_))).await
    }

    /// Deletes a key where it has this revision: watches are told, and the server forgets the deletion after this time (whole seconds).
    pub async fn delete(&self, key: &str, expected: u64, kept: Duration) -> Written {
        let mut headers = expecting(expected);
        headers.insert(OPERATION_HEADER, "DEL");
        headers.insert(TTL_HEADER, format!("{}s", kept.as_secs().max(1)));
        self.publish(key, Bytes::new(), headers).await
    }

    /// How long ago the bucket was made, by the clock of the server that answers. A failure takes a second at least.
    ///
    /// # Errors
    ///
    /// Why it is not known: there is no answer, or no bucket.
    pub async fn age(&self) -> Result<Duration, String> {
        #[derive(Deserialize)]
        struct Info {
            created: Timestamp,
            ts: Timestamp,
        }
        let subject = self.connection.api_subjects().request("STREAM.INFO", &[&self.stream]);
        let info = unhurried(self.ask(subject, String::new()), Result::is_err).await;
        let Info { created, ts } = info.map_err(|failure| failure.to_string())?;
        Ok(ts.duration_since(created).try_into().unwrap_or_default())
    }

    /// The same bucket, over the connection of watches.
    async fn delivering(&self) -> Result<Self, String> {
        let mut link = self.connection.link();
        // Until then two connections would say why there is none.
        let is_connected = timeout(REQUEST_TIMEOUT, link.wait_for(|link| link.connected))
            .await
            .is_ok_and(|link| link.is_ok());
        if !is_connected {
            return Err("NATS is not connected".to_owned());
        }
        let another = self.delivering.get_or_try_init(|| self.connection.another("watches")).await;
        let connection = another.map_err(|error| error.to_string())?.clone();
        Ok(Self { connection, ..self.clone() })
    }

    /// The key of a message's subject.
    fn key_of(&self, subject: &str) -> String {
        subject.strip_prefix(&self.prefix).unwrap_or(subject).to_owned()
    }

    async fn publish(&self, key: &str, payload: Bytes, mut headers: HeaderMap) -> Written {
        #[derive(Deserialize)]
        struct Stored {
            seq: u64,
        }
        headers.insert(header::NATS_EXPECTED_STREAM, self.stream.as_str());
        let subject = format!("{}{key}", self.prefix).into();
        let message = OutboundMessage { subject, reply: None, payload, headers: Some(headers) };
        match self.exchange::<Stored>(message).await {
            Ok(Stored { seq }) => Written::Stored(seq),
            Err(Failure::Refused(error))
                if [WRONG_LAST_SEQUENCE, WRITE_UNDER_WAY].contains(&error.err_code) =>
            {
                Written::Refused(error)
            }
            Err(failure) => Written::Unknown(failure.to_string()),
        }
    }

    async fn ask<T: DeserializeOwned>(&self, subject: String, body: String) -> Result<T, Failure> {
        let payload = body.into();
        self.exchange(OutboundMessage { subject: subject.into(), reply: None, payload, headers: None }).await
    }

    async fn exchange<T: DeserializeOwned>(&self, message: OutboundMessage) -> Result<T, Failure> {
        // On the heap, since every future around it would include it.
        let reply = Box::pin(self.connection.send_once(message, REQUEST_TIMEOUT)).await?;
        read(&reply)?.map_err(|refusal| Failure::Refused(refusal.error))
    }
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    NoReply(#[from] NoReply),
    #[error("failed to read JetStream's response: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error(transparent)]
    Refused(JetStreamError),
}

/// Gives an answer that says nothing no sooner than [`MIN_SILENCE`] after the request.
async fn unhurried<T>(request: impl Future<Output = T>, says_nothing: impl FnOnce(&T) -> bool) -> T {
    let asked = Instant::now();
    let answer = request.await;
    if says_nothing(&answer) {
        sleep_until(asked + MIN_SILENCE).await;
    }
    answer
}

fn expecting(revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(revision));
    headers
}
