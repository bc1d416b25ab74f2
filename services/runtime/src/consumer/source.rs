//! One source of a handler's events: a JetStream consumer, its deliveries in this process, and its known state.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jetwright_crds::environment::Binding;
use jetwright_nats::Connection;
use jetwright_partitions::subjects::Partitions;
use jetwright_process::health::Gate;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    budget::{ByteBudget, ByteShare},
    observation::Discovery,
    proof::Proof,
    runner::HandlerRunner,
    suspicion::Suspicion,
};
use crate::{Handler, Reader, Source, partitions::Tenure};

/// How long a consumer may be unavailable before its process is not ready.
const UNREADY_AFTER: Duration = Duration::from_secs(10);
/// Deliveries in flight for each that is handled at once, if others of their key have to come first.
const WAITING_PER_SLOT: u32 = 16;

/// One source of a handler's events: a JetStream consumer, its deliveries in this process, and its known state.
pub(crate) struct ConsumerLoop<H> {
    pub(super) runner: Arc<HandlerRunner<H>>,
    pub(super) source: Arc<Source>,
    /// Name of the JetStream consumer: of a partition, the name in the binding with the partition's number.
    pub(super) durable: String,
    pub(super) binding: Binding,
    pub(super) connection: Connection,
    pub(super) reader: Reader,
    pub(super) gate: Gate,
    pub(super) discovery: Discovery,
    pub(super) proof: Proof,
    pub(super) bytes: ByteShare,
    /// Whether the consumer is being pulled from.
    pub(super) is_serving: AtomicBool,
    /// Whether an ordered consumer waits for what is owed, and begins nothing new.
    pub(super) recovering: AtomicBool,
    /// Deliveries in flight.
    pub(super) in_flight: AtomicUsize,
    /// Notified when there is one less, and so few that more may be requested.
    pub(super) capacity_freed: Notify,
    /// The maximum of deliveries in flight for that.
    pub(super) room_at: AtomicUsize,
    pub(super) suspicion: Suspicion,
    /// Cancelled when it is to end.
    pub(super) stop: CancellationToken,
    /// The right to it, where its handler's processes share out several sources.
    pub(super) tenure: Option<Arc<Tenure>>,
}

/// The parts of a consumer's loop, beside the state of its handler.
pub(crate) struct ConsumerDeps {
    pub(crate) binding: Binding,
    pub(crate) connection: Connection,
    pub(crate) reader: Reader,
    pub(crate) gate: Gate,
    pub(crate) budget: ByteBudget,
    pub(crate) tenure: Option<Arc<Tenure>>,
}

impl<H: Handler> ConsumerLoop<H> {
    /// One more source of this handler: its sources share what is remembered of events, the breaker of its dead letters and its metrics.
    pub(crate) fn new(runner: Arc<HandlerRunner<H>>, deps: ConsumerDeps) -> Self {
        let ConsumerDeps { binding, connection, reader, gate, budget, tenure } = deps;
        let source = Source {
            stream: binding.stream.clone(),
            consumer: binding.consumer.clone(),
            event_consumer: runner.name.to_owned(),
            epoch: tenure.as_ref().map_or(0, |tenure| tenure.epoch),
        };
        let durable = match &tenure {
            Some(tenure) => format!("{}-p{}", binding.consumer, tenure.partition),
            None => binding.consumer.clone(),
        };
        Self {
            durable,
            bytes: budget.share(runner.options.bytes),
            recovering: AtomicBool::new(runner.is_ordered),
            runner,
            source: Arc::new(source),
            binding,
            connection,
            reader,
            gate,
            discovery: Discovery::default(),
            proof: Proof::new(),
            is_serving: AtomicBool::new(false),
            in_flight: AtomicUsize::default(),
            capacity_freed: Notify::new(),
            room_at: AtomicUsize::new(usize::MAX),
            suspicion: Suspicion::default(),
            stop: CancellationToken::new(),
            tenure,
        }
    }
}

impl<H> ConsumerLoop<H> {
    /// Name of the EventConsumer.
    pub(super) fn name(&self) -> &'static str {
        self.runner.name
    }

    /// The partitions of its stream.
    pub(super) fn partitions(&self) -> Option<&Arc<Partitions>> {
        self.reader.partitions(&self.binding.stream)
    }

    /// Number of its partition, if it is one of several sources.
    pub(super) fn partition(&self) -> Option<u32> {
        self.tenure.as_ref().map(|tenure| tenure.partition)
    }

    /// Maximum deliveries in flight in this process.
    pub(super) fn capacity(&self) -> usize {
        let concurrency = self.runner.options.concurrency.max(1);
        let held =
            if self.runner.is_ordered { concurrency.saturating_mul(WAITING_PER_SLOT) } else { concurrency };
        usize::try_from(self.binding.max_ack_pending.min(held).max(1)).unwrap_or(usize::MAX)
    }

    /// How long a delivery may be unacknowledged before it comes again: as JetStream last said, since it may be changed before the pods are.
    pub(super) fn ack_wait(&self) -> Duration {
        let said = self.discovery.latest.borrow().as_ref().map(|latest| latest.info.config.ack_wait());
        said.filter(|said| !said.is_zero()).unwrap_or(self.binding.ack_wait.0)
    }

    /// How long a pull request may last that is sent now; `None` while the lease is over.
    pub(super) fn pull_expiry(&self) -> Option<Duration> {
        self.tenure.as_ref().map_or(Some(Duration::MAX), |tenure| tenure.pull_expiry())
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// So many deliveries arrived, of so many bytes together.
    pub(super) fn acquire_capacity(&self, count: usize, bytes: usize) {
        self.in_flight.fetch_add(count, Ordering::Relaxed);
        self.bytes.take(bytes);
    }

    /// It is released.
    pub(super) fn release_capacity(&self, bytes: usize) {
        self.bytes.give_back(bytes);
        let left = self.in_flight.fetch_sub(1, Ordering::SeqCst) - 1;
        // The fetcher would wake for every event otherwise, and request none.
        if left <= self.room_at.load(Ordering::SeqCst) {
            self.capacity_freed.notify_one();
        }
    }

    /// More may be requested when no more than so many deliveries are in flight; returns whether that is so already.
    pub(super) fn await_room(&self, room_at: usize) -> bool {
        self.room_at.store(room_at, Ordering::SeqCst);
        self.in_flight.load(Ordering::SeqCst) <= room_at
    }

    /// It is pulled from, and responds.
    pub(super) fn serving(&self) {
        self.is_serving.store(true, Ordering::Relaxed);
        self.gate.open();
    }

    /// The consumer cannot be used now, and why. A pod that serves HTTP too leaves its Service only if that lasts.
    pub(super) fn unavailable(&self, why: &str) {
        self.gate.close_after(UNREADY_AFTER, why);
    }
}
