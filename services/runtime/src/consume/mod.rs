//! Consuming: pull, decode, handle, settle. One loop for each binding, and one task for each delivery.

mod attempt;
mod find;
mod pull;
mod settle;
mod settlement;

use std::{sync::Arc, time::Duration};

use async_nats::Message;
use jetwright_crds::environment::Binding;
use jetwright_process::{health::Gate, nats::Violation};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Handler, Limits,
    connection::{Connection, pause},
    metrics::HandlerMetrics,
};
use attempt::attempt;
use find::Incarnation;
use pull::{Arrival, Pull};
pub(crate) use settle::Reason;

/// Beyond a handler's deadline, what a stop leaves an attempt that was still to arrive, and its settlement.
pub(crate) const SETTLING: Duration = Duration::from_secs(2);

/// A handler and what it consumes from.
pub(crate) struct Consumption<H> {
    pub(crate) handler: H,
    pub(crate) binding: Binding,
    pub(crate) limits: Limits,
    pub(crate) connection: Connection,
    pub(crate) metrics: HandlerMetrics,
    pub(crate) gate: Gate,
    /// When the consumer that was found last was made.
    incarnation: watch::Sender<Option<String>>,
    /// Rung where JetStream does not know a delivery: its consumer may be another now.
    doubt: Notify,
}

/// What a handler consumes with.
pub(crate) struct Means {
    pub(crate) binding: Binding,
    pub(crate) limits: Limits,
    pub(crate) connection: Connection,
    pub(crate) metrics: HandlerMetrics,
    pub(crate) gate: Gate,
}

impl<H> Consumption<H> {
    pub(crate) fn new(handler: H, means: Means) -> Self {
        let Means { binding, limits, connection, metrics, gate } = means;
        let (incarnation, doubt) = (watch::Sender::default(), Notify::new());
        Self { handler, binding, limits, connection, metrics, gate, incarnation, doubt }
    }

    /// Deliveries that this process holds at once.
    fn capacity(&self) -> usize {
        let most = self.binding.max_ack_pending.min(self.limits.concurrency).max(1);
        usize::try_from(most).unwrap_or(usize::MAX)
    }
}

/// Consumes until `stop`, and then finishes what was delivered. It ends before only where the connection is closed for good.
pub(crate) async fn consume<H: Handler>(consumption: Consumption<H>, stop: CancellationToken) {
    let Binding { stream, consumer, .. } = &consumption.binding;
    // Open for as long as this runs: what NATS sent around the loss of a connection arrives still.
    let mut pull = match Pull::open(&consumption.connection, stream, consumer, consumption.capacity()).await {
        Ok(pull) => pull,
        Err(error) => return consumption.gate.close(&error.to_string()),
    };
    let mut attempts = Attempts { consumption: Arc::new(consumption), running: JoinSet::new() };
    stop.run_until_cancelled(pull_for_ever(&mut pull, &mut attempts)).await;
    let end = Instant::now() + attempts.consumption.binding.handler_deadline.0 + SETTLING;
    // What was asked for may still come, and nobody else would be given it before ackWait is over.
    while let Ok(Some(message)) = timeout_at(end, pull.rest()).await {
        attempts.begin(message);
    }
    attempts.finish(end).await;
}

/// Pulls and hands out, and where the consumer does not answer waits for it. Dropping it loses nothing.
async fn pull_for_ever<H: Handler>(pull: &mut Pull, attempts: &mut Attempts<H>) {
    let consumption = Arc::clone(&attempts.consumption);
    // Rounds that ended before JetStream had served a request, or with what the servers do not permit.
    let mut refused = 0;
    loop {
        // A consumer that is not there, or not there any more, is waited for; so is the connection.
        find::find(&consumption).await;
        if refused == 0 {
            consumption.gate.open();
        }
        tracing::info!(binding = H::BINDING, "consuming");
        let served = pull.served();
        let (why, forbidden) = match pull_while_there(pull, attempts).await {
            Stopped::Gone(why) => (why, false),
            Stopped::Forbidden(violation) => (violation.to_string(), true),
        };
        refused = if forbidden || pull.served() == served { refused + 1 } else { 0 };
        consumption.gate.close(&why);
        tracing::warn!(binding = H::BINDING, why, "stopped pulling");
        // It is there and may refuse every request, as where its configuration does not fit: then it is asked ever less.
        sleep(pause(refused, rand::random())).await;
    }
}

/// Why pulling stopped.
enum Stopped {
    /// The consumer does not answer.
    Gone(String),
    /// The servers do not permit it.
    Forbidden(Violation),
}

/// Pulls and hands out until the consumer does not answer, and says why.
async fn pull_while_there<H: Handler>(pull: &mut Pull, attempts: &mut Attempts<H>) -> Stopped {
    if !pull.resume() {
        return Stopped::Gone("not connected to NATS".to_owned());
    }
    let consumption = Arc::clone(&attempts.consumption);
    let mut told = false;
    loop {
        if let Err(error) = pull.ask_for_room(attempts.running.len()).await {
            return Stopped::Gone(error.to_string());
        }
        tokio::select! {
            biased;
            Some(_) = attempts.running.join_next() => {}
            arrival = pull.next() => {
                match arrival {
                    Arrival::Message(message) => attempts.begin(message),
                    Arrival::Ended => {}
                    Arrival::Gone(why) => return Stopped::Gone(why),
                    Arrival::Forbidden(violation) => return Stopped::Forbidden(violation),
                }
                if !told {
                    consumption.gate.open();
                    told = true;
                }
            }
            () = consumption.doubt.notified() => {
                find::find(&consumption).await;
                told = false;
            }
        }
    }
}

/// The attempts in flight.
struct Attempts<H> {
    consumption: Arc<Consumption<H>>,
    running: JoinSet<()>,
}

impl<H: Handler> Attempts<H> {
    fn begin(&mut self, message: Message) {
        let incarnation = Incarnation::newest(&self.consumption);
        self.running.spawn(attempt(Arc::clone(&self.consumption), message, incarnation));
    }

    /// Lets them end until then.
    async fn finish(mut self, end: Instant) {
        let ended = async { while self.running.join_next().await.is_some() {} };
        if timeout_at(end, ended).await.is_err() {
            let given_up = self.running.len();
            tracing::warn!(
                binding = H::BINDING,
                given_up,
                "stopped with attempts in flight; they are delivered again"
            );
            self.running.shutdown().await;
        }
    }
}
