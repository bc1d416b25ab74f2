//! The bucket of the stock: one key for each article. Reads and writes it, and decides nothing about orders.

use std::{collections::BTreeMap, sync::Arc};

use jetwright_process::health::Gate;
use jetwright_runtime::{Entry, Error, ErrorKind, HandlerError, KeyValue};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::{Duration, sleep, timeout},
};

use crate::{
    catalogue::{Article, Catalogue},
    saga::ports::StockEntry,
    stock::Stock,
};

/// The bucket of the stock.
pub const BUCKET: &str = "inventory";

/// Pause between attempts to put the first stock in.
const SEED_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a change waits for those before it. One that NATS does not answer takes 8 seconds, and what waits behind
/// several of them is better tried again than left to use its whole attempt up.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// The stock of the shop. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Inventory {
    bucket: KeyValue,
    catalogue: Arc<Catalogue>,
    turns: Arc<Turns>,
    open: Family<Labels, Gauge>,
}

/// By article: within one process changes wait for each other, so that compare-and-set conflicts come from other pods only.
#[derive(Debug)]
struct Turns(BTreeMap<String, Arc<Mutex<()>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    sku: String,
}

/// The turn to change an article, until it is dropped.
#[derive(Debug)]
pub struct Turn(#[allow(dead_code, reason = "its drop ends the turn")] Option<OwnedMutexGuard<()>>);

impl Turns {
    /// Waits for the article's turn; an article that is not sold has none.
    async fn take(&self, sku: &str) -> Result<Turn, HandlerError> {
        let Some(turn) = self.0.get(sku) else { return Ok(Turn(None)) };
        let taken = timeout(TURN_TIMEOUT, Arc::clone(turn).lock_owned()).await;
        taken
            .map(|guard| Turn(Some(guard)))
            .map_err(|_| HandlerError::transient(format!("too many changes of {sku} wait for NATS")))
    }
}

impl Inventory {
    /// Of this catalogue's articles, in this bucket. Adds `inventory_open_reservations{sku}` to the registry.
    #[must_use]
    pub fn new(bucket: KeyValue, catalogue: &Catalogue, registry: &mut Registry) -> Self {
        let turns = catalogue.iter().map(|(sku, _)| (sku.to_owned(), Arc::default())).collect();
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
                sleep(SEED_RETRY_INTERVAL).await;
            }
        }
        gate.open();
    }

    /// Puts the first stock of an article in where it has none, as when the bucket was made again. `false` where the article
    /// is not sold.
    pub(crate) async fn restock(&self, sku: &str) -> Result<bool, HandlerError> {
        let Some(article) = self.catalogue.get(sku) else { return Ok(false) };
        self.put_first(sku, article).await?;
        Ok(true)
    }

    async fn put_first(&self, sku: &str, article: Article) -> Result<(), Error> {
        let stock = Stock::of(article.initial_stock);
        match self.bucket.create(sku, serde_json::to_vec(&stock).unwrap_or_default()).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn turn(&self, sku: &str) -> Result<Turn, HandlerError> {
        self.turns.take(sku).await
    }

    pub(crate) async fn get(&self, sku: &str) -> Result<Option<StockEntry>, HandlerError> {
        let Some(Entry { value, revision }) = self.bucket.get(sku).await? else { return Ok(None) };
        // A later program may have written what this one cannot read, so that is no fault of the order.
        let stock = serde_json::from_slice(&value).map_err(|error| {
            HandlerError::transient(format!("failed to read the stock of {sku}: {error}"))
        })?;
        self.record_open(sku, &stock);
        Ok(Some(StockEntry { stock, revision }))
    }

    /// `false` where the stock is at another revision.
    pub(crate) async fn update(&self, sku: &str, stock: &Stock, revision: u64) -> Result<bool, HandlerError> {
        let value = serde_json::to_vec(stock).map_err(HandlerError::permanent)?;
        match self.bucket.update(sku, value, revision).await {
            Ok(_) => {
                self.record_open(sku, stock);
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn record_open(&self, sku: &str, stock: &Stock) {
        let open = i64::try_from(stock.reserved.len()).unwrap_or(i64::MAX);
        self.open.get_or_create(&Labels { sku: sku.to_owned() }).set(open);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_whose_turn_does_not_come_gives_up_in_time() {
        let turns = Turns([("mug".to_owned(), Arc::default())].into());
        let first = turns.take("mug").await.unwrap();
        assert!(matches!(turns.take("mug").await, Err(HandlerError::Transient(_))));
        drop(first);
        assert!(turns.take("mug").await.unwrap().0.is_some());
        assert!(turns.take("pin").await.unwrap().0.is_none());
    }
}
