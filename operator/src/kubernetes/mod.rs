//! Kubernetes: the client, what the watches bring, and what is written: owned objects, statuses, finalizers and events.

pub mod apply;
pub mod client;
pub mod events;
pub mod field_manager;
pub mod finalizer;
pub mod invalid_object;
pub mod kinds;
pub mod list;
pub mod owned;
pub mod reduced;
pub mod scopes;
pub mod status;
pub mod stores;
mod take_back;
pub mod updates;
pub mod watched;

use std::time::Duration;

use jiff::Timestamp;
use kube::Resource;

/// How long an object has existed.
#[must_use]
pub fn age(object: &impl Resource) -> Duration {
    let created = object.meta().creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    Timestamp::now().duration_since(created).unsigned_abs()
}
