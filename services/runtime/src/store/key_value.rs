//! State by key with compare-and-set, in a NATS key-value bucket (NATS ADR-8): the stream `KV_<bucket>` with the subjects
//! `$KV.<bucket>.<key>`. Reads go to the stream's leader, so they see every earlier write.

use async_nats::{HeaderMap, HeaderValue, header};
use bytes::Bytes;

use crate::{
    Error, ErrorKind, Published, Publisher, Reader, StoredEvent,
    metrics::WriteKind,
    publish::{Write, header_value, own_message_id},
    store::Pages,
};

/// Header of an entry that deletes its key.
const OPERATION_HEADER: &str = "KV-Operation";

/// One bucket. Clones share one connection.
#[derive(Clone, Debug)]
pub struct KeyValue {
    bucket: String,
    stream: String,
    publisher: Publisher,
    reader: Reader,
}

/// The value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Bytes,
    /// Number of the write that set it; the next write names it.
    pub revision: u64,
}

impl KeyValue {
    pub(crate) fn new(bucket: &str, publisher: Publisher, reader: Reader) -> Self {
        Self { bucket: bucket.to_owned(), stream: format!("KV_{bucket}"), publisher, reader }
    }

    /// The bucket's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.bucket
    }

    /// The value of a key, if it has one.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) in bounded time, also if the bucket does not exist, or
    /// [`Refused`](ErrorKind::Refused) if the key is malformed.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        let found = self.reader.last(&self.stream, &self.subject(key)?).await?;
        Ok(found
            .filter(has_value)
            .map(|entry| Entry { revision: entry.sequence, value: entry.into_payload() }))
    }

    /// Sets the value if the key has none, and returns its revision.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if it has one; otherwise as [`get`](Self::get).
    pub async fn create(&self, key: &str, value: impl Into<Bytes>) -> Result<u64, Error> {
        let value = value.into();
        let created = self.write(key, value.clone(), 0, None).await;
        if !created.as_ref().is_err_and(|error| error.kind() == ErrorKind::Conflict) {
            return created;
        }
        // A deleted key has a newest message too, whose sequence the next write must name.
        let deleted = self.reader.last(&self.stream, &self.subject(key)?).await?;
        match deleted {
            Some(entry) if !has_value(&entry) => self.write(key, value, entry.sequence, None).await,
            _ => created,
        }
    }

    /// Sets the value if the key is still at this revision, and returns the new one.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if it is at another; otherwise as [`get`](Self::get).
    pub async fn update(&self, key: &str, value: impl Into<Bytes>, revision: u64) -> Result<u64, Error> {
        self.write(key, value.into(), revision, None).await
    }

    /// Sets the value as [`update`](Self::update) does, but once for this message id: a second write under it, by any writer within
    /// the bucket's duplicate window, stores nothing and returns `None`.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if the key is at another revision; otherwise as [`get`](Self::get).
    pub async fn update_once(
        &self,
        key: &str,
        value: impl Into<Bytes>,
        revision: u64,
        message_id: &str,
    ) -> Result<Option<u64>, Error> {
        let message_id = header_value(key, "message id", message_id)?;
        let stored = self.append(key, value.into(), headers(message_id, revision)).await?;
        Ok((!stored.duplicate).then_some(stored.sequence))
    }

    /// Deletes the key where it is still at this revision.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if it is at another; otherwise as [`get`](Self::get).
    pub async fn delete(&self, key: &str, revision: u64) -> Result<(), Error> {
        self.write(key, Bytes::new(), revision, Some("DEL")).await.map(drop)
    }

    /// Everything in the bucket, page by page, including deleted keys; a key that changes meanwhile may appear at its old position, at
    /// its new one, or at both.
    pub(crate) fn pages(&self) -> Pages<'_> {
        self.reader.pages(&self.stream, ">")
    }

    /// The key and the value in one of the [`pages`](Self::pages); `None` if the key is deleted.
    pub(crate) fn entry<'a>(&self, stored: &'a StoredEvent) -> Option<(&'a str, &'a [u8])> {
        let key = stored.subject.strip_prefix("$KV.")?.strip_prefix(&self.bucket)?.strip_prefix('.')?;
        has_value(stored).then(|| (key, stored.payload()))
    }

    async fn write(
        &self,
        key: &str,
        value: Bytes,
        revision: u64,
        operation: Option<&str>,
    ) -> Result<u64, Error> {
        let mut headers = headers(own_message_id().into(), revision);
        if let Some(operation) = operation {
            headers.insert(OPERATION_HEADER, operation);
        }
        Ok(self.append(key, value, headers).await?.sequence)
    }

    async fn append(&self, key: &str, value: Bytes, headers: HeaderMap) -> Result<Published, Error> {
        let (kind, stream) = (WriteKind::State, self.stream.as_str());
        let write = Write { kind, stream, subject: self.subject(key)?, headers };
        self.publisher.append(write, value).await
    }

    /// The subject of a key.
    fn subject(&self, key: &str) -> Result<String, Error> {
        if !is_key(key) {
            let object = format!("bucket {}, key {key:?}", self.bucket);
            return Err(Error::new(
                ErrorKind::Refused,
                object,
                "a key must consist of letters, digits and -/_=.",
            ));
        }
        Ok(format!("$KV.{}.{key}", self.bucket))
    }
}

/// Keys consist of letters, digits and `-/_=.`, without a dot at either end (ADR-8).
pub(crate) fn is_key(key: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-/_=.".contains(c);
    let ends = key.starts_with('.') || key.ends_with('.') || key.contains("..");
    !key.is_empty() && !ends && key.chars().all(allowed)
}

/// A deleted key has a message with an operation.
fn has_value(stored: &StoredEvent) -> bool {
    stored.header(OPERATION_HEADER).is_none()
}

/// The headers of a write that expects the key at this revision.
fn headers(message_id: HeaderValue, revision: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_MESSAGE_ID, message_id);
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(revision));
    headers
}
