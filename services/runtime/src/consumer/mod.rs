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

mod ack;
mod attempt;
mod budget;
mod dead_letter;
mod delivery;
mod dispatch;
mod fetch;
mod observation;
mod proof;
mod retry;
mod runner;
mod source;
mod suspicion;
mod workers;

use std::{sync::Arc, time::Duration};

use futures::FutureExt;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    budget::ByteBudget,
    runner::HandlerRunner,
    source::{ConsumerDeps, ConsumerLoop},
};
use self::{
    dispatch::Dispatcher,
    fetch::{discovery, foreign},
};
use crate::Handler;

/// Beyond a handler's deadline, what a stop leaves for an attempt that was still to arrive, and for acknowledgements.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

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
