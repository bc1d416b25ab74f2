//! What was delivered and is not settled yet: begins each delivery when it may, and sees to it until JetStream has confirmed how it
//! ended.

mod attempts;
mod settling;

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Message, Subject, Subscriber};
use futures::StreamExt;
use jetwright_process::nats::{Violation, Watch};
use jiff::Timestamp;
use slab::Slab;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::time::{DelayQueue, delay_queue};

use self::attempts::{APART, FAR_APART};
use super::{
    Consumption,
    acknowledge::Unconfirmed,
    attempt::{Delivery, Next},
    lanes::{Lanes, key},
};
use crate::{Handler, Metadata, connection::Link, metadata::Origin};

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
    /// What is tried again in its place, when its time comes.
    pauses: DelayQueue<usize>,
    /// Lanes with a delivery that was given back, which the end of the program alone does: those that come after it are given back
    /// too.
    returned: HashSet<u64>,
    /// Until when what waits may still begin, once the program is to end.
    last_begin: Option<Instant>,
    working: JoinSet<Worked>,
    /// How many events are still to be handled apart.
    apart: u32,
    /// How many are next time, where one keeps its thread for much too long.
    far_apart: u32,
    confirmations: Subscriber,
    /// Of the client to which the confirmations belong.
    generation: u64,
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
    /// For the time at which it is tried again.
    Paused(Box<Delivery>, delay_queue::Key),
    Working,
    Settling(Unconfirmed),
}

/// What came of a delivery that was handled apart.
struct Worked {
    place: usize,
    next: Next,
    /// How long it kept its thread until it had to wait for the first time.
    kept_thread: Duration,
}

impl<H: Handler> Desk<H> {
    pub(super) async fn open(consumption: Arc<Consumption<H>>) -> Result<Self, async_nats::SubscribeError> {
        let connection = &consumption.connection;
        let (link, violations) = (connection.link(), connection.violations());
        let generation = link.borrow().generation;
        let client = connection.client();
        let inbox = client.new_inbox();
        let confirmations = client.subscribe(format!("{inbox}.*.*")).await?;
        let (stream, consumer) = (&*consumption.binding.stream, &*consumption.binding.consumer);
        let room = usize::try_from(consumption.limits.concurrency.max(1)).unwrap_or(usize::MAX);
        Ok(Self {
            origin: Origin { stream: stream.into(), consumer: consumer.into() },
            held: Slab::new(),
            lanes: consumption.binding.ordering.is_some().then(|| Lanes::new(room)),
            next: VecDeque::new(),
            pauses: DelayQueue::new(),
            returned: HashSet::new(),
            last_begin: None,
            working: JoinSet::new(),
            // Until it is known how long it keeps its thread.
            apart: APART,
            far_apart: FAR_APART,
            confirmations,
            generation,
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
                    self.give_back_paused().await;
                }
                Some(worked) = self.working.join_next() => {
                    let Worked { place, next, kept_thread } = worked?;
                    self.learn(kept_thread);
                    self.go_on(place, next).await;
                }
                Some(pause) = self.pauses.next() => self.resume(pause.into_inner()),
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
        let (now, time) = (Instant::now(), Timestamp::now());
        self.take(first, now, time).await;
        for _ in 1..BATCH {
            let Ok(message) = inbound.try_recv() else { return };
            self.take(message, now, time).await;
        }
    }

    async fn take(&mut self, message: Message, now: Instant, time: Timestamp) {
        let Message { subject, reply, payload, headers, .. } = message;
        let read = reply.and_then(|reply| Some((Metadata::parse(&self.origin, &subject, &reply)?, reply)));
        let Some((metadata, reply)) = read else {
            tracing::error!(binding = H::BINDING, %subject, "not a delivery of its consumer; ignored");
            return self.consumption.leave();
        };
        let incarnation = *self.incarnation.borrow();
        if metadata.attempt > 1 && self.holds(metadata.sequence, incarnation, &reply, now) {
            return self.consumption.leave();
        }
        let ordering = self.consumption.binding.ordering.as_ref();
        let lane = ordering.map(|ordering| key(&subject, &ordering.key_tokens));
        let (sequence, state) = (metadata.sequence, State::Working);
        let delivery = Delivery::new(&self.consumption, metadata, (headers, payload), time);
        let place = self.held.insert(Held { reply, sequence, incarnation, lane, heard: now, state });
        let (may_begin, returned) = match (&mut self.lanes, lane) {
            (Some(lanes), Some(lane)) => (lanes.enter(lane, place), self.returned.contains(&lane)),
            _ => (true, false),
        };
        if may_begin && !returned {
            return self.begin(place, delivery).await;
        }
        self.next.extend(may_begin.then_some(place));
        if let Some(held) = self.held.get_mut(place) {
            held.state = State::Waiting(Box::new(delivery));
        }
    }

    /// Whether this event is held; then it is settled as its newest delivery.
    fn holds(&mut self, sequence: u64, incarnation: u64, reply: &Subject, now: Instant) -> bool {
        let same = |held: &Held| held.sequence == sequence && held.incarnation == incarnation;
        let Some((place, held)) = self.held.iter_mut().find(|(_, held)| same(held)) else { return false };
        match &mut held.state {
            // It was given back, and the word of that was lost.
            State::Settling(unconfirmed) if unconfirmed.is_done_by_redelivery() => {
                self.release(place);
                return false;
            }
            State::Settling(unconfirmed) => unconfirmed.found(now),
            // It is being handled, and JetStream did not hear of it in time.
            State::Waiting(_) | State::Paused(..) | State::Working => {}
        }
        held.reply = reply.clone();
        held.heard = now;
        true
    }
}

impl<H> Consumption<H> {
    /// One delivery less is held.
    fn leave(&self) {
        self.held.fetch_sub(1, Ordering::Relaxed);
        self.room.notify_one();
    }
}
