//! State that JetStream holds: events by subject, and buckets.
//!
//! A [`Reader`] gives the events under a subject in the order in which they were stored, and up to the newest one that the
//! stream's leader has.
//!
//! The leader is asked for its newest event under the subject. Where that one and those before it name each other, they are asked
//! for by their sequences ([`links`]); else whichever replica answers first gives the events, a thousand at a time, by each
//! of their subjects where these are few ([`merged`]), until the newest one is among them. Where a stream does not offer
//! that (`allowDirect`), its leader is asked for one after another, and so it is where an event is among them that the client cannot
//! be sent ([`unparsable`]).

mod direct_get;
mod history;
mod key_value;
mod links;
mod merged;
mod pages;
mod raw;
mod reader;
mod shared;
mod stored_event;
mod subject;
mod unparsable;

pub use self::{
    history::History,
    key_value::{Entry, KeyValue},
    reader::Reader,
    stored_event::{Position, StoredEvent},
};
pub(crate) use self::{key_value::is_key, pages::Pages, raw::RawEvent, shared::Shared};
