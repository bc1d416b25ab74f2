//! The saga's two handlers, on the connection of a service; and both of them for one order by hand.

use std::time::Duration;

use anyhow::{Context, bail};
use jetwright_process::health::Health;
use jetwright_runtime::{Environment, Failure, Handler, Metadata, Projection, Service};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::{
    adapters::Adapters,
    compensation::Compensation,
    configuration::ShopConfig,
    fulfilment::Fulfilment,
    gateway::Gateway,
    inventory::{self, Inventory},
    order::{self, OrderResult},
    orders::Orders,
    payments,
    ports::Ports,
    steps::StepMetrics,
    users::{OrderUsers, Users},
};

/// What the bindings say of the saga.
struct Bound {
    users_stream: String,
    orders_stream: String,
    /// How long an attempt at a placed order may take.
    handler_deadline: Duration,
}

/// The saga's handlers.
pub(crate) struct Saga {
    pub(crate) fulfilment: Fulfilment<Adapters>,
    pub(crate) compensation: Compensation<Adapters>,
}

impl Bound {
    fn of(environment: &Environment) -> Self {
        let binding = |name: &str| environment.bindings.bindings.get(name);
        let stream = |name: &str, default: &str| {
            binding(name).map_or_else(|| default.to_owned(), |binding| binding.stream.clone())
        };
        let fulfilment = Fulfilment::<Adapters>::BINDING;
        Self {
            users_stream: stream(OrderUsers::BINDING, "users"),
            orders_stream: stream(fulfilment, "orders"),
            handler_deadline: binding(fulfilment)
                .map(|binding| binding.handler_deadline.0)
                .unwrap_or_default(),
        }
    }
}

/// Connects a service and makes the saga's handlers on it.
///
/// # Errors
///
/// A client cannot be made.
pub(crate) async fn connect(
    shop: &ShopConfig,
    environment: Environment,
    health: &Health,
    registry: &mut Registry,
) -> anyhow::Result<(Service, Saga)> {
    let Bound { users_stream, orders_stream, handler_deadline } = Bound::of(&environment);
    let gateway = Gateway::new(&shop.payments_url, shop.payments_timeout).context("payment gateway")?;
    let service = Service::connect(environment, health, registry).await?;
    let ports = Adapters {
        orders: Orders::new(service.aggregates(&orders_stream, order::PREFIX)),
        users: Users { known: service.view(), reader: service.reader(), stream: users_stream },
        inventory: Inventory::new(service.key_value(inventory::BUCKET), &shop.catalogue, registry),
        gateway,
        payments: service.aggregates(payments::STREAM, payments::PREFIX),
        publisher: service.publisher(),
    };
    let metrics = StepMetrics::register(registry);
    let fulfilment = Fulfilment { ports: ports.clone(), metrics, handler_deadline };
    Ok((service, Saga { fulfilment, compensation: Compensation { ports } }))
}

/// Does for one order what the consumers do, as their last attempt: ends it if it is open, and completes or undoes it. For an
/// order whose event became a dead letter. It may run beside the pods, and again.
///
/// # Errors
///
/// There is no such order, or something is not done: NATS or the gateway did not answer.
pub async fn settle(shop: ShopConfig, environment: Environment, order_id: Uuid) -> anyhow::Result<()> {
    let stream = Bound::of(&environment).orders_stream;
    let (_service, saga) = connect(&shop, environment, &Health::new(), &mut Registry::default()).await?;
    let (order_id, ports) = (order_id.to_string(), saga.fulfilment.ports.clone());
    let metadata = |event: &str, consumer: &str, sequence| Metadata {
        subject: format!("{}.{order_id}.{event}", order::PREFIX).into(),
        headers: HeaderMap::new(),
        source: Arc::new(Source {
            stream: stream.clone(),
            consumer: consumer.to_owned(),
            event_consumer: consumer.to_owned(),
            epoch: 0,
        }),
        sequence,
        time: Timestamp::now(),
        attempt: 1,
        is_last_attempt: true,
        lag: 0,
    };
    let Some((order, placed)) = ports.load_order(&order_id).await.map_err(failed)? else {
        bail!("there is no order {order_id}");
    };
    let metadata_of_placed = metadata("placed", Fulfilment::<Adapters>::BINDING, placed.last_sequence());
    Box::pin(saga.fulfilment.handle(order.placed, &metadata_of_placed)).await.map_err(failed)?;
    let ended = ports.load_order(&order_id).await.map_err(failed)?;
    if let Some((order::Order { end: Some(OrderResult::Rejected(rejected)), .. }, last)) = ended {
        let metadata = metadata("rejected", Compensation::<Adapters>::BINDING, last.last_sequence());
        saga.compensation.handle(rejected, &metadata).await.map_err(failed)?;
    }
    tracing::info!(order_id, "settled order");
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "map_err gives the error away")]
fn failed(failure: Failure) -> anyhow::Error {
    anyhow::anyhow!("failed to settle the order: {failure}")
}
