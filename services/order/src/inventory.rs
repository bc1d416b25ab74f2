//! The stock: one key for each article, changed by compare-and-set, with the pieces that are set aside for open orders.

use std::{collections::BTreeMap, sync::Arc};

use jetwright_process::health::Gate;
use jetwright_proto::events::v1::OrderLine;
use jetwright_runtime::{ErrorKind, Failure, KeyValue};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Mutex,
    time::{Duration, sleep},
};

use crate::catalogue::Catalogue;

/// The bucket of the stock.
pub const BUCKET: &str = "inventory";

/// How often a change is tried against others before the event is tried again as a whole.
const TRIES: u32 = 50;
/// Pause between attempts to put the first stock in.
const PAUSE: Duration = Duration::from_millis(500);

/// The stock of one article.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stock {
    /// Pieces that anybody may have.
    available: u64,
    /// Pieces set aside, by open order.
    reserved: BTreeMap<String, u32>,
}

/// What a change of a stock comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    To(Stock),
    /// It is so already.
    None,
    /// There are fewer pieces than are wanted.
    Short,
}

impl Stock {
    fn reserve(mut self, order_id: &str, quantity: u32) -> Change {
        if self.reserved.contains_key(order_id) {
            return Change::None;
        }
        let Some(left) = self.available.checked_sub(quantity.into()) else { return Change::Short };
        self.available = left;
        self.reserved.insert(order_id.to_owned(), quantity);
        Change::To(self)
    }

    fn release(mut self, order_id: &str) -> Change {
        let Some(quantity) = self.reserved.remove(order_id) else { return Change::None };
        self.available = self.available.saturating_add(quantity.into());
        Change::To(self)
    }

    fn hand_out(mut self, order_id: &str) -> Change {
        if self.reserved.remove(order_id).is_some() { Change::To(self) } else { Change::None }
    }
}

/// The stock of the shop. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Inventory {
    bucket: KeyValue,
    /// By article: within one process changes wait for each other, so that only pods have to try against each other.
    turns: Arc<BTreeMap<String, Mutex<()>>>,
}

impl Inventory {
    /// Of this catalogue's articles, in this bucket.
    #[must_use]
    pub fn new(bucket: KeyValue, catalogue: &Catalogue) -> Self {
        let turns = catalogue.iter().map(|(sku, _)| (sku.to_owned(), Mutex::new(()))).collect();
        Self { bucket, turns: Arc::new(turns) }
    }

    /// Puts the first stock of every article in, where there is none yet. Goes on until NATS has taken it; the gate is
    /// closed until then.
    pub async fn seed(&self, catalogue: &Catalogue, gate: Gate) {
        for (sku, article) in catalogue.iter() {
            let stock = Stock { available: article.initial_stock, reserved: BTreeMap::new() };
            let value = serde_json::to_vec(&stock).unwrap_or_default();
            while let Err(error) = self.bucket.create(sku, value.clone()).await {
                if error.kind() == ErrorKind::Conflict {
                    break;
                }
                gate.close(&error.to_string());
                sleep(PAUSE).await;
            }
        }
        gate.open();
    }

    /// Sets the lines of an order aside. Returns the article that there is too little of, if any; what was set aside
    /// before stays so until [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// The stock cannot be changed now.
    pub async fn reserve(&self, order_id: &str, lines: &[OrderLine]) -> Result<Option<String>, Failure> {
        for OrderLine { sku, quantity, .. } in lines {
            // Attempts of two pods may overlap, the later one seeing an order that has ended meanwhile as open. The
            // message id lets only one of them through, for longer than an attempt can take.
            let id = format!("{order_id}/reserve/{sku}");
            if !self.change(sku, Some(&id), |stock| stock.reserve(order_id, *quantity)).await? {
                return Ok(Some(sku.clone()));
            }
        }
        Ok(None)
    }

    /// Gives back what was set aside for a rejected order.
    ///
    /// # Errors
    ///
    /// The stock cannot be changed now.
    pub async fn release(&self, order_id: &str, lines: &[OrderLine]) -> Result<(), Failure> {
        for line in lines {
            self.change(&line.sku, None, |stock| stock.release(order_id)).await?;
        }
        Ok(())
    }

    /// Hands out what was set aside for a confirmed order.
    ///
    /// # Errors
    ///
    /// The stock cannot be changed now.
    pub async fn hand_out(&self, order_id: &str, lines: &[OrderLine]) -> Result<(), Failure> {
        for line in lines {
            self.change(&line.sku, None, |stock| stock.hand_out(order_id)).await?;
        }
        Ok(())
    }

    /// Changes a stock by compare-and-set; `false` where there are too few pieces. What is not in stock at all is none.
    async fn change(
        &self,
        sku: &str,
        message_id: Option<&str>,
        change: impl Fn(Stock) -> Change,
    ) -> Result<bool, Failure> {
        let _turn = match self.turns.get(sku) {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        for _ in 0..TRIES {
            let Some(entry) = self.bucket.get(sku).await? else {
                return Ok(change(Stock::default()) == Change::None);
            };
            let stock = serde_json::from_slice(&entry.value)
                .map_err(|error| Failure::permanent(format!("the stock of {sku} cannot be read: {error}")))?;
            let value = match change(stock) {
                Change::None => return Ok(true),
                Change::Short => return Ok(false),
                Change::To(stock) => serde_json::to_vec(&stock).map_err(Failure::permanent)?,
            };
            let written = match message_id {
                Some(id) => self.bucket.update_once(sku, value, entry.revision, id).await.map(drop),
                None => self.bucket.update(sku, value, entry.revision).await.map(drop),
            };
            match written {
                Ok(()) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    sleep(Duration::from_millis(rand::random_range(1..=20))).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Failure::transient(format!("too many orders of {sku} at once")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(available: u64, reserved: &[(&str, u32)]) -> Stock {
        let reserved = reserved.iter().map(|(order, quantity)| ((*order).to_owned(), *quantity)).collect();
        Stock { available, reserved }
    }

    #[test]
    fn a_reservation_takes_from_what_is_available_once() {
        assert_eq!(stock(5, &[]).reserve("a", 3), Change::To(stock(2, &[("a", 3)])));
        assert_eq!(stock(2, &[("a", 3)]).reserve("a", 3), Change::None);
        assert_eq!(stock(2, &[("a", 3)]).reserve("b", 3), Change::Short);
        assert_eq!(stock(2, &[("a", 3)]).reserve("b", 2), Change::To(stock(0, &[("a", 3), ("b", 2)])));
    }

    #[test]
    fn a_released_reservation_is_available_again_once() {
        assert_eq!(stock(2, &[("a", 3)]).release("a"), Change::To(stock(5, &[])));
        assert_eq!(stock(5, &[]).release("a"), Change::None);
    }

    #[test]
    fn what_is_handed_out_is_gone() {
        assert_eq!(stock(2, &[("a", 3)]).hand_out("a"), Change::To(stock(2, &[])));
        assert_eq!(stock(2, &[]).hand_out("a"), Change::None);
    }
}
