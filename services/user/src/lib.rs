//! The user service: registers users as events, and shows them.
//!
//! A user is folded from the events on `users.<id>.*` (in the stream of the binding `user-directory`). Every write names the
//! last event that it saw, and conflicts with a newer one. For frequent reads the bucket `user-directory` has the users, kept
//! up to date by the service's own consumer of that name; if the directory does not have a user yet, or not the caller's last
//! write, the service reads the stream.

mod configuration;
mod directory;
mod http;
mod user;
mod users;

use jetwright_process::http::HttpMetrics;
use jetwright_runtime::Setup;

pub use configuration::Configuration;

use crate::directory::Directory;
use crate::users::Users;

/// The EventConsumers whose events the service handles.
pub const EVENT_CONSUMERS: [&str; 1] = [DIRECTORY];

/// Keeps the directory up to date.
const DIRECTORY: &str = "user-directory";

/// Sets the service up.
///
/// # Errors
///
/// The address is taken, or the bindings do not name the consumer `user-directory`.
pub async fn setup(setup: &mut Setup, configuration: Configuration) -> anyhow::Result<()> {
    let service = &mut setup.service;
    let stream = service.stream_of(DIRECTORY)?.to_owned();
    let users = Users::new(service.aggregates(&stream, user::PREFIX), service.view());
    service.project::<Directory>(DIRECTORY)?;

    let router = http::router(users, HttpMetrics::register(&mut setup.registry));
    setup.serve_http(configuration.http_address, router).await
}

/// Rebuilds the directory from the stream of users, while services keep it up to date.
///
/// # Errors
///
/// The bindings do not name the consumer `user-directory`, or NATS was unavailable for too long.
pub async fn rebuild(setup: Setup, (): ()) -> anyhow::Result<()> {
    setup.service.rebuild::<Directory>(DIRECTORY).await?;
    Ok(())
}
