//! What is in a stream.

use async_nats::{HeaderMap, jetstream};
use jetwright_e2e::published;
use jetwright_testing::await_until;
use prost::{Message, Name};

use crate::shop::SOON;

/// A message as a stream keeps it.
#[derive(Clone, Debug)]
pub struct Stored {
    /// As it was published.
    pub subject: String,
    pub headers: HeaderMap,
    payload: Vec<u8>,
}

impl Stored {
    /// A header, which must be there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("{} has no {name}: {self:?}", self.subject)).as_str()
    }

    /// The trace that it is part of, from its `traceparent` (W3C Trace Context: version, trace, span, flags).
    pub fn trace_id(&self) -> &str {
        self.header("traceparent").split('-').nth(1).unwrap()
    }

    /// The event in it, which must be of this type and say so.
    pub fn event<E: Message + Name + Default>(&self) -> E {
        assert_eq!(self.header("Event-Type"), E::full_name());
        assert_eq!(self.header("Content-Type"), "application/protobuf");
        E::decode(self.payload.as_slice()).unwrap()
    }
}

/// All messages of a stream whose subjects begin so, in their order.
pub async fn stored(jetstream: &jetstream::Context, stream: &str, begin: &str) -> Vec<Stored> {
    let mut stream = jetstream.get_stream(stream).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut messages = Vec::new();
    for sequence in state.first_sequence.max(1)..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let (subject, payload) = (published(&message.subject).to_owned(), message.payload.to_vec());
        messages.push(Stored { subject, headers: message.headers, payload });
    }
    messages.retain(|message| message.subject.starts_with(begin));
    messages
}

/// The one event of this subject, once it is there.
pub async fn await_event<E: Message + Name + Default>(
    jetstream: &jetstream::Context,
    subject: &str,
) -> (Stored, E) {
    let stream = subject.split('.').next().unwrap();
    let mut found = await_until(&format!("an event on {subject}"), SOON, async || {
        let found = stored(jetstream, stream, subject).await;
        if found.is_empty() { Err("there is none") } else { Ok(found) }
    })
    .await;
    assert_eq!(found.len(), 1, "{found:?}");
    let message = found.remove(0);
    let event = message.event();
    (message, event)
}
