//! Consuming: one loop for each EventConsumer. It fetches deliveries from JetStream, has them handled, and acknowledges them.
//!
//! | folder or file | does |
//! | --- | --- |
//! | `fetch` | waits for the consumer, pulls no more than there is room for, forwards deliveries in their order; dead-letters what the client cannot parse |
//! | `dispatch` | owns the deliveries in flight: begins them in order, keeps JetStream from redelivering them, acknowledges them until that is confirmed |
//! | `pool` | the threads of a handler, shared by the sources of its events, and how many attempts there may be at once |
//! | `workers` | the threads on which handlers run, and the watchdog over them |
//! | `runner` | the state of a handler, whichever sources its events come from |
//! | `attempt`, `retry` | one attempt within its limits; the decision about the event |
//! | `dead_letter` | stores events that failed for good; what is known of redelivered events |
//! | `ack` | the acknowledgements |
//! | `budget` | the bytes of events in a process |
//! | `test_runner`, `probe` | attempts without a consumer, for tests of handlers |

mod ack;
mod attempt;
mod budget;
mod dead_letter;
mod delivery;
mod dispatch;
mod fetch;
mod observation;
mod pool;
mod probe;
mod proof;
mod retry;
mod runner;
mod source;
mod suspicion;
mod test_runner;
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
    pool::HandlerPool,
    retry::Decision,
    runner::HandlerRunner,
    source::{ConsumerDeps, ConsumerLoop},
    test_runner::{DeliveryEnd, ObservedAttempt, TestRunner},
};
use self::{
    dispatch::Dispatcher,
    fetch::{discovery, foreign},
};
use crate::Handler;

/// Beyond a handler's deadline, the time that a stop leaves for an attempt that was still to arrive, and for acknowledgements.
pub(crate) const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Consumes until `stop`, and then finishes what was delivered. When the program ends, by `program`, that is bounded. It ends earlier only
/// after a bug of this program. Returns whether nothing runs any more.
pub(crate) async fn consume<H: Handler>(
    mut consumer: ConsumerLoop<H>,
    pool: Arc<HandlerPool>,
    stop: CancellationToken,
    program: CancellationToken,
) -> bool {
    consumer.stop = stop;
    let consumer = Arc::new(consumer);
    let mut dispatcher = Dispatcher::new(Arc::clone(&consumer), pool);
    // It never contains more than was requested.
    let (outbound, inbound) = mpsc::unbounded_channel();
    let working = async {
        // The dispatcher ends when everything that was fetched is settled, or earlier if it may.
        let fetching = fetch::run(&consumer, outbound).then(|()| std::future::pending());
        tokio::select! {
            worked = dispatcher.run(inbound) => worked,
            worked = fetching => worked,
        }
    };
    let overdue = async {
        program.cancelled().await;
        sleep_until(Instant::now() + consumer.binding.handler_deadline.0 + SETTLE_TIMEOUT).await;
    };
    let ended = tokio::select! {
        worked = working => Some(worked),
        () = overdue => None,
        () = discovery::run(&consumer) => None,
        () = foreign::run(&consumer) => None,
    };
    match ended {
        Some(Ok(())) => return true,
        Some(Err(error)) => {
            tracing::error!(binding = consumer.name(), partition = consumer.partition(), %error, "stopped consuming after an internal fault");
        }
        None => {
            let (abandoned, running) = (dispatcher.len(), dispatcher.running());
            tracing::warn!(
                binding = consumer.name(),
                partition = consumer.partition(),
                abandoned,
                running,
                "stopped with events in flight, which are redelivered"
            );
            return running == 0;
        }
    }
    false
}
