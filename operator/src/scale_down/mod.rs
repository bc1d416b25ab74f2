//! Scale-downs of workloads whose consumers have order: pods are emptied before they are removed, so that no partition stands still meanwhile.
//!
//! [`ranking`] is the order in which Kubernetes removes pods, [`decision`] which of them give up their partitions and when the Deployment gets
//! fewer; both are pure. [`registry`] keeps what is known of the pods that go, [`marks`] writes a hint for Kubernetes on them. A pod that goes has
//! the role `Retiring` when partitions are shared out, as one that is told to stop.

mod decision;
pub mod marks;
mod ranking;
pub mod registry;

pub use decision::{Plan, intended, partitions, words};
