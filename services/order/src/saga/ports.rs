//! The saga's access to everything outside of itself. [`Adapters`](crate::saga::adapters::Adapters)
//! are the real ones; tests run the same saga on a model of them.

use std::future::Future;

use jetwright_proto::events::v1::OrderRejectedNotification;
use jetwright_runtime::HandlerError;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    gateway::Decision,
    order::{Order, OrderResult},
    payments::PaymentEvent,
    stock::Stock,
};

/// A stock with its revision, which the next write names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StockEntry {
    /// The stock.
    pub stock: Stock,
    /// Revision of the bucket's entry.
    pub revision: u64,
}

/// Everything outside of the saga. Every call takes bounded time. An error means that the caller has no response: the call
/// may take effect nevertheless, now or later.
pub trait Ports: Clone + Send + Sync + 'static {
    /// State of an order at the time it was loaded, by which its end is compared.
    type Version: Send + Sync;
    /// The lock of an article for a change, until it is dropped.
    type StockLock: Send;

    /// An order as the leader of its stream has it; `None` if it was not placed.
    fn load_order(
        &self,
        order_id: &str,
    ) -> impl Future<Output = Result<Option<(Order, Self::Version)>, HandlerError>> + Send;

    /// Whether the order has no event after this version, as the leader of its stream has it.
    fn is_current(&self, version: &Self::Version) -> impl Future<Output = Result<bool, HandlerError>> + Send;

    /// Appends the last event of an order. `false` if the order has an event after this version: nothing is written.
    fn end_order(
        &self,
        version: &Self::Version,
        result: &OrderResult,
    ) -> impl Future<Output = Result<bool, HandlerError>> + Send;

    /// Whether the user exists.
    fn user_exists(&self, user_id: Uuid) -> impl Future<Output = Result<bool, HandlerError>> + Send;

    /// Waits until no other change of this article runs in this process, and lets others wait until the returned lock
    /// is dropped. Saves conflicts; correctness does not need it.
    fn lock_stock(&self, sku: &str) -> impl Future<Output = Result<Self::StockLock, HandlerError>> + Send;

    /// The stock of an article.
    fn get_stock(&self, sku: &str) -> impl Future<Output = Result<Option<StockEntry>, HandlerError>> + Send;

    /// Writes the stock of an article if it is still at this revision; otherwise returns `false`.
    fn update_stock(
        &self,
        sku: &str,
        stock: &Stock,
        revision: u64,
    ) -> impl Future<Output = Result<bool, HandlerError>> + Send;

    /// Stores the initial stock of an article that has none. `false` if the article is not sold.
    fn restock(&self, sku: &str) -> impl Future<Output = Result<bool, HandlerError>> + Send;

    /// Authorizes an amount (minor units) under the order's id. The gateway decides once for an id, and never authorizes an id
    /// that was voided.
    fn authorize(
        &self,
        order_id: &str,
        amount: i64,
        currency: &str,
    ) -> impl Future<Output = Result<Decision, HandlerError>> + Send;

    /// Voids what is or will be authorized under the order's id. Returns the id of the authorization, if there was one.
    fn void(&self, order_id: &str) -> impl Future<Output = Result<Option<String>, HandlerError>> + Send;

    /// Appends an event to the order's payment if the payment
    /// [accepts](crate::payments::Payment::accepts) it.
    fn record_payment(
        &self,
        order_id: &str,
        event: &PaymentEvent,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// Notifies the user of a rejected order.
    fn notify(
        &self,
        notification: &OrderRejectedNotification,
        message_id: String,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;

    /// Waits a random moment after a lost compare-and-set.
    fn back_off(&self) -> impl Future<Output = ()> + Send;

    /// The output of the work, if it ends by the deadline.
    fn until<T: Send>(
        &self,
        deadline: Instant,
        work: impl Future<Output = T> + Send,
    ) -> impl Future<Output = Option<T>> + Send;
}
