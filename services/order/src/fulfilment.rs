//! Fulfilment: takes a placed order through its steps to its one end, and then does what the end asks for. Every part may
//! be repeated, so an order that is delivered again goes on where it stopped.
//!
//! What is not done: an order whose last attempt could not decide (the payment gateway was away for all of them) is not
//! rejected. It stays placed, with its pieces set aside and perhaps an amount authorized, until somebody ends it or
//! publishes it again; the runtime logs and counts it as given up.

use jetwright_proto::events::v1::{
    FulfilmentStep, OrderConfirmed, OrderPlaced, OrderRejected, OrderRejectedNotification,
};
use jetwright_runtime::{ErrorKind, Failure, Handler, Loaded, Metadata, PublishOptions, Publisher};
use jiff::Timestamp;

use crate::{
    order::{End, Ledger, is_of},
    orders::Orders,
    steps::{Steps, Verdict},
};

/// Fulfils orders.
#[derive(Clone, Debug)]
pub struct Fulfilment {
    /// Where orders are kept.
    pub orders: Orders,
    /// What they go through.
    pub steps: Steps,
    /// Tells users.
    pub publisher: Publisher,
}

impl Handler for Fulfilment {
    type Event = OrderPlaced;
    const BINDING: &'static str = "order-fulfilment";

    async fn handle(&self, placed: OrderPlaced, metadata: &Metadata) -> Result<(), Failure> {
        if !is_of(&metadata.subject, &placed.order_id) {
            return Err(Failure::permanent("order_id is not the subject's"));
        }
        let loaded = self.orders.load(&placed.order_id).await?;
        let Some(order) = &loaded.state().order else {
            return Err(Failure::transient("the order is not in its stream yet"));
        };
        let end = match order.end.clone() {
            Some(end) => end,
            None => self.end(&loaded, &order.placed).await?,
        };
        match &end {
            End::Confirmed(_) => self.deliver(&order.placed).await,
            End::Rejected(rejected) => self.undo(&order.placed, rejected, metadata).await,
        }
    }
}

impl Fulfilment {
    /// Takes an open order through the steps and writes its end. Where another attempt was faster, its end counts.
    async fn end(&self, order: &Loaded<Ledger>, placed: &OrderPlaced) -> Result<End, Failure> {
        let order_id = order.id();
        let end = end(order_id, self.steps.take(placed).await?, Timestamp::now());
        match self.orders.end(order, &end).await {
            Ok(()) => {
                tracing::info!(order_id, ?end, "the order ended");
                Ok(end)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let now = self.orders.load(order_id).await?.into_state();
                now.order
                    .and_then(|order| order.end)
                    .ok_or_else(|| Failure::transient("the order was changed meanwhile"))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn deliver(&self, placed: &OrderPlaced) -> Result<(), Failure> {
        self.steps.inventory.hand_out(&placed.order_id, &placed.lines).await
    }

    /// Takes back what the steps before the refusal did, and tells the user. The rejection is written before this, so
    /// nothing that was taken back can be relied on.
    async fn undo(
        &self,
        placed: &OrderPlaced,
        rejected: &OrderRejected,
        metadata: &Metadata,
    ) -> Result<(), Failure> {
        self.steps.inventory.release(&placed.order_id, &placed.lines).await?;
        if payment_may_have_been_asked_for(rejected.step(), metadata.attempt) {
            self.steps.payments.void(&placed.order_id, &rejected.reason).await?;
        }
        let notification = OrderRejectedNotification {
            user_id: placed.user_id.clone(),
            order_id: placed.order_id.clone(),
            step: rejected.step,
            reason: rejected.reason.clone(),
            rejected_at: rejected.rejected_at,
        };
        let subject = format!("notifications.{}.order_rejected", placed.user_id);
        let options =
            PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
        // Notifications may be lost: the truth is in the other streams.
        if let Err(error) = self.publisher.publish(&subject, &notification, options).await {
            tracing::warn!(%error, "the user was not notified");
        }
        Ok(())
    }
}

/// Whether an amount may be authorized for a rejected order. Where the first attempt came no further than the steps before
/// the payment, nobody has asked; all else is asked of the gateway, which an event need not know of.
fn payment_may_have_been_asked_for(refused_by: FulfilmentStep, attempt: u32) -> bool {
    use FulfilmentStep::{InventoryReservation, UserValidation};
    attempt > 1 || !matches!(refused_by, UserValidation | InventoryReservation)
}

/// The last event of an order, as the steps have it. Pure.
fn end(order_id: &str, verdict: Verdict<String>, now: Timestamp) -> End {
    let order_id = order_id.to_owned();
    match verdict {
        Verdict::Passed(authorization_id) => {
            End::Confirmed(OrderConfirmed { order_id, authorization_id, confirmed_at: now.as_millisecond() })
        }
        Verdict::Refused(step, reason) => End::Rejected(OrderRejected {
            order_id,
            step: step.into(),
            reason,
            rejected_at: now.as_millisecond(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_spared_only_where_nobody_can_have_asked_it() {
        use FulfilmentStep::{InventoryReservation, PaymentAuthorization, Unspecified, UserValidation};
        for (step, first, later) in [
            (UserValidation, false, true),
            (InventoryReservation, false, true),
            (PaymentAuthorization, true, true),
            (Unspecified, true, true),
        ] {
            assert_eq!(payment_may_have_been_asked_for(step, 1), first, "{step:?}");
            assert_eq!(payment_may_have_been_asked_for(step, 2), later, "{step:?}");
        }
    }
}
