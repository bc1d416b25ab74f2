//! What an ordered consumer needs beside what every consumer does. Pure.

use tokio::time::Instant;

use super::{keyed_queue::KeyedQueue, recovery::Recovery, sentinel::OrderSentinel};

pub(super) struct Order {
    /// Which tokens of a subject are the key, counted from 0.
    pub(super) key_tokens: Vec<u32>,
    pub(super) queue: KeyedQueue,
    pub(super) recovery: Recovery,
    pub(super) sentinel: OrderSentinel,
}

impl Order {
    /// With room for so many keys at once.
    pub(super) fn new(key_tokens: Vec<u32>, room: usize, now: Instant) -> Self {
        Self {
            key_tokens,
            queue: KeyedQueue::new(room),
            recovery: Recovery::new(now),
            sentinel: OrderSentinel::default(),
        }
    }
}
