//! The partitions that this process handles, or has not finished with: each has a loop, which is started, instructed, and ended.

use std::{collections::BTreeMap, sync::Arc};

use jetwright_partitions::keys::PartitionId;
use jetwright_process::health::{Gate, Health};
use tokio::{sync::Notify, task::JoinSet};
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
    /// Something of it may still run, so nobody may have the partition while this process lives.
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
        Self { handlers, health, metrics, held: BTreeMap::new(), loops: JoinSet::new(), news: Arc::default() }
    }

    pub(super) fn handlers(&self) -> &[PartitionedHandler] {
        &self.handlers
    }

    /// Whether no loop runs.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Handles a partition, or goes on with it. What ran under an earlier right ends first.
    pub(super) fn serve(&mut self, partition: PartitionId, epoch: u64, lease: &Arc<SharedLease>) {
        if let Some(held) = self.held.get(&partition)
            && held.tenure.epoch == epoch
        {
            return held.tenure.instruct(Instruction::Serve);
        }
        let tenure =
            Arc::new(Tenure::new(partition.partition, epoch, Arc::clone(lease), Arc::clone(&self.news)));
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

    /// Finishes what has begun; returns whether nothing had.
    pub(super) fn drain(&mut self, partition: &PartitionId) -> bool {
        let Some(held) = self.held.get_mut(partition) else { return true };
        if held.next.take().is_some() {
            return true;
        }
        held.is_draining = true;
        held.tenure.instruct(Instruction::Drain);
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
        let Some(ended) = self.loops.join_next().await else { return std::future::pending().await };
        // One that panicked may have left something that runs.
        let Ok((partition, is_finished)) = ended else { return LoopEnd::Unfinished };
        if !is_finished {
            return LoopEnd::Unfinished;
        }
        let Some(Held { next, is_draining, gate, .. }) = self.held.remove(&partition) else {
            return LoopEnd::Unawaited;
        };
        gate.open();
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
        self.metrics.partition_changed(handler.name, "taken");
        tracing::info!(binding = handler.name, partition = number, epoch = tenure.epoch, "took partition");
        let start = PartitionStart {
            tenure: Arc::clone(&tenure),
            gate: gate.clone(),
            stop: stop.clone(),
        };
        let running = (handler.start)(start);
        let id = partition.clone();
        self.loops.spawn(async move { (id, running.await) });
        self.held.insert(partition, Held { tenure, stop, gate, next: None, is_draining: false });
    }
}
