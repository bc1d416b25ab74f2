//! The order service's program.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use jetwright_order_service::{Configuration, EVENT_CONSUMERS, rebuild, settle, setup};
use jetwright_runtime::App;
use uuid::Uuid;

/// Takes orders, and fulfils them.
///
/// Settings come from the environment, and from the YAML file that ORDERS_CONFIG_FILE names. NATS_URL and JETWRIGHT_BINDINGS, which
/// the operator sets in its pods, and ORDERS_PAYMENTS_URL are required; docs/services.md lists all.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Rebuild the bucket order-users from the stream of users, while the service runs
    Rebuild,
    /// End an order whose event became a dead letter, and undo it if it is rejected
    Settle {
        /// The order's id
        order_id: Uuid,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let app = App::new("order-service", &EVENT_CONSUMERS);
    match Arguments::parse().command {
        None => app.run(Configuration::read(), setup).await,
        Some(Command::Rebuild) => app.run_command(Ok(()), rebuild).await,
        Some(Command::Settle { order_id }) => {
            let settle =
                async |setup, settings: Configuration| Box::pin(settle(setup, settings.shop, order_id)).await;
            app.run_command(Configuration::read(), settle).await
        }
    }
}
