//! Consuming: pull, decode, handle, settle. One loop for each binding, and one task for each delivery.

mod attempt;
mod find;
mod pull;
mod settle;
mod settlement;

use std::{sync::Arc, time::Duration};

use jetwright_crds::environment::Binding;
use jetwright_process::health::Gate;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{Handler, Limits, connection::Connection, metrics::HandlerMetrics};
use attempt::attempt;
use pull::{Arrival, Pull};
pub(crate) use settle::Reason;

/// Beyond a handler's deadline, what a stop leaves an attempt for its settlement.
const SETTLING: Duration = Duration::from_secs(2);

/// A handler and what it consumes from.
pub(crate) struct Consumption<H> {
    pub(crate) handler: H,
    pub(crate) binding: Binding,
    pub(crate) limits: Limits,
    pub(crate) connection: Connection,
    pub(crate) metrics: HandlerMetrics,
    pub(crate) gate: Gate,
}

impl<H> Consumption<H> {
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
    let consumption = Arc::new(consumption);
    let mut attempts = JoinSet::new();
    while !stop.is_cancelled() {
        // A consumer that is not there, or not there any more, is waited for; so is the connection.
        if stop.run_until_cancelled(find::find(&consumption)).await.is_none() {
            break;
        }
        let why = pull_while_there(&consumption, &mut pull, &mut attempts, &stop).await;
        if let Some(why) = why {
            consumption.gate.close(&why);
            tracing::warn!(binding = H::BINDING, why, "stopped pulling");
        }
    }
    // What was asked for may still come, and nobody else would be given it before ackWait is over.
    while let Some(message) = pull.rest().await {
        attempts.spawn(attempt(Arc::clone(&consumption), message));
    }
    finish(&consumption, &mut attempts).await;
}

/// Pulls and hands out until the stop (`None`) or until the consumer does not answer (why).
async fn pull_while_there<H: Handler>(
    consumption: &Arc<Consumption<H>>,
    pull: &mut Pull,
    attempts: &mut JoinSet<()>,
    stop: &CancellationToken,
) -> Option<String> {
    if !pull.resume() {
        return Some("not connected to NATS".to_owned());
    }
    loop {
        if let Err(error) = pull.ask_for_room(attempts.len()).await {
            return Some(error.to_string());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            Some(_) = attempts.join_next() => {}
            arrival = pull.next() => match arrival {
                Arrival::Message(message) => {
                    attempts.spawn(attempt(Arc::clone(consumption), message));
                }
                Arrival::Ended => {}
                Arrival::Gone(why) => return Some(why),
            },
        }
    }
}

/// Lets the attempts in flight end, within the deadline that they have anyway.
async fn finish<H: Handler>(consumption: &Consumption<H>, attempts: &mut JoinSet<()>) {
    let grace = consumption.limits.deadline + SETTLING;
    let ended = async { while attempts.join_next().await.is_some() {} };
    if timeout(grace, ended).await.is_err() {
        let given_up = attempts.len();
        tracing::warn!(
            binding = H::BINDING,
            given_up,
            "stopped with attempts in flight; they are delivered again"
        );
        attempts.shutdown().await;
    }
}
