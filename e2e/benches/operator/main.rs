//! Figures of the operator against a real nats-server and a real API server. Run by `make bench-operator`, which builds the operator
//! first; `ONLY="requests memory"` chooses some of them.
//!
//! - `speed`: how soon an EventStream is Ready, how soon what others changed is put right, and what it costs to be idle.
//! - `requests`: what a reconcile asks for that changes nothing, and what some messages cost beside many workloads.
//! - `memory`: what many objects take, also after every watch had to list again.
//! - `many`: 3,000 EventStreams at once, beside what the API server alone takes.
//! - `scaling`: what consumers with order per key (`scaling-order`), autoscaled workloads (`scaling-autoscaled`), and those with both
//!   (`scaling-autoscaled-order`) cost at rest. Only where it is chosen, as by `make bench-scaling`.
//! - `ten-thousand`: 10,000 EventStreams and 20,000 EventConsumers, and a restart with them. Only where it is chosen: it takes long.
//!
//! The operator is the release program; the servers and this program share the machine with it. Counts of requests are asserted, times
//! and memory are printed.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program"
)]

mod many;
mod memory;
mod objects;
mod requests;
mod scaling;
mod speed;
mod world;

use jetwright_e2e::figures::{Chosen, require_operator};

#[tokio::main]
async fn main() {
    let Some(chosen) = Chosen::read() else { return };
    require_operator();
    let runs = |name: &str, by_default: bool| chosen.has(name, by_default);
    if runs("speed", true) {
        speed::one_after_another().await;
        speed::all_at_once().await;
    }
    if runs("requests", true) {
        requests::of_reconciles_that_change_nothing().await;
        requests::of_messages_beside_workloads().await;
    }
    if runs("memory-streams", true) {
        memory::of_streams().await;
    }
    if runs("memory-consumers", true) {
        memory::of_consumers().await;
    }
    if runs("memory-workloads", true) {
        memory::of_workloads().await;
    }
    if runs("many", true) {
        many::streams_at_once().await;
    }
    let scaling = |name: &str| runs("scaling", false) || runs(name, false);
    if scaling("scaling-order") {
        scaling::of_consumers_with_order().await;
    }
    if scaling("scaling-autoscaled") {
        scaling::of_autoscaled_workloads().await;
    }
    if scaling("scaling-autoscaled-order") {
        scaling::of_autoscaled_workloads_with_order().await;
    }
    if runs("ten-thousand", false) {
        many::ten_thousand().await;
    }
}
