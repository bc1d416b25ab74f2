//! The stock: one key for each article, changed by compare-and-set, with the pieces that are set aside for open orders.

use std::{collections::BTreeMap, sync::Arc};

use jetwright_process::health::Gate;
use jetwright_proto::events::v1::OrderLine;
use jetwright_runtime::{Entry, Error, ErrorKind, Failure, KeyValue};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Duration, sleep, timeout},
};

use crate::catalogue::{Article, Catalogue};

/// The bucket of the stock.
pub const BUCKET: &str = "inventory";

/// How often a change is tried against others before the event is tried again as a whole.
const TRIES: u32 = 50;
/// Pause between attempts to put the first stock in.
const PAUSE: Duration = Duration::from_millis(500);
/// How long a change waits for those before it. One that NATS does not answer takes 8 seconds, and what waits behind
/// several of them had better come again than use its whole attempt up.
const TURN: Duration = Duration::from_secs(5);
/// Most open orders of one article. Each is some 45 bytes of the article's value, which has to fit into a message (1 MiB
/// by default) and is written whole with every change.
const MOST_RESERVATIONS: usize = 10_000;

/// The stock of one article.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stock {
    /// Pieces that anybody may have.
    available: u64,
    /// Pieces set aside, by open order.
    reserved: BTreeMap<String, u32>,
    /// What a later program keeps here, which this one leaves as it is.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// What a change of a stock comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    To(Stock),
    /// It is so already.
    None,
    /// There are fewer pieces than are wanted.
    Short,
    /// There are as many open orders as there may be.
    Full,
}

impl Stock {
    fn reserve(mut self, order_id: &str, quantity: u32) -> Change {
        if self.reserved.contains_key(order_id) {
            return Change::None;
        }
        if self.reserved.len() >= MOST_RESERVATIONS {
            return Change::Full;
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
    catalogue: Arc<Catalogue>,
    turns: Arc<Turns>,
    open: Family<Labels, Gauge>,
}

/// By article: within one process changes wait for each other, so that only pods have to try against each other.
#[derive(Debug)]
struct Turns(BTreeMap<String, Mutex<()>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    sku: String,
}

impl Turns {
    /// Waits for the article's turn, which lasts as long as what is returned; an article that is not sold has none.
    async fn take(&self, sku: &str) -> Result<Option<MutexGuard<'_, ()>>, Failure> {
        let Some(turn) = self.0.get(sku) else { return Ok(None) };
        let taken = timeout(TURN, turn.lock()).await;
        taken.map(Some).map_err(|_| Failure::transient(format!("too many changes of {sku} wait for NATS")))
    }
}

impl Inventory {
    /// Of this catalogue's articles, in this bucket. Adds `inventory_open_reservations{sku}` to the registry.
    #[must_use]
    pub fn new(bucket: KeyValue, catalogue: &Catalogue, registry: &mut Registry) -> Self {
        let turns = catalogue.iter().map(|(sku, _)| (sku.to_owned(), Mutex::new(()))).collect();
        let open = Family::default();
        let help = "Open orders that pieces of the article are set aside for, as this process last saw it";
        registry.register("inventory_open_reservations", help, open.clone());
        Self { bucket, catalogue: Arc::new(catalogue.clone()), turns: Arc::new(Turns(turns)), open }
    }

    /// Puts the first stock of every article in, where there is none yet. Goes on until NATS has taken it; the gate is
    /// closed until then.
    pub async fn seed(&self, gate: Gate) {
        for (sku, article) in self.catalogue.iter() {
            while let Err(error) = self.put_first(sku, article).await {
                gate.close(&error.to_string());
                sleep(PAUSE).await;
            }
        }
        gate.open();
    }

    /// Puts the first stock of an article in, unless there is some already.
    async fn put_first(&self, sku: &str, article: Article) -> Result<(), Error> {
        let stock = Stock { available: article.initial_stock, ..Stock::default() };
        match self.bucket.create(sku, serde_json::to_vec(&stock).unwrap_or_default()).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets the lines of an order aside. Returns the article that there is too little of, if any; what was set aside
    /// before stays so until [`release`](Self::release).
    ///
    /// # Errors
    ///
    /// The stock cannot be changed now.
    pub async fn reserve(&self, order_id: &str, lines: &[OrderLine]) -> Result<Option<String>, Failure> {
        for OrderLine { sku, quantity, .. } in lines {
            // Attempts of two pods may overlap, and the later one still see an order as open whose pieces the other one has
            // set aside and given back or handed out. The message id keeps it from setting them aside again, for as
            // long as the bucket's duplicate window (two minutes by default; an attempt takes at most 22 seconds). It
            // does not help where the other attempt ended the order before it set anything aside: then this one, which
            // looked at the order a moment ago, gives back what it took when it finds the order ended, and only
            // where it dies in between do the pieces stay set aside.
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

    /// Changes a stock by compare-and-set; `false` where there are too few pieces.
    async fn change(
        &self,
        sku: &str,
        message_id: Option<&str>,
        change: impl Fn(Stock) -> Change,
    ) -> Result<bool, Failure> {
        let _turn = self.turns.take(sku).await?;
        for _ in 0..TRIES {
            let Some(entry) = self.bucket.get(sku).await? else {
                return self.without_entry(sku, &change(Stock::default())).await;
            };
            match change(self.read(sku, &entry)?) {
                Change::None => return Ok(true),
                Change::Short => return Ok(false),
                Change::Full => return Err(Failure::transient(format!("too many open orders of {sku}"))),
                Change::To(stock) if self.write(sku, &stock, entry.revision, message_id).await? => {
                    return Ok(true);
                }
                Change::To(_) => sleep(Duration::from_millis(rand::random_range(1..=20))).await,
            }
        }
        Err(Failure::transient(format!("too many orders of {sku} at once")))
    }

    /// What a change comes to where the stock has no entry. An article that is sold has lost it, as when the bucket was
    /// made again, and begins anew; one that is not has no pieces.
    async fn without_entry(&self, sku: &str, change: &Change) -> Result<bool, Failure> {
        if *change == Change::None {
            return Ok(true);
        }
        let Some(article) = self.catalogue.get(sku) else { return Ok(false) };
        self.put_first(sku, article).await?;
        Err(Failure::transient(format!("{sku} had no stock and was put in again")))
    }

    /// A later program may have written what this one cannot read, so that is no fault of the order.
    fn read(&self, sku: &str, entry: &Entry) -> Result<Stock, Failure> {
        let stock = serde_json::from_slice(&entry.value)
            .map_err(|error| Failure::transient(format!("the stock of {sku} cannot be read: {error}")))?;
        self.show(sku, &stock);
        Ok(stock)
    }

    /// Writes a stock; `false` where somebody else was faster.
    async fn write(
        &self,
        sku: &str,
        stock: &Stock,
        revision: u64,
        message_id: Option<&str>,
    ) -> Result<bool, Failure> {
        let value = serde_json::to_vec(stock).map_err(Failure::permanent)?;
        let written = match message_id {
            Some(id) => self.bucket.update_once(sku, value, revision, id).await,
            None => self.bucket.update(sku, value, revision).await.map(Some),
        };
        match written {
            Ok(Some(_)) => {
                self.show(sku, stock);
                Ok(true)
            }
            Ok(None) => Err(Failure::transient(format!("overtaken: {sku} was set aside before"))),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn show(&self, sku: &str, stock: &Stock) {
        let open = i64::try_from(stock.reserved.len()).unwrap_or(i64::MAX);
        self.open.get_or_create(&Labels { sku: sku.to_owned() }).set(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(available: u64, reserved: &[(&str, u32)]) -> Stock {
        let reserved = reserved.iter().map(|(order, quantity)| ((*order).to_owned(), *quantity)).collect();
        Stock { available, reserved, ..Stock::default() }
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

    #[test]
    fn an_article_has_so_many_open_orders_and_no_more() {
        let orders = (0..MOST_RESERVATIONS).map(|order| (order.to_string(), 1));
        let full = Stock { available: 5, reserved: orders.collect(), ..Stock::default() };
        assert_eq!(full.clone().reserve("one more", 1), Change::Full);
        assert_eq!(full.clone().reserve("7", 1), Change::None);
        assert!(serde_json::to_vec(&full).unwrap().len() < 1 << 20);
    }

    #[test]
    fn what_a_later_program_keeps_beside_the_stock_stays() {
        let text = r#"{"available":5,"reserved":{},"shelf":"left"}"#;
        let stock: Stock = serde_json::from_str(text).unwrap();
        let Change::To(stock) = stock.reserve("a", 3) else { panic!("not reserved") };
        let text = r#"{"available":2,"reserved":{"a":3},"shelf":"left"}"#;
        assert_eq!(serde_json::to_string(&stock).unwrap(), text);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_that_does_not_come_gives_up_in_time() {
        let turns = Turns([("mug".to_owned(), Mutex::new(()))].into());
        let first = turns.take("mug").await.unwrap();
        assert!(matches!(turns.take("mug").await, Err(Failure::Transient(_))));
        drop(first);
        assert!(turns.take("mug").await.unwrap().is_some());
        assert!(turns.take("pin").await.unwrap().is_none());
    }
}
