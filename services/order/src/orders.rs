//! The stream of orders: loads one, places one, ends one. Decides nothing but whether one exists already.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::{AggregateError, Aggregates, Decision, Error, Loaded, NewEvent};

use crate::order::{OrderAggregate, OrderResult};

/// The orders of the shop. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Orders {
    events: Aggregates<OrderAggregate>,
}

impl Orders {
    /// Folded from these events.
    #[must_use]
    pub fn new(events: Aggregates<OrderAggregate>) -> Self {
        Self { events }
    }

    /// An order with all its events.
    ///
    /// # Errors
    ///
    /// The stream cannot be read, or an event cannot.
    pub async fn load(&self, order_id: &str) -> Result<Loaded<OrderAggregate>, AggregateError> {
        self.events.load(order_id).await
    }

    /// Writes the first event of an order; if there is one already, returns what was ordered then.
    ///
    /// # Errors
    ///
    /// The stream cannot take it now, or at all, or the earlier order cannot be read.
    pub async fn place(&self, placed: &OrderPlaced) -> Result<Option<OrderPlaced>, AggregateError> {
        // Most are new, so the first write assumes that without a read.
        let presumed = self.events.assume_new(&placed.order_id);
        let placing = self.events.update_from(presumed, |aggregate| {
            Ok::<_, AggregateError>(match &aggregate.order {
                None => Decision::Append(NewEvent::new("placed", placed.clone()), None),
                Some(before) => Decision::NoOp(Some(before.placed.clone())),
            })
        });
        Ok(placing.await?.output)
    }

    /// Whether an order has no event after those that were loaded, as the leader of the stream has it.
    ///
    /// # Errors
    ///
    /// The stream cannot be read.
    pub async fn is_current(&self, order: &Loaded<OrderAggregate>) -> Result<bool, Error> {
        self.events.is_current(order).await
    }

    /// Writes the last event of an order.
    ///
    /// # Errors
    ///
    /// [`Conflict`](jetwright_runtime::ErrorKind::Conflict) if the order has newer events; or the stream cannot take it.
    pub async fn end(&self, order: &Loaded<OrderAggregate>, end: &OrderResult) -> Result<(), Error> {
        let event = match end {
            OrderResult::Confirmed(event) => NewEvent::new("confirmed", event.clone()),
            OrderResult::Rejected(event) => NewEvent::new("rejected", event.clone()),
        };
        self.events.append(order, event).await.map(drop)
    }
}
