//! A history read subject by subject, merged in the order of the stream.
//!
//! Servers know where the events of one subject are, and search the whole stream for those of a filter with wildcards. So if the
//! filter stands for a few subjects, each subject is read on its own.

use std::collections::VecDeque;

use futures::future::try_join_all;
use tokio::time::Instant;

use super::{
    direct_get::{self, Answer, Page, Wanted, Which},
    reader::Reader,
    stored_event::StoredEvent,
};

/// Maximum subjects that are read in parallel, each with its share of a page in memory.
const MAX_SUBJECTS: usize = 8;

/// A history read this way, and the progress of reading it.
#[derive(Debug)]
pub(super) struct Merged {
    subjects: Vec<Subject>,
}

/// The events of one subject.
#[derive(Debug)]
struct Subject {
    name: String,
    /// Lower bound of the next event's sequence.
    from: u64,
    /// Sequence of its newest event when reading began.
    newest: u64,
    ahead: VecDeque<StoredEvent>,
}

/// The result of a step.
#[derive(Debug)]
pub(super) enum Step<T> {
    Done(T),
    /// A server that responded has less than the leader had.
    Behind,
    /// The connection was lost before the end of a response.
    Lost,
    /// The history cannot be read this way.
    Not,
}

impl Merged {
    /// Reads which subjects there are, at least up to the event `newest` of the stream's leader.
    pub(super) async fn begin(
        reader: &Reader,
        stream: &str,
        filter: &str,
        [from, newest]: [u64; 2],
        deadline: Instant,
    ) -> Result<Step<Self>, String> {
        let wanted = Wanted { stream, filter, which: Which::NewestOfSubjects(MAX_SUBJECTS + 1) };
        Ok(match direct_get::ask(&reader.connection, wanted, deadline).await? {
            Answer::Page(page) if page.up_to.is_none_or(|up_to| up_to < newest) => Step::Behind,
            Answer::Page(Page { events, has_more: false, .. }) if events.len() <= MAX_SUBJECTS => {
                let events = events.into_iter().filter(|event| event.sequence >= from);
                let subject = |event: StoredEvent| {
                    let (name, newest) = (event.subject, event.sequence);
                    Subject { name, from, newest, ahead: VecDeque::new() }
                };
                Step::Done(Self { subjects: events.map(subject).collect() })
            }
            Answer::Lost => Step::Lost,
            _ => Step::Not,
        })
    }

    /// The next events of all subjects; none after the newest.
    pub(super) async fn next(
        &mut self,
        reader: &Reader,
        stream: &str,
        deadline: Instant,
    ) -> Result<Step<Vec<StoredEvent>>, String> {
        let shares = self.subjects.len();
        let asking = self.subjects.iter_mut().filter(|subject| subject.is_wanting());
        let asking = asking.map(|subject| subject.ask(reader, stream, shares, deadline));
        for asked in try_join_all(asking).await? {
            match asked {
                Step::Done(()) => {}
                Step::Behind => return Ok(Step::Behind),
                Step::Lost => return Ok(Step::Lost),
                Step::Not => return Ok(Step::Not),
            }
        }
        Ok(Step::Done(self.take()))
    }

    /// The events that certainly come before everything that is not read yet.
    fn take(&mut self) -> Vec<StoredEvent> {
        let unread = self.subjects.iter().filter(|subject| !subject.is_read());
        let known = unread.map(|subject| subject.ahead.back().map_or(0, |last| last.sequence)).min();
        let mut events = Vec::new();
        for subject in &mut self.subjects {
            let end =
                subject.ahead.partition_point(|event| known.is_none_or(|known| event.sequence <= known));
            events.extend(subject.ahead.drain(..end));
        }
        events.sort_unstable_by_key(|event| event.sequence);
        events
    }
}

impl Subject {
    /// Whether the subject is read up to its newest event.
    fn is_read(&self) -> bool {
        self.from > self.newest
    }

    fn is_wanting(&self) -> bool {
        self.ahead.is_empty() && !self.is_read()
    }

    async fn ask(
        &mut self,
        reader: &Reader,
        stream: &str,
        shares: usize,
        deadline: Instant,
    ) -> Result<Step<()>, String> {
        let which = Which::From { sequence: self.from, shares };
        let wanted = Wanted { stream, filter: &self.name, which };
        Ok(match direct_get::ask(&reader.connection, wanted, deadline).await? {
            Answer::Page(Page { events, .. }) if events.is_empty() => Step::Behind,
            Answer::Page(Page { events, .. }) => {
                self.read(events);
                Step::Done(())
            }
            Answer::Lost => Step::Lost,
            _ => Step::Not,
        })
    }

    /// Events newer than the beginning are left to the next reading: an event of another subject may come before them.
    fn read(&mut self, events: Vec<StoredEvent>) {
        self.from = events.last().map_or(self.from, |last| last.sequence + 1);
        self.ahead.extend(events.into_iter().filter(|event| event.sequence <= self.newest));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;

    use super::{super::RawEvent, *};

    fn events(subject: &str, sequences: &[u64]) -> Vec<StoredEvent> {
        let event = |sequence| RawEvent {
            subject: subject.to_owned(),
            sequence,
            time: Timestamp::UNIX_EPOCH,
            header_block: None,
            payload: Bytes::new(),
        };
        sequences.iter().map(|sequence| event(*sequence).into()).collect()
    }

    fn subject(name: &str, newest: u64, read: &[u64]) -> Subject {
        let mut subject = Subject { name: name.to_owned(), from: 1, newest, ahead: VecDeque::new() };
        subject.read(events(name, read));
        subject
    }

    fn taken(merged: &mut Merged) -> Vec<u64> {
        merged.take().iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn events_come_in_their_order_and_none_before_one_that_is_still_to_be_read() {
        let subjects = vec![subject("a", 9, &[1, 4, 6]), subject("b", 8, &[2, 3, 8]), subject("c", 5, &[5])];
        let mut merged = Merged { subjects };
        assert_eq!(taken(&mut merged), [1, 2, 3, 4, 5, 6]);
        assert_eq!(merged.subjects.iter().map(Subject::is_wanting).collect::<Vec<_>>(), [true, false, false]);
        merged.subjects[0].read(events("a", &[7, 9]));
        assert_eq!(taken(&mut merged), [7, 8, 9]);
        assert!(taken(&mut merged).is_empty() && merged.subjects.iter().all(Subject::is_read));
    }

    #[test]
    fn what_came_after_the_reading_began_is_not_in_it() {
        let mut merged = Merged { subjects: vec![subject("a", 4, &[1, 4, 9]), subject("b", 3, &[3, 7])] };
        assert_eq!(taken(&mut merged), [1, 3, 4]);
        assert!(!merged.subjects[0].is_wanting());
    }
}
