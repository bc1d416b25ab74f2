//! The order service of the reference shop: takes orders over HTTP, and fulfils them as events.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /orders` with `{"user_id", "lines": [{"sku", "quantity"}]}` | 202 and the order's `Location` |
//! | `GET /orders/{id}` | 200: its state and what happened when |
//!
//! With an `Idempotency-Key` the same order is placed once, however often it is sent. What happens then is a saga: the consumer
//! `order-fulfilment` takes the order through three [steps] to one of two ends, and the consumer `order-compensation` undoes
//! the steps of rejected orders.

pub mod adapters;
pub mod catalogue;
pub mod compensation;
pub mod configuration;
pub mod fulfilment;
pub mod gateway;
pub mod http;
pub mod inventory;
pub mod order;
pub mod orders;
pub mod payments;
pub mod placement;
pub mod ports;
mod saga;
#[cfg(test)]
mod simulation;
pub mod steps;
pub mod stock;
pub mod users;

use axum::Router;
use jetwright_process::{health::Health, http::HttpMetrics};
use jetwright_runtime::{Environment, Handler, Projection, Rebuilt, Service};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

pub use self::saga::settle;
use crate::{
    adapters::Adapters, compensation::Compensation, configuration::ShopConfig, fulfilment::Fulfilment,
    http::AppState, users::OrderUsers,
};

/// The EventConsumers whose events the service consumes.
pub const BINDINGS: [&str; 3] =
    [OrderUsers::BINDING, Fulfilment::<Adapters>::BINDING, Compensation::<Adapters>::BINDING];

/// The service, made and not running yet.
pub struct OrderService {
    /// Consumes, once it runs.
    pub service: Service,
    /// Answers, once it is served.
    pub router: Router,
    /// Puts the first stock in.
    pub seeding: JoinHandle<()>,
}

/// Makes the service.
///
/// # Errors
///
/// The bindings lack one of its consumers, or a client cannot be made.
pub async fn make(
    shop: ShopConfig,
    environment: Environment,
    health: &Health,
    registry: &mut Registry,
) -> anyhow::Result<OrderService> {
    let (mut service, saga) = saga::connect(&shop, environment, health, registry).await?;
    let (orders, inventory) = (saga.fulfilment.ports.orders.clone(), saga.fulfilment.ports.inventory.clone());
    service.project::<OrderUsers>()?;
    service.handle(saga.fulfilment)?;
    service.handle(saga.compensation)?;

    let gate = health.gate("stock", "not put in yet");
    let seeding = tokio::spawn(async move { inventory.seed(gate).await });
    let router = http::router(AppState { orders, shop }, HttpMetrics::register(registry));
    Ok(OrderService { service, router, seeding })
}

/// Makes what is known of users anew from their stream, while services keep it.
///
/// # Errors
///
/// The bindings do not name the consumer `order-users`, or NATS was away for too long.
pub async fn rebuild(environment: Environment) -> anyhow::Result<Rebuilt> {
    let service = Service::connect(environment, &Health::new(), &mut Registry::default()).await?;
    Ok(service.rebuild::<OrderUsers>().await?)
}
