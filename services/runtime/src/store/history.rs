//! Reads all events under a subject.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    reader::{Reader, object},
    stored_event::StoredEvent,
};
use crate::{Error, ErrorKind};

/// Maximum time to read a whole history.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum events of a history in memory.
const MAX_EVENTS: usize = 100_000;
/// The events under one subject.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// In the order in which they were stored.
    pub events: Vec<StoredEvent>,
}

impl History {
    /// Sequence of the newest event; 0 if there is none. The next write expects it.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.events.last().map_or(0, |event| event.sequence)
    }
}

impl Reader {
    /// All events of the stream under this subject, which may have wildcards, including everything published before the call.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) if NATS does not respond in time or the stream does not exist,
    /// [`Refused`](ErrorKind::Refused) if there are more than 100,000 events.
    pub async fn history(&self, stream: &str, filter_subject: &str) -> Result<History, Error> {
        let mut pages = self.pages(stream, filter_subject);
        let read = async {
            let mut events = Vec::new();
            while let Some(page) = pages.next().await? {
                events.extend(page);
                if events.len() > MAX_EVENTS {
                    let reason = format!("must have at most {MAX_EVENTS} events");
                    return Err(Error::new(ErrorKind::Refused, object(stream, filter_subject), reason));
                }
            }
            Ok(History { events })
        };
        self.within(stream, filter_subject, read).await
    }

    /// Limits the time to read a whole history.
    pub(crate) async fn within<T, E: From<Error>>(
        &self,
        stream: &str,
        filter_subject: &str,
        read: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        timeout(HISTORY_TIMEOUT, read).await.unwrap_or_else(|_| {
            let reason = format!("failed to read its events within {HISTORY_TIMEOUT:?}");
            Err(Error::new(ErrorKind::Unavailable, object(stream, filter_subject), reason).into())
        })
    }
}
