//! A key-value bucket (NATS ADR-8) in which several programs agree: reads from the leader of its stream, writes that expect a revision,
//! and a watch. Each request is sent once, since a repeated write cannot be told from the write of another. Does I/O and decides nothing.

mod entry;
mod watch;

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, header, message::OutboundMessage};
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use self::entry::{Answer, OPERATION_HEADER};
pub use self::{
    entry::Found,
    watch::{Watch, WatchEvent},
};
use crate::{
    connection::Connection,
    jetstream_error::{JetStreamError, NO_MESSAGE_FOUND, WRITE_UNDER_WAY, WRONG_LAST_SEQUENCE},
    mux::NoReply,
    reply::read,
};

/// How long a request waits for its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request takes at least that says nothing: who agrees by the bucket asks at once again for what is not known.
const MIN_SILENCE: Duration = Duration::from_secs(1);
/// Header of how long a server keeps a message.
const TTL_HEADER: &str = "Nats-TTL";

/// One bucket. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Bucket {
    connection: Connection,
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
        Self { connection: connection.clone(), stream: format!("KV_{name}"), prefix: format!("$KV.{name}.") }
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
        let subject = self.connection.api_subjects().get_message(&self.stream);
        let query = json!({ "last_by_subj": format!("{}{key}", self.prefix) }).to_string();
        match self.ask::<Answer>(subject, query).await {
            Ok(answer) => answer.found(),
            Err(Failure::Refused(error)) if error.err_code == NO_MESSAGE_FOUND => Found::Absent,
            Err(failure) => Found::Unknown(failure.to_string()),
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
