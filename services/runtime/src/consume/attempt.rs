//! One attempt at one delivery: decode, handle within the limits, decide, settle, and tell what happened.

use std::{any::Any, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_nats::Message;
use futures::FutureExt;
use tokio::time::{Instant, interval_at, timeout};
use tracing::{Instrument, Span};

use super::{
    Consumption,
    find::Incarnation,
    settle::{Outcome, Settlement, exhausted, settle},
    settlement::{self, Delivery},
};
use crate::{Event, Handler, Metadata, Undecodable, event::EVENT_TYPE, metrics::HandledOutcome, trace};

/// Handles one delivery, whatever it is.
pub(super) async fn attempt<H: Handler>(
    consumption: Arc<Consumption<H>>,
    message: Message,
    incarnation: Incarnation,
) {
    let Some((metadata, reply)) = message
        .reply
        .as_ref()
        .and_then(|reply| Some((Metadata::parse(&message.subject, reply)?, reply.to_string())))
    else {
        tracing::error!(binding = H::BINDING, subject = %message.subject, "not a delivery of JetStream; ignored");
        return;
    };
    let begun = Instant::now();
    let delivery = Delivery { reply, incarnation };
    let span = trace::attempt_span(H::BINDING, &metadata, message.headers.as_ref());
    async {
        let _in_flight = consumption.metrics.begin();
        let outcome = handle(&consumption, message, &metadata, &delivery).await;
        let decision = settle(outcome, metadata.attempt, &consumption.binding.retry, rand::random());
        tell(&consumption, &decision, begun.elapsed());
        settlement::confirm(&consumption, &delivery, &decision).await;
    }
    .instrument(span)
    .await;
}

async fn handle<H: Handler>(
    consumption: &Consumption<H>,
    message: Message,
    metadata: &Metadata,
    delivery: &Delivery,
) -> Outcome {
    if exhausted(metadata.attempt, &consumption.binding.retry) {
        return Outcome::Exhausted;
    }
    let event = match decode::<H::Event>(message) {
        Ok(event) => event,
        Err(why) => return Outcome::Undecodable(why),
    };
    let begun = Instant::now();
    let deadline = consumption.binding.handler_deadline.0;
    // Called within the caught future, so that a panic before its first await is caught as well.
    let handling =
        AssertUnwindSafe(async { consumption.handler.handle(event, metadata).await }).catch_unwind();
    let outcome = tokio::select! {
        ended = timeout(deadline, handling) => match ended {
            Err(_) => Outcome::TimedOut(deadline),
            Ok(Err(panic)) => Outcome::Panicked(panic_message(panic.as_ref())),
            Ok(Ok(Ok(()))) => Outcome::Done,
            Ok(Ok(Err(failure))) => Outcome::Failed(failure),
        },
        never = keep_alive(consumption, delivery) => match never {},
    };
    consumption.metrics.took(begun.elapsed());
    outcome
}

fn decode<E: Event>(message: Message) -> Result<E, Undecodable> {
    let event_type = message.headers.as_ref().and_then(|headers| headers.get(EVENT_TYPE));
    E::decode(event_type.ok_or_else(Undecodable::missing_type)?.as_str(), message.payload)
}

/// Tells JetStream every half of ackWait that the event is still being handled, so that nobody else is given it.
async fn keep_alive<H>(consumption: &Consumption<H>, delivery: &Delivery) -> std::convert::Infallible {
    let half = (consumption.binding.ack_wait.0 / 2).max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + half, half);
    loop {
        ticks.tick().await;
        settlement::in_progress(consumption, delivery).await;
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// Counts and logs the decision. The span's fields name the event.
fn tell<H: Handler>(consumption: &Consumption<H>, decision: &Settlement, took: Duration) {
    let outcome = match decision {
        Settlement::Ack => {
            tracing::debug!(binding = H::BINDING, took_ms = took.as_secs_f64() * 1e3, "handled");
            HandledOutcome::Done
        }
        Settlement::Retry { after, error } => {
            trace::failed(&Span::current(), error);
            tracing::warn!(?after, error, "to be tried again");
            HandledOutcome::Retried
        }
        Settlement::Bury { reason, error } => {
            trace::failed(&Span::current(), error);
            tracing::error!(reason = reason.as_str(), error, "given up");
            HandledOutcome::Buried(*reason)
        }
    };
    consumption.metrics.handled(outcome);
}
