//! The user service: registers users as events, and shows them.
//!
//! A user is what its events on `users.<id>.*` say (in the stream of the binding `user-directory`). Every write states the
//! last event that it saw and is told where there is a newer one. What is read often is kept beside it, in the bucket
//! `user-directory`, by the service's own consumer of that name; where the directory does not know a user yet, or not what the
//! caller wrote, the stream is asked.

mod configuration;
mod directory;
mod http;
mod user;
mod users;

use std::sync::Arc;

use anyhow::Context;
use jetwright_process::health::Health;
use jetwright_process::http::{Drain, HttpMetrics};
use jetwright_process::shutdown::Shutdown;
use jetwright_process::{admin, metrics};
use jetwright_runtime::{Environment, Projection, Rebuilt, Service};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

pub use configuration::Configuration;

use crate::directory::Directory;
use crate::users::Users;

/// The EventConsumers whose events the service consumes.
pub const BINDINGS: [&str; 1] = [Directory::BINDING];

/// Runs the service until a signal ends it.
///
/// # Errors
///
/// An address is taken, the bindings do not name the consumer `user-directory`, or a task ended that never should.
pub async fn run(configuration: Configuration) -> anyhow::Result<()> {
    let Configuration { http_address, admin_address, environment } = configuration;
    let shutdown = Shutdown::on_signals().context("signals")?;
    let health = Health::new();
    let mut registry = Registry::default();
    metrics::register(&mut registry, "jetwright-user-service");
    let http_metrics = HttpMetrics::register(&mut registry);

    let server =
        jetwright_process::http::bind(http_address).await.with_context(|| format!("bind {http_address}"))?;
    let admin = admin::bind(admin_address).await.with_context(|| format!("bind {admin_address}"))?;
    tracing::info!(http = %server.local_address()?, admin = %admin.local_address()?, "serving");

    // Without the binding the service does not start: project says so below.
    let binding = environment.bindings.bindings.get(Directory::BINDING);
    let stream = binding.map_or_else(String::new, |binding| binding.stream.clone());
    let mut service = Service::connect(environment, &health, &mut registry).await?;
    let users = Users::new(service.aggregates(&stream, user::PREFIX), service.view());
    service.project::<Directory>()?;

    let finished = CancellationToken::new();
    let probes = tokio::spawn(admin.serve(health, Arc::new(registry), finished.clone()));
    let stop = shutdown.token();
    let serving = server.serve(http::router(users, http_metrics), stop.clone(), Drain::BEHIND_SERVICE);
    let (http_ended, consuming_ended) =
        tokio::join!(then_stop(serving, &shutdown), then_stop(service.run(stop), &shutdown));
    finished.cancel();
    probes.await?.context("probes")?;
    http_ended.context("serve HTTP")?;
    consuming_ended.context("consume")
}

/// Makes the directory anew from the stream of users, while services keep it.
///
/// # Errors
///
/// The bindings do not name the consumer `user-directory`, or NATS was away for too long.
pub async fn rebuild(environment: Environment) -> anyhow::Result<Rebuilt> {
    let service = Service::connect(environment, &Health::new(), &mut Registry::default()).await?;
    Ok(service.rebuild::<Directory>().await?)
}

/// Where one half of the service ends, the other is not to go on alone.
async fn then_stop<T>(half: impl Future<Output = T>, shutdown: &Shutdown) -> T {
    let ended = half.await;
    shutdown.trigger();
    ended
}
