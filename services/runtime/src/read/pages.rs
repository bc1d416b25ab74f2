//! The events under a subject, page by page, until the newest that the stream's leader has is among them.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    BOUND, Position, Reader, Recorded,
    direct::{self, Page, Wanted},
    object,
};
use crate::{Error, ErrorKind};

/// Events of a page that are asked of the leader one by one.
const ONE_BY_ONE: usize = 100;
/// Pause before a replica that is behind is asked again, which grows to the longest.
const PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The events under a subject, page by page. Each page is bounded in time and memory.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    reader: &'a Reader,
    stream: &'a str,
    filter: &'a str,
    /// Sequence of the next event, or less.
    from: u64,
    /// The newest event of the stream's leader, asked for once unless it is gone.
    newest: Option<Recorded>,
    /// A page that was looked at already.
    ahead: Option<Vec<Recorded>>,
    /// Events that are still read one by one, since the connection was lost while a page of them was read.
    suspects: usize,
}

impl Reader {
    /// The events under this subject from the first.
    pub(crate) fn pages<'a>(&'a self, stream: &'a str, filter: &'a str) -> Pages<'a> {
        Pages { reader: self, stream, filter, from: 1, newest: None, ahead: None, suspects: 0 }
    }
}

impl Pages<'_> {
    /// Goes on after the event at this position if it is still there, and says whether; else begins with the first.
    pub(crate) async fn resume_after(&mut self, position: Position) -> Result<bool, Error> {
        self.from = position.sequence.max(1);
        if let Some(mut page) = self.next().await?
            && page.first().is_some_and(|first| first.position() == position)
        {
            page.remove(0);
            self.ahead = Some(page);
            return Ok(true);
        }
        self.from = 1;
        Ok(false)
    }

    /// Goes on with the first event after this sequence.
    pub(crate) fn begin_after(&mut self, sequence: u64) {
        (self.from, self.ahead) = (sequence + 1, None);
    }

    /// Sequence of the newest event, once a page was read.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.sequence)
    }

    /// The next events, at least one; `None` after the newest.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Recorded>>, Error> {
        match self.ahead.take() {
            Some(page) if !page.is_empty() => Ok(Some(page)),
            _ => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<Vec<Recorded>>, Error> {
        let deadline = Instant::now() + BOUND;
        let mut pause = PAUSE;
        while Instant::now() < deadline {
            let newest = match &self.newest {
                Some(newest) => newest.clone(),
                None => match self.reader.last(self.stream, self.filter).await? {
                    Some(newest) => self.newest.insert(newest).clone(),
                    None => return Ok(None),
                },
            };
            if newest.sequence < self.from {
                return Ok(None);
            }
            if newest.sequence == self.from {
                self.from += 1;
                return Ok(Some(vec![newest]));
            }
            let page = self.page(deadline).await?;
            if page.iter().any(|event| event.sequence == newest.sequence && event.time != newest.time) {
                return Err(self.unavailable("the stream was made again while it was read"));
            }
            if let Some(last) = page.last() {
                self.from = last.sequence + 1;
                return Ok(Some(page));
            }
            // Whoever answered is behind the leader; or the newest event is gone, so the leader is asked again.
            self.newest = None;
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        Err(self.unavailable("no replica that answers has what the leader has"))
    }

    async fn page(&mut self, deadline: Instant) -> Result<Vec<Recorded>, Error> {
        let Self { reader, stream, filter, from, suspects, .. } = self;
        let Ok(Ok(_turn)) = timeout_at(deadline, reader.turns.acquire()).await else {
            return Err(self.unavailable("too many histories are being read already"));
        };
        if *suspects == 0 && reader.may_page(stream) {
            let wanted = Wanted { stream, filter, from: *from };
            match direct::page(&reader.connection, wanted, deadline).await {
                Ok(Page::Events(events)) => return Ok(events),
                Ok(Page::Interrupted(events)) => {
                    tracing::debug!(stream, "reading one by one what may have ended the connection");
                    *suspects = usize::try_from(direct::EVENTS).unwrap_or(usize::MAX);
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
                Ok(Page::NotOffered(why)) => tracing::debug!(stream, why, "is read one by one"),
                Ok(Page::NotPermitted(violation)) => {
                    tracing::warn!(stream, %violation, "is read one by one");
                    reader.may_not_page(stream);
                }
                Err(why) => return Err(self.unavailable(&why)),
            }
        }
        let events = self.one_by_one(deadline).await?;
        self.suspects = self.suspects.saturating_sub(events.len());
        Ok(events)
    }

    /// What the leader has, asked for one after another.
    async fn one_by_one(&self, deadline: Instant) -> Result<Vec<Recorded>, Error> {
        let (mut events, mut from) = (Vec::new(), self.from);
        while events.len() < ONE_BY_ONE && Instant::now() < deadline {
            let Some(event) = self.reader.next(self.stream, self.filter, from).await? else { break };
            from = event.sequence + 1;
            let newest = self.newest() <= event.sequence;
            events.push(event);
            if newest {
                break;
            }
        }
        Ok(events)
    }

    fn unavailable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unavailable, object(self.stream, self.filter), why)
    }
}
