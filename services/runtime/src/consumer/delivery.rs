//! A delivery of a consumer.

use std::sync::Arc;

use async_nats::Subject;
use bytes::Bytes;

use crate::Metadata;

#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) metadata: Arc<Metadata>,
    pub(super) consumer_sequence: u64,
    /// Its acknowledgement subject.
    pub(super) reply: Subject,
    pub(super) payload: Bytes,
    /// In bytes, with headers and subjects.
    pub(super) size: usize,
}
