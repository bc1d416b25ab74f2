//! Calls a handler with events as its consumer would, without a consumer: for tests of handlers. In: what was delivered. Out: what was
//! decided, and how the delivery ends. Acknowledges nothing.

use std::{sync::Arc, time::Duration};

use async_nats::Subject;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    HandlerRunner,
    ack::Settlement,
    attempt::{AttemptResult, Delivery, process},
    dead_letter::redelivery::PriorAttempts,
    delivery::Delivered,
    probe::Probe,
    retry::Decision,
};
#[cfg(test)]
use crate::partitions::Tenure;
use crate::{Handler, Metadata};

/// Runs a handler without a consumer.
pub(crate) struct TestRunner<H> {
    runner: Arc<HandlerRunner<H>>,
    probe: Arc<Probe>,
}

/// An event whose attempt is to be made.
pub(crate) struct PendingAttempt(Box<Delivery>);

/// How an attempt ended.
pub(crate) struct ObservedAttempt {
    /// `None` where the handler is content.
    pub(crate) decision: Option<Decision>,
    pub(crate) end: DeliveryEnd,
}

/// What becomes of the delivery.
pub(crate) enum DeliveryEnd {
    Acknowledged,
    /// Whether its dead letter is kept.
    Terminated {
        is_kept: bool,
    },
    /// It is delivered again after this time.
    Redelivered {
        after: Duration,
    },
    /// It is tried again in its place after this time.
    Repeated {
        after: Duration,
        next: PendingAttempt,
    },
}

impl<H: Handler> TestRunner<H> {
    pub(crate) fn new(mut runner: HandlerRunner<H>) -> Self {
        let probe = Arc::new(Probe::default());
        runner.probe = Some(Arc::clone(&probe));
        Self { runner: Arc::new(runner), probe }
    }

    /// What was delivered, as often as `metadata.attempt` says. `calls` says how often this process is taken to have called the handler with
    /// it before.
    pub(crate) fn deliver(&self, mut metadata: Metadata, payload: Bytes, calls: u32) -> PendingAttempt {
        let (now, size) = (Timestamp::now(), payload.len());
        if calls > 0 && !self.runner.is_ordered {
            metadata.attempt = metadata.attempt.max(calls.saturating_add(1));
            let prior = PriorAttempts { first_delivered: Some(now), calls, ..PriorAttempts::default() };
            self.runner.redelivery.put(&metadata, prior);
        }
        let (metadata, reply) = (Arc::new(metadata), Subject::from_static("test"));
        let delivered = Delivered { metadata, consumer_sequence: 0, reply, payload, size };
        let mut delivery = Box::new(Delivery::new(&self.runner, delivered, now));
        if delivery.in_place {
            for _ in 0..calls {
                delivery.go_on_to_next_attempt(self.runner.retry.max_attempts);
            }
        }
        PendingAttempt(delivery)
    }

    /// Makes one attempt.
    pub(crate) async fn attempt(&self, PendingAttempt(delivery): PendingAttempt) -> ObservedAttempt {
        // The time that the stream of dead letters is left alone after it did not answer does not pass here.
        self.runner.breaker.record(true);
        let (result, delivery) = process(Arc::clone(&self.runner), delivery, Instant::now(), None).await;
        let repeated = |after| DeliveryEnd::Repeated { after, next: PendingAttempt(delivery) };
        let end = match result {
            Some(AttemptResult::Settle(Settlement::Ack)) => DeliveryEnd::Acknowledged,
            Some(AttemptResult::Settle(Settlement::Term { .. })) => {
                DeliveryEnd::Terminated { is_kept: self.runner.dead_letters.is_some() }
            }
            Some(AttemptResult::Settle(Settlement::Nak { after })) => DeliveryEnd::Redelivered { after },
            Some(AttemptResult::RetryInPlace { after }) => repeated(after),
            // Here is no partition, so nothing interrupts it.
            None => repeated(Duration::ZERO),
        };
        ObservedAttempt { decision: self.probe.take(), end }
    }

    /// Makes one attempt of a partition whose lease is over; nothing comes of it.
    #[cfg(test)]
    pub(crate) async fn attempt_without_lease(
        &self,
        PendingAttempt(delivery): PendingAttempt,
    ) -> PendingAttempt {
        let tenure = Tenure::new(3, 7, Arc::default(), Arc::default());
        let attempt = process(Arc::clone(&self.runner), delivery, Instant::now(), Some(&tenure));
        let (result, delivery) = attempt.await;
        assert!(result.is_none(), "{result:?}");
        PendingAttempt(delivery)
    }
}
