//! The third step: the order's amount is authorized. Sends a request to the payment gateway under the order's id, and records the
//! decision.
//!
//! The gateway refuses an id that was voided, so a late attempt, after the order was rejected and voided,
//! authorizes nothing.

use jetwright_proto::events::v1::{OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentVoided};
use jetwright_runtime::HandlerError;
use jiff::Timestamp;

use super::StepResult;
use crate::{gateway::Decision, payments::PaymentEvent, saga::ports::Ports};

/// Refuses an order that cannot be paid; otherwise returns the authorization's id.
pub(super) async fn authorize<P: Ports>(
    ports: &P,
    order: &OrderPlaced,
) -> Result<StepResult<String>, HandlerError> {
    let OrderPlaced { order_id, amount, currency, .. } = order;
    let decision = ports.authorize(order_id, *amount, currency).await?;
    ports.record_payment(order_id, &decided(order, &decision, Timestamp::now())).await?;
    Ok(match decision {
        Decision::Authorized(id) => StepResult::Passed(id),
        Decision::Declined(reason) => StepResult::Refused(reason),
    })
}

/// Voids what any attempt authorized for a rejected order, and prevents later authorizations by slower attempts. The gateway is
/// always asked: an attempt that authorized may have died before it could record that.
pub(super) async fn void<P: Ports>(ports: &P, order_id: &str, reason: &str) -> Result<(), HandlerError> {
    let authorization_id = ports.void(order_id).await?.unwrap_or_default();
    let event = PaymentVoided {
        order_id: order_id.to_owned(),
        authorization_id,
        reason: reason.to_owned(),
        voided_at: Timestamp::now().as_millisecond(),
    };
    ports.record_payment(order_id, &PaymentEvent::Voided(event)).await
}

fn decided(order: &OrderPlaced, decision: &Decision, now: Timestamp) -> PaymentEvent {
    let OrderPlaced { order_id, amount, currency, .. } = order.clone();
    let now = now.as_millisecond();
    match decision.clone() {
        Decision::Authorized(authorization_id) => PaymentEvent::Authorized(PaymentAuthorized {
            order_id,
            authorization_id,
            amount,
            currency,
            authorized_at: now,
        }),
        Decision::Declined(reason) => {
            PaymentEvent::Declined(PaymentDeclined { order_id, amount, currency, reason, declined_at: now })
        }
    }
}
