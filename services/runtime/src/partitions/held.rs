//! The partitions that this process handles, or has not finished with: each has a loop, which is started, instructed, and ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::AssertUnwindSafe,
    sync::Arc,
};

use futures::FutureExt;
use jetwright_partitions::keys::PartitionId;
use jetwright_process::health::{Gate, Health};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

use super::{
    PartitionStart, PartitionedHandler,
    tenure::{Instruction, SharedLease, Tenure},
};

/// All of them.
pub(super) struct HeldPartitions {
    handlers: Vec<PartitionedHandler>,
    health: Health,
    metrics: Metrics,
    held: BTreeMap<PartitionId, Held>,
    /// Those whose loops ended in the middle of something: it may still run, so no process may have them while this one lives.
    unfinished: BTreeSet<PartitionId>,
    /// The loops, and whether nothing of them runs any more when they end.
    loops: JoinSet<(PartitionId, bool)>,
    news: Arc<Notify>,
}

/// How a loop ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LoopEnd {
    /// Of this partition nothing runs any more, and others wait for that.
    Drained(PartitionId),
    /// Nobody waits for it.
    Unawaited,
    /// Something of it may still run.
    Unfinished,
}

/// One partition.
struct Held {
    tenure: Arc<Tenure>,
    stop: CancellationToken,
    gate: Gate,
    /// It is taken again before the loop has ended: another one follows.
    next: Option<Arc<Tenure>>,
    /// The loop was told to finish, and the others wait for it.
    is_draining: bool,
}

impl HeldPartitions {
    pub(super) fn new(handlers: Vec<PartitionedHandler>, health: Health, metrics: Metrics) -> Self {
        Self {
            handlers,
            health,
            metrics,
            held: BTreeMap::new(),
            unfinished: BTreeSet::new(),
            loops: JoinSet::new(),
            news: Arc::default(),
        }
    }

    pub(super) fn handlers(&self) -> &[PartitionedHandler] {
        &self.handlers
    }

    /// Whether no loop runs.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Those whose loops ended in the middle of something.
    pub(super) fn unfinished(&self) -> &BTreeSet<PartitionId> {
        &self.unfinished
    }

    /// Handles a partition, or goes on with it. What ran under an earlier right ends first.
    pub(super) fn serve(&mut self, partition: PartitionId, epoch: u64, lease: &Arc<SharedLease>) {
        if self.unfinished.contains(&partition) {
            return;
        }
        if let Some(held) = self.held.get(&partition)
            && held.tenure.epoch == epoch
        {
            return held.tenure.instruct(Instruction::Serve);
        }
        let tenure =
            Arc::new(Tenure::new(partition.partition, epoch, Arc::clone(lease), Arc::clone(&self.news)));
        self.count(&partition, "taken");
        if let Some(held) = self.held.get_mut(&partition) {
            held.next = Some(tenure);
            return;
        }
        self.start(partition, tenure);
    }

    pub(super) fn suspend(&self, partition: &PartitionId) {
        if let Some(held) = self.held.get(partition) {
            held.tenure.instruct(Instruction::Suspend);
        }
    }

    /// Finishes what has begun, by then where that is known; returns whether nothing had.
    pub(super) fn drain(&mut self, partition: &PartitionId, until: Option<Instant>) -> bool {
        let Some(held) = self.held.get_mut(partition) else { return !self.unfinished.contains(partition) };
        held.is_draining = true;
        // What runs of the tenure before that may not be beside another process either.
        if held.next.take().is_some() {
            return false;
        }
        held.tenure.drain(until);
        held.stop.cancel();
        false
    }

    /// Another process has it.
    pub(super) fn abandon(&mut self, partition: &PartitionId) {
        let Some(held) = self.held.get_mut(partition) else { return };
        held.next = None;
        held.is_draining = false;
        held.tenure.instruct(Instruction::Abandon);
        held.stop.cancel();
        self.count(partition, "lost");
    }

    /// The next loop that ends. Cancel safe.
    pub(super) async fn ended(&mut self) -> LoopEnd {
        // None panics or is aborted.
        let Some(Ok((partition, is_finished))) = self.loops.join_next().await else {
            return std::future::pending().await;
        };
        let Some(Held { next, is_draining, gate, .. }) = self.held.remove(&partition) else {
            return LoopEnd::Unawaited;
        };
        gate.open();
        if !is_finished {
            self.unfinished.insert(partition);
            return LoopEnd::Unfinished;
        }
        if let Some(tenure) = next {
            self.start(partition, tenure);
            return LoopEnd::Unawaited;
        }
        if is_draining {
            self.count(&partition, "handed-over");
            LoopEnd::Drained(partition)
        } else {
            LoopEnd::Unawaited
        }
    }

    fn count(&self, partition: &PartitionId, change: &'static str) {
        if let Some(handler) = self.handlers.iter().find(|handler| handler.consumer == partition.consumer) {
            tracing::info!(binding = handler.name, partition = partition.partition, "partition {change}");
            self.metrics.partition_changed(handler.name, change);
        }
    }

    /// Waits until the order of a partition is recovered. Cancel safe.
    pub(super) fn news(&self) -> Arc<Notify> {
        Arc::clone(&self.news)
    }

    /// The rights under which partitions are handled.
    pub(super) fn tenures(&self) -> impl Iterator<Item = (&PartitionId, &Tenure)> {
        self.held.iter().map(|(partition, held)| (partition, &*held.tenure))
    }

    fn start(&mut self, partition: PartitionId, tenure: Arc<Tenure>) {
        let Some(handler) = self.handlers.iter().find(|handler| handler.consumer == partition.consumer)
        else {
            return;
        };
        let stop = CancellationToken::new();
        let number = partition.partition;
        let gate = self.health.gate(&format!("consumer {} partition {number}", handler.name), "");
        gate.open();
        tracing::info!(
            binding = handler.name,
            partition = number,
            epoch = tenure.epoch,
            "handling partition"
        );
        let start = PartitionStart { tenure: Arc::clone(&tenure), gate: gate.clone(), stop: stop.clone() };
        let running = (handler.start)(start);
        let id = partition.clone();
        // One that panicked may have left something that runs.
        let running = AssertUnwindSafe(running).catch_unwind();
        self.loops.spawn(async move { (id, running.await.unwrap_or(false)) });
        self.held.insert(partition, Held { tenure, stop, gate, next: None, is_draining: false });
    }
}

#[cfg(test)]
mod tests {
    use jetwright_partitions::keys::ConsumerId;
    use prometheus_client::registry::Registry;

    use super::*;

    fn consumer() -> ConsumerId {
        "orders.fulfilment".parse().unwrap()
    }

    fn partition(partition: u32) -> PartitionId {
        PartitionId { consumer: consumer(), partition }
    }

    /// Three, whose loops are these.
    fn held(
        start: impl Fn(PartitionStart) -> super::super::PartitionLoop + Send + Sync + 'static,
    ) -> HeldPartitions {
        let start = Box::new(start);
        let handler = PartitionedHandler { name: "fulfilment", consumer: consumer(), count: 3, start };
        let metrics = Metrics::register(&mut Registry::default());
        HeldPartitions::new(vec![handler], Health::new(), metrics)
    }

    #[tokio::test]
    async fn a_partition_whose_loop_ended_in_the_middle_of_something_is_neither_free_nor_handled_again() {
        let mut held = held(|PartitionStart { tenure, stop, .. }| {
            Box::pin(async move {
                stop.cancelled().await;
                assert_ne!(tenure.partition, 1, "a fault of this program");
                tenure.partition != 2
            })
        });
        for number in 0..3 {
            held.serve(partition(number), 7, &Arc::default());
            assert!(!held.drain(&partition(number), None));
        }
        let ends = [held.ended().await, held.ended().await, held.ended().await];
        assert!(ends.contains(&LoopEnd::Drained(partition(0))), "{ends:?}");
        assert_eq!(held.unfinished().iter().cloned().collect::<Vec<_>>(), [partition(1), partition(2)]);
        for number in 1..3 {
            held.serve(partition(number), 8, &Arc::default());
            assert!(!held.drain(&partition(number), None), "something of it may still run");
        }
        assert!(held.is_empty() && held.drain(&partition(0), None));
    }

    /// Another process had it meanwhile, as far as this one knew, and a handler blocks its thread. It is taken again, and served or not.
    #[tokio::test]
    async fn a_partition_is_not_drained_before_its_loop_from_before_it_was_lost_has_ended() {
        for is_served_again in [false, true] {
            let blocked = Arc::new(Notify::new());
            let released = Arc::clone(&blocked);
            let mut held = held(move |_| {
                let blocked = Arc::clone(&blocked);
                Box::pin(async move {
                    blocked.notified().await;
                    true
                })
            });
            held.serve(partition(0), 7, &Arc::default());
            held.abandon(&partition(0));
            if is_served_again {
                held.serve(partition(0), 8, &Arc::default());
            }
            assert!(!held.drain(&partition(0), None), "a handler runs");
            assert!(held.ended().now_or_never().is_none());
            released.notify_one();
            assert_eq!(held.ended().await, LoopEnd::Drained(partition(0)));
            assert!(held.drain(&partition(0), None));
        }
    }
}
