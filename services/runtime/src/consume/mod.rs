//! Consuming: one task for each binding, of two halves. The intake asks JetStream for deliveries; the desk has them handled and
//! settles them.
//!
//! | file | does |
//! | --- | --- |
//! | `intake`, `find`, `pull` | wait for the consumer, pull no more than there is room for |
//! | `desk`, `lanes`, `desk/settling` | hold what was delivered: begin it in order, keep JetStream from giving it to others, settle it |
//! | `attempt`, `settle` | handle one delivery within its limits, decide what becomes of it |
//! | `dead_letter`, `away`, `memory` | keep what is given up; what is known of what comes again |
//! | `acknowledge` | what JetStream is told |

mod acknowledge;
mod attempt;
mod away;
mod dead_letter;
mod desk;
mod find;
mod intake;
mod lanes;
mod memory;
mod pull;
mod settle;

use std::{
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::Duration,
};

use futures::FutureExt;
use jetwright_crds::environment::Binding;
use jetwright_process::health::Gate;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{Handler, Limits, Publisher, connection::Connection, metrics::HandlerMetrics};
use away::Away;
use desk::Desk;
use memory::Memory;
pub(crate) use settle::Reason;

/// Beyond a handler's deadline, what a stop leaves an attempt that was still to arrive, and its settlement.
pub(crate) const SETTLING: Duration = Duration::from_secs(2);
/// Deliveries that are held for each that is handled at once, where others of their key have to come first.
const WAITING_FOR_ORDER: u32 = 16;

/// A handler and what it consumes from.
pub(crate) struct Consumption<H> {
    handler: H,
    binding: Binding,
    limits: Limits,
    connection: Connection,
    publisher: Publisher,
    metrics: HandlerMetrics,
    gate: Gate,
    /// When the consumer that was found last was made.
    made: Mutex<Option<String>>,
    /// How often another consumer was found than before.
    incarnation: watch::Sender<u64>,
    /// Rung where JetStream does not know a delivery: its consumer may be another now.
    doubt: Notify,
    /// Deliveries that this process holds.
    held: AtomicUsize,
    /// Rung when there is one less.
    room: Notify,
    memory: Memory,
    away: Away,
    /// Cancelled when the program is to end.
    stop: CancellationToken,
}

/// What a handler consumes with.
pub(crate) struct Means {
    pub(crate) binding: Binding,
    pub(crate) limits: Limits,
    pub(crate) connection: Connection,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: HandlerMetrics,
    pub(crate) gate: Gate,
}

impl<H> Consumption<H> {
    pub(crate) fn new(handler: H, means: Means) -> Self {
        let Means { binding, limits, connection, publisher, metrics, gate } = means;
        Self {
            handler,
            binding,
            limits,
            connection,
            publisher,
            metrics,
            gate,
            made: Mutex::default(),
            incarnation: watch::Sender::default(),
            doubt: Notify::new(),
            held: AtomicUsize::default(),
            room: Notify::new(),
            memory: Memory::default(),
            away: Away::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Deliveries that this process may hold at once.
    fn capacity(&self) -> usize {
        let concurrency = self.limits.concurrency.max(1);
        let held = match self.binding.ordering {
            Some(_) => concurrency.saturating_mul(WAITING_FOR_ORDER),
            None => concurrency,
        };
        usize::try_from(self.binding.max_ack_pending.min(held).max(1)).unwrap_or(usize::MAX)
    }
}

/// Consumes until `stop`, and then finishes what was delivered. It ends before only where the connection is closed for good, or by
/// a fault of this program.
pub(crate) async fn consume<H: Handler>(mut consumption: Consumption<H>, stop: CancellationToken) {
    consumption.stop = stop.clone();
    let consumption = Arc::new(consumption);
    let opened = tokio::try_join!(intake::open(&consumption), Desk::open(Arc::clone(&consumption)));
    let (pull, mut desk) = match opened {
        Ok(opened) => opened,
        Err(error) => return consumption.gate.close(&error.to_string()),
    };
    // No more is ever in it than was asked for.
    let (outbound, inbound) = mpsc::unbounded_channel();
    let working = async {
        let taking = intake::run(pull, &consumption, outbound, &stop).map(Ok);
        tokio::try_join!(desk.run(inbound), taking).map(drop)
    };
    let overdue = async {
        stop.cancelled().await;
        sleep_until(Instant::now() + consumption.binding.handler_deadline.0 + SETTLING).await;
    };
    let ended = tokio::select! {
        worked = working => Some(worked),
        () = overdue => None,
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::error!(binding = H::BINDING, %error, "consuming ended by a fault"),
        None => {
            let given_up = desk.len();
            tracing::warn!(
                binding = H::BINDING,
                given_up,
                "stopped with attempts in flight; they are delivered again"
            );
        }
    }
}
