//! What is done with one delivery: attempts within the limits, a decision after each, a dead letter where it is given up. Says how
//! the delivery is to be settled, and tells JetStream nothing itself.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::FutureExt;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tracing::Span;

use super::{
    Consumption,
    acknowledge::{GIVEN_BACK, Settlement},
    dead_letter::{Original, Verdict, keep},
    settle::{Decision, Outcome, Reason, exhausted, settle},
};
use crate::{Event, Handler, Metadata, Undecodable, event::EVENT_TYPE, metrics::HandledOutcome, trace};

/// What a termination tells whoever listens for it: the event is kept elsewhere.
const DEAD_LETTERED: &str = "dead-lettered";

/// An event as it was delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) metadata: Arc<Metadata>,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
    /// Attempts begin anew with every delivery, and go on here until they are used up.
    pub(super) in_place: bool,
    /// When it came, if JetStream never delivered it before.
    pub(super) first_delivered: Option<Timestamp>,
}

/// Tries until there is something to tell JetStream.
pub(super) async fn process<H: Handler>(
    consumption: Arc<Consumption<H>>,
    mut delivery: Delivery,
) -> Settlement {
    let _in_flight = consumption.metrics.begin();
    let mut outcome = known_outcome(&consumption, &mut delivery);
    loop {
        let trace = trace::of_attempt(H::BINDING, &delivery.metadata, delivery.headers.as_ref());
        let settlement = trace.around(try_once(&consumption, &delivery, outcome.take())).await;
        match settlement {
            Settlement::Nak { after } if delivery.in_place => {
                if consumption.stop.run_until_cancelled(sleep(after)).await.is_none() {
                    // Those of its key that wait behind it are given back after it.
                    return GIVEN_BACK;
                }
            }
            settlement => return settlement,
        }
        let attempt = delivery.metadata.attempt + 1;
        delivery.metadata = Arc::new(Metadata { attempt, ..(*delivery.metadata).clone() });
    }
}

/// What comes of a delivery without asking the handler: it was given up before and could not be kept, or was delivered too often.
/// Deliveries that never came to a decision, as where the process died each time, count whatever the attempts do.
fn known_outcome<H>(consumption: &Consumption<H>, delivery: &mut Delivery) -> Option<Outcome> {
    if delivery.metadata.attempt > 1
        && let Some((reason, error)) = consumption.unkept.take(&delivery.metadata)
    {
        return Some(Outcome::GivenUp(reason, error));
    }
    if exhausted(delivery.metadata.attempt, &consumption.binding.retry) {
        return Some(Outcome::Exhausted);
    }
    if delivery.in_place && delivery.metadata.attempt > 1 {
        delivery.metadata = Arc::new(Metadata { attempt: 1, ..(*delivery.metadata).clone() });
    }
    None
}

/// One attempt, unless it is known already what comes of it.
async fn try_once<H: Handler>(
    consumption: &Consumption<H>,
    delivery: &Delivery,
    known: Option<Outcome>,
) -> Settlement {
    let begun = Instant::now();
    let outcome = match known {
        Some(outcome) => outcome,
        None => handle(consumption, delivery, begun).await,
    };
    let retry = &consumption.binding.retry;
    let decision = match outcome {
        Outcome::Done => Decision::Done,
        outcome => settle(outcome, delivery.metadata.attempt, retry, rand::random()),
    };
    tell(consumption, &delivery.metadata, &decision, begun);
    match decision {
        Decision::Done => Settlement::Ack,
        Decision::Retry { after, .. } => Settlement::Nak { after },
        // Seldom, and large: every attempt would carry the room for it.
        Decision::Bury { reason, error } => Box::pin(bury(consumption, delivery, reason, error)).await,
    }
}

async fn handle<H: Handler>(consumption: &Consumption<H>, delivery: &Delivery, begun: Instant) -> Outcome {
    let deadline = consumption.binding.handler_deadline.0;
    // What a service wrote is called within the caught future alone, its decoding included.
    let handling = AssertUnwindSafe(async {
        let event = match decode::<H::Event>(delivery) {
            Ok(event) => event,
            Err(why) => return Outcome::Undecodable(why),
        };
        match consumption.handler.handle(event, &delivery.metadata).await {
            Ok(()) => Outcome::Done,
            Err(failure) => Outcome::Failed(failure),
        }
    });
    let outcome = match timeout(deadline, handling.catch_unwind()).await {
        Err(_) => Outcome::TimedOut(deadline),
        Ok(Err(panic)) => Outcome::Panicked(panic_message(panic.as_ref())),
        Ok(Ok(outcome)) => outcome,
    };
    consumption.metrics.took(begun.elapsed());
    outcome
}

fn decode<E: Event>(delivery: &Delivery) -> Result<E, Undecodable> {
    let event_type = delivery.headers.as_ref().and_then(|headers| headers.get(EVENT_TYPE));
    E::decode(event_type.ok_or_else(Undecodable::missing_type)?.as_str(), delivery.payload.clone())
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// Gives an event up: keeps it first, where that is wanted. While it cannot be kept it is not given up.
async fn bury<H: Handler>(
    consumption: &Consumption<H>,
    delivery: &Delivery,
    reason: Reason,
    error: String,
) -> Settlement {
    let Some(dead_letters) = &consumption.binding.dead_letters else {
        return Settlement::Term { reason: reason.as_str() };
    };
    let Delivery { metadata, headers, payload, in_place, first_delivered } = delivery;
    let verdict = Verdict { reason, error, first_delivered: *first_delivered, failed_at: Timestamp::now() };
    let original = Original { metadata, headers: headers.as_ref(), payload };
    while let Err(error) = keep(&consumption.publisher, dead_letters, original, &verdict).await {
        let after = consumption.binding.retry.backoff.max.0;
        tracing::error!(binding = H::BINDING, %error, ?after, "a dead letter cannot be kept; tried again");
        if !in_place {
            consumption.unkept.put(metadata, (verdict.reason, verdict.error));
            return Settlement::Nak { after };
        }
        if consumption.stop.run_until_cancelled(sleep(after)).await.is_none() {
            return GIVEN_BACK;
        }
    }
    consumption.metrics.kept(reason);
    Settlement::Term { reason: DEAD_LETTERED }
}

/// Counts and logs the decision.
fn tell<H: Handler>(consumption: &Consumption<H>, metadata: &Metadata, decision: &Decision, begun: Instant) {
    let (binding, attempt) = (H::BINDING, metadata.attempt);
    let outcome = match decision {
        Decision::Done => {
            tracing::debug!(binding, took_ms = milliseconds(begun.elapsed()), "handled");
            HandledOutcome::Done
        }
        Decision::Retry { after, error } => {
            trace::failed(&Span::current(), error);
            tracing::warn!(binding, attempt, ?after, error, "to be tried again");
            HandledOutcome::Retried
        }
        Decision::Bury { reason, error } => {
            trace::failed(&Span::current(), error);
            tracing::error!(binding, attempt, reason = reason.as_str(), error, "given up");
            HandledOutcome::Buried(*reason)
        }
    };
    consumption.metrics.handled(outcome);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
