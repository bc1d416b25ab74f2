//! Processes one delivery: an attempt within its limits, a decision, a dead letter if the event has failed for good. Returns how the
//! delivery ends, or when it is retried in place; acknowledges nothing itself.

use std::{any::Any, panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, poll};
use jiff::Timestamp;
use opentelemetry::trace::{SpanContext, TraceId};
use tokio::time::{Instant, timeout_at};

use super::{
    HandlerRunner,
    ack::Settlement,
    dead_letter::{FailureDetails, Original, keep, one_line, redelivery::PriorAttempts},
    delivery::Delivered,
    retry::{Decision, Isolation, Outcome, Reason, is_last_attempt, isolation},
    source::ConsumerLoop,
};
use crate::{
    DecodeError, Error, ErrorKind, Event, Handler, Metadata, blocking, known_headers::KnownHeaders,
    metrics::HandledOutcome, partitions::Tenure, store::RawEvent, trace,
};

/// Reason of a termination in the server's advisory: the event is stored as a dead letter.
const DEAD_LETTERED: &str = "dead-lettered";

/// Maximum delay of a retry, whatever the handler asks for. Clocks and JetStream's delays have a limit, and nobody notices a difference
/// beyond this.
const MAX_RETRY_DELAY: Duration = Duration::from_hours(24 * 365);

/// An event as it was delivered.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) metadata: Arc<Metadata>,
    pub(super) payload: Bytes,
    /// Attempts begin again with every delivery, and continue in place until they are used up.
    pub(super) in_place: bool,
    pub(super) isolation: Isolation,
    /// When it was delivered first, if known.
    pub(super) first_delivered: Option<Timestamp>,
    /// How often this process called the handler with it.
    calls: u32,
    /// Its outcome, if known without a call of the handler.
    known: Option<Outcome>,
    /// The span of the attempt before, if this process made it and it is recorded.
    previous: Option<SpanContext>,
    /// The trace of its attempt, where that is recorded.
    trace: Option<TraceId>,
    /// Its next attempt begins no earlier.
    pub(super) not_before: Option<Instant>,
}

impl Delivery {
    /// A delivery of this time, and its acknowledgement subject. In place, attempts count from 1 with each delivery.
    pub(super) fn new<H>(runner: &HandlerRunner<H>, delivered: Delivered, time: Timestamp) -> Self {
        let Delivered { mut metadata, payload, .. } = delivered;
        let (deliveries, retry) = (metadata.attempt, &runner.retry);
        let in_place = runner.is_ordered;
        let prior = match deliveries {
            1 => PriorAttempts { first_delivered: Some(time), ..PriorAttempts::default() },
            _ => runner.redelivery.take(&metadata),
        };
        let PriorAttempts { first_delivered, calls, given_up, previous } = prior;
        // The handler is not called any more, so the event ends no process.
        let isolation = if given_up.is_some() { Isolation::None } else { isolation(deliveries, retry) };
        let given_up = given_up.map(|(reason, error)| Outcome::GivenUp(reason, error));
        let too_often = (isolation == Isolation::NotCalled).then_some(Outcome::DeliveredTooOften(deliveries));
        let attempt = if in_place { 1 } else { deliveries };
        let is_last_attempt =
            if in_place { attempt >= retry.max_attempts } else { is_last_attempt(deliveries, calls, retry) };
        let known_only_here = Arc::make_mut(&mut metadata);
        (known_only_here.attempt, known_only_here.is_last_attempt) = (attempt, is_last_attempt);
        Self {
            metadata,
            payload,
            in_place,
            isolation,
            first_delivered,
            calls,
            known: given_up.or(too_often),
            previous,
            trace: None,
            not_before: None,
        }
    }

    /// An event of its key has to end first, so no process has begun it: its deliveries are those of hand-overs.
    pub(super) fn count_as_not_begun(&mut self) {
        self.isolation = Isolation::None;
        self.known.take_if(|known| matches!(known, Outcome::DeliveredTooOften(_)));
    }

    /// Its next attempt is one in place.
    pub(super) fn go_on_to_next_attempt(&mut self, max_attempts: u32) {
        let metadata = Arc::make_mut(&mut self.metadata);
        metadata.attempt += 1;
        metadata.is_last_attempt = metadata.attempt >= max_attempts;
    }
}

/// What follows an attempt.
#[derive(Debug)]
pub(super) enum AttemptResult {
    Settle(Settlement),
    /// It is retried in place, not before this time has passed.
    RetryInPlace {
        after: Duration,
    },
}

/// How an attempt ended.
enum AttemptEnd {
    Settled(Settlement),
    /// It is redelivered: for a retry, or, if it failed for this reason and with this error, for its dead letter.
    Again {
        after: Duration,
        given_up: Option<(Reason, String)>,
    },
}

/// Makes one attempt, which begins now; `None` if it was interrupted, since the right to make it ended. The delivery returns to where it came
/// from, also to be dropped: memory is freed at least cost there.
pub(super) async fn process<H: Handler>(
    runner: Arc<HandlerRunner<H>>,
    mut delivery: Box<Delivery>,
    now: Instant,
    tenure: Option<&Tenure>,
) -> (Option<AttemptResult>, Box<Delivery>) {
    let _in_flight = runner.metrics.begin();
    let known = delivery.known.take();
    delivery.calls += u32::from(known.is_none());
    let headers = KnownHeaders::find(&delivery.metadata.headers);
    let parent = trace::extract(&delivery.metadata.headers, headers);
    let span = trace::of_attempt(&runner.templates, &delivery.metadata, parent, delivery.previous.as_ref());
    delivery.trace = Some(span.span_context()).filter(SpanContext::is_sampled).map(|span| span.trace_id());
    if known.is_none() && (delivery.calls, delivery.metadata.attempt) == (1, 1) {
        let waited = Timestamp::now().duration_since(delivery.metadata.time);
        runner.metrics.delivered_after(waited.try_into().unwrap_or_default(), delivery.trace);
    }
    let attempt = Attempt { delivery: &delivery, event_type: headers.event_type, begun: now, tenure };
    let ended = trace::within(&span, pin!(try_once(&runner, attempt, known))).await;
    let ended = match ended {
        Ok(ended) => ended,
        Err(Interrupted { known }) => {
            delivery.known = known;
            return (None, delivery);
        }
    };
    let result = match ended {
        AttemptEnd::Settled(settlement) => AttemptResult::Settle(settlement),
        AttemptEnd::Again { after, given_up } => {
            let after = after.min(MAX_RETRY_DELAY);
            delivery.previous = Some(span.span_context()).filter(SpanContext::is_sampled);
            if delivery.in_place {
                delivery.known = given_up.map(|(reason, error)| Outcome::GivenUp(reason, error));
                if delivery.known.is_none() {
                    delivery.go_on_to_next_attempt(runner.retry.max_attempts);
                }
                AttemptResult::RetryInPlace { after }
            } else {
                let (first_delivered, calls) = (delivery.first_delivered, delivery.calls);
                let previous = delivery.previous.take();
                let prior = PriorAttempts { first_delivered, calls, given_up, previous };
                runner.redelivery.put(&delivery.metadata, prior);
                AttemptResult::Settle(Settlement::Nak { after })
            }
        }
    };
    (Some(result), delivery)
}

/// The right to an attempt ended, and nothing came of it.
struct Interrupted {
    /// The outcome that was known before.
    known: Option<Outcome>,
}

/// What an attempt knows of its event.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    delivery: &'a Delivery,
    /// Of its headers.
    event_type: Option<&'a str>,
    begun: Instant,
    /// The right to make it, where one is needed.
    tenure: Option<&'a Tenure>,
}

/// One attempt, unless its outcome is known already.
async fn try_once<H: Handler>(
    runner: &HandlerRunner<H>,
    attempted: Attempt<'_>,
    known: Option<Outcome>,
) -> Result<AttemptEnd, Interrupted> {
    let Attempt { delivery, begun, tenure, .. } = attempted;
    let is_over = || tenure.is_some_and(Tenure::is_over);
    let was_recorded = matches!(known, Some(Outcome::GivenUp(..)));
    let outcome = match known {
        // All that can be known leads to a dead letter.
        Some(outcome) if is_over() => {
            log_withheld(runner, &delivery.metadata, &outcome);
            return Err(Interrupted { known: Some(outcome) });
        }
        Some(outcome) => outcome,
        None => handle(runner, attempted).await.ok_or(Interrupted { known: None })?,
    };
    let Metadata { attempt, is_last_attempt, .. } = *delivery.metadata;
    let decision = match outcome {
        Outcome::Done => Decision::Done,
        outcome => runner.decide(outcome, attempt, is_last_attempt),
    };
    match decision {
        // The next owner of the partition decides: its attempt may succeed.
        Decision::DeadLetter { reason, error } if is_over() => {
            log_withheld(runner, &delivery.metadata, &Outcome::GivenUp(reason, error));
            Err(Interrupted { known: None })
        }
        decision => {
            if !was_recorded {
                record(runner, &delivery.metadata, &decision, begun);
            }
            Ok(match decision {
                Decision::Done | Decision::Ignored => AttemptEnd::Settled(Settlement::Ack),
                Decision::Retry { after, .. } => AttemptEnd::Again { after, given_up: None },
                // Rare, and large: every attempt would reserve the room for it.
                Decision::DeadLetter { reason, error } => {
                    Box::pin(dead_letter(runner, delivery, reason, error)).await
                }
            })
        }
    }
}

fn log_withheld<H>(runner: &HandlerRunner<H>, metadata: &Metadata, outcome: &Outcome) {
    let Metadata { subject, partition, sequence, .. } = metadata;
    tracing::warn!(
        binding = runner.name,
        partition,
        subject = &**subject,
        sequence,
        ?outcome,
        "withheld a dead letter: the lease of its partition is over, or another process has the partition"
    );
}

/// Calls the handler; `None` if that was interrupted.
async fn handle<H: Handler>(runner: &HandlerRunner<H>, attempt: Attempt<'_>) -> Option<Outcome> {
    let Attempt { delivery, event_type, begun, tenure } = attempt;
    let deadline = runner.deadline;
    // The service's own code, its decoding included, runs and is dropped within the caught future alone.
    let mut handled = pin!(blocking::tracked(async {
        // A handler's future may have any size, and what has it inside is moved on its way to a thread.
        let mut handling = Box::pin(async {
            let event = match decode::<H::Event>(event_type, delivery) {
                Ok(event) => event,
                Err(why) if runner.ignores(&why) => return Outcome::Ignored,
                Err(why) => return Outcome::Undecodable(why),
            };
            match runner.handler.handle(event, &delivery.metadata).await {
                Ok(()) => Outcome::Done,
                Err(failure) => Outcome::Failed(failure),
            }
        });
        match poll!(&mut handling) {
            Poll::Ready(outcome) => Some(outcome),
            // Most need no timer, and every attempt would reserve the room for it.
            Poll::Pending => {
                Box::pin(async {
                    let handled = timeout_at(begun + deadline, handling);
                    tokio::select! {
                        biased;
                        // First: after a long freeze both may be ready.
                        () = over(tenure) => None,
                        outcome = handled => Some(outcome.unwrap_or(Outcome::TimedOut(deadline))),
                    }
                })
                .await
            }
        }
    }));
    let ended = AssertUnwindSafe(handled.as_mut()).catch_unwind().await;
    let outcome = ended.unwrap_or_else(|panic| Some(Outcome::Panicked(panic_message(panic.as_ref()))));
    runner.metrics.took(begun.elapsed(), delivery.trace);
    if outcome.is_none() {
        let Metadata { subject, partition, sequence, .. } = &*delivery.metadata;
        tracing::warn!(
            binding = runner.name,
            partition,
            subject = &**subject,
            sequence,
            "interrupted handler: the lease of its partition is over, or another process has the partition"
        );
    }
    if runner.is_ordered
        && let Some(running) = blocking::running(handled)
    {
        let _watched = runner.watchdog.watch_blocking_code(begun.elapsed());
        running.wait().await;
    }
    outcome
}

/// Waits until the right to an attempt ends.
async fn over(tenure: Option<&Tenure>) {
    match tenure {
        Some(tenure) => tenure.over().await,
        None => std::future::pending().await,
    }
}

fn decode<E: Event>(event_type: Option<&str>, delivery: &Delivery) -> Result<E, DecodeError> {
    E::decode(event_type.ok_or_else(DecodeError::missing_type)?, delivery.payload.clone())
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// Ends an event that failed for good: writes its dead letter first, if the binding wants one. Without the dead letter, the event does
/// not end.
async fn dead_letter<H: Handler>(
    runner: &HandlerRunner<H>,
    delivery: &Delivery,
    reason: Reason,
    error: String,
) -> AttemptEnd {
    let Some(dead_letters) = &runner.dead_letters else {
        return AttemptEnd::Settled(Settlement::Term { reason: reason.as_str() });
    };
    let after = runner.retry.backoff.max.0;
    if !runner.breaker.allow() {
        return AttemptEnd::Again { after, given_up: Some((reason, one_line(&error))) };
    }
    let Delivery { metadata, payload, first_delivered, .. } = delivery;
    let details =
        FailureDetails { reason, error, first_delivered: *first_delivered, failed_at: Timestamp::now() };
    let original = Original::parsed(metadata, payload);
    let kept = keep(&runner.publisher, dead_letters, original, &details).await;
    // An error of one event's own says nothing about others.
    let is_away = kept.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
    runner.breaker.record(!is_away);
    if let Err(error) = kept {
        let Metadata { subject, partition, sequence, .. } = &**metadata;
        let (binding, subject) = (runner.name, subject.as_str());
        let message = "failed to write a dead letter, will retry";
        tracing::error!(binding, partition, subject, sequence, %error, ?after, "{message}");
        return AttemptEnd::Again { after, given_up: Some((reason, one_line(&details.error))) };
    }
    runner.metrics.dead_lettered(reason.as_str());
    AttemptEnd::Settled(Settlement::Term { reason: DEAD_LETTERED })
}

/// Writes the dead letter of an event that the client cannot parse, if the binding wants one. Returns the reason of the termination.
pub(super) async fn keep_foreign<H: Handler>(
    consumer: &ConsumerLoop<H>,
    event: &RawEvent,
) -> Result<&'static str, Error> {
    let (runner, source) = (&consumer.runner, &consumer.source);
    let reason = Reason::Undecodable;
    let Some(dead_letters) = &runner.dead_letters else { return Ok(reason.as_str()) };
    let why = event.unparsable().unwrap_or_default();
    let (error, failed_at) = (format!("the NATS client cannot parse it: {why}"), Timestamp::now());
    let details = FailureDetails { reason, error, first_delivered: None, failed_at };
    let original = Original::raw(source, consumer.partitions().map(Arc::as_ref), event);
    keep(&runner.publisher, dead_letters, original, &details).await?;
    Ok(DEAD_LETTERED)
}

/// Counts and logs an event that the client cannot parse, and whose delivery is terminated: no handler was called, so it is its first attempt.
pub(super) fn record_foreign<H: Handler>(runner: &HandlerRunner<H>, sequence: u64) {
    let reason = Reason::Undecodable;
    let error = "the NATS client cannot parse it";
    tracing::error!(binding = runner.name, reason = reason.as_str(), sequence, error, "gave up event");
    if runner.dead_letters.is_some() {
        runner.metrics.dead_lettered(reason.as_str());
    }
    runner.metrics.attempted(HandledOutcome::DeadLettered(reason.as_str()), 1);
}

/// Counts and logs the decision.
fn record<H: Handler>(runner: &HandlerRunner<H>, metadata: &Metadata, decision: &Decision, begun: Instant) {
    let (binding, partition, attempt) = (runner.name, metadata.partition, metadata.attempt);
    // Named in the line itself: not every form of the log shows what surrounds it.
    let (subject, sequence) = (metadata.subject.as_str(), metadata.sequence);
    let outcome = match decision {
        Decision::Done => {
            tracing::debug!(binding, took_ms = milliseconds(begun.elapsed()), "handled");
            HandledOutcome::Done
        }
        Decision::Ignored => HandledOutcome::Ignored,
        Decision::Retry { after, error } => {
            trace::fail_current("transient", error);
            let message = "handler failed, will retry";
            tracing::warn!(binding, partition, subject, sequence, attempt, ?after, error, "{message}");
            HandledOutcome::Retried
        }
        Decision::DeadLetter { reason, error } => {
            trace::fail_current(reason.as_str(), error);
            let reason = reason.as_str();
            tracing::error!(binding, partition, subject, sequence, attempt, reason, error, "gave up event");
            HandledOutcome::DeadLettered(reason)
        }
    };
    runner.metrics.attempted(outcome, attempt);
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
