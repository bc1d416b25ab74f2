//! End to end: what a user does with the charts on a kind cluster, and what breaks at night. `make test-e2e` makes the cluster,
//! installs an earlier operator with three NATS servers and the shop, upgrades them, and runs these one after the other.
#![allow(clippy::unwrap_used, reason = "all of this target is tests, their helpers too")]

mod demo;
mod install;
mod manifests;
mod orders;
mod partitions;
mod streams;
mod trouble;
mod upgrade;
mod workloads;
