//! The second step: every line is in stock and set aside for the order. Changes the stock.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::Failure;

use crate::inventory::Inventory;

/// Refuses an order of what there is too little of.
pub(super) async fn reserve(
    inventory: &Inventory,
    order: &OrderPlaced,
) -> Result<Result<(), String>, Failure> {
    let short = inventory.reserve(&order.order_id, &order.lines).await?;
    Ok(short.map_or(Ok(()), |sku| Err(format!("there is not enough of {sku}"))))
}
