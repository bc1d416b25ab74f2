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
    metrics::OPEN_RESERVATIONS,
    saga::ports::StockEntry,
    stock::Stock,
};

/// The bucket of the stock.
pub const BUCKET: &str = "inventory";

/// Pause between attempts to store the initial stock.
const SEED_RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How long a change waits for those before it. One that NATS does not answer takes 8 seconds, and a change that waits behind
/// several of them is better retried than left to use up its whole attempt.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// The stock of the shop. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Inventory {
    bucket: KeyValue,
    catalogue: Arc<Catalogue>,
    locks: Arc<Locks>,
    open: Family<Labels, Gauge>,
}

/// By article: within one process changes wait for each other, so that compare-and-set conflicts come only from other pods.
#[derive(Debug)]
struct Locks(BTreeMap<String, Arc<Mutex<()>>>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    sku: String,
}

/// The lock of an article for a change, until it is dropped.
#[derive(Debug)]
pub struct StockLock(#[allow(dead_code, reason = "its drop releases the lock")] Option<OwnedMutexGuard<()>>);

impl Locks {
    /// Waits for the article's lock; an article that is not sold has none.
    async fn take(&self, sku: &str) -> Result<StockLock, HandlerError> {
        let Some(lock) = self.0.get(sku) else { return Ok(StockLock(None)) };
        let taken = timeout(LOCK_TIMEOUT, Arc::clone(lock).lock_owned()).await;
        taken
            .map(|guard| StockLock(Some(guard)))
            .map_err(|_| HandlerError::transient(format!("too many changes of {sku} wait for NATS")))
    }
}

impl Inventory {
    /// Of this catalogue's articles, in this bucket. Adds `inventory_open_reservations{sku}` to the registry.
    #[must_use]
    pub fn new(bucket: KeyValue, catalogue: &Catalogue, registry: &mut Registry) -> Self {
        let locks = catalogue.iter().map(|(sku, _)| (sku.to_owned(), Arc::default())).collect();
        let open = Family::default();
        OPEN_RESERVATIONS.register(registry, open.clone());
        Self { bucket, catalogue: Arc::new(catalogue.clone()), locks: Arc::new(Locks(locks)), open }
    }

    /// Stores the initial stock of every article that has none yet. Continues until NATS has taken it; the gate is
    /// closed until then.
    pub async fn seed(&self, gate: Gate) {
        for (sku, article) in self.catalogue.iter() {
            while let Err(error) = self.create_initial(sku, article).await {
                gate.close(&error.to_string());
                sleep(SEED_RETRY_INTERVAL).await;
            }
        }
        gate.open();
    }

    /// Stores the initial stock of an article that has none, as after the bucket was recreated. `false` if the article
    /// is not sold.
    pub(crate) async fn restock(&self, sku: &str) -> Result<bool, HandlerError> {
        let Some(article) = self.catalogue.get(sku) else { return Ok(false) };
        self.create_initial(sku, article).await?;
        Ok(true)
    }

    async fn create_initial(&self, sku: &str, article: Article) -> Result<(), Error> {
        let stock = Stock::of(article.initial_stock);
        match self.bucket.create(sku, serde_json::to_vec(&stock).unwrap_or_default()).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) async fn lock(&self, sku: &str) -> Result<StockLock, HandlerError> {
        self.locks.take(sku).await
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

    /// `false` if the stock is at another revision.
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
    async fn a_change_that_does_not_get_its_lock_fails_in_time() {
        let locks = Locks([("mug".to_owned(), Arc::default())].into());
        let first = locks.take("mug").await.unwrap();
        assert!(matches!(locks.take("mug").await, Err(HandlerError::Transient(_))));
        drop(first);
        assert!(locks.take("mug").await.unwrap().0.is_some());
        assert!(locks.take("pin").await.unwrap().0.is_none());
    }
}
