//! Reads one event, as its stream's leader has it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jetwright_nats::{Connection, Request, RequestError, jetstream_error::NO_MESSAGE_FOUND};
use jetwright_partitions::subjects::Partitions;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::Instant};

use super::{RawEvent, stored_event::StoredEvent, unparsable::Unparsable};
use crate::{Error, subject::PartitionedStreams};

/// Timeout of one request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum pages that are read at once, each of about a MiB.
const MAX_CONCURRENT_PAGES: usize = 64;
/// How long a stream whose pages are denied is read without them.
const DENIED_PAGES_TTL: Duration = Duration::from_mins(1);

/// Reads from streams. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) page_permits: Arc<Semaphore>,
    /// Streams whose pages this program's user may not read, and until when that is assumed.
    not_permitted: Arc<Mutex<HashMap<String, Instant>>>,
    pub(super) unparsable: Arc<Unparsable>,
    streams: PartitionedStreams,
}

impl Reader {
    pub(crate) fn new(connection: Connection, streams: PartitionedStreams) -> Self {
        let page_permits = Arc::new(Semaphore::new(MAX_CONCURRENT_PAGES));
        let (not_permitted, unparsable) = (Arc::default(), Arc::default());
        Self { connection, page_permits, not_permitted, unparsable, streams }
    }

    /// The partitions of a stream; `None` if it has none, or no binding says so.
    pub(crate) fn partitions(&self, stream: &str) -> Option<&Arc<Partitions>> {
        self.streams.get(stream)
    }

    /// The newest message of the stream under this subject, which may have wildcards, as the stream's leader has it.
    pub(crate) async fn last(&self, stream: &str, subject: &str) -> Result<Option<StoredEvent>, Error> {
        self.get(stream, subject, u64::MAX, &json!({"last_by_subj": subject})).await
    }

    /// The first message of the stream under this subject that has at least this sequence, as the stream's leader has it.
    pub(crate) async fn next(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<StoredEvent>, Error> {
        self.get(stream, subject, from, &json!({"seq": from, "next_by_subj": subject})).await
    }

    /// The message of this sequence, as the stream's leader has it.
    pub(super) async fn at(&self, stream: &str, sequence: u64) -> Result<Option<StoredEvent>, Error> {
        self.get(stream, ">", sequence, &json!({"seq": sequence})).await
    }

    /// `from` is a sequence from which on, up to the message, no other one matches.
    async fn get(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        wanted: &Value,
    ) -> Result<Option<StoredEvent>, Error> {
        let found = self.get_raw(stream, subject, wanted).await?.map(StoredEvent::from);
        if let Some(event) = &found {
            self.unparsable.learn(stream, subject, from.min(event.sequence), event);
        }
        Ok(found)
    }

    /// The message of this sequence, as the stream's leader has it; `None` if it is deleted.
    pub(crate) async fn raw(&self, stream: &str, sequence: u64) -> Result<Option<RawEvent>, Error> {
        self.get_raw(stream, &format!("sequence {sequence}"), &json!({ "seq": sequence })).await
    }

    /// The first message under this subject, which may have wildcards, that has at least this sequence, as the stream's leader has it.
    pub(crate) async fn next_raw(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
    ) -> Result<Option<RawEvent>, Error> {
        self.get_raw(stream, subject, &json!({"seq": from, "next_by_subj": subject})).await
    }

    async fn get_raw(&self, stream: &str, about: &str, wanted: &Value) -> Result<Option<RawEvent>, Error> {
        let object = object(stream, about);
        let request = Request {
            subject: self.connection.api_subjects().get_message(stream),
            payload: wanted.to_string().into(),
            deadline: Instant::now() + REQUEST_TIMEOUT,
        };
        match self.connection.request(request).await {
            Ok(event) => Ok(Some(event)),
            Err(RequestError::Refused(error)) if error.err_code == NO_MESSAGE_FOUND => Ok(None),
            Err(other) => Err(Error::of_request(object, &other)),
        }
    }

    /// Whether to try to read this stream in pages.
    pub(super) fn may_page(&self, stream: &str) -> bool {
        let not_permitted = self.not_permitted.lock();
        not_permitted.get(stream).is_none_or(|until| *until <= Instant::now())
    }

    pub(super) fn may_not_page(&self, stream: &str) {
        let mut not_permitted = self.not_permitted.lock();
        not_permitted.insert(stream.to_owned(), Instant::now() + DENIED_PAGES_TTL);
    }
}

/// What is read, as errors name it.
pub(super) fn object(stream: &str, subject: &str) -> String {
    format!("{stream}: {subject}")
}
