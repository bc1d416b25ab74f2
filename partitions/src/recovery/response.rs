//! What JetStream says of a consumer, as far as the order of its events depends on it. Pure.

use std::time::{Duration, Instant};

use serde::Deserialize;

/// Who leads a consumer, and since when: `cluster` of CONSUMER.INFO. Both are empty where JetStream does not say so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Leadership {
    /// The server.
    pub leader: String,
    /// Since when; a server can become leader again.
    pub leader_since: String,
}

/// What JetStream counts of a consumer (a part of CONSUMER.INFO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// The newest delivery.
    pub delivered: Delivered,
    /// Stream sequence up to which everything is acknowledged.
    pub ack_floor: u64,
    /// Deliveries that are not acknowledged.
    pub ack_pending: u64,
    /// After which time it delivers them again.
    pub ack_wait: Duration,
    /// Open pull requests of all clients.
    pub pull_requests: u64,
    /// It delivers nothing for now.
    pub is_paused: bool,
    /// Its leader has heard lately from enough replicas to deliver.
    pub has_quorum: bool,
}

/// A delivery's number and its event's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Number of the delivery.
    pub consumer_sequence: u64,
    /// Sequence of the event in its stream.
    pub stream_sequence: u64,
}

/// What JetStream says of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// What it counts.
    pub state: ConsumerState,
    /// When it was asked: what happened later may not be in it.
    pub asked_at: Instant,
    /// When it answered.
    pub answered_at: Instant,
}
