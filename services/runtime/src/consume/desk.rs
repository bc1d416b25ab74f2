//! What was delivered and is not settled yet: begins each delivery when it may, tells JetStream that it is still being handled, and
//! how it ended, until that is confirmed.

use std::{
    collections::{HashSet, VecDeque},
    mem,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Message, StatusCode, Subject, Subscriber};
use futures::{FutureExt, StreamExt};
use jetwright_process::nats::{Violation, Watch};
use jiff::Timestamp;
use slab::Slab;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    Consumption,
    acknowledge::{Due, GIVEN_BACK, IN_PROGRESS, Settlement, Unconfirmed},
    attempt::{Delivery, process},
    lanes::{Lanes, key},
};
use crate::{Acknowledge, Handler, Metadata, connection::Link, metadata::Origin};

/// A handler that keeps its thread for longer than this is given threads of its own, for the next so many events.
const LONG: Duration = Duration::from_micros(100);
const APART: u32 = 64;
/// One that keeps it for longer than this keeps others from being told of: it is given threads of its own for much longer.
const MUCH_TOO_LONG: Duration = Duration::from_millis(10);
const FAR_APART: u32 = 16 * 1024;
/// Things of one kind that are seen to before those of another have their turn.
const BATCH: usize = 64;
/// Longest time between two looks at what is due.
const LOOK: Duration = Duration::from_millis(100);

/// The deliveries that this process holds.
pub(super) struct Desk<H> {
    consumption: Arc<Consumption<H>>,
    origin: Origin,
    held: Slab<Held>,
    lanes: Option<Lanes>,
    /// The first of their lanes now, which may begin.
    next: VecDeque<usize>,
    /// Lanes with a delivery that was given back: those behind it are given back too.
    returned: HashSet<u64>,
    /// Until when what waits may still begin, once the program is to end.
    last_begin: Option<Instant>,
    working: JoinSet<(usize, Settlement)>,
    /// How many events are still to be handled apart.
    apart: u32,
    confirmations: Subscriber,
    inbox: String,
    numbers: u64,
    link: watch::Receiver<Link>,
    incarnation: watch::Receiver<u64>,
    violations: Watch,
}

/// One delivery.
struct Held {
    /// Where JetStream is told.
    reply: Subject,
    sequence: u64,
    /// The consumer that delivered it: one of this name that was made later knows nothing of it.
    incarnation: u64,
    lane: Option<u64>,
    /// When JetStream heard of it last.
    heard: Instant,
    state: State,
}

enum State {
    /// For those of its key that came before it.
    Waiting(Box<Delivery>),
    Working,
    Settling(Unconfirmed),
}

impl<H: Handler> Desk<H> {
    pub(super) async fn open(consumption: Arc<Consumption<H>>) -> Result<Self, async_nats::SubscribeError> {
        let connection = &consumption.connection;
        let inbox = connection.client().new_inbox();
        let confirmations = connection.client().subscribe(format!("{inbox}.*.*")).await?;
        let (link, violations) = (connection.link(), connection.violations());
        let (stream, consumer) = (&*consumption.binding.stream, &*consumption.binding.consumer);
        let room = usize::try_from(consumption.limits.concurrency.max(1)).unwrap_or(usize::MAX);
        Ok(Self {
            origin: Origin { stream: stream.into(), consumer: consumer.into() },
            held: Slab::new(),
            lanes: consumption.binding.ordering.is_some().then(|| Lanes::new(room)),
            next: VecDeque::new(),
            returned: HashSet::new(),
            last_begin: None,
            working: JoinSet::new(),
            apart: 0,
            confirmations,
            inbox,
            numbers: 0,
            link,
            incarnation: consumption.incarnation.subscribe(),
            violations,
            consumption,
        })
    }

    /// Works until no more comes and everything is settled.
    ///
    /// # Errors
    ///
    /// Something other than a handler panicked, which must not be.
    pub(super) async fn run(
        &mut self,
        mut inbound: mpsc::UnboundedReceiver<Message>,
    ) -> Result<(), JoinError> {
        let mut look =
            interval(LOOK.min(self.consumption.binding.ack_wait.0 / 4).max(Duration::from_millis(1)));
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.consumption.stop.clone();
        let mut open = true;
        while open || !self.held.is_empty() {
            tokio::select! {
                // What is due is not to be put off for ever by what comes.
                biased;
                _ = look.tick() => self.look().await,
                () = stop.cancelled(), if self.last_begin.is_none() => {
                    let half = self.consumption.binding.handler_deadline.0 / 2;
                    self.last_begin = Some(Instant::now() + half);
                }
                Some(worked) = self.working.join_next() => {
                    let (place, settlement) = worked?;
                    self.settle(place, &settlement).await;
                }
                Some(answer) = self.confirmations.next() => self.answered(&answer),
                message = inbound.recv(), if open => match message {
                    Some(message) => self.take_some(message, &mut inbound).await,
                    None => open = false,
                },
                Ok(()) = self.link.changed() => self.linked().await,
                Ok(()) = self.incarnation.changed() => self.forget_predecessors(),
                Violation::Publish(reply) = self.violations.any(|violation| matches!(violation, Violation::Publish(to) if to.starts_with("$JS.ACK."))) => {
                    self.not_permitted(&reply);
                }
            }
            while let Some(place) = self.next.pop_front() {
                self.begin_next(place).await;
            }
        }
        Ok(())
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    async fn take_some(&mut self, first: Message, inbound: &mut mpsc::UnboundedReceiver<Message>) {
        let now = Instant::now();
        self.take(first, now).await;
        for _ in 1..BATCH {
            let Ok(message) = inbound.try_recv() else { return };
            self.take(message, now).await;
        }
    }

    async fn take(&mut self, message: Message, now: Instant) {
        let Message { subject, reply, payload, headers, .. } = message;
        let read = reply.and_then(|reply| Some((Metadata::parse(&self.origin, &subject, &reply)?, reply)));
        let Some((metadata, reply)) = read else {
            tracing::error!(binding = H::BINDING, %subject, "not a delivery of its consumer; ignored");
            return self.consumption.leave();
        };
        let incarnation = *self.incarnation.borrow();
        if metadata.attempt > 1 && self.holds(metadata.sequence, incarnation, &reply, now) {
            // It is being handled, and JetStream did not hear of it in time.
            return self.consumption.leave();
        }
        let ordering = self.consumption.binding.ordering.as_ref();
        let lane = ordering.map(|ordering| key(&subject, &ordering.key_tokens));
        let (sequence, first) = (metadata.sequence, metadata.attempt == 1);
        let delivery = Delivery {
            metadata: Arc::new(metadata),
            headers,
            payload,
            in_place: lane.is_some(),
            first_delivered: first.then(Timestamp::now),
        };
        let state = State::Working;
        let place = self.held.insert(Held { reply, sequence, incarnation, lane, heard: now, state });
        let may_begin = match (&mut self.lanes, lane) {
            (Some(lanes), Some(lane)) => lanes.enter(lane, place),
            _ => true,
        };
        if may_begin {
            self.begin(place, delivery).await;
        } else if let Some(held) = self.held.get_mut(place) {
            held.state = State::Waiting(Box::new(delivery));
        }
    }

    /// Whether this event is held; then it is settled as its newest delivery.
    fn holds(&mut self, sequence: u64, incarnation: u64, reply: &Subject, now: Instant) -> bool {
        let same = |held: &Held| held.sequence == sequence && held.incarnation == incarnation;
        let Some((_, held)) = self.held.iter_mut().find(|(_, held)| same(held)) else { return false };
        if let State::Settling(unconfirmed) = &mut held.state {
            unconfirmed.found(now);
        }
        held.reply = reply.clone();
        held.heard = now;
        true
    }

    /// Begins what waited for its turn. When the program ends there may not be time for all of it: the rest is given back in its order.
    async fn begin_next(&mut self, place: usize) {
        let Some(held) = self.held.get_mut(place) else { return };
        let State::Waiting(delivery) = mem::replace(&mut held.state, State::Working) else { return };
        let returned = held.lane.is_some_and(|lane| self.returned.contains(&lane));
        if returned || self.last_begin.is_some_and(|last| Instant::now() > last) {
            self.settle(place, &GIVEN_BACK).await;
        } else {
            self.begin(place, *delivery).await;
        }
    }

    /// Begins at once, and goes on with it elsewhere only if it has to wait for something: most do not, or keep no thread long.
    async fn begin(&mut self, place: usize, delivery: Delivery) {
        let mut work = Box::pin(process(Arc::clone(&self.consumption), delivery));
        let mut settlement = None;
        if self.apart > 0 {
            self.apart -= 1;
        } else {
            let begun = Instant::now();
            settlement = (&mut work).now_or_never();
            self.apart = match begun.elapsed() {
                long if long > MUCH_TOO_LONG => FAR_APART,
                long if long > LONG => APART,
                _ => 0,
            };
        }
        match settlement {
            Some(settlement) => self.settle(place, &settlement).await,
            None => drop(self.working.spawn(async move { (place, work.await) })),
        }
    }

    async fn settle(&mut self, place: usize, settlement: &Settlement) {
        let Some(held) = self.held.get(place) else { return };
        // Sequences begin again with a stream: what this settlement names may be another event there.
        if held.incarnation != *self.incarnation.borrow() {
            return self.drop_predecessors(place);
        }
        if held.lane.is_some_and(|_| matches!(settlement, Settlement::Nak { .. })) {
            self.returned.extend(held.lane);
        }
        let connected = self.link.borrow().connected;
        let unconfirmed = self.consumption.limits.acknowledge == Acknowledge::Sent && held.lane.is_none();
        if connected && unconfirmed && *settlement == Settlement::Ack {
            let reply = held.reply.clone();
            self.publish(reply, settlement.payload()).await;
            return self.release(place);
        }
        let now = Instant::now();
        let mut unconfirmed = Unconfirmed::new(settlement, self.consumption.binding.ack_wait.0, now);
        if !connected {
            unconfirmed.lost();
        }
        if let Some(held) = self.held.get_mut(place) {
            held.state = State::Settling(unconfirmed);
        }
        if connected {
            self.tell(place, now).await;
        }
    }

    /// Tells JetStream how a delivery ended.
    async fn tell(&mut self, place: usize, now: Instant) {
        self.numbers += 1;
        let number = self.numbers;
        let Some(Held { reply, state: State::Settling(unconfirmed), .. }) = self.held.get_mut(place) else {
            return;
        };
        unconfirmed.tell(number, now);
        let (to, payload) = (reply.clone(), unconfirmed.payload.clone());
        let answer = format!("{}.{place}.{number}", self.inbox);
        if let Err(error) = self.consumption.connection.client().publish_with_reply(to, answer, payload).await
        {
            tracing::debug!(%error, "a settlement could not be sent");
        }
    }

    fn answered(&mut self, first: &Message) {
        self.confirmed(first);
        for _ in 1..BATCH {
            let Some(Some(answer)) = self.confirmations.next().now_or_never() else { return };
            self.confirmed(&answer);
        }
    }

    /// JetStream confirms a settlement.
    fn confirmed(&mut self, answer: &Message) {
        let mut tokens = answer.subject.rsplit('.');
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (Some(number), Some(place)) = (number(), number()) else { return };
        let Ok(place) = usize::try_from(place) else { return };
        let Some(Held { state: State::Settling(unconfirmed), .. }) = self.held.get_mut(place) else { return };
        if !unconfirmed.is_answered_by(number) {
            return;
        }
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return unconfirmed.refused(Instant::now());
        }
        self.release(place);
    }

    /// Sees to what is due: deliveries of which JetStream has to hear, settlements that it did not confirm.
    async fn look(&mut self) {
        let now = Instant::now();
        let half = self.consumption.binding.ack_wait.0 / 2;
        let Link { connected, .. } = *self.link.borrow();
        let newest = *self.incarnation.borrow();
        let (mut in_progress, mut due) = (Vec::new(), Vec::new());
        for (place, held) in &mut self.held {
            match &mut held.state {
                State::Settling(unconfirmed) => match unconfirmed.due(now) {
                    Due::Nothing => {}
                    what => due.push((place, what)),
                },
                State::Waiting(_) | State::Working => {
                    if connected && held.incarnation == newest && now >= held.heard + half {
                        held.heard = now;
                        in_progress.push(held.reply.clone());
                    }
                }
            }
        }
        for reply in in_progress {
            self.publish(reply, IN_PROGRESS.into()).await;
        }
        for (place, due) in due {
            match due {
                Due::Tell { silent } => {
                    if silent {
                        self.consumption.doubt.notify_one();
                    }
                    self.tell(place, now).await;
                }
                _ => self.give_up(place, "JetStream did not confirm a settlement"),
            }
        }
    }

    async fn publish(&self, to: Subject, payload: bytes::Bytes) {
        if let Err(error) = self.consumption.connection.client().publish(to, payload).await {
            tracing::debug!(%error, "an acknowledgement could not be sent");
        }
    }

    /// The connection was lost or made again; answers to what was told before do not come, and what was said last may not have been
    /// heard.
    async fn linked(&mut self) {
        let Link { connected, .. } = *self.link.borrow_and_update();
        let now = Instant::now();
        let half = self.consumption.binding.ack_wait.0 / 2;
        for (_, held) in &mut self.held {
            match &mut held.state {
                State::Settling(unconfirmed) => {
                    unconfirmed.lost();
                    if connected {
                        unconfirmed.found(now);
                    }
                }
                State::Waiting(_) | State::Working => {
                    held.heard = now.checked_sub(half).unwrap_or(held.heard);
                }
            }
        }
        self.look().await;
    }

    /// Another consumer has the name now.
    fn forget_predecessors(&mut self) {
        let newest = *self.incarnation.borrow_and_update();
        let old = |(place, held): (usize, &Held)| {
            let settling = matches!(held.state, State::Settling(_));
            (settling && held.incarnation != newest).then_some(place)
        };
        let places: Vec<_> = self.held.iter().filter_map(old).collect();
        for place in places {
            self.drop_predecessors(place);
        }
    }

    fn drop_predecessors(&mut self, place: usize) {
        self.give_up(
            place,
            "the consumer was made again; the settlement of its predecessor's delivery is dropped",
        );
    }

    /// The servers do not let this be said. Whoever pulls is told, and the log is.
    fn not_permitted(&mut self, reply: &str) {
        let settling = |held: &Held| matches!(held.state, State::Settling(_)) && *held.reply == *reply;
        let place = self.held.iter().find(|(_, held)| settling(held)).map(|(place, _)| place);
        if let Some(place) = place {
            self.give_up(place, "this program's user may not settle its deliveries");
        }
    }

    /// Lets a delivery go without JetStream's word: it may be delivered again.
    fn give_up(&mut self, place: usize, why: &str) {
        let sequence = self.held.get(place).map(|held| held.sequence);
        tracing::warn!(binding = H::BINDING, sequence, why, "the event may be delivered again");
        self.consumption.metrics.unconfirmed();
        self.release(place);
    }

    /// Lets a delivery go; the next one of its key may begin.
    fn release(&mut self, place: usize) {
        let Some(held) = self.held.try_remove(place) else { return };
        self.consumption.leave();
        let Some((lane, lanes)) = held.lane.zip(self.lanes.as_mut()) else { return };
        self.next.extend(lanes.leave(lane));
        if !lanes.is_occupied(lane) {
            self.returned.remove(&lane);
        }
    }
}

impl<H> Consumption<H> {
    /// One delivery less is held.
    fn leave(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.room.notify_one();
    }
}
