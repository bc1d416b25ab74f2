//! The saga's ports on NATS and on the payment gateway. Decides nothing.

use std::time::Duration;

use jetwright_proto::events::v1::OrderRejectedNotification;
use jetwright_runtime::{
    AggregateError, Aggregates, Decision as Write, ErrorKind, HandlerError, Loaded, PublishOptions, Publisher,
};
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use crate::{
    gateway::{Decision, Gateway},
    inventory::{Inventory, StockLock},
    order::{Order, OrderAggregate, OrderResult},
    orders::Orders,
    payments::{Payment, PaymentEvent},
    saga::ports::{Ports, StockEntry},
    stock::Stock,
    users::Users,
};

/// The real ports. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Adapters {
    /// The stream of orders.
    pub orders: Orders,
    /// The projection and the stream of users.
    pub users: Users,
    /// The bucket of the stock.
    pub inventory: Inventory,
    /// The payment gateway.
    pub gateway: Gateway,
    /// The stream of payments.
    pub payments: Aggregates<Payment>,
    /// Publishes notifications.
    pub publisher: Publisher,
}

impl Ports for Adapters {
    type Version = Loaded<OrderAggregate>;
    type StockLock = StockLock;

    async fn load_order(&self, order_id: &str) -> Result<Option<(Order, Self::Version)>, HandlerError> {
        let loaded = self.orders.load(order_id).await?;
        Ok(loaded.state().order.clone().map(|order| (order, loaded)))
    }

    async fn is_current(&self, version: &Self::Version) -> Result<bool, HandlerError> {
        Ok(self.orders.is_current(version).await?)
    }

    async fn end_order(&self, version: &Self::Version, result: &OrderResult) -> Result<bool, HandlerError> {
        match self.orders.end(version, result).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn user_exists(&self, user_id: Uuid) -> Result<bool, HandlerError> {
        self.users.exists(user_id).await
    }

    async fn lock_stock(&self, sku: &str) -> Result<StockLock, HandlerError> {
        self.inventory.lock(sku).await
    }

    async fn get_stock(&self, sku: &str) -> Result<Option<StockEntry>, HandlerError> {
        self.inventory.get(sku).await
    }

    async fn update_stock(&self, sku: &str, stock: &Stock, revision: u64) -> Result<bool, HandlerError> {
        self.inventory.update(sku, stock, revision).await
    }

    async fn restock(&self, sku: &str) -> Result<bool, HandlerError> {
        self.inventory.restock(sku).await
    }

    async fn authorize(&self, order_id: &str, amount: i64, currency: &str) -> Result<Decision, HandlerError> {
        self.gateway.authorize(order_id, amount, currency).await
    }

    async fn void(&self, order_id: &str) -> Result<Option<String>, HandlerError> {
        self.gateway.void(order_id).await
    }

    async fn record_payment(&self, order_id: &str, event: &PaymentEvent) -> Result<(), HandlerError> {
        // The gateway's decision is the first event of most payments, so its write assumes that without a read.
        let loaded = match event {
            PaymentEvent::Voided(_) => self.payments.load(order_id).await?,
            _ => self.payments.assume_new(order_id),
        };
        let recording = self.payments.update_from(loaded, |payment| {
            let event = payment.accepts(event).and_then(|event| event.to_append());
            Ok::<_, AggregateError>(event.map_or(Write::NoOp(()), |event| Write::Append(event, ())))
        });
        recording.await?;
        Ok(())
    }

    async fn notify(
        &self,
        notification: &OrderRejectedNotification,
        message_id: String,
    ) -> Result<(), HandlerError> {
        let subject = format!("notifications.{}.order_rejected", notification.user_id);
        let options = PublishOptions {
            message_id: Some(message_id),
            subject_template: Some("notifications.*.order_rejected".into()),
            ..PublishOptions::default()
        };
        self.publisher.publish(&subject, notification, options).await?;
        Ok(())
    }

    async fn back_off(&self) {
        sleep(Duration::from_millis(rand::random_range(1..=20))).await;
    }

    async fn until<T: Send>(&self, deadline: Instant, work: impl Future<Output = T> + Send) -> Option<T> {
        timeout_at(deadline, work).await.ok()
    }
}
