//! Kubernetes: what the watches bring, and what is written: owned objects, statuses, finalizers and events.

pub mod apply;
pub mod events;
pub mod finalizer;
pub mod invalid_object;
pub mod list;
pub mod owned;
pub mod scopes;
pub mod status;
pub mod stores;
pub mod updates;
pub mod watched;
