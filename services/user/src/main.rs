//! The user service's program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jetwright_process::configuration::Problems;
use jetwright_process::telemetry::Telemetry;
use jetwright_runtime::Environment;
use jetwright_user_service::{BINDINGS, Configuration, rebuild, run};

/// Registers users, and shows them.
///
/// Settings come from the environment, and from the YAML file that USERS_CONFIG_FILE names. NATS_URL and JETWRIGHT_BINDINGS are
/// required, which the operator sets in its pods; docs/services.md tells of all.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Make the bucket user-directory anew from the stream of users, while the service goes on
    Rebuild,
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().command {
        None => match Problems::both(Configuration::read(), Telemetry::start("user-service")) {
            Ok((configuration, telemetry)) => telemetry.finish(run(configuration).await),
            Err(problems) => problems.report(),
        },
        Some(Command::Rebuild) => {
            match Problems::both(Environment::from_env(&BINDINGS), Telemetry::start("user-service")) {
                Ok((environment, telemetry)) => telemetry.finish(rebuild(environment).await.map(drop)),
                Err(problems) => problems.report(),
            }
        }
    }
}
