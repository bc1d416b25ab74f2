//! Takes deliveries from JetStream, as many as there is room for, and waits for the consumer where it is not there.

use std::sync::{Arc, atomic::Ordering};

use async_nats::Message;
use jetwright_process::nats::Violation;
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Consumption, find,
    pull::{Arrival, Pull},
};
use crate::{Handler, connection::pause};

/// Subscribes to what will be pulled. That stays open for as long as there is anything to come: what NATS sent around the loss of a
/// connection arrives still.
pub(super) async fn open<H: Handler>(
    consumption: &Arc<Consumption<H>>,
) -> Result<Pull, async_nats::SubscribeError> {
    let stream = &consumption.binding.stream;
    let consumer = &consumption.binding.consumer;
    Pull::open(&consumption.connection, stream, consumer, consumption.capacity()).await
}

/// Hands out what comes until `stop`, and then what was asked for before: nobody else would be given it before ackWait is over.
pub(super) async fn run<H: Handler>(
    mut pull: Pull,
    consumption: &Consumption<H>,
    outbound: mpsc::UnboundedSender<Message>,
    stop: &CancellationToken,
) {
    stop.run_until_cancelled(pull_for_ever(&mut pull, consumption, &outbound)).await;
    while let Some(message) = pull.rest().await {
        hand_out(consumption, &outbound, message);
    }
}

fn hand_out<H>(consumption: &Consumption<H>, outbound: &mpsc::UnboundedSender<Message>, message: Message) {
    consumption.held.fetch_add(1, Ordering::Relaxed);
    // Refused only where consuming has ended by a fault.
    let _ = outbound.send(message);
}

/// Pulls and hands out, and where the consumer does not answer waits for it. Dropping it loses nothing.
async fn pull_for_ever<H: Handler>(
    pull: &mut Pull,
    consumption: &Consumption<H>,
    outbound: &mpsc::UnboundedSender<Message>,
) {
    // Rounds that ended before JetStream had served a request, or with what the servers do not permit.
    let mut refused = 0;
    loop {
        // A consumer that is not there, or not there any more, is waited for; so is the connection.
        find::find(consumption).await;
        if refused == 0 {
            consumption.gate.open();
        }
        tracing::info!(binding = H::BINDING, "consuming");
        let served = pull.served();
        let (why, forbidden) = match pull_while_there(pull, consumption, outbound).await {
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
async fn pull_while_there<H: Handler>(
    pull: &mut Pull,
    consumption: &Consumption<H>,
    outbound: &mpsc::UnboundedSender<Message>,
) -> Stopped {
    if !pull.resume().await {
        return Stopped::Gone("not connected to NATS".to_owned());
    }
    let mut told = false;
    loop {
        if let Err(error) = pull.ask_for_room(consumption.held.load(Ordering::Relaxed)).await {
            return Stopped::Gone(error.to_string());
        }
        tokio::select! {
            biased;
            arrival = pull.next() => {
                let mut arrived = Some(arrival);
                while let Some(arrival) = arrived {
                    match arrival {
                        Arrival::Message(message) => hand_out(consumption, outbound, message),
                        Arrival::Ended => {}
                        Arrival::Gone(why) => return Stopped::Gone(why),
                        Arrival::Forbidden(violation) => return Stopped::Forbidden(violation),
                    }
                    arrived = pull.at_once();
                }
                if !told {
                    consumption.gate.open();
                    told = true;
                }
            }
            () = consumption.room.notified() => {}
            () = consumption.doubt.notified() => {
                find::find(consumption).await;
                told = false;
            }
        }
    }
}
