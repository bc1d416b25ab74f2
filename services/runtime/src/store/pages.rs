//! The events under a subject, page by page, until the newest that the stream's leader has is among them.

use std::{borrow::Cow, mem, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    direct_get::{self, Answer, PAGE_EVENTS, Page, Wanted, Which},
    links,
    merged::{Merged, Step},
    reader::{REQUEST_TIMEOUT, Reader, object},
    stored_event::{Position, StoredEvent},
};
use crate::{
    Error, ErrorKind,
    subject::{is_some_of_many, matches},
};

/// Maximum events of a page that the leader gives one by one.
const MAX_SINGLE_READS: usize = 100;
/// Initial and maximum pause before a replica that is behind is asked another time.
const INITIAL_PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(100);

/// The events under a subject, page by page. Each page is limited in time and memory.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    reader: &'a Reader,
    stream: &'a str,
    /// Of published subjects.
    wanted: &'a str,
    /// Of stored subjects: matches what is wanted, and more if the stream has partitions.
    filter: Cow<'a, str>,
    /// Lower bound of the next event's sequence.
    from: u64,
    /// The newest event of the stream's leader, read once unless it is deleted.
    newest: Option<StoredEvent>,
    /// A page that was read in advance.
    ahead: Option<Vec<StoredEvent>>,
    strategy: Strategy,
    /// One of this many next events may have ended the connection.
    suspects: usize,
}

/// How the events are read.
#[derive(Debug, Default)]
enum Strategy {
    /// Not decided yet.
    #[default]
    New,
    /// Not by the names that they give each other.
    Unknown,
    /// Subject by subject.
    Merged(Merged),
    /// By the filter itself.
    Filter,
}

impl Reader {
    /// The events under this subject from the first.
    pub(crate) fn pages<'a>(&'a self, stream: &'a str, filter: &'a str) -> Pages<'a> {
        let partitions = self.partitions(stream);
        let stored = partitions.map_or(filter.into(), |partitions| partitions.covering_filter(filter));
        let (newest, ahead, strategy) = (None, None, Strategy::New);
        Pages {
            reader: self,
            stream,
            wanted: filter,
            filter: stored,
            from: 1,
            newest,
            ahead,
            strategy,
            suspects: 0,
        }
    }
}

impl Pages<'_> {
    /// Continues after the event at this position if it still exists, and returns whether it does; otherwise begins with the first.
    pub(crate) async fn resume_after(&mut self, position: Position) -> Result<bool, Error> {
        self.begin_after(position.sequence.max(1) - 1);
        if let Some(mut page) = self.next().await?
            && page.first().is_some_and(|first| first.position() == position)
        {
            page.remove(0);
            self.ahead = Some(page);
            return Ok(true);
        }
        self.begin_after(0);
        Ok(false)
    }

    /// Continues with the first event after this sequence.
    pub(crate) fn begin_after(&mut self, sequence: u64) {
        (self.from, self.ahead, self.strategy) = (sequence + 1, None, Strategy::New);
    }

    /// Sequence of the newest event, once a page was read.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.as_ref().map_or(0, |newest| newest.sequence)
    }

    /// The next events, at least one; `None` after the newest.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<StoredEvent>>, Error> {
        if let Some(page) = self.ahead.take()
            && !page.is_empty()
        {
            return Ok(Some(page));
        }
        while let Some(page) = self.read().await? {
            let page = self.published(page);
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// What is wanted of a page, as it was published.
    fn published(&self, page: Vec<StoredEvent>) -> Vec<StoredEvent> {
        let Some(partitions) = self.reader.partitions(self.stream) else { return page };
        let page = page.into_iter().map(|event| event.published(partitions));
        page.filter(|event| matches(self.wanted, &event.subject)).collect()
    }

    async fn read(&mut self) -> Result<Option<Vec<StoredEvent>>, Error> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let mut pause = INITIAL_PAUSE;
        while Instant::now() < deadline {
            let newest = match &self.newest {
                Some(newest) => newest.clone(),
                None => match self.reader.last(self.stream, &self.filter).await? {
                    Some(newest) => self.newest.insert(newest).clone(),
                    None => return Ok(None),
                },
            };
            if newest.sequence < self.from {
                return Ok(None);
            }
            let page = self.page(&newest, deadline).await?;
            if page.iter().any(|event| event.sequence == newest.sequence && event.time != newest.time) {
                return Err(self.unavailable("the stream was recreated while it was read"));
            }
            if let Some(last) = page.last() {
                self.from = last.sequence + 1;
                return Ok(Some(page));
            }
            // The replica that responded is behind the leader; or the newest event is deleted, so the leader is asked another time.
            (self.newest, self.strategy) = (None, Strategy::Unknown);
            sleep(pause).await;
            pause = MAX_PAUSE.min(pause * 2);
        }
        Err(self.unavailable("every replica that responds is behind the leader"))
    }

    /// The next events of one replica: none if it is behind.
    async fn page(&mut self, newest: &StoredEvent, deadline: Instant) -> Result<Vec<StoredEvent>, Error> {
        if newest.sequence == self.from {
            return Ok(vec![newest.clone()]);
        }
        let Ok(Ok(_turn)) = timeout_at(deadline, self.reader.page_permits.acquire()).await else {
            return Err(self.unavailable("too many histories are being read already"));
        };
        if matches!(self.strategy, Strategy::New) {
            self.strategy = Strategy::Unknown;
            if let Some(events) = self.followed(newest, deadline).await? {
                return Ok(events);
            }
        }
        let step = if self.reads_one_by_one() { Step::Not } else { self.sent(newest, deadline).await? };
        match step {
            Step::Done(events) => return Ok(events),
            Step::Behind => return Ok(Vec::new()),
            // Any of the events in that page may have ended the connection.
            Step::Lost => (self.suspects, self.strategy) = (PAGE_EVENTS, Strategy::Unknown),
            Step::Not => {}
        }
        self.one_by_one(deadline).await
    }

    /// All remaining events, if they name each other.
    async fn followed(
        &self,
        newest: &StoredEvent,
        deadline: Instant,
    ) -> Result<Option<Vec<StoredEvent>>, Error> {
        let Self { reader, stream, ref filter, from, .. } = *self;
        if !is_some_of_many(filter) {
            return Ok(None);
        }
        let following = links::follow(reader, stream, filter, from, newest.clone());
        let late = |_| Err(self.unavailable("its leader responds too late"));
        timeout_at(deadline, following).await.unwrap_or_else(late)
    }

    /// Whether an event ahead may end the connection when the client is sent it, or no server sends pages.
    fn reads_one_by_one(&self) -> bool {
        let Self { reader, stream, ref filter, from, .. } = *self;
        self.suspects > 0 || reader.unparsable.is_ahead(stream, filter, from) || !reader.may_page(stream)
    }

    /// The next events as a server sends them.
    async fn sent(
        &mut self,
        newest: &StoredEvent,
        deadline: Instant,
    ) -> Result<Step<Vec<StoredEvent>>, Error> {
        if matches!(self.strategy, Strategy::Unknown) {
            match self.choose(newest.sequence, deadline).await? {
                Step::Done(strategy) => self.strategy = strategy,
                Step::Behind => return Ok(Step::Behind),
                Step::Lost => return Ok(Step::Lost),
                Step::Not => return Ok(Step::Not),
            }
        }
        let read = match mem::take(&mut self.strategy) {
            Strategy::Merged(mut merged) => {
                let read = merged.next(self.reader, self.stream, deadline).await;
                self.strategy = Strategy::Merged(merged);
                read
            }
            Strategy::New | Strategy::Unknown | Strategy::Filter => {
                self.strategy = Strategy::Filter;
                self.under_filter(deadline).await
            }
        };
        read.map_err(|why| self.unavailable(&why))
    }

    async fn choose(&self, newest: u64, deadline: Instant) -> Result<Step<Strategy>, Error> {
        if !is_some_of_many(&self.filter) {
            return Ok(Step::Done(Strategy::Filter));
        }
        let range = [self.from, newest];
        let begun = Merged::begin(self.reader, self.stream, &self.filter, range, deadline).await;
        Ok(match begun.map_err(|why| self.unavailable(&why))? {
            Step::Done(merged) => Step::Done(Strategy::Merged(merged)),
            Step::Behind => Step::Behind,
            Step::Lost => Step::Lost,
            Step::Not => Step::Done(Strategy::Filter),
        })
    }

    async fn under_filter(&self, deadline: Instant) -> Result<Step<Vec<StoredEvent>>, String> {
        let Self { reader, stream, ref filter, from, .. } = *self;
        let wanted = Wanted { stream, filter, which: Which::From { sequence: from, shares: 1 } };
        Ok(match direct_get::ask(&reader.connection, wanted, deadline).await? {
            Answer::Page(Page { events, .. }) => Step::Done(events),
            Answer::Lost => Step::Lost,
            Answer::NotOffered(why) => {
                tracing::debug!(stream, why, "reading events one by one");
                Step::Not
            }
            Answer::NotPermitted(violation) => {
                tracing::warn!(stream, %violation, "reading events one by one");
                reader.may_not_page(stream);
                Step::Not
            }
        })
    }

    /// The leader's events, one by one.
    async fn one_by_one(&mut self, deadline: Instant) -> Result<Vec<StoredEvent>, Error> {
        let (mut events, mut from) = (Vec::new(), self.from);
        while events.len() < MAX_SINGLE_READS && Instant::now() < deadline {
            let Some(event) = self.reader.next(self.stream, &self.filter, from).await? else { break };
            from = event.sequence + 1;
            self.suspects = if event.is_unparsable() { 0 } else { self.suspects.saturating_sub(1) };
            let newest = self.newest() <= event.sequence;
            events.push(event);
            if newest {
                break;
            }
        }
        Ok(events)
    }

    fn unavailable(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unavailable, object(self.stream, self.wanted), why)
    }
}
