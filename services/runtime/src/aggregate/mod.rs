//! Aggregates: the state of the events under `<prefix>.<id>.>`, folded in their order. A write names the newest of these events
//! that it saw, so a writer that decided on an older state gets a conflict.

mod error;
mod event;
mod snapshot;
mod update;

use std::{fmt, sync::Arc};

use async_nats::header;

pub use self::{
    error::AggregateError,
    event::NewEvent,
    snapshot::Snapshot,
    update::{Decision, Updated},
};
use self::{
    error::unreadable,
    snapshot::{Progress, Snapshots},
};
use crate::{
    Error, ErrorKind, Event, Expected, Position, PublishOptions, Published, Publisher, Reader, StoredEvent,
    store::Shared,
};

/// A state that is folded from events.
///
/// ```
/// use bytes::Bytes;
/// use jetwright_runtime::{Aggregate, Event, StoredEvent, DecodeError, decode};
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct Opened {}
/// # impl prost::Name for Opened { const NAME: &'static str = "Opened"; const PACKAGE: &'static str = "events.v1"; }
/// # #[derive(Clone, PartialEq, prost::Message)] pub struct Paid { #[prost(int64, tag = "1")] amount: i64 }
/// # impl prost::Name for Paid { const NAME: &'static str = "Paid"; const PACKAGE: &'static str = "events.v1"; }
///
/// #[derive(Clone, Debug, Default)]
/// struct Account {
///     open: bool,
///     balance: i64,
/// }
///
/// enum AccountEvent {
///     Opened(Opened),
///     Paid(Paid),
///     /// Of a later program: it says nothing about what this one knows of an account.
///     Later,
/// }
///
/// impl Event for AccountEvent {
///     fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
///         match event_type {
///             "events.v1.Opened" => decode(payload).map(Self::Opened),
///             "events.v1.Paid" => decode(payload).map(Self::Paid),
///             _ => Ok(Self::Later),
///         }
///     }
/// }
///
/// impl Aggregate for Account {
///     type Event = AccountEvent;
///
///     fn apply(&mut self, event: AccountEvent, _stored: &StoredEvent) {
///         match event {
///             AccountEvent::Opened(_) => self.open = true,
///             AccountEvent::Paid(paid) => self.balance += paid.amount,
///             AccountEvent::Later => {}
///         }
///     }
/// }
/// ```
pub trait Aggregate: Default + Clone + Send + Sync + 'static {
    /// Its events: a protobuf message, or an enum of several. An unreadable event prevents loading the aggregate, so types of later
    /// programs are better a variant of their own.
    type Event: Event;

    /// The state after this event. It happened, so there is nothing to refuse.
    fn apply(&mut self, event: Self::Event, stored: &StoredEvent);
}

/// The aggregates of one kind: those under `<prefix>.<id>.>` of one stream. Clones share one connection.
///
/// All programs that write to these subjects must do it this way, and under the same prefix: servers compare an expected
/// sequence only with writes that name the same literal filter. The stream's subject transform may add tokens behind the
/// event's name, as partitions do, and none before it.
#[derive(Clone)]
pub struct Aggregates<A> {
    stream: String,
    prefix: String,
    publisher: Publisher,
    reader: Reader,
    snapshots: Option<Snapshots<A>>,
    /// Loads in progress.
    loads: Arc<Shared<Result<Loaded<A>, AggregateError>>>,
}

/// An aggregate as folded from its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<A> {
    id: String,
    state: A,
    last_sequence: u64,
}

impl<A> Loaded<A> {
    /// The aggregate's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The state after its events; the default if it has none.
    #[must_use]
    pub fn state(&self) -> &A {
        &self.state
    }

    /// The state after its events; the default if it has none.
    #[must_use]
    pub fn into_state(self) -> A {
        self.state
    }

    /// Sequence of its newest event, which the next write expects; 0 if it has none.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.last_sequence
    }
}

impl<A> fmt::Debug for Aggregates<A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, prefix, .. } = self;
        formatter
            .debug_struct("Aggregates")
            .field("stream", stream)
            .field("prefix", prefix)
            .finish_non_exhaustive()
    }
}

impl<A: Aggregate> Aggregates<A> {
    pub(crate) fn new(stream: &str, prefix: &str, publisher: Publisher, reader: Reader) -> Self {
        let (stream, prefix) = (stream.to_owned(), prefix.to_owned());
        Self { stream, prefix, publisher, reader, snapshots: None, loads: Arc::default() }
    }

    /// An aggregate that is assumed to have no events yet, without a look at the stream: for writing the first one. If it has events,
    /// [`append`](Self::append) returns a conflict.
    #[must_use]
    pub fn assume_new(&self, id: &str) -> Loaded<A> {
        Loaded { id: id.to_owned(), state: A::default(), last_sequence: 0 }
    }

    /// The aggregate with all events that were stored before this call. Of concurrent loads of one aggregate in a process, one reads
    /// its events for all.
    ///
    /// # Errors
    ///
    /// [`JetStream`](AggregateError::JetStream) if the stream cannot be read within ten seconds or the id is not one token
    /// of a subject, [`Unreadable`](AggregateError::Unreadable) if an event cannot be read.
    pub async fn load(&self, id: &str) -> Result<Loaded<A>, AggregateError> {
        let filter = self.filter(id)?;
        let load = self.loads.run(id, self.fold(id, &filter));
        self.reader.within(&self.stream, &filter, load).await
    }

    /// Whether the aggregate has no event after those that were loaded, as the leader of its stream has it.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](ErrorKind::Unavailable) if the stream cannot be read in bounded time.
    pub async fn is_current(&self, loaded: &Loaded<A>) -> Result<bool, Error> {
        let filter = self.filter(&loaded.id)?;
        let next = self.reader.next(&self.stream, &filter, loaded.last_sequence + 1).await?;
        Ok(next.is_none())
    }

    async fn fold(&self, id: &str, filter: &str) -> Result<Loaded<A>, AggregateError> {
        let mut progress = Progress::read(self.snapshots.as_ref(), id).await;
        let mut pages = self.reader.pages(&self.stream, filter);
        let (mut state, mut newest) = (A::default(), None::<Position>);
        // In a recreated stream another event may have its sequence.
        if let Some((snapshot, position)) = progress.take_state()
            && pages.resume_after(position).await?
        {
            (state, newest) = (snapshot, Some(position));
        }
        while let Some(page) = pages.next().await? {
            if let Some(newest) = newest {
                progress.save(&state, newest).await;
            }
            for stored in page {
                state.apply(stored.decode().map_err(unreadable(&stored))?, &stored);
                newest = Some(stored.position());
                progress.folded += 1;
            }
        }
        if let Some(newest) = newest {
            progress.finish(&state, newest);
        }
        let last_sequence = newest.map_or(0, |newest| newest.sequence);
        Ok(Loaded { id: id.to_owned(), state, last_sequence })
    }

    /// Appends an event if the aggregate has none that is newer than what was loaded. An event that was stored, and whose answer was
    /// lost, is recognised by its message id and not taken for another writer's.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) if it has: load it again and decide again, as [`update`](Self::update) does. Otherwise as
    /// [`Publisher::publish`], and [`Refused`](ErrorKind::Refused) if the id or the event's name is not one token of a subject.
    pub async fn append(&self, loaded: &Loaded<A>, event: NewEvent) -> Result<Published, Error> {
        let id = &loaded.id;
        let filter = self.filter(id)?;
        check_token("the name of an event", event.name())?;
        let subject = format!("{}.{id}.{}", self.prefix, event.name());
        let (message_id, known_to_others) = event.message_id();
        let expected = Some(Expected::last(loaded.last_sequence, filter.as_str()));
        let expected_stream = Some(self.stream.clone());
        let subject_template = Some(format!("{}.*.{}", self.prefix, event.name()).into());
        let message = Some(message_id.clone());
        let options = PublishOptions { message_id: message, expected, expected_stream, subject_template };
        let published = match event.publish(&self.publisher, &subject, options).await {
            Err(conflict) if conflict.kind() == ErrorKind::Conflict => {
                match self.stored(&filter, loaded.last_sequence, &message_id).await {
                    Ok(Some(own)) => own,
                    // This program may be allowed to write and not to read.
                    Err(error) if error.kind() != ErrorKind::Refused => return Err(error),
                    _ => return Err(conflict),
                }
            }
            done => done?,
        };
        Ok(Published { duplicate: published.duplicate && known_to_others, ..published })
    }

    /// The event of this message id, if it is the first one after this sequence: a server of one replica compares the sequence first,
    /// and so takes a repetition for a conflict with what it stored itself.
    async fn stored(
        &self,
        filter: &str,
        last_sequence: u64,
        message_id: &str,
    ) -> Result<Option<Published>, Error> {
        let mut events = self.reader.pages(&self.stream, filter);
        events.begin_after(last_sequence);
        let first = events.next().await?.and_then(|page| page.into_iter().next());
        let own = first.filter(|first| first.header(header::NATS_MESSAGE_ID.as_ref()) == Some(message_id));
        Ok(own.map(|own| Published { stream: self.stream.clone(), sequence: own.sequence, duplicate: true }))
    }

    /// The subjects of an aggregate's events.
    fn filter(&self, id: &str) -> Result<String, Error> {
        for token in self.prefix.split('.') {
            check_token("the prefix of a subject", token)?;
        }
        check_token("the id of an aggregate", id)?;
        Ok(format!("{}.{id}.>", self.prefix))
    }
}

/// With a dot, or a wildcard, an id would stand for several aggregates.
fn check_token(what: &str, token: &str) -> Result<(), Error> {
    if !token.is_empty()
        && !token.contains(|c: char| c.is_whitespace() || c.is_control() || ".*>".contains(c))
    {
        return Ok(());
    }
    let reason = "must be one token of a subject, without spaces, dots, * and >";
    Err(Error::new(ErrorKind::Refused, format!("{what}, {token:?}"), reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_token_of_a_subject() {
        for right in ["42", "0193f0a6-7d2b", "ann@example", "$x", "ü"] {
            assert_eq!(check_token("id", right), Ok(()), "{right}");
        }
        for wrong in ["", "4.2", "*", "4*", ">", "a b", "a\n", "a\0"] {
            assert_eq!(check_token("id", wrong).unwrap_err().kind(), ErrorKind::Refused, "{wrong:?}");
        }
    }
}
