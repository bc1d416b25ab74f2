//! The operator: keeps JetStream streams, consumers and their workloads as declared.

mod config;
mod connection;
mod consumer;
mod context;
mod controller;
mod deadletter;
mod deletion;
mod identity;
mod jetstream;
mod kubernetes;
mod leader;
mod memory;
mod metrics;
mod outcome;
mod plan;
mod readiness;
mod run;
mod stream;
mod undecodable;
mod verify;
mod workload;

use std::process::ExitCode;

use config::Request;
use jetwright_process::telemetry::Telemetry;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Request::parse() {
        Request::Operate(arguments) => *arguments,
        Request::Run(command) => return Box::pin(verify::run(command)).await,
    };
    match Telemetry::start("jetwright-operator") {
        Ok(telemetry) => telemetry.finish(Box::pin(run::run(arguments)).await),
        Err(problems) => problems.report(),
    }
}
