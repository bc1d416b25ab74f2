//! The API of Jetwright: its custom resources, and the environment that the operator and the pods it runs agree on.
//!
//! Without the feature `resources` only the environment contract remains, which is all that a workload needs.

pub mod dead_letter;
pub mod duration;
pub mod environment;
pub mod labels;
pub mod marks;

pub use duration::Duration;

#[cfg(feature = "resources")]
mod common;
#[cfg(feature = "resources")]
pub mod conditions;
#[cfg(feature = "resources")]
pub mod consumer;
#[cfg(feature = "resources")]
#[cfg(test)]
mod documentation;
#[cfg(feature = "resources")]
pub mod manifests;
#[cfg(feature = "resources")]
pub mod monitoring;
#[cfg(feature = "resources")]
pub mod names;
#[cfg(feature = "resources")]
pub mod size;
#[cfg(feature = "resources")]
pub mod stream;
#[cfg(feature = "resources")]
pub mod text;

#[cfg(feature = "resources")]
pub use {
    common::{AdoptionPolicy, DeletionPolicy, NameRef},
    consumer::{EventConsumer, EventConsumerSpec, EventConsumerStatus},
    size::Size,
    stream::{EventStream, EventStreamSpec, EventStreamStatus},
};

/// API group of all kinds, and the prefix of every label, annotation and metadata key that is Jetwright's own.
pub const GROUP: &str = "jetwright.dev";
