//! State in JetStream: events by subject, and buckets.
//!
//! A [`Reader`] gives the events under a subject in the order in which they were stored, up to the newest one of the stream's
//! leader.
//!
//! It reads the newest event under the subject from the leader. If that event and its predecessors name each other, they are read by
//! their sequences ([`links`]). Otherwise any replica gives the events, a thousand at a time, subject by subject if the subjects are
//! few ([`merged`]), until the newest event is among them. If a stream does not offer that (`allowDirect`), or an event is among them
//! that the client cannot be sent ([`unparsable`]), its leader gives them one by one.

mod direct_get;
mod history;
mod key_value;
mod links;
mod merged;
mod pages;
mod reader;
mod shared;
mod stored_event;
mod unparsable;

pub use self::{
    history::History,
    key_value::{Entry, KeyValue},
    reader::Reader,
    stored_event::{Position, StoredEvent},
};
/// An event exactly as its stream stores it.
pub(crate) use jetwright_nats::StoredMessage as RawEvent;

pub(crate) use self::{key_value::is_key, pages::Pages, shared::Shared};
