//! Reading streams: the events under a subject in the order in which they were stored, and up to the newest one that the
//! stream's leader has.
//!
//! The leader is asked for its newest event under the subject. Where that one and those before it name each other, they are asked
//! for by their sequences ([`links`]); else whichever replica answers first gives the events, a thousand at a time, by each
//! of their subjects where these are few ([`merged`]), until the newest one is among them. Where a stream does not offer
//! that (`allowDirect`), its leader is asked for one after another, and so it is where an event is among them that the client cannot
//! be sent ([`unparsable`]).

mod direct;
mod links;
mod merged;
mod pages;
mod raw;
mod recorded;
mod shared;
mod unparsable;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jetwright_nats::Connection;
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

pub(crate) use self::raw::RawEvent;
pub use self::recorded::{Position, StoredEvent};
use self::unparsable::Unparsable;
pub(crate) use self::{pages::Pages, shared::Shared};
use crate::{Error, ErrorKind};

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
    unparsable: Arc<Unparsable>,
}

/// The events under one subject.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order in which they were stored.
    pub events: Vec<StoredEvent>,
}

impl History {
    /// Sequence of the newest event; 0 where there is none. The next write expects it.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.events.last().map_or(0, |event| event.sequence)
    }
}

impl Reader {
    pub(crate) fn new(connection: Connection) -> Self {
        let turns = Arc::new(Semaphore::new(PAGES));
        Self { connection, turns, not_permitted: Arc::default(), unparsable: Arc::default() }
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
    async fn at(&self, stream: &str, sequence: u64) -> Result<Option<StoredEvent>, Error> {
        self.get(stream, ">", sequence, &json!({"seq": sequence})).await
    }

    /// `from` is a sequence before which nothing was to be found, nor between it and the message.
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
