//! Sharing out the partitions of ordered consumers: the operator's part of the protocol of `jetwright-partitions`.
//!
//! [`bucket`] keeps the bucket in which the protocol runs, [`declared`] is what the EventConsumers and their pods say, [`cluster_maps`] what is shared out without
//! one, [`roles`] what a pod is to its workload, [`driver`] carries out what the crate's coordinator decides, with [`requests`] and [`cleaning`], [`sharing`] is what
//! becomes known of a consumer by that, [`registry`] keeps it for the pipelines of the objects, [`published`] is what their statuses say of it, and [`export`] writes it as metrics.

mod bucket;
mod cleaning;
mod cluster_maps;
pub mod declared;
pub mod driver;
pub mod export;
pub mod published;
pub mod registry;
mod requests;
mod roles;
pub mod sharing;
