//! Compensation: undoes what the attempts at a rejected order did, because of its stored rejection, until everything is undone;
//! and notifies the user. A release and a void may be repeated: a repetition changes nothing.

use jetwright_proto::events::v1::{OrderPlaced, OrderRejected, OrderRejectedNotification};
use jetwright_runtime::{Handler, HandlerError, Metadata};

use crate::{
    order::{OrderResult, is_of},
    saga::ports::Ports,
    saga::steps::undo,
};

/// Undoes rejected orders.
#[derive(Clone, Debug)]
pub struct Compensation<P> {
    /// The saga's access to everything outside.
    pub ports: P,
}

impl<P: Ports> Handler for Compensation<P> {
    type Event = OrderRejected;

    async fn handle(&self, rejected: OrderRejected, metadata: &Metadata) -> Result<(), HandlerError> {
        if !is_of(&metadata.subject, &rejected.order_id) {
            return Err(HandlerError::permanent("order_id is not the subject's"));
        }
        let Some((order, _)) = self.ports.load_order(&rejected.order_id).await? else {
            return Err(HandlerError::permanent("the rejected order was never placed"));
        };
        match order.end {
            Some(OrderResult::Rejected(_)) => {}
            // A confirmed order keeps its pieces and its payment, whatever is published later.
            Some(OrderResult::Confirmed(_)) => {
                tracing::warn!(order_id = rejected.order_id, "ignoring the rejection of a confirmed order");
                return Ok(());
            }
            None => return Err(HandlerError::transient("the rejection is not in the order's stream yet")),
        }
        let undone = undo(&self.ports, &order.placed, &rejected.reason).await;
        if notifies(metadata.attempt, undone.is_ok()) {
            self.notify(&order.placed, &rejected, metadata).await;
        }
        undone
    }
}

impl<P: Ports> Compensation<P> {
    /// Notifications may be lost: the truth is in the other streams.
    async fn notify(&self, placed: &OrderPlaced, rejected: &OrderRejected, metadata: &Metadata) {
        let notification = OrderRejectedNotification {
            user_id: placed.user_id.clone(),
            order_id: placed.order_id.clone(),
            step: rejected.step,
            reason: rejected.reason.clone(),
            rejected_at: rejected.rejected_at,
        };
        if let Err(error) = self.ports.notify(&notification, metadata.message_id(0)).await {
            tracing::warn!(%error, order_id = placed.order_id, "failed to notify the user of a rejected order");
        }
    }
}

/// Whether an attempt notifies the user: at once, also if the gateway is unavailable and cannot void yet, and once more when
/// everything is undone, since the first attempt may have died. Not at each attempt of hours without a gateway; the two are one
/// message within the stream's duplicate window. Pure.
fn notifies(attempt: u32, undone: bool) -> bool {
    attempt == 1 || undone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_notified_at_once_and_at_the_end_and_not_at_every_attempt_between() {
        assert_eq!([notifies(1, false), notifies(2, false), notifies(9, true)], [true, false, true]);
    }
}
