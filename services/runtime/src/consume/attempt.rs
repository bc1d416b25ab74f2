//! What is done with one delivery: an attempt within the limits, a decision, a dead letter where it is given up. Says how the
//! delivery is to be settled, or when it is to be tried again in its place, and tells JetStream nothing itself.

use std::{any::Any, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll, time::Duration};

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use futures::{FutureExt, poll};
use jetwright_crds::environment::Retry;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::{
    Consumption,
    acknowledge::Settlement,
    dead_letter::{Original, Verdict, keep, one_line},
    memory::Known,
    settle::{Decision, Outcome, Reason, exhausted, settle},
};
use crate::{
    ErrorKind, Event, Handler, Metadata, Undecodable, event::EVENT_TYPE, metrics::HandledOutcome, trace,
};

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
    /// When it was delivered first, if that is known.
    pub(super) first_delivered: Option<Timestamp>,
    /// What comes of it, where that is known without asking the handler.
    pub(super) known: Option<Outcome>,
}

impl Delivery {
    /// What was delivered at this time. In place, attempts count from 1 with each delivery.
    pub(super) fn new<H>(
        consumption: &Consumption<H>,
        metadata: Metadata,
        message: (Option<HeaderMap>, Bytes),
        time: Timestamp,
    ) -> Self {
        let in_place = consumption.binding.ordering.is_some();
        let (first_delivered, known) = match metadata.attempt {
            1 => (Some(time), None),
            attempt => {
                let known = consumption.memory.take(&metadata);
                (known.first_delivered, known_outcome(known, attempt, &consumption.binding.retry))
            }
        };
        let attempt = if in_place && known.is_none() { 1 } else { metadata.attempt };
        let is_last_attempt = attempt >= consumption.binding.retry.max_attempts;
        let (metadata, (headers, payload)) =
            (Arc::new(Metadata { attempt, is_last_attempt, ..metadata }), message);
        Self { metadata, headers, payload, in_place, first_delivered, known }
    }
}

/// What is to be done after an attempt.
#[derive(Debug)]
pub(super) enum Next {
    /// JetStream is to be told.
    Settle(Settlement),
    /// It is to be tried again in its place, not before this time has passed.
    Again { after: Duration, delivery: Box<Delivery> },
}

/// How an attempt ended.
enum Attempted {
    Settled(Settlement),
    /// It is to come again: to be tried, or where it was given up for this reason and with this error, to be kept.
    Again {
        after: Duration,
        given_up: Option<(Reason, String)>,
    },
}

/// Tries once.
pub(super) async fn process<H: Handler>(consumption: Arc<Consumption<H>>, mut delivery: Delivery) -> Next {
    let _in_flight = consumption.metrics.begin();
    let known = delivery.known.take();
    let trace = trace::of_attempt(H::BINDING, &delivery.metadata, delivery.headers.as_ref());
    let attempted = trace.around(pin!(try_once(&consumption, &delivery, known))).await;
    match attempted {
        Attempted::Settled(settlement) => Next::Settle(settlement),
        Attempted::Again { after, given_up } if delivery.in_place => {
            delivery.known = given_up.map(|(reason, error)| Outcome::GivenUp(reason, error));
            if delivery.known.is_none() {
                let attempt = delivery.metadata.attempt + 1;
                let is_last_attempt = attempt >= consumption.binding.retry.max_attempts;
                delivery.metadata =
                    Arc::new(Metadata { attempt, is_last_attempt, ..(*delivery.metadata).clone() });
            }
            Next::Again { after, delivery: Box::new(delivery) }
        }
        Attempted::Again { after, given_up } => {
            let known = Known { first_delivered: delivery.first_delivered, given_up };
            consumption.memory.put(&delivery.metadata, known);
            Next::Settle(Settlement::Nak { after })
        }
    }
}

/// What comes of a delivery without asking the handler: it was given up before and could not be kept, or was delivered too often.
/// Deliveries that never came to a decision, as where the process died each time, count whatever the attempts do.
fn known_outcome(known: Known, attempt: u32, retry: &Retry) -> Option<Outcome> {
    let given_up = known.given_up.map(|(reason, error)| Outcome::GivenUp(reason, error));
    given_up.or_else(|| exhausted(attempt, retry).then_some(Outcome::Exhausted))
}

/// One attempt, unless it is known already what comes of it.
async fn try_once<H: Handler>(
    consumption: &Consumption<H>,
    delivery: &Delivery,
    known: Option<Outcome>,
) -> Attempted {
    let begun = Instant::now();
    let told_before = matches!(known, Some(Outcome::GivenUp(..)));
    let outcome = match known {
        Some(outcome) => outcome,
        None => handle(consumption, delivery, begun).await,
    };
    let retry = &consumption.binding.retry;
    let decision = match outcome {
        Outcome::Done => Decision::Done,
        outcome => settle(outcome, delivery.metadata.attempt, retry, rand::random()),
    };
    if !told_before {
        tell(consumption, &delivery.metadata, &decision, begun);
    }
    match decision {
        Decision::Done => Attempted::Settled(Settlement::Ack),
        Decision::Retry { after, .. } => Attempted::Again { after, given_up: None },
        // Seldom, and large: every attempt would carry the room for it.
        Decision::Bury { reason, error } => Box::pin(bury(consumption, delivery, reason, error)).await,
    }
}

async fn handle<H: Handler>(consumption: &Consumption<H>, delivery: &Delivery, begun: Instant) -> Outcome {
    let deadline = consumption.binding.handler_deadline.0;
    // What a service wrote is called within the caught future alone, its decoding included, and cleared away there.
    let handled = AssertUnwindSafe(async {
        let mut handling = pin!(async {
            let event = match decode::<H::Event>(delivery) {
                Ok(event) => event,
                Err(why) => return Outcome::Undecodable(why),
            };
            match consumption.handler.handle(event, &delivery.metadata).await {
                Ok(()) => Outcome::Done,
                Err(failure) => Outcome::Failed(failure),
            }
        });
        match poll!(handling.as_mut()) {
            Poll::Ready(outcome) => outcome,
            // Most need no timer, and every attempt would carry the room for it.
            Poll::Pending => {
                Box::pin(timeout_at(begun + deadline, handling)).await.unwrap_or(Outcome::TimedOut(deadline))
            }
        }
    });
    let handled = handled.catch_unwind().await;
    let outcome = handled.unwrap_or_else(|panic| Outcome::Panicked(panic_message(panic.as_ref())));
    consumption.metrics.took(begun.elapsed());
    outcome
}

fn decode<E: Event>(delivery: &Delivery) -> Result<E, Undecodable> {
    let event_type = HeaderName::from_static(EVENT_TYPE);
    let event_type = delivery.headers.as_ref().and_then(|headers| headers.get(event_type));
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
) -> Attempted {
    let Some(dead_letters) = &consumption.binding.dead_letters else {
        return Attempted::Settled(Settlement::Term { reason: reason.as_str() });
    };
    let after = consumption.binding.retry.backoff.max.0;
    if !consumption.away.may_try() {
        return Attempted::Again { after, given_up: Some((reason, one_line(&error))) };
    }
    let Delivery { metadata, headers, payload, first_delivered, .. } = delivery;
    let verdict = Verdict { reason, error, first_delivered: *first_delivered, failed_at: Timestamp::now() };
    let original = Original { metadata, headers: headers.as_ref(), payload };
    let kept = keep(&consumption.publisher, dead_letters, original, &verdict).await;
    // What one event has against it says nothing about others.
    let away = kept.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
    consumption.away.heard(!away);
    if let Err(error) = kept {
        tracing::error!(binding = H::BINDING, %error, ?after, "a dead letter cannot be kept; tried again");
        return Attempted::Again { after, given_up: Some((reason, one_line(&verdict.error))) };
    }
    consumption.metrics.kept(reason);
    Attempted::Settled(Settlement::Term { reason: DEAD_LETTERED })
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
            trace::failed(&Span::current(), "transient", error);
            tracing::warn!(binding, attempt, ?after, error, "to be tried again");
            HandledOutcome::Retried
        }
        Decision::Bury { reason, error } => {
            trace::failed(&Span::current(), reason.as_str(), error);
            tracing::error!(binding, attempt, reason = reason.as_str(), error, "given up");
            HandledOutcome::Buried(*reason)
        }
    };
    consumption.metrics.handled(outcome);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
