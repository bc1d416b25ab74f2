//! The additional state of an ordered consumer. Pure.

use jetwright_partitions::{recovery::Recovery, sentinel::OrderSentinel};
use tokio::time::Instant;

use super::keyed_queue::{KeyTokens, KeyedQueue};

pub(super) struct Order {
    pub(super) key_tokens: KeyTokens,
    pub(super) queue: KeyedQueue,
    pub(super) recovery: Recovery,
    pub(super) sentinel: OrderSentinel,
}

impl Order {
    /// With room for so many keys at once.
    pub(super) fn new(key_tokens: Vec<u32>, room: usize, now: Instant) -> Self {
        Self {
            key_tokens: KeyTokens::new(key_tokens),
            queue: KeyedQueue::new(room),
            recovery: Recovery::new(now.into_std()),
            sentinel: OrderSentinel::default(),
        }
    }
}
