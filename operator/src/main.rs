//! The operator: keeps JetStream streams, consumers and their workloads as declared.

mod args;
mod changes;
mod commands;
mod connection;
mod contest;
mod context;
mod controllers;
mod deletion;
mod error;
mod field_error;
mod hash;
mod jetstream;
mod kubernetes;
mod leader;
mod manager;
mod metrics;
mod namespaces;
mod object_state;
mod outcome;
mod partitions;
mod pods;
mod rate_limit;
mod readiness;
mod remedy;
mod reported;
mod scale_down;
mod scaling;
mod stats;
mod workload;
mod write_gate;

use std::process::ExitCode;

use args::Cli;
use jetwright_process::telemetry::Telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    let args = match Cli::parse() {
        Cli::Run(args) => *args,
        Cli::Command(command) => return Box::pin(commands::run(command)).await,
    };
    match Telemetry::start("jetwright-operator") {
        Ok(telemetry) => telemetry.finish(Box::pin(manager::run(args)).await),
        Err(problems) => problems.report(),
    }
}
