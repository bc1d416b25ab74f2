//! The order service of the reference shop: takes orders over HTTP, and fulfils them as events.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /orders` with `{"user_id", "lines": [{"sku", "quantity"}]}` | 202 and the order's `Location` |
//! | `GET /orders/{id}` | 200: its state and what happened when |
//!
//! With an `Idempotency-Key` the same order is placed once, however often it is sent. What happens then is a saga: the consumer
//! `order-fulfilment` takes the order through three [steps](saga::steps) to one of two ends, and the consumer `order-compensation` undoes
//! the steps of rejected orders.

pub mod catalogue;
pub mod configuration;
pub mod gateway;
pub mod http;
pub mod inventory;
pub mod metrics;
pub mod order;
pub mod orders;
pub mod payments;
pub mod placement;
pub mod saga;
pub mod stock;
pub mod users;

use axum::Router;
use jetwright_process::http::HttpMetrics;
use jetwright_runtime::Setup;

pub use self::{configuration::Configuration, saga::settle};
use crate::{
    configuration::ShopConfig,
    http::AppState,
    saga::{COMPENSATION, FULFILMENT, Saga},
    users::OrderUsers,
};

/// The EventConsumers whose events the service handles.
pub const EVENT_CONSUMERS: [&str; 3] = [USERS, FULFILMENT, COMPENSATION];

/// Keeps the known users up to date.
const USERS: &str = "order-users";

/// Sets the service up.
///
/// # Errors
///
/// The address is in use, the bindings lack one of its consumers, or a client cannot be built.
pub async fn setup(setup: &mut Setup, configuration: Configuration) -> anyhow::Result<()> {
    let router = handlers_and_routes(setup, configuration.shop)?;
    setup.serve_http(configuration.http_address, router).await
}

/// Adds the handlers, and builds the routes.
///
/// # Errors
///
/// The bindings lack one of its consumers, or a client cannot be built.
pub fn handlers_and_routes(setup: &mut Setup, shop: ShopConfig) -> anyhow::Result<Router> {
    let Saga { fulfilment, compensation } = Saga::new(setup, &shop)?;
    let (orders, inventory) = (fulfilment.ports.orders.clone(), fulfilment.ports.inventory.clone());
    setup.service.project::<OrderUsers>(USERS)?;
    setup.service.handle(FULFILMENT, fulfilment)?;
    setup.service.handle(COMPENSATION, compensation)?;

    let gate = setup.health.gate("stock", "no initial stock yet");
    setup.spawn(async move { inventory.seed(gate).await });
    Ok(http::router(AppState { orders, shop }, HttpMetrics::register(&mut setup.registry)))
}

/// Rebuilds the known users from their stream, while services keep them up to date.
///
/// # Errors
///
/// The bindings do not name the consumer `order-users`, or NATS was unavailable for too long.
pub async fn rebuild(setup: Setup, (): ()) -> anyhow::Result<()> {
    setup.service.rebuild::<OrderUsers>(USERS).await?;
    Ok(())
}
