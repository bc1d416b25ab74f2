//! The pods of workloads: what each is doing, why they do not come up.

pub mod cache;
pub mod diagnose;
pub mod state;
