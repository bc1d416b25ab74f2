//! What the controllers do to their own objects: finalizers, statuses, events.

pub mod events;
pub mod finalizer;
pub mod status;
