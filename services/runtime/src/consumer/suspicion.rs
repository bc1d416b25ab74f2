//! Whether a delivery that the client cannot parse may have ended the connection, and the progress of the scan for it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch};

/// How far the scan is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scan {
    /// Nothing is suspected.
    #[default]
    Idle,
    /// Nothing is pulled.
    Blocking,
    /// One event is pulled at a time.
    Background,
}

/// What is suspected of one consumer's deliveries.
#[derive(Debug, Default)]
pub(super) struct Suspicion {
    pub(super) scan: watch::Sender<Scan>,
    pub(super) suspected: Notify,
    pub(super) suspicions: AtomicU64,
}

impl Suspicion {
    /// The connection ended, perhaps by one of the deliveries.
    pub(super) fn suspect(&self) {
        self.suspicions.fetch_add(1, Ordering::SeqCst);
        self.scan.send_replace(Scan::Blocking);
        self.suspected.notify_one();
    }

    /// Returns when more may be pulled.
    pub(super) async fn await_initial_scan(&self) {
        // Refused only when this is gone.
        let _ = self.scan.subscribe().wait_for(|scan| *scan != Scan::Blocking).await;
    }

    /// How many of so many events may be in flight.
    pub(super) fn limit(&self, capacity: usize) -> usize {
        if *self.scan.borrow() == Scan::Idle { capacity } else { 1 }
    }
}
