//! Consuming: one loop for each EventConsumer. It fetches deliveries from JetStream, has them handled, and acknowledges them.
//!
//! | folder or file | does |
//! | --- | --- |
//! | `fetch` | waits for the consumer, pulls no more than there is room for, hands deliveries on in their order; gives up what the client cannot parse |
//! | `dispatch` | holds what was delivered: begins it in order, keeps JetStream from giving it to others, acknowledges it until that is confirmed |
//! | `workers` | the threads on which handlers run, and the watchdog over them |
//! | `runner` | what belongs to a handler, whichever sources its events come from |
//! | `attempt`, `retry` | one attempt within its limits; what becomes of the event |
//! | `dead_letter` | keeps what is given up; what is known of what comes again |
//! | `ack` | the acknowledgements |
//! | `budget` | the bytes that a process holds |
//! | `test_runner`, `probe` | attempts without a consumer, for tests of handlers |

mod ack;
mod attempt;
mod budget;
mod dead_letter;
mod dispatch;
mod fetch;
mod probe;
mod retry;
mod runner;
mod test_runner;
mod workers;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use jetwright_crds::environment::Binding;
use jetwright_nats::Connection;
use jetwright_process::health::Gate;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    budget::ByteBudget,
    dispatch::sentinel::OrderViolation,
    retry::{Decision, Reason},
    runner::HandlerRunner,
    test_runner::{DeliveryEnd, ObservedAttempt, TestRunner},
    workers::Watchdog,
};
use self::{
    budget::ByteShare,
    dispatch::Dispatcher,
    fetch::{
        discovery::{self, Discovery},
        foreign::{self, ForeignEvents},
    },
};
use crate::{Handler, Reader, Source};

/// Beyond a handler's deadline, what a stop leaves for an attempt that was still to arrive, and for acknowledgements.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a consumer may be away before its process is not ready.
const UNREADY_AFTER: Duration = Duration::from_secs(10);
/// Deliveries that are held for each that is handled at once, where others of their key have to come first.
const WAITING_PER_SLOT: u32 = 16;
/// How long ago JetStream may have shown that the consumer is still the same one, for an acknowledgement to be sent without asking. A
/// stream can be deleted and made again within milliseconds; asking for each acknowledgement would cost as much as it.
const PROOF_LIFETIME: Duration = Duration::from_millis(20);

/// One source of a handler's events: a JetStream consumer, what this process holds of it, and what is known of it.
pub(crate) struct ConsumerLoop<H> {
    runner: Arc<HandlerRunner<H>>,
    source: Arc<Source>,
    binding: Binding,
    connection: Connection,
    reader: Reader,
    gate: Gate,
    discovery: Discovery,
    proof: Proof,
    bytes: ByteShare,
    /// Whether the consumer is being pulled from.
    is_serving: AtomicBool,
    /// Whether an ordered consumer waits for what is owed, and begins nothing new.
    recovering: AtomicBool,
    /// Deliveries that this process holds.
    in_flight: AtomicUsize,
    /// Rung when there is one less, and so few that more may be asked for.
    capacity_freed: Notify,
    /// How many deliveries may be held at most for that.
    room_at: AtomicUsize,
    foreign: ForeignEvents,
    /// Cancelled when the program is to end.
    stop: CancellationToken,
}

/// What a consumer's loop is made of, beside what belongs to its handler.
pub(crate) struct ConsumerDeps {
    pub(crate) binding: Binding,
    pub(crate) connection: Connection,
    pub(crate) reader: Reader,
    pub(crate) gate: Gate,
    pub(crate) budget: ByteBudget,
}

/// Until when it is known that the consumer is the one that it was.
#[derive(Debug)]
struct Proof {
    began: Instant,
    /// After JetStream showed it, in microseconds after that.
    shown_until: AtomicU64,
    /// While the server has a pull request, of which it ends the last one with the consumer.
    open_until: AtomicU64,
}

impl Proof {
    fn new() -> Self {
        Self { began: Instant::now(), shown_until: AtomicU64::new(0), open_until: AtomicU64::new(0) }
    }

    /// JetStream showed it at this time.
    fn renew(&self, at: Instant) {
        self.shown_until.fetch_max(self.micros(at + PROOF_LIFETIME), Ordering::Relaxed);
    }

    /// The server has a pull request until then, or none.
    fn hold_until(&self, open_until: Option<Instant>) {
        self.open_until.store(open_until.map_or(0, |until| self.micros(until)), Ordering::Relaxed);
    }

    /// There is doubt. A request that was open is open no more.
    fn revoke(&self) {
        self.shown_until.store(0, Ordering::Relaxed);
        self.open_until.store(0, Ordering::Relaxed);
    }

    fn holds(&self, now: Instant) -> bool {
        let until = self.shown_until.load(Ordering::Relaxed).max(self.open_until.load(Ordering::Relaxed));
        self.micros(now) <= until
    }

    /// Never 0, which is no proof.
    fn micros(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        since.as_secs() * 1_000_000 + u64::from(since.subsec_micros()) + 1
    }
}

impl<H: Handler> ConsumerLoop<H> {
    pub(crate) fn new(runner: HandlerRunner<H>, deps: ConsumerDeps) -> Self {
        let ConsumerDeps { binding, connection, reader, gate, budget } = deps;
        let source = Source {
            stream: binding.stream.clone(),
            consumer: binding.consumer.clone(),
            event_consumer: runner.name.to_owned(),
            epoch: 0,
        };
        Self {
            bytes: budget.share(runner.options.bytes),
            recovering: AtomicBool::new(runner.is_ordered),
            runner: Arc::new(runner),
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
            foreign: ForeignEvents::default(),
            stop: CancellationToken::new(),
        }
    }
}

impl<H> ConsumerLoop<H> {
    /// Name of the EventConsumer.
    fn name(&self) -> &'static str {
        self.runner.name
    }

    /// Deliveries that this process may hold at once.
    fn capacity(&self) -> usize {
        let concurrency = self.runner.options.concurrency.max(1);
        let held =
            if self.runner.is_ordered { concurrency.saturating_mul(WAITING_PER_SLOT) } else { concurrency };
        usize::try_from(self.binding.max_ack_pending.min(held).max(1)).unwrap_or(usize::MAX)
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// So many deliveries came, of so many bytes together.
    fn acquire_capacity(&self, count: usize, bytes: usize) {
        self.in_flight.fetch_add(count, Ordering::Relaxed);
        self.bytes.take(bytes);
    }

    /// It is held no more.
    fn release_capacity(&self, bytes: usize) {
        self.bytes.give_back(bytes);
        let left = self.in_flight.fetch_sub(1, Ordering::SeqCst) - 1;
        // The fetcher would wake for every event otherwise, and ask for none.
        if left <= self.room_at.load(Ordering::SeqCst) {
            self.capacity_freed.notify_one();
        }
    }

    /// More may be asked for when no more than so many deliveries are held; whether that is so already.
    fn await_room(&self, room_at: usize) -> bool {
        self.room_at.store(room_at, Ordering::SeqCst);
        self.in_flight.load(Ordering::SeqCst) <= room_at
    }

    /// It is pulled from, and answers.
    fn serving(&self) {
        self.is_serving.store(true, Ordering::Relaxed);
        self.gate.open();
    }

    /// The consumer cannot be used now, and why. A pod that serves HTTP too leaves its Service only where that lasts.
    fn unavailable(&self, why: &str) {
        self.gate.close_after(UNREADY_AFTER, why);
    }
}

/// Consumes until `stop`, and then finishes what was delivered. It ends before only by a fault of this program.
pub(crate) async fn consume<H: Handler>(mut consumer: ConsumerLoop<H>, stop: CancellationToken) {
    consumer.stop = stop.clone();
    let consumer = Arc::new(consumer);
    let mut dispatcher = match Dispatcher::open(Arc::clone(&consumer)) {
        Ok(dispatcher) => dispatcher,
        Err(error) => {
            tracing::error!(binding = consumer.name(), %error, "failed to start the handler's threads");
            return;
        }
    };
    // No more is ever in it than was asked for.
    let (outbound, inbound) = mpsc::unbounded_channel();
    let working = async {
        let fetching = fetch::run(&consumer, outbound).map(Ok);
        tokio::try_join!(dispatcher.run(inbound), fetching).map(drop)
    };
    let overdue = async {
        stop.cancelled().await;
        sleep_until(Instant::now() + consumer.binding.handler_deadline.0 + SETTLE_TIMEOUT).await;
    };
    let ended = tokio::select! {
        worked = working => Some(worked),
        () = overdue => None,
        () = discovery::run(&consumer) => None,
        () = foreign::run(&consumer) => None,
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => {
            tracing::error!(binding = consumer.name(), %error, "stopped consuming after an internal fault");
        }
        None => {
            let abandoned = dispatcher.len();
            tracing::warn!(
                binding = consumer.name(),
                abandoned,
                "stopped with attempts in flight; they are delivered again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_jetstream_showed_holds_for_a_moment_and_while_a_request_is_open() {
        let proof = Proof::new();
        let now = proof.began + Duration::from_secs(7);
        assert!(!proof.holds(now));
        proof.renew(now);
        proof.renew(now - Duration::from_secs(1));
        assert!(proof.holds(now) && proof.holds(now + PROOF_LIFETIME));
        assert!(!proof.holds(now + PROOF_LIFETIME + Duration::from_millis(1)));
        proof.hold_until(Some(now + Duration::from_secs(1)));
        assert!(proof.holds(now + Duration::from_secs(1)));
        // It was served whole: the server reports the consumer's end no more.
        proof.hold_until(None);
        assert!(!proof.holds(now + Duration::from_secs(1)));
        proof.hold_until(Some(now + Duration::from_secs(1)));
        proof.revoke();
        assert!(!proof.holds(proof.began));
    }
}
