//! The user service's program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jetwright_runtime::App;
use jetwright_user_service::{Configuration, EVENT_CONSUMERS, rebuild, setup};

/// Registers users, and shows them.
///
/// Settings come from the environment, and from the YAML file that USERS_CONFIG_FILE names. NATS_URL and JETWRIGHT_BINDINGS are
/// required, which the operator sets in its pods; docs/services.md lists all.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Rebuild the bucket user-directory from the stream of users, while the service runs
    Rebuild,
}

#[tokio::main]
async fn main() -> ExitCode {
    let app = App::new("user-service", &EVENT_CONSUMERS);
    match Arguments::parse().command {
        None => app.run(Configuration::read(), setup).await,
        Some(Command::Rebuild) => app.run_command(Ok(()), rebuild).await,
    }
}
