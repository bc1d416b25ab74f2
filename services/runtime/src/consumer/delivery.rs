//! What a consumer delivers.

use std::sync::Arc;

use async_nats::Subject;
use bytes::Bytes;

use crate::Metadata;

/// One delivery.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) metadata: Arc<Metadata>,
    pub(super) consumer_sequence: u64,
    /// Where it is acknowledged.
    pub(super) reply: Subject,
    pub(super) payload: Bytes,
    /// In bytes, with headers and subjects.
    pub(super) size: usize,
}
