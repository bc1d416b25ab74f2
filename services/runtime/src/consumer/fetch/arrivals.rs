//! What arrives from a consumer: its deliveries in their order, and the ends of pull requests.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_nats::{Message, StatusCode, Subscriber};
use futures::StreamExt;
use jetwright_nats::{ACK_PREFIX, Violation, backoff::pause};
use jetwright_partitions::subjects::Partitions;
use tokio::time::Instant;

use super::{
    credits::PullCredits,
    merge::{Merge, Ordered},
    status::{RequestEnd, request_end},
};
use crate::{
    Metadata, Source,
    consumer::{delivery::Delivered, source::ConsumerLoop},
};

/// Headers of a status that ends a request: how much of it was not delivered (NATS ADR-13).
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";
const PENDING_BYTES: &str = "Nats-Pending-Bytes";
/// Assumed bytes of an event before the first one.
const ASSUMED_SIZE: usize = 1024;
/// Maximum pause while the consumer has its maximum of requests.
const MAX_PAUSE: Duration = Duration::from_secs(1);

impl Ordered for Delivered {
    fn consumer_sequence(&self) -> u64 {
        self.consumer_sequence
    }
}

/// The result of pull requests.
pub(super) enum PullEvent {
    Deliveries(Vec<Delivered>),
    /// A request ended normally.
    Ended,
    /// A postponed request may be sent now.
    MayRequest,
    /// The consumer does not exist, or does not respond, and why that is assumed.
    Unavailable(String),
    /// The connection was lost.
    Disconnected,
    /// The client has ended, and its subscriptions with it.
    Closed,
    /// The servers do not permit to pull from it, to receive its deliveries, or to acknowledge them.
    PermissionDenied(Violation),
}

/// The subscriptions of one consumer.
pub(super) struct Arrivals {
    source: Arc<Source>,
    /// Name of the JetStream consumer.
    durable: String,
    /// Those of the source's stream.
    partitions: Option<Arc<Partitions>>,
    /// By turn.
    subscriptions: Vec<Subscriber>,
    merge: Merge<Delivered>,
    pub(super) credits: PullCredits,
    /// An end that was not passed on yet.
    ended: bool,
    unavailable: Option<String>,
    /// The next request is sent no earlier.
    pub(super) not_before: Option<Instant>,
    refusals: usize,
    /// Average bytes of recent events.
    pub(super) average_size: usize,
    /// Number of the newest request for one event with as many bytes as the consumer grants.
    pub(super) lone_request: u64,
    /// The next event has more bytes than these: a request with as many left was ended.
    pub(super) refused_bytes: usize,
    /// The last request ended, and nothing was delivered since.
    pub(super) was_in_vain: bool,
    /// The newest delivery was not the first of its event.
    pub(super) is_redelivering: bool,
    /// How many normal responses the consumer gave.
    pub(super) served: u64,
}

impl Arrivals {
    pub(super) fn new<H>(
        consumer: &ConsumerLoop<H>,
        subscriptions: Vec<Subscriber>,
        longest: Duration,
    ) -> Self {
        Self {
            source: Arc::clone(&consumer.source),
            durable: consumer.durable.clone(),
            partitions: consumer.partitions().cloned(),
            subscriptions,
            merge: Merge::default(),
            credits: PullCredits::new(longest),
            ended: false,
            unavailable: None,
            not_before: None,
            refusals: 0,
            average_size: ASSUMED_SIZE,
            lone_request: 0,
            refused_bytes: 0,
            was_in_vain: false,
            is_redelivering: false,
            served: 0,
        }
    }

    /// Forgets requests, on another connection or after the consumer was unavailable. Late deliveries still arrive.
    pub(super) fn reset(&mut self) {
        self.credits.forget();
        (self.ended, self.unavailable, self.not_before, self.refused_bytes) = (false, None, None, 0);
    }

    /// Ends the interest in what was requested: the server ends the requests, and what it sent before still arrives, mostly.
    pub(super) async fn close(&mut self) {
        for subscription in &mut self.subscriptions {
            // Refused only if the client has ended.
            let _ = subscription.drain().await;
        }
    }

    /// The next thing that is there.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<PullEvent> {
        loop {
            let (seen, _) = self.poll_subscriptions(context);
            let first = self.merge.first_pass(seen);
            let (second, is_closed) = self.poll_subscriptions(context);
            let deliveries = self.merge.in_order(first, second);
            if !deliveries.is_empty() {
                return Poll::Ready(PullEvent::Deliveries(deliveries));
            }
            if let Some(why) = self.unavailable.take() {
                return Poll::Ready(PullEvent::Unavailable(why));
            }
            if std::mem::take(&mut self.ended) {
                return Poll::Ready(PullEvent::Ended);
            }
            if is_closed {
                return Poll::Ready(PullEvent::Closed);
            }
            if !self.merge.holds_back() {
                return Poll::Pending;
            }
        }
    }

    /// Everything that has arrived over any subscription, and whether their client has ended.
    fn poll_subscriptions(&mut self, context: &mut Context<'_>) -> (Vec<Delivered>, bool) {
        let (mut deliveries, mut closed) = (Vec::new(), 0);
        for turn in 0..self.subscriptions.len() {
            loop {
                match self.subscriptions[turn].poll_next_unpin(context) {
                    Poll::Ready(Some(message)) => deliveries.extend(self.read(turn, message)),
                    Poll::Ready(None) => {
                        closed += 1;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
        (deliveries, closed == self.subscriptions.len())
    }

    fn read(&mut self, turn: usize, message: Message) -> Option<Delivered> {
        let is_delivery = message.reply.as_ref().is_some_and(|reply| reply.starts_with(ACK_PREFIX));
        match message.status {
            // The publisher of an event may have written a status into it.
            Some(status) if !is_delivery => {
                self.request_ended(turn, &message, status);
                None
            }
            _ => self.delivered(turn, message),
        }
    }

    fn delivered(&mut self, turn: usize, message: Message) -> Option<Delivered> {
        let Message { subject, reply, payload, headers, length, .. } = message;
        self.credits.received(turn, length);
        (self.refused_bytes, self.refusals, self.was_in_vain) = (0, 0, false);
        self.average_size = (self.average_size * 7 + length) / 8;
        self.served += 1;
        let reply = reply?;
        let Some((metadata, consumer_sequence)) = Metadata::parse(
            (&self.source, &self.durable),
            self.partitions.as_deref(),
            subject,
            headers,
            &reply,
        ) else {
            tracing::error!(%reply, "ignored a message that is no delivery of the consumer");
            return None;
        };
        self.is_redelivering = metadata.attempt > 1;
        Some(Delivered { metadata: Arc::new(metadata), consumer_sequence, reply, payload, size: length })
    }

    fn request_ended(&mut self, turn: usize, message: &Message, status: StatusCode) {
        let number: Option<u64> = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let header = |name| message.headers.as_ref()?.get(name)?.as_str().parse().ok();
        let (unserved, pending_bytes) = (header(PENDING_MESSAGES), header(PENDING_BYTES));
        let allowed = self.credits.ended(turn, number.unwrap_or_default(), unserved);
        match request_end(status, message.description.as_deref().unwrap_or_default()) {
            RequestEnd::Unavailable(why) => {
                self.unavailable.get_or_insert(why);
                return;
            }
            RequestEnd::Expired => self.was_in_vain = true,
            RequestEnd::TooFewBytes if number == Some(self.lone_request) => {
                self.unavailable
                    .get_or_insert("the next event is larger than maxBytes of the consumer".to_owned());
                return;
            }
            RequestEnd::TooFewBytes => {
                self.refused_bytes = pending_bytes.unwrap_or(allowed);
                self.ended = true;
                return;
            }
            RequestEnd::TooManyRequests => self.hold_back(),
        }
        self.ended = true;
        self.served += 1;
    }

    /// The next request is sent later, and later each time.
    fn hold_back(&mut self) {
        self.refusals += 1;
        let pause = pause(self.refusals + 1, rand::random()).min(MAX_PAUSE);
        self.not_before = Some(Instant::now() + pause);
    }

    /// Whether something arrived that was not passed on yet.
    pub(super) fn holds_back(&self) -> bool {
        self.merge.holds_back()
    }
}
