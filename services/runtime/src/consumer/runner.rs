//! The state of a handler, whichever sources its events come from: how often and how long it is called, and what is remembered of
//! redelivered events. No connection: all it needs of NATS is a publisher for dead letters.

use std::{sync::Arc, time::Duration};

use jetwright_crds::environment::{Binding, DeadLetters, Retry};

use super::{
    dead_letter::{breaker::CircuitBreaker, redelivery::RedeliveryCache},
    probe::Probe,
    retry::{Decision, Outcome, decide},
    workers::Watchdog,
};
use crate::{
    DecodeError, HandlerOptions, Publisher, UnknownTypes, metrics::HandlerMetrics, trace::Templates,
};

/// Calls one handler.
pub(crate) struct HandlerRunner<H> {
    /// Name of the EventConsumer.
    pub(super) name: &'static str,
    pub(super) handler: H,
    pub(super) options: HandlerOptions,
    pub(super) retry: Retry,
    /// How long one attempt may take.
    pub(super) deadline: Duration,
    /// Whether failed attempts are repeated in place.
    pub(super) is_ordered: bool,
    /// The dead-letter stream's subject and limits.
    pub(super) dead_letters: Option<DeadLetters>,
    /// Writes dead letters.
    pub(super) publisher: Publisher,
    pub(super) metrics: HandlerMetrics,
    pub(super) redelivery: RedeliveryCache,
    pub(super) breaker: CircuitBreaker,
    pub(super) watchdog: Arc<Watchdog>,
    /// What spans call the subjects of its events.
    pub(super) templates: Templates,
    /// Of a test; production has none.
    pub(super) probe: Option<Arc<Probe>>,
}

impl<H> HandlerRunner<H> {
    pub(crate) fn new(
        (name, handler): (&'static str, H),
        options: HandlerOptions,
        binding: &Binding,
        (publisher, metrics): (Publisher, HandlerMetrics),
    ) -> Self {
        let deadline = binding.handler_deadline.0;
        Self {
            name,
            handler,
            options,
            retry: binding.retry,
            deadline,
            is_ordered: binding.ordering.is_some(),
            dead_letters: binding.dead_letters.clone(),
            publisher,
            metrics,
            redelivery: RedeliveryCache::default(),
            breaker: CircuitBreaker::default(),
            watchdog: Arc::new(Watchdog::new(name, deadline)),
            templates: Templates::default(),
            probe: None,
        }
    }

    /// Decides what becomes of an event that the handler is not content with.
    pub(super) fn decide(&self, outcome: Outcome, attempt: u32, is_last_attempt: bool) -> Decision {
        let jitter = if self.probe.is_some() { Probe::JITTER } else { rand::random() };
        let decision = decide(outcome, attempt, is_last_attempt, &self.retry, jitter);
        if let Some(probe) = &self.probe {
            probe.record(&decision);
        }
        decision
    }

    /// Whether an event that cannot be decoded for this reason is not for the handler.
    pub(super) fn ignores(&self, error: &DecodeError) -> bool {
        self.options.unknown_types == UnknownTypes::Ignore && error.is_unknown_type()
    }

    pub(crate) fn watchdog(&self) -> &Arc<Watchdog> {
        &self.watchdog
    }
}
