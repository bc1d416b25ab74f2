//! Figures of partitions that processes share, against real nats-servers on this machine: ordered throughput over 16 partitions beside a
//! bare async-nats loop over the same 16 consumers, and beside one with as few events under way as there are keys, by 1, 2 and 4 processes, on one server and on three replicas; and how long a
//! hand-over takes, from the new map to the first event that the next owner begins. Run by `make bench-scaling`; words on the command line
//! choose measurements whose names have all of them.
//!
//! All sides see the same events and confirm each acknowledgement. The consumers are paused until all processes pull.
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program, and the helpers of tests have more than is used here"
)]

#[path = "../../tests/servers/proxy.rs"]
mod proxy;
#[path = "../../tests/servers/sharing.rs"]
mod sharing;
#[path = "../../tests/servers/support.rs"]
mod support;

mod handover;
mod throughput;

use std::env;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--side", side, url, first, step] => {
            let [first, step] = [first, step].map(|number| number.parse().unwrap());
            throughput::run(side.parse().unwrap(), url, first, step).await;
        }
        // `cargo test --all-targets` runs it too, which is no time to measure.
        words if words.contains(&"--bench") => measure(words).await,
        _ => {}
    }
}

async fn measure(words: &[&str]) {
    // Before the one of the tests' helpers, which tells of each event.
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(EnvFilter::new("error")).with(logs).init();
    let wanted = |name: &str| words.iter().all(|word| *word == "--bench" || name.contains(word));
    if wanted("hand-over") {
        handover::measure().await;
    }
    for (replicas, keys) in [(1, 1_000), (3, 1_000), (1, 10_000), (3, 10_000)] {
        let name = format!("throughput, {replicas} replicas, {keys} keys");
        if wanted(&name) {
            throughput::measure(&name, replicas, keys).await;
        }
    }
}
