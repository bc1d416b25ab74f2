//! Keeps the bucket as it has to be, and what is known of it true of the one that is there.

use std::time::Duration;

use futures::FutureExt as _;
use jetwright_partitions::keys::BUCKET;
use tokio::time::Instant;

use super::{Done, Session, coordinator};
use crate::{
    error::error_chain,
    jetstream::{info::StreamInfo, reconcile},
    outcome::{OperationResult, Outcome},
    partitions::{bucket, cleaning::Cleaner, cluster_maps::ClusterMaps},
};

/// How often the watch begins again, whatever it missed.
const WATCH_INTERVAL: Duration = Duration::from_mins(5);
/// How often the bucket is compared with what is known of it; before its entry leaves the cache, with its highest revision.
const KEEP_INTERVAL: Duration = Duration::from_mins(1);
/// Delay before the bucket is tried again after a failure.
const KEEP_RETRY: Duration = Duration::from_secs(5);

/// What is known of the bucket.
pub(super) struct Keeping {
    /// When it has to be compared next.
    pub(super) due: Instant,
    /// When it has to be watched again.
    watch_due: Instant,
    is_under_way: bool,
    created: Option<String>,
    /// Why it may not be there.
    pub(super) problem: Option<String>,
}

impl Keeping {
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, watch_due: now + WATCH_INTERVAL, is_under_way: false, created: None, problem: None }
    }
}

impl Session<'_> {
    /// Begins what is due: another watch, another comparison.
    pub(super) fn keep(&mut self) {
        let now = Instant::now();
        if now >= self.keeping.watch_due {
            self.watch_again();
        }
        if now >= self.keeping.due && !self.keeping.is_under_way && !self.consumers.is_empty() {
            self.keeping.is_under_way = true;
            let (context, connection, age) = (self.context, self.connection, self.begun.elapsed());
            self.under_way.push(
                async move { Done::Kept(Box::new(bucket::keep(context, connection, age).await)) }.boxed(),
            );
        }
    }

    pub(super) fn kept(&mut self, kept: Result<Outcome<StreamInfo>, reconcile::Error>) {
        let now = Instant::now();
        self.keeping.is_under_way = false;
        self.keeping.due = now + KEEP_RETRY;
        match kept {
            Ok(Outcome::Reconciled(reconciled)) => {
                self.keeping.due = now + KEEP_INTERVAL;
                self.keeping.problem = None;
                match &reconciled.result {
                    OperationResult::Unchanged => {}
                    // It is used as it is.
                    OperationResult::Blocked(blocked) => tracing::debug!("{}", blocked.message),
                    result => tracing::info!(?result, "brought the bucket {BUCKET} to what it has to be"),
                }
                let created = reconciled.info.map(|info| info.created);
                if let (Some(before), Some(after)) = (&self.keeping.created, &created)
                    && before != after
                {
                    self.reset();
                    self.watch_again();
                }
                self.keeping.created = created.or(self.keeping.created.take());
            }
            Ok(Outcome::Pending(pending)) => self.keeping.problem = Some(pending.message),
            Ok(Outcome::Invalid(_)) => {}
            Err(error) => self.keeping.problem = Some(error_chain(&error)),
        }
        if let Some(problem) = self.keeping.problem.clone() {
            self.warn(&format!("the bucket {BUCKET} cannot be kept: {problem}"));
        }
    }

    /// What was known of the bucket is not true of the one that takes its place.
    pub(super) fn reset(&mut self) {
        self.coordinator = coordinator(self.context, self.connection, self.begun);
        self.cleaner = Cleaner::default();
        self.told_ends.clear();
        self.is_synced = false;
        self.cluster_maps = ClusterMaps::new(&self.context.cluster.current);
        self.shared_out.clear();
        self.declare();
    }

    pub(super) fn watch_again(&mut self) {
        self.watch = self.bucket.watch(&[">".to_owned()]);
        self.keeping.watch_due = Instant::now() + WATCH_INTERVAL;
    }
}
