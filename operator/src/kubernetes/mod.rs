//! What the controllers do to their own objects: finalizers, statuses, events, lists.

pub mod events;
pub mod finalizer;
pub mod list;
pub mod status;
