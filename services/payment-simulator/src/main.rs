//! A payment gateway over HTTP that decides by simple rules: a stand-in for a real one, with a real one's traps.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /authorizations` with `Idempotency-Key` and `{"amount": 2599, "currency": "EUR"}` | 201 authorized, 402 declined |
//! | `GET /authorizations/{key}` | 200 authorized, declined or voided; 404 |
//! | `POST /authorizations/{key}/void` | 200, also if repeated; no later authorization under this key |
//!
//! A key that was voided before any payment was requested under it is shown without an amount.
//!
//! Amounts are in minor units of the currency; one that ends in 13 is declined. The same key gives the same answer; with
//! another amount or currency it is refused (422).

mod configuration;
mod http;
mod ledger;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use jetwright_process::configuration::Problems;
use jetwright_process::health::Health;
use jetwright_process::http::{Drain, HttpMetrics};
use jetwright_process::shutdown::Shutdown;
use jetwright_process::telemetry::Telemetry;
use jetwright_process::{admin, metrics};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::configuration::Configuration;
use crate::http::Gateway;

/// Authorizes amounts by simple rules: a stand-in for a payment gateway.
///
/// Settings come from the environment, and from the file that PAYMENT_SIMULATOR_CONFIG_FILE names.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {}

#[tokio::main]
async fn main() -> ExitCode {
    Arguments::parse();
    let started = Problems::zip(Configuration::read(), Telemetry::start("payment-simulator"));
    let (configuration, telemetry) = match started {
        Ok(started) => started,
        Err(problems) => return problems.report(),
    };
    telemetry.finish(run(configuration).await)
}

async fn run(configuration: Configuration) -> anyhow::Result<()> {
    let Configuration { http_address, admin_address, capacity, simulation } = configuration;
    let shutdown = Shutdown::on_signals().context("signals")?;
    let health = Health::new();
    let mut registry = Registry::default();
    metrics::register(&mut registry, "jetwright-payment-simulator");
    let http_metrics = HttpMetrics::register(&mut registry);

    let server =
        jetwright_process::http::bind(http_address).await.with_context(|| format!("bind {http_address}"))?;
    let admin = admin::bind(admin_address).await.with_context(|| format!("bind {admin_address}"))?;
    tracing::info!(http = %server.local_address()?, admin = %admin.local_address()?, "serving");
    let answered = CancellationToken::new();
    let probes = tokio::spawn(admin.serve(health.clone(), Arc::new(registry), answered.clone()));
    let stopping = shutdown.token();
    tokio::spawn(async move {
        stopping.cancelled().await;
        health.stop("shutting down");
    });

    let router = http::router(Gateway::new(capacity, simulation), http_metrics);
    server.serve(router, shutdown.token(), Drain::BEHIND_SERVICE).await?;
    answered.cancel();
    probes.await?.context("probes")
}
