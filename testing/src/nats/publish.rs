//! Publishing to streams whose servers are being elected.

use super::cluster::ELECTION;
use crate::awaiting::await_until;
use async_nats::jetstream::{self, message::PublishMessage};

/// Publishes an event until a stream has it: the client's server may not have heard of the stream yet, and a server that stops leading it
/// answers nobody. With the same Nats-Msg-Id each time, it is stored once.
pub async fn publish_until_stored(jetstream: &jetstream::Context, subject: &str, payload: &'static str) {
    let id = format!("{:032x}", rand::random::<u128>());
    let publish = async || {
        let event = PublishMessage::build().message_id(&id).payload(payload.into());
        jetstream.send_publish(subject.to_owned(), event).await?.await
    };
    await_until("a stream to take an event", ELECTION, publish).await;
}
