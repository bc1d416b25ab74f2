//! Figures of order per key and of autoscaling with pods that run, against real servers and Kubernetes' own controllers. Run by
//! `make bench-scaling`, which builds the operator first; `ONLY="first hand-over"` chooses some of them.
//!
//! - `first`: how soon a workload without pods handles the first event that is published.
//! - `backlog`: how the pods follow 100,000 events that wait, and when those are handled.
//! - `hand-over`: how soon the partitions of a process that ended, or is silent, are handled by others.
//!
//! Operator and pods are release programs; the servers and this program share the machine with them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program"
)]

mod backlog;
mod first;
mod hand_over;
mod world;

use jetwright_e2e::figures::{Chosen, require_operator};

#[tokio::main]
async fn main() {
    let Some(chosen) = Chosen::read() else { return };
    require_operator();
    if chosen.has("first", true) {
        first::measure().await;
    }
    if chosen.has("backlog", true) {
        backlog::measure().await;
    }
    if chosen.has("hand-over", true) {
        hand_over::of_ended_processes().await;
        hand_over::of_silent_processes().await;
    }
}
