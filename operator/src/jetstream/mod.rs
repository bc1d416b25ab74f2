//! JetStream: what an object declares in it, what it has, and what brings the one to the other.
//!
//! [`asset`] is what streams and consumers have in common, [`stream_config`] and [`consumer_config`] are the tables of their fields;
//! [`reconcile`] carries out what [`plan`] decides from [`diff`], [`ownership`] and [`claim`], and [`finalize`] deletes what an object leaves; [`cache`] holds what JetStream has, kept true by
//! [`advisories`], each of which [`advisory`] reads, [`availability`] finds what JetStream does not answer for, and [`servers`] knows which of them are away. The crate for NATS speaks `$JS.API`, and [`config`] keeps fields that it does not know.

pub mod advisories;
pub mod advisory;
pub mod asset;
pub mod availability;
pub mod cache;
pub mod claim;
pub mod comparison;
pub mod config;
pub mod connections;
pub mod consumer_config;
pub mod data_loss;
pub mod diff;
pub mod entries;
pub mod finalize;
pub mod history;
pub mod info;
pub mod listed;
pub mod marks;
pub mod outage;
pub mod outages;
pub mod ownership;
pub mod pages;
pub mod partitions;
pub mod plan;
pub mod reconcile;
pub mod repartition;
pub mod servers;
pub mod stream_config;
pub mod subjects;
