//! Reads all events under a subject.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    reader::{Reader, object},
    stored_event::StoredEvent,
};
use crate::{Error, ErrorKind};

/// How long a whole history may take.
const WHOLE: Duration = Duration::from_secs(10);
/// A history of more events is not held in memory.
const LONGEST: usize = 100_000;
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
}
