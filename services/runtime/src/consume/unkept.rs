//! What was given up and could not be kept yet: when it comes again it is not handled once more, and its dead letter says what went
//! wrong then. Bounded; what is forgotten is tried as any other delivery.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::settle::Reason;
use crate::Metadata;

/// Events that are remembered.
const MOST: usize = 10_000;

/// Why events were given up, by sequence and time: sequences begin again where a stream is made again.
#[derive(Debug, Default)]
pub(super) struct Unkept(Mutex<HashMap<(u64, i128), (Reason, String)>>);

impl Unkept {
    /// Remembers why an event was given up.
    pub(super) fn put(&self, metadata: &Metadata, why: (Reason, String)) {
        let mut unkept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unkept.len() < MOST {
            unkept.insert(key(metadata), why);
        }
    }

    /// Why it was given up before, if that is remembered.
    pub(super) fn take(&self, metadata: &Metadata) -> Option<(Reason, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(metadata))
    }
}

fn key(metadata: &Metadata) -> (u64, i128) {
    (metadata.sequence, metadata.time.as_nanosecond())
}
