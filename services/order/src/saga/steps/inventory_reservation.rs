//! The second step: every line is in stock and reserved for the order. Reads the stock and the order, and changes the stock by
//! compare-and-set.
//!
//! A slow attempt must reserve nothing once another one has ended the order, since no release would follow. So it reads
//! the stock, *then* asks whether the order is still open, *then* writes at the revision that it read; and [`release`], which
//! begins after the order was rejected, always writes. Either the reservation is written before the release, which then finds
//! it, or the release is written before: then the stock was read before that, and the revision is another one, or after that,
//! and the order had already ended when the attempt asked. No clock and no duplicate window has a part in this.

use jetwright_proto::events::v1::{OrderLine, OrderPlaced};
use jetwright_runtime::HandlerError;

use super::StepResult;
use crate::{
    saga::ports::{Ports, StockEntry},
    stock::{Change, Stock},
};

/// Maximum conflicts with other writers before a change fails.
const MAX_CONFLICTS: u32 = 50;

/// The result of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    Done,
    /// The stock has too few pieces.
    Short,
}

/// Refuses an order of more pieces than there are. Earlier reservations stay until [`release`] or [`commit`].
pub(super) async fn reserve<P: Ports>(
    ports: &P,
    order: &OrderPlaced,
    version: &P::Version,
) -> Result<StepResult<()>, HandlerError> {
    for OrderLine { sku, quantity, .. } in &order.lines {
        let reserving = |stock: Stock| stock.reserve(&order.order_id, *quantity);
        if change(ports, sku, Some(version), reserving).await? == Changed::Short {
            return Ok(StepResult::Refused(format!("there is not enough of {sku}")));
        }
    }
    Ok(StepResult::Passed(()))
}

/// Releases what any attempt reserved for a rejected order, and prevents later reservations by slower attempts.
pub(super) async fn release<P: Ports>(ports: &P, order: &OrderPlaced) -> Result<(), HandlerError> {
    for line in &order.lines {
        change(ports, &line.sku, None, |stock| stock.release(&order.order_id)).await?;
    }
    Ok(())
}

/// Removes the reserved pieces of a confirmed order from the stock.
pub(super) async fn commit<P: Ports>(ports: &P, order: &OrderPlaced) -> Result<(), HandlerError> {
    for line in &order.lines {
        change(ports, &line.sku, None, |stock| stock.commit(&order.order_id)).await?;
    }
    Ok(())
}

/// Changes a stock by compare-and-set; with a version, only while the order has no newer one.
async fn change<P: Ports>(
    ports: &P,
    sku: &str,
    only_at: Option<&P::Version>,
    change: impl Fn(Stock) -> Change,
) -> Result<Changed, HandlerError> {
    let _lock = ports.lock_stock(sku).await?;
    for _ in 0..MAX_CONFLICTS {
        let Some(StockEntry { stock, revision }) = ports.get_stock(sku).await? else {
            return without_entry(ports, sku, only_at.is_some()).await;
        };
        let stock = match change(stock) {
            Change::To(stock) => stock,
            Change::None => return Ok(Changed::Done),
            Change::Short => return Ok(Changed::Short),
            Change::Full => return Err(HandlerError::transient(format!("too many open orders of {sku}"))),
        };
        // After the stock was read and before it is written: see above.
        if let Some(version) = only_at
            && !ports.is_current(version).await?
        {
            return Err(HandlerError::transient("another attempt has ended the order"));
        }
        if ports.update_stock(sku, &stock, revision).await? {
            return Ok(Changed::Done);
        }
        ports.back_off().await;
    }
    Err(HandlerError::transient(format!("too many orders of {sku} at once")))
}

/// Without an entry, nothing is reserved. An article that is sold has lost its entry, as after the bucket was recreated,
/// and gets its initial stock; one that is not sold has no pieces.
async fn without_entry<P: Ports>(ports: &P, sku: &str, reserving: bool) -> Result<Changed, HandlerError> {
    if !reserving {
        return Ok(Changed::Done);
    }
    if !ports.restock(sku).await? {
        return Ok(Changed::Short);
    }
    Err(HandlerError::transient(format!("{sku} had no stock and got its initial stock")))
}
