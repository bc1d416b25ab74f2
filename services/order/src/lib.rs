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
#[cfg(test)]
mod simulation;
pub mod steps;
pub mod stock;
pub mod users;

use anyhow::Context;
use axum::Router;
use jetwright_process::{health::Health, http::HttpMetrics};
use jetwright_runtime::{Environment, Handler, Projection, Rebuilt, Service};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use crate::{
    adapters::Adapters,
    compensation::Compensation,
    configuration::ShopConfig,
    fulfilment::Fulfilment,
    gateway::Gateway,
    http::AppState,
    inventory::Inventory,
    orders::Orders,
    steps::StepMetrics,
    users::{OrderUsers, Users},
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
    let fulfilment = environment.bindings.bindings.get(Fulfilment::<Adapters>::BINDING);
    let handler_deadline = fulfilment.map(|binding| binding.handler_deadline.0).unwrap_or_default();
    let users_stream = stream(&environment, OrderUsers::BINDING, "users");
    let orders_stream = stream(&environment, Fulfilment::<Adapters>::BINDING, "orders");

    let mut service = Service::connect(environment, health, registry).await?;
    let orders = Orders::new(service.aggregates(&orders_stream, order::PREFIX));
    let inventory = Inventory::new(service.key_value(inventory::BUCKET), &shop.catalogue, registry);
    let ports = Adapters {
        orders: orders.clone(),
        users: Users { known: service.view(), reader: service.reader(), stream: users_stream },
        inventory: inventory.clone(),
        gateway: Gateway::new(&shop.payments_url, shop.payments_timeout).context("payment gateway")?,
        payments: service.aggregates(payments::STREAM, payments::PREFIX),
        publisher: service.publisher(),
    };
    let metrics = StepMetrics::register(registry);
    service.project::<OrderUsers>()?;
    service.handle(Fulfilment { ports: ports.clone(), metrics, handler_deadline })?;
    service.handle(Compensation { ports })?;

    let gate = health.gate("stock", "not put in yet");
    let seeding = tokio::spawn(async move { inventory.seed(gate).await });
    let router = http::router(AppState { orders, shop }, HttpMetrics::register(registry));
    Ok(OrderService { service, router, seeding })
}

/// JetStream stream of a binding.
fn stream(environment: &Environment, binding: &str, default: &str) -> String {
    let binding = environment.bindings.bindings.get(binding);
    binding.map_or_else(|| default.to_owned(), |binding| binding.stream.clone())
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
