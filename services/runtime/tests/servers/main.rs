//! The runtime against a real NATS server: what a service's authors and their users would notice.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod accounts;
mod ack_wait;
mod aggregate;
mod attack;
mod away;
mod cluster;
mod connection;
mod consume;
mod consumer_epoch;
mod credentials;
mod dead_letters;
mod effects;
mod foreign;
mod limits;
mod metrics;
mod order;
mod ordering;
mod partitions;
mod partitions_lost;
mod partitions_processes;
mod partitions_sharing;
mod partitions_stops;
mod projection;
mod proxy;
mod publish;
mod reading;
mod removed;
mod sharing;
mod state;
mod stored_subjects;
mod support;
mod testing;
