//! The saga of an order: fulfilment takes it through its [steps] to one of two ends, and compensation undoes what was done for a
//! rejected one.

pub mod adapters;
pub mod compensation;
pub mod fulfilment;
pub mod ports;
mod settle;
#[cfg(test)]
mod simulation;
pub mod steps;

use anyhow::Context;
use jetwright_runtime::Setup;

pub use self::settle::settle;
use self::{adapters::Adapters, compensation::Compensation, fulfilment::Fulfilment, steps::StepMetrics};
use crate::{
    USERS,
    configuration::ShopConfig,
    gateway::Gateway,
    inventory::{self, Inventory},
    order,
    orders::Orders,
    payments,
    users::Users,
};

/// The EventConsumer of placed orders.
pub(crate) const FULFILMENT: &str = "order-fulfilment";
/// The EventConsumer of rejected orders.
pub(crate) const COMPENSATION: &str = "order-compensation";

/// The saga's handlers.
pub(crate) struct Saga {
    pub(crate) fulfilment: Fulfilment<Adapters>,
    pub(crate) compensation: Compensation<Adapters>,
}

impl Saga {
    /// On the connection of a service.
    ///
    /// # Errors
    ///
    /// The bindings lack one of its consumers, or a client cannot be built.
    pub(crate) fn new(setup: &mut Setup, shop: &ShopConfig) -> anyhow::Result<Self> {
        let (service, registry) = (&setup.service, &mut setup.registry);
        let users_stream = service.stream_of(USERS)?.to_owned();
        let gateway = Gateway::new(&shop.payments_url, shop.payments_timeout).context("payment gateway")?;
        let ports = Adapters {
            orders: Orders::new(service.aggregates(service.stream_of(FULFILMENT)?, order::PREFIX)),
            users: Users { known: service.view(), reader: service.reader(), stream: users_stream },
            inventory: Inventory::new(service.key_value(inventory::BUCKET), &shop.catalogue, registry),
            gateway,
            payments: service.aggregates(payments::STREAM, payments::PREFIX),
            publisher: service.publisher(),
        };
        let handler_deadline = service.handler_deadline_of(FULFILMENT)?;
        let metrics = StepMetrics::register(registry);
        let fulfilment = Fulfilment { ports: ports.clone(), metrics, handler_deadline };
        Ok(Self { fulfilment, compensation: Compensation { ports } })
    }
}
