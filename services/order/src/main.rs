//! The order service as a program. Settings: see [`Configuration`]; NATS and bindings: see [`Environment`].

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use jetwright_order_service::{
    OrderService, configuration::Configuration, fulfilment::Fulfilment, make, users::Projection,
};
use jetwright_process::{
    admin, configuration::Problems, health::Health, http::bind, metrics, shutdown::Shutdown,
    telemetry::Telemetry,
};
use jetwright_runtime::{Environment, Handler};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// How long requests in flight may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> ExitCode {
    let environment = Environment::from_env(&[Projection::BINDING, Fulfilment::BINDING]);
    let read = Problems::both(Configuration::read(), environment);
    let (settings, telemetry) = match Problems::both(read, Telemetry::start("order-service")) {
        Ok(started) => started,
        Err(problems) => return problems.report(),
    };
    let (configuration, environment) = settings;
    telemetry.finish(run(configuration, environment).await)
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
        server.serve(router, shutdown.token(), GRACE).await
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
