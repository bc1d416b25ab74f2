//! The API of Jetwright: its custom resources, and the environment that the operator and the pods it runs agree on.
//!
//! Without the feature `resources` only the environment contract remains, which is all that a workload needs.

pub mod duration;
pub mod environment;

pub use duration::Duration;
