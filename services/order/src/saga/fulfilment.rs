//! Fulfilment: takes a placed order through the steps to its one end. Every part may be repeated, so a redelivered order
//! continues where it stopped.
//!
//! Many attempts may work on one order at once, each as slow as it likes. What keeps them right:
//!
//! - The last event is appended with the sequence of the order's newest event, so that an order ends once, whatever attempt
//!   writes it.
//! - The effects of an attempt stay in place until the order is rejected. So an order whose confirmation is stored has its pieces
//!   and its authorization.
//! - The effects of all attempts at a rejected order are undone because of the stored rejection, by [`Compensation`]; and the stock
//!   and the gateway refuse what a slow attempt would do after that.
//!
//! [`Compensation`]: crate::saga::compensation::Compensation

use std::time::Duration;

use jetwright_proto::events::v1::{FulfilmentStep, OrderConfirmed, OrderPlaced, OrderRejected};
use jetwright_runtime::{Handler, HandlerError, Metadata};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    order::{OrderResult, is_of},
    saga::ports::Ports,
    saga::steps::{StepMetrics, Steps, Verdict, complete},
};

/// The reason of a rejection if no attempt could decide the order.
pub const UNDECIDED_REASON: &str = "it could not be decided in time";

/// How long an attempt needs after its steps, to write the end of the order: an append takes at most five seconds, and after a
/// conflict reads the other event.
const END_TIMEOUT: Duration = Duration::from_secs(8);
/// Maximum writes of the end before an attempt fails. Each conflict means that an event of a later program was stored.
const MAX_CONFLICTS: u32 = 5;

/// Fulfils orders.
#[derive(Clone, Debug)]
pub struct Fulfilment<P> {
    /// The saga's access to everything outside.
    pub ports: P,
    /// Records how steps end.
    pub metrics: StepMetrics,
    /// How long an attempt may take.
    pub handler_deadline: Duration,
}

impl<P: Ports> Handler for Fulfilment<P> {
    type Event = OrderPlaced;

    async fn handle(&self, placed: OrderPlaced, metadata: &Metadata) -> Result<(), HandlerError> {
        let deadline = Instant::now() + time_for_steps(self.handler_deadline);
        if !is_of(&metadata.subject, &placed.order_id) {
            return Err(HandlerError::permanent("order_id is not the subject's"));
        }
        let Some((order, version)) = self.ports.load_order(&placed.order_id).await? else {
            return Err(HandlerError::transient("the order is not in its stream yet"));
        };
        let result = if let Some(result) = order.end {
            result
        } else {
            let (ports, metrics) = (&self.ports, &self.metrics);
            let steps = Steps { ports, metrics, order: &order.placed, version: &version, deadline };
            let verdict = verdict(&order.placed.order_id, steps.take().await, metadata.is_last_attempt)?;
            self.end(version, order_result(&order.placed.order_id, verdict, Timestamp::now())).await?
        };
        match result {
            OrderResult::Confirmed(_) => complete(&self.ports, &order.placed).await,
            // The stored rejection is an event, because of which everything is undone.
            OrderResult::Rejected(_) => Ok(()),
        }
    }
}

impl<P: Ports> Fulfilment<P> {
    /// Writes the end of an order. If another attempt was faster, its end counts.
    async fn end(&self, mut version: P::Version, result: OrderResult) -> Result<OrderResult, HandlerError> {
        let order_id = result.order_id();
        for _ in 0..MAX_CONFLICTS {
            if self.ports.end_order(&version, &result).await? {
                tracing::info!(order_id, ?result, "ended order");
                return Ok(result);
            }
            match self.ports.load_order(order_id).await? {
                Some((order, _)) if order.end.is_some() => {
                    return order.end.ok_or_else(|| HandlerError::transient("the order has no end"));
                }
                Some((_, now)) => version = now,
                None => return Err(HandlerError::transient("the order is not in its stream any more")),
            }
        }
        Err(HandlerError::transient("failed to end the order: it changes too often"))
    }
}

/// How long the steps of an attempt may take, so that its end can be written within the attempt. Pure.
fn time_for_steps(handler_deadline: Duration) -> Duration {
    handler_deadline.saturating_sub(END_TIMEOUT).max(handler_deadline / 2)
}

/// The verdict if a step could not decide: none yet while another attempt may help, otherwise a rejection. An order must not stay
/// open with its pieces reserved because no attempt is left. Pure.
fn verdict(
    order_id: &str,
    taken: Result<Verdict, (FulfilmentStep, HandlerError)>,
    is_last_attempt: bool,
) -> Result<Verdict, HandlerError> {
    match taken {
        Ok(verdict) => Ok(verdict),
        Err((_, failure @ HandlerError::Transient(_))) if !is_last_attempt => Err(failure),
        Err((step, failure)) => {
            tracing::error!(order_id, step = step.name(), %failure, "rejecting an order that no attempt could decide");
            Ok(Verdict::Refused { step, reason: UNDECIDED_REASON.to_owned() })
        }
    }
}

/// The last event of an order. Pure.
fn order_result(order_id: &str, verdict: Verdict, now: Timestamp) -> OrderResult {
    let (order_id, now) = (order_id.to_owned(), now.as_millisecond());
    match verdict {
        Verdict::Passed { authorization_id } => {
            OrderResult::Confirmed(OrderConfirmed { order_id, authorization_id, confirmed_at: now })
        }
        Verdict::Refused { step, reason } => {
            OrderResult::Rejected(OrderRejected { order_id, step: step.into(), reason, rejected_at: now })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_could_not_be_decided_is_rejected_where_no_attempt_is_left() {
        let step = FulfilmentStep::PaymentAuthorization;
        let rejected = Ok(Verdict::Refused { step, reason: UNDECIDED_REASON.to_owned() });
        let away = HandlerError::transient("away");
        assert_eq!(verdict("o", Err((step, away.clone())), false), Err(away.clone()));
        assert_eq!(verdict("o", Err((step, away)), true), rejected);
        // After a failure that no attempt fixes, no further attempt is made.
        assert_eq!(verdict("o", Err((step, HandlerError::permanent("never"))), false), rejected);
        let passed = Verdict::Passed { authorization_id: "a".to_owned() };
        assert_eq!(verdict("o", Ok(passed.clone()), true), Ok(passed));
    }

    #[test]
    fn steps_leave_time_to_end_the_order() {
        let seconds = Duration::from_secs;
        assert_eq!(time_for_steps(seconds(20)), seconds(12));
        assert_eq!(time_for_steps(seconds(4)), seconds(2));
    }
}
