//! Workloads in virtual time: queues, pods that need a while to start, handlers, a database that they share; scaled as the operator scales them.
//!
//! [`scenarios`] has loads that are known to mislead autoscalers, and [`properties`] random ones. [`partitioned`] has pods that share partitions.

mod partitioned;
mod properties;
mod scenarios;
mod world;

pub use world::scaling;
