//! The order service as a program. Settings: see [`Configuration`]; NATS and bindings: see [`Environment`].

use std::{process::ExitCode, sync::Arc};

use anyhow::Context;
use clap::{Parser, Subcommand};
use jetwright_order_service::{
    BINDINGS, OrderService, configuration::Configuration, make, rebuild, settle, users::OrderUsers,
};
use jetwright_process::{
    admin,
    configuration::Problems,
    health::Health,
    http::{Drain, bind},
    metrics,
    shutdown::Shutdown,
    telemetry::Telemetry,
};
use jetwright_runtime::{Environment, Projection};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Takes orders, and fulfils them.
///
/// Settings come from the environment, and from the YAML file that ORDERS_CONFIG_FILE names. NATS_URL and JETWRIGHT_BINDINGS, which
/// the operator sets in its pods, and ORDERS_PAYMENTS_URL are required; docs/services.md tells of all.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Make the bucket order-users anew from the stream of users, while the service goes on
    Rebuild,
    /// End an order whose event became a dead letter, and undo it if it is rejected
    Settle {
        /// The order's id
        order_id: Uuid,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match Arguments::parse().command {
        None => {
            let settings = Problems::both(Configuration::read(), Environment::from_env(&BINDINGS));
            match Problems::both(settings, Telemetry::start("order-service")) {
                Ok(((configuration, environment), telemetry)) => {
                    telemetry.finish(run(configuration, environment).await)
                }
                Err(problems) => problems.report(),
            }
        }
        Some(Command::Settle { order_id }) => {
            let settings = Problems::both(Configuration::read(), Environment::from_env(&BINDINGS));
            match Problems::both(settings, Telemetry::start("order-service")) {
                Ok(((configuration, environment), telemetry)) => {
                    telemetry.finish(Box::pin(settle(configuration.shop, environment, order_id)).await)
                }
                Err(problems) => problems.report(),
            }
        }
        Some(Command::Rebuild) => {
            let environment = Environment::from_env(&[OrderUsers::BINDING]);
            match Problems::both(environment, Telemetry::start("order-service")) {
                Ok((environment, telemetry)) => telemetry.finish(rebuild(environment).await.map(drop)),
                Err(problems) => problems.report(),
            }
        }
    }
}

async fn run(configuration: Configuration, environment: Environment) -> anyhow::Result<()> {
    let Configuration { http_address, admin_address, shop } = configuration;
    let (shutdown, health) = (Shutdown::on_signals().context("signals")?, Health::new());
    let mut registry = Registry::default();
    metrics::register(&mut registry, "jetwright-order-service");

    let server = bind(http_address).await.with_context(|| format!("bind {http_address}"))?;
    let admin = admin::bind(admin_address).await.with_context(|| format!("bind {admin_address}"))?;
    let OrderService { service, router, seeding } = make(shop, environment, &health, &mut registry).await?;
    tracing::info!(http = %server.local_address()?, admin = %admin.local_address()?, "serving");

    let ended = CancellationToken::new();
    let probes = tokio::spawn(admin.serve(health, Arc::new(registry), ended.clone()));
    // Where one half ends by itself, the other ends too, and the program is started anew.
    let serving = async {
        let _stops_the_other = shutdown.token().drop_guard();
        server.serve(router, shutdown.token(), Drain::BEHIND_SERVICE).await
    };
    let consuming = async {
        let _stops_the_other = shutdown.token().drop_guard();
        service.run(shutdown.token()).await
    };
    let (http_ended, consuming_ended) = tokio::join!(serving, consuming);
    seeding.abort();
    ended.cancel();
    probes.await?.context("probes")?;
    http_ended.context("serve HTTP")?;
    consuming_ended.context("consume")
}
