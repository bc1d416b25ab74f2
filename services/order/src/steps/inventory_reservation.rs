//! The second step: every line is in stock and set aside for the order. Looks at the order once more, and changes the
//! stock.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::Failure;

use crate::{inventory::Inventory, orders::Orders};

/// Refuses an order of what there is too little of. An order that another attempt has ended meanwhile reserves nothing:
/// nobody would give it back.
pub(super) async fn reserve(
    inventory: &Inventory,
    orders: &Orders,
    order: &OrderPlaced,
) -> Result<Result<(), String>, Failure> {
    let now = orders.load(&order.order_id).await?.into_state();
    if now.order.is_none_or(|now| now.end.is_some()) {
        return Err(Failure::transient("overtaken: another attempt has ended the order"));
    }
    let short = inventory.reserve(&order.order_id, &order.lines).await?;
    Ok(short.map_or(Ok(()), |sku| Err(format!("there is not enough of {sku}"))))
}
