//! The user service's program.

use std::process::ExitCode;

use jetwright_process::configuration::Problems;
use jetwright_process::telemetry::Telemetry;
use jetwright_user_service::{Configuration, run};

#[tokio::main]
async fn main() -> ExitCode {
    match Problems::both(Configuration::read(), Telemetry::start("user-service")) {
        Ok((configuration, telemetry)) => telemetry.finish(run(configuration).await),
        Err(problems) => problems.report(),
    }
}
