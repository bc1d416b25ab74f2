//! The whole slice: a chart in, and what a user of the shop notices out. Nothing is faked but the nodes: what the operator
//! declares is run here as a node would run it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "all of this target is tests, their helpers too")]

mod accounts;
mod admission;
mod alerts;
mod chart;
mod chart_values;
mod cluster;
mod dashboards;
mod demo;
mod images;
mod installation;
mod kubelet;
mod observed;
mod operator_chart;
mod pod;
mod python;
mod repartition;
mod scale_down;
mod scale_up;
mod shop;
mod soak;
mod story;
mod stream;
mod tiers;
mod trouble;
