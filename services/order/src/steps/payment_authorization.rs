//! The third step: the order's amount is authorized. Asks the payment gateway.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::Failure;

use crate::{gateway::Decision, payments::Payments};

/// Refuses an order that cannot be paid; else gives the authorization's id.
pub(super) async fn authorize(
    payments: &Payments,
    order: &OrderPlaced,
) -> Result<Result<String, String>, Failure> {
    Ok(match payments.authorize(order).await? {
        Decision::Authorized(id) => Ok(id),
        Decision::Declined(why) => Err(why),
    })
}
