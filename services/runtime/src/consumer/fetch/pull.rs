//! Pull requests to one consumer: never for more than there is room for, and within what the consumer grants.

use std::{future::poll_fn, time::Duration};

use async_nats::Client;
use jetwright_nats::{ACK_PREFIX, Link, Violation, ViolationReceiver};
use tokio::{
    sync::watch,
    task::unconstrained,
    time::{Instant, sleep_until},
};

use super::{
    super::{delivery::Delivered, observation::ConsumerConfig, source::ConsumerLoop},
    arrivals::{Arrivals, PullEvent},
    credits::{EXPIRES, MAX_EXPIRES, NewRequest, Room, TURNS},
};

/// Minimum bytes that a request allows, if as many are free.
const MIN_REQUEST_BYTES: usize = 64 * 1024;
/// Requests in one ackWait beyond the room that there is, for what is owed: redeliveries that are not due yet come after that time at the
/// latest, and until then each such request receives a new event.
const OVERDRAFTS: u32 = 16;
/// Minimum time between two of them.
const MIN_OVERDRAFT_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum time between two requests if the consumer lets them be open for less than that.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// The open requests at one consumer.
pub(super) struct Pull {
    client: Client,
    /// The client of the subscriptions.
    generation: u64,
    link: watch::Receiver<Link>,
    violations: ViolationReceiver,
    inbox: String,
    subject: String,
    /// Part of the subjects on which deliveries are acknowledged.
    ack_infix: String,
    arrivals: Arrivals,
    limits: RequestLimits,
    /// How long a request may stay open that nothing is delivered to. It grows while that is so, where it may.
    longest: Duration,
    patience: Duration,
    last_request: Option<Instant>,
    /// There is no room, and something is owed.
    is_overdrawn: bool,
}

/// The maximum that a consumer grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RequestLimits {
    batch: usize,
    expires: Duration,
    bytes: usize,
    open_requests: usize,
    /// Time between two requests beyond the room that there is.
    overdraft_interval: Duration,
}

impl RequestLimits {
    /// From its configuration, in which 0 is no limit.
    fn new(config: &ConsumerConfig) -> Self {
        let limit = |value: i64| usize::try_from(value).ok().filter(|value| *value > 0).unwrap_or(usize::MAX);
        let expires = u64::try_from(config.max_expires).ok().filter(|nanoseconds| *nanoseconds > 0);
        Self {
            batch: limit(config.max_batch),
            expires: expires.map_or(Duration::MAX, Duration::from_nanos),
            bytes: limit(config.max_bytes),
            open_requests: limit(config.max_waiting),
            overdraft_interval: MIN_OVERDRAFT_INTERVAL.max(config.ack_wait() / OVERDRAFTS),
        }
    }
}

/// The size of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RequestSize {
    count: usize,
    /// `None` if one event may have any size.
    bytes: Option<usize>,
    /// For one event, with as many bytes as the consumer grants.
    is_lone: bool,
}

impl Pull {
    /// Subscribes to what will be requested. Those of a partition may stay open for long while there is nothing to deliver.
    pub(super) async fn open<H>(
        consumer: &ConsumerLoop<H>,
        config: &ConsumerConfig,
    ) -> Result<Self, async_nats::SubscribeError> {
        let ConsumerLoop { connection, source, durable, tenure, .. } = consumer;
        let (link, violations, mut subscriptions) = (connection.link(), connection.violations(), Vec::new());
        let generation = link.borrow().generation;
        let client = connection.client();
        let inbox = client.new_inbox();
        for turn in 0..TURNS {
            subscriptions.push(client.subscribe(format!("{inbox}.{turn}.*")).await?);
        }
        let longest = if tenure.is_some() { MAX_EXPIRES } else { EXPIRES };
        let stream = &source.stream;
        Ok(Self {
            generation,
            link,
            subject: connection.api_subjects().next_messages(stream, durable),
            ack_infix: format!(".{stream}.{durable}."),
            arrivals: Arrivals::new(consumer, subscriptions, longest),
            client,
            violations,
            inbox,
            limits: RequestLimits::new(config),
            longest,
            patience: EXPIRES,
            last_request: None,
            is_overdrawn: false,
        })
    }

    /// Begins to pull on the current connection; `false` if there is none.
    ///
    /// A request of the previous connection may still be served, for as long as it was made for: then more is in flight for a moment than there
    /// is room for, which is better than to let what NATS sent wait for ackWait.
    pub(super) fn resume(&mut self, config: &ConsumerConfig) -> bool {
        self.arrivals.reset();
        self.violations.clear();
        (self.limits, self.last_request) = (RequestLimits::new(config), None);
        self.link.borrow_and_update().connected
    }

    /// Whether its client has ended, and another one was built.
    pub(super) fn is_outdated(&self) -> bool {
        self.link.borrow().generation != self.generation
    }

    /// How many normal responses the consumer gave.
    pub(super) fn served(&self) -> u64 {
        self.arrivals.served
    }

    /// Whether a request may still produce something.
    pub(super) fn owes(&self) -> bool {
        self.arrivals.credits.outstanding() > 0
    }

    /// Until when the server has a request, if it has one: until then it reports the end of the consumer.
    pub(super) fn open_until(&self) -> Option<Instant> {
        self.arrivals.credits.open_until()
    }

    /// Bytes that may still arrive. What is owed for too long is written off.
    pub(super) fn owed_bytes(&mut self) -> usize {
        self.arrivals.credits.next_turn(Instant::now());
        self.arrivals.credits.outstanding_bytes()
    }

    /// Requests as much as there is room for, beside what is in flight and what is owed. The request ends within `bound`.
    pub(super) async fn request(
        &mut self,
        room: Room,
        bound: Duration,
    ) -> Result<(), async_nats::PublishError> {
        let now = Instant::now();
        let is_full = room.bytes <= self.arrivals.refused_bytes || room.in_flight >= room.capacity;
        self.is_overdrawn = room.is_recovering && is_full;
        let Some(RequestSize { count, bytes, is_lone }) = self.request_size(room, now) else {
            return Ok(());
        };
        self.patience = if self.arrivals.was_in_vain { self.longest.min(2 * self.patience) } else { EXPIRES };
        let expires = self.patience.min(self.limits.expires).min(bound);
        let NewRequest { number, turn } =
            self.arrivals.credits.request(count, bytes.unwrap_or_default(), now + expires);
        if is_lone {
            self.arrivals.lone_request = number;
        }
        (self.last_request, self.arrivals.not_before) = (Some(now), None);
        let expires = u64::try_from(expires.as_nanos()).unwrap_or(u64::MAX);
        let mut request = serde_json::json!({"batch": count, "expires": expires});
        if let Some(bytes) = bytes {
            request["max_bytes"] = bytes.into();
        }
        let reply = format!("{}.{turn}.{number}", self.inbox);
        self.client.publish_with_reply(self.subject.clone(), reply, request.to_string().into()).await
    }

    /// The deliveries in flight at which it is worth checking for room again.
    pub(super) fn room_at(&self, room: Room) -> usize {
        let is_bound_by_bytes = room.bytes <= self.arrivals.refused_bytes.max(MIN_REQUEST_BYTES);
        if self.owes() && !is_bound_by_bytes {
            self.arrivals.credits.room_at(room.capacity)
        } else {
            usize::MAX
        }
    }

    /// How much to request now, if anything.
    fn request_size(&self, room: Room, now: Instant) -> Option<RequestSize> {
        let Self { arrivals, limits, .. } = self;
        let is_early = self.not_before().is_some_and(|not_before| now < not_before);
        if is_early || arrivals.credits.open_requests() >= limits.open_requests {
            return None;
        }
        if self.is_overdrawn || room.bytes.min(limits.bytes) <= arrivals.refused_bytes {
            // An event that is larger than all the room comes alone; so does what is owed. JetStream delivers what is due again
            // before anything new.
            let may_ask = self.is_overdrawn || room.in_flight == 0;
            let bytes = Some(limits.bytes).filter(|bytes| *bytes < usize::MAX);
            return (may_ask && !self.owes()).then_some(RequestSize { count: 1, bytes, is_lone: true });
        }
        let count = arrivals.credits.wanted(room).min(limits.batch);
        // Twice what is expected: the rest of the room is for requests that follow before this one is served.
        let expected = count.saturating_mul(arrivals.average_size).saturating_mul(2);
        let bytes = expected.max(MIN_REQUEST_BYTES).max(arrivals.refused_bytes.saturating_mul(2));
        let bytes = bytes.min(room.bytes).min(limits.bytes).min(i32::MAX as usize);
        (count > 0).then_some(RequestSize { count, bytes: Some(bytes), is_lone: false })
    }

    /// Whether the connection was lost or replaced since pulling began on it.
    pub(super) fn is_disconnected(&self) -> bool {
        self.link.has_changed().unwrap_or(true)
    }

    /// Until when a request is postponed.
    fn not_before(&self) -> Option<Instant> {
        let interval = if self.is_overdrawn && !self.arrivals.is_redelivering {
            Some(self.limits.overdraft_interval)
        } else {
            Some(MIN_REQUEST_INTERVAL).filter(|interval| self.limits.expires < *interval)
        };
        let spaced = self.last_request.zip(interval).map(|(last, interval)| last + interval);
        self.arrivals.not_before.max(spaced)
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> PullEvent {
        let unanswered = self.arrivals.credits.unanswered_from();
        let wake_up = self.not_before().filter(|at| *at > Instant::now());
        let Self { arrivals, link, violations, subject, inbox, ack_infix, .. } = self;
        let concerns = |violation: &Violation| match violation {
            Violation::Publish(to) => {
                to == subject || to.starts_with(ACK_PREFIX) && to.contains(&**ack_infix)
            }
            Violation::Subscribe(to) => to.starts_with(&**inbox),
        };
        let event = tokio::select! {
            biased;
            // Tokio lets a task read so many messages, and then reports every subscription as empty: a later message could
            // be seen before an earlier one. What arrives is bounded by what was requested.
            event = unconstrained(poll_fn(|context| arrivals.poll_next(context))) => event,
            _ = link.changed() => PullEvent::Disconnected,
            violation = violations.next_matching(concerns) => PullEvent::PermissionDenied(violation),
            () = at(unanswered) => PullEvent::Unavailable("the consumer does not respond".to_owned()),
            () = at(wake_up) => PullEvent::MayRequest,
        };
        if !matches!(event, PullEvent::Deliveries(_) | PullEvent::Ended | PullEvent::MayRequest) {
            arrivals.credits.forget();
        }
        event
    }

    /// Ends the open requests.
    pub(super) async fn close(&mut self) {
        self.arrivals.close().await;
    }

    /// The next of what was requested; `None` when that is all.
    pub(super) async fn drain(&mut self) -> Option<Vec<Delivered>> {
        while self.owes() || self.arrivals.holds_back() {
            match self.next().await {
                PullEvent::Deliveries(deliveries) => return Some(deliveries),
                PullEvent::Ended | PullEvent::MayRequest => {}
                _ => break,
            }
        }
        None
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
