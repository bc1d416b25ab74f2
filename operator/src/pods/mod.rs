//! The pods of workloads: what each is doing, why they do not come up, and whether they have ended.

pub mod cache;
pub mod diagnose;
pub mod drain;
pub mod processes;
pub mod state;
