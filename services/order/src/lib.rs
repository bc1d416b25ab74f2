//! The order service of the reference shop: takes orders over HTTP, and fulfils them as events.
//!
//! | request | answer |
//! | --- | --- |
//! | `POST /orders` with `{"user_id", "lines": [{"sku", "quantity"}]}` | 202 and the order's `Location` |
//! | `GET /orders/{id}` | 200: its state and what happened when |
//!
//! With an `Idempotency-Key` the same order is placed once, however often it is sent. What happens then is the consumer
//! `order-fulfilment`'s: three steps, and one of two ends.

pub mod catalogue;
pub mod configuration;
pub mod fulfilment;
pub mod gateway;
pub mod http;
pub mod inventory;
pub mod order;
pub mod orders;
pub mod payments;
pub mod placement;
pub mod steps;
pub mod users;

use anyhow::Context;
use axum::Router;
use jetwright_process::{health::Health, http::HttpMetrics};
use jetwright_runtime::{Environment, Handler, Projection, Rebuilt, Service};
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;

use crate::{
    configuration::Shop,
    fulfilment::Fulfilment,
    gateway::Gateway,
    http::Counter,
    inventory::Inventory,
    orders::Orders,
    payments::Payments,
    steps::{StepMetrics, Steps},
    users::{OrderUsers, Users},
};

/// The EventConsumers whose events the service consumes.
pub const BINDINGS: [&str; 2] = [OrderUsers::BINDING, Fulfilment::BINDING];

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
    shop: Shop,
    environment: Environment,
    health: &Health,
    registry: &mut Registry,
) -> anyhow::Result<OrderService> {
    let stream = |binding: &str, default: &str| {
        let binding = environment.bindings.bindings.get(binding);
        binding.map_or_else(|| default.to_owned(), |binding| binding.stream.clone())
    };
    let (users_stream, orders_stream) =
        (stream(OrderUsers::BINDING, "users"), stream(Fulfilment::BINDING, "orders"));
    let gateway = Gateway::new(&shop.payments_url, shop.payments_timeout).context("payment gateway")?;

    let mut service = Service::connect(environment, health, registry).await?;
    let orders = Orders::new(service.aggregates(&orders_stream, order::PREFIX));
    let inventory = Inventory::new(service.key_value(inventory::BUCKET), &shop.catalogue, registry);
    let steps = Steps {
        orders: orders.clone(),
        users: Users { known: service.view(), reader: service.reader(), stream: users_stream },
        inventory: inventory.clone(),
        payments: Payments::new(gateway, service.aggregates(payments::STREAM, payments::PREFIX)),
        metrics: StepMetrics::register(registry),
    };
    let publisher = service.publisher();
    service.project::<OrderUsers>()?;
    service.handle(Fulfilment { orders: orders.clone(), steps, publisher })?;

    let gate = health.gate("stock", "not put in yet");
    let seeding = tokio::spawn(async move { inventory.seed(gate).await });
    let router = http::router(Counter { orders, shop }, HttpMetrics::register(registry));
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
