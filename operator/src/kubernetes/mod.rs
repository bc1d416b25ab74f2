//! What the controllers do to their own objects, and to those that these control: finalizers, statuses, events, lists, applying.

pub mod events;
pub mod finalizer;
pub mod list;
pub mod owned;
pub mod status;
