//! Holds what was delivered and is not settled yet: begins each delivery when it may, and keeps it until JetStream has confirmed how it
//! ended.

mod acks;
mod ended;
mod execute;
mod in_flight;
mod keyed_queue;
mod order;
mod recovery;
pub(crate) mod sentinel;

use std::{
    collections::{HashSet, VecDeque},
    io,
    sync::{Arc, atomic},
    time::Duration,
};

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use jetwright_nats::{Link, Violation, ViolationReceiver};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::time::DelayQueue;

use self::{
    ended::EndedEvents,
    in_flight::{Held, InFlight, State},
    order::Order,
    recovery::Doubt,
};
use super::{
    ConsumerLoop,
    ack::{PendingAck, Settlement},
    attempt::{AttemptResult, Delivery, process},
    fetch::{Delivered, Fetched, discovery::Observation},
    retry::Isolation,
    workers::{WorkerPanic, Workers},
};
use crate::Handler;

/// Things of one kind that are done before those of another have their turn.
const BATCH: usize = 64;
/// Longest time between two looks at what is due.
const TICK: Duration = Duration::from_millis(100);

/// The deliveries that this process holds of one consumer.
pub(super) struct Dispatcher<H> {
    consumer: Arc<ConsumerLoop<H>>,
    workers: Workers<(usize, Box<Delivery>), Attempted>,
    in_flight: InFlight,
    /// What was delivered again before its end was heard of is not handled again.
    ended: EndedEvents,
    order: Option<Order>,
    /// What may begin.
    next: VecDeque<usize>,
    /// Attempts that go on.
    running: usize,
    /// An event that may end its process runs, or is to run, while no other does.
    alone: Alone,
    /// What is tried again in its place, when its time comes.
    paused: DelayQueue<usize>,
    /// Keys with a delivery that is given back, which a stop alone does: later ones of the same key are given back too.
    nacked_keys: HashSet<u64>,
    /// Until when what waits may still begin, once the program is to end.
    last_begin: Option<Instant>,
    /// Nothing is delivered any more.
    drained: bool,
    confirmations: Option<Subscriber>,
    /// The client that has the subscription, and which one it is.
    client: Client,
    generation: u64,
    inbox: String,
    ack_numbers: u64,
    link: watch::Receiver<Link>,
    observations: watch::Receiver<Option<Arc<Observation>>>,
    incarnation: u64,
    /// After so long a recovery, the log said last what it waits for.
    recovery_logged_at: Duration,
    /// Since when it is in doubt whether the consumer is the one that delivered what is held.
    doubted_at: Option<Instant>,
    violations: ViolationReceiver,
}

/// An attempt that ended.
struct Attempted {
    slot: usize,
    result: AttemptResult,
    delivery: Box<Delivery>,
}

/// Events that run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alone {
    /// There is none.
    No,
    /// This one begins when nothing else runs, and nothing else begins before.
    Waiting(usize),
    /// This one runs.
    Running(usize),
}

impl<H: Handler> Dispatcher<H> {
    /// # Errors
    ///
    /// The system gives the handler no threads.
    pub(super) fn open(consumer: Arc<ConsumerLoop<H>>) -> io::Result<Self> {
        let runner = Arc::clone(&consumer.runner);
        let workers = Workers::start(consumer.name(), &consumer.runner.watchdog, move |(slot, delivery)| {
            let runner = Arc::clone(&runner);
            async move {
                let (result, delivery) = process(runner, delivery).await;
                Attempted { slot, result, delivery }
            }
        })?;
        let ordering = consumer.binding.ordering.clone();
        let room = usize::try_from(consumer.runner.options.concurrency.max(1)).unwrap_or(usize::MAX);
        Ok(Self {
            workers,
            in_flight: InFlight::with_capacity(consumer.capacity()),
            ended: EndedEvents::default(),
            order: ordering.map(|ordering| Order::new(ordering.key_tokens, room, Instant::now())),
            next: VecDeque::new(),
            running: 0,
            alone: Alone::No,
            paused: DelayQueue::new(),
            nacked_keys: HashSet::new(),
            last_begin: None,
            drained: false,
            confirmations: None,
            client: consumer.connection.client(),
            generation: 0,
            inbox: String::new(),
            ack_numbers: 0,
            link: consumer.connection.link(),
            observations: consumer.discovery.subscribe(),
            incarnation: 0,
            recovery_logged_at: Duration::ZERO,
            doubted_at: None,
            violations: consumer.connection.violations(),
            consumer,
        })
    }

    /// Works until no more comes and everything is settled.
    ///
    /// # Errors
    ///
    /// Something other than a handler panicked, which is a fault of this program.
    pub(super) async fn run(
        &mut self,
        mut inbound: mpsc::UnboundedReceiver<Fetched>,
    ) -> Result<(), WorkerPanic> {
        let mut tick = interval(TICK.min(self.consumer.binding.ack_wait.0 / 4).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.consumer.stop.clone();
        while !self.drained || !self.in_flight.is_empty() {
            self.subscribe().await;
            tokio::select! {
                // What is due is not put off for ever by what comes.
                biased;
                _ = tick.tick() => self.tick().await,
                () = stop.cancelled(), if self.last_begin.is_none() => self.begin_stop().await,
                () = self.workers.ended() => {}
                Some(paused) = self.paused.next() => self.resume(paused.into_inner()),
                confirmation = next(&mut self.confirmations) => match confirmation {
                    Some(confirmation) => self.confirmed_all(&confirmation),
                    // The client is gone for good; there will be another.
                    None => self.confirmations = None,
                },
                fetched = inbound.recv(), if !self.drained => match fetched {
                    Some(fetched) => self.receive_some(fetched, &mut inbound),
                    None => self.end_of_deliveries().await,
                },
                Ok(()) = self.link.changed() => self.linked(),
                Ok(()) = self.observations.changed() => self.observed().await,
                Violation::Publish(reply) = self.violations.next_matching(is_about_acks) => self.not_permitted(&reply),
            }
            self.finish_attempts().await?;
            self.give_back_recovering().await;
            self.begin_next().await;
            self.workers.hand_over();
        }
        Ok(())
    }

    /// How many deliveries are held.
    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Subscribes to the confirmations of acknowledgements, on the client that there is now.
    async fn subscribe(&mut self) {
        if self.confirmations.is_none() {
            self.generation = self.link.borrow().generation;
            self.client = self.consumer.connection.client();
            self.inbox = self.client.new_inbox();
            // Refused where the client is gone too.
            self.confirmations = self.client.subscribe(format!("{}.*.*", self.inbox)).await.ok();
        }
    }

    /// What is due: deliveries of which JetStream has to hear, acknowledgements that it did not confirm, a recovery that goes on.
    async fn tick(&mut self) {
        let now = Instant::now();
        self.send_due_acks(now, None).await;
        if let Some(order) = &mut self.order
            && order.recovery.is_info_due(now)
        {
            self.consumer.discovery.recheck();
        }
    }

    fn receive_some(&mut self, first: Fetched, inbound: &mut mpsc::UnboundedReceiver<Fetched>) {
        let (now, time) = (Instant::now(), Timestamp::now());
        self.receive(first, now, time);
        for _ in 1..BATCH {
            let Ok(fetched) = inbound.try_recv() else { return };
            self.receive(fetched, now, time);
        }
    }

    fn receive(&mut self, fetched: Fetched, now: Instant, time: Timestamp) {
        match fetched {
            Fetched::Doubt => self.doubt_consumer(now),
            Fetched::Deliveries { incarnation, deliveries } => {
                self.note_incarnation(incarnation);
                for delivered in deliveries {
                    if incarnation < self.incarnation {
                        self.consumer.release_capacity(delivered.size);
                        continue;
                    }
                    self.take(delivered, now, time);
                }
            }
        }
    }

    fn take(&mut self, delivered: Delivered, now: Instant, time: Timestamp) {
        let (sequence, event_time) = (delivered.metadata.sequence, delivered.metadata.time);
        let doubt =
            self.order.as_mut().and_then(|order| order.recovery.received(delivered.consumer_sequence));
        if let Some(doubt) = doubt {
            self.begin_recovery(doubt, now);
        }
        if let Some(slot) = self.in_flight.find(sequence) {
            let is_same = self.in_flight.get(slot).is_some_and(|held| held.time == event_time);
            if !is_same {
                // Another event has its sequence: the stream was made again.
                self.drop_predecessor(slot);
            } else if self.redelivered(slot, &delivered, now) {
                return self.consumer.release_capacity(delivered.size);
            }
        }
        let key = self.order.as_ref().map(|order| order.key_tokens.key(&delivered.metadata.subject));
        let (reply, size) = (delivered.reply.clone(), delivered.size);
        let has_ended = self.ended.contains(sequence, event_time, delivered.metadata.attempt, now);
        let (key, state) = if has_ended {
            (None, State::Settling(PendingAck::new(&Settlement::Ack, now)))
        } else {
            (key, State::Waiting(Box::new(Delivery::new(&self.consumer.runner, delivered, time))))
        };
        let held = Held {
            reply,
            sequence,
            time: event_time,
            size,
            key,
            is_orphan: false,
            in_progress_at: now,
            state,
        };
        let slot = self.in_flight.insert(held);
        if !has_ended {
            self.enqueue(slot, key);
        }
    }

    /// Whether this event is still held; then it is settled as its newest delivery.
    fn redelivered(&mut self, slot: usize, delivered: &Delivered, now: Instant) -> bool {
        let Some(held) = self.in_flight.get_mut(slot) else { return false };
        match &mut held.state {
            // It was given back, and the confirmation of that was lost.
            State::Settling(ack) if ack.is_done_by_redelivery() => {
                self.release(slot);
                return false;
            }
            // Its acknowledgement was not heard.
            State::Settling(ack) => ack.repeat(now),
            // It is being handled, and JetStream did not hear of it in time; or another consumer delivers it too.
            State::Waiting(_) | State::Paused(..) | State::Running | State::Returned => {}
        }
        held.reply = delivered.reply.clone();
        held.in_progress_at = now;
        held.is_orphan = false;
        true
    }

    /// Begins an acknowledgement's and a recovery's doubt: the consumer may be gone, or another one may have its name.
    fn doubt_consumer(&mut self, now: Instant) {
        self.doubted_at = Some(now);
        self.consumer.proof.revoke();
        self.consumer.discovery.recheck();
        self.in_flight.acks().for_each(|(_, _, ack)| ack.suspend());
    }

    /// Nothing new begins until everything that was delivered is here.
    fn begin_recovery(&mut self, doubt: Doubt, now: Instant) {
        let Some(order) = &mut self.order else { return };
        if order.recovery.doubt(doubt, now) {
            tracing::info!(
                binding = self.consumer.name(),
                cause = doubt.as_str(),
                "recovering the order of events"
            );
            self.consumer.runner.metrics.recovery(doubt.as_str());
            self.consumer.recovering.store(true, atomic::Ordering::Relaxed);
            self.consumer.capacity_freed.notify_one();
            order.queue.clear_waiting();
            if let Alone::Waiting(slot) = self.alone {
                self.alone = Alone::No;
                self.next.push_back(slot);
            }
            // Those that were about to begin have not.
            for slot in self.next.drain(..) {
                if let Some(Held { key: Some(key), .. }) = self.in_flight.get(slot) {
                    order.queue.complete(*key);
                }
            }
        }
        self.consumer.discovery.recheck();
    }

    /// JetStream said which consumer there is, and what it still waits for.
    async fn observed(&mut self) {
        let Some(observation) = self.observations.borrow_and_update().clone() else { return };
        self.note_incarnation(observation.incarnation);
        self.consumer.proof.renew(observation.asked_at);
        if self.doubted_at.is_some_and(|doubted_at| observation.asked_at >= doubted_at) {
            self.doubted_at = None;
        }
        self.judge_acks(&observation).await;
        self.go_on_with_recovery(&observation);
    }

    /// Another consumer has the name now: it knows nothing of what its predecessor delivered.
    fn note_incarnation(&mut self, incarnation: u64) {
        if incarnation <= self.incarnation {
            return;
        }
        let is_first = self.incarnation == 0;
        self.incarnation = incarnation;
        if is_first {
            return;
        }
        for slot in self.in_flight.in_order(|_| true) {
            self.drop_predecessor(slot);
        }
        if let Some(order) = &mut self.order {
            order.sentinel.reset();
        }
        self.begin_recovery(Doubt::Reconnect, Instant::now());
        // Those that had not begun; the queue knows them no more.
        if self.order.is_some() {
            let is_waiting = |held: &Held| held.is_orphan && matches!(held.state, State::Waiting(_));
            for slot in self.in_flight.in_order(is_waiting) {
                // One of its key may still run, and keeps its place.
                if let Some(held) = self.in_flight.get_mut(slot) {
                    held.key = None;
                }
                self.give_up(slot, "the consumer was made again");
            }
        }
    }

    /// The connection was lost or made again: answers to what was sent before do not come, and what was sent last may not have been heard.
    fn linked(&mut self) {
        let Link { connected, generation, .. } = *self.link.borrow_and_update();
        if generation != self.generation {
            self.confirmations = None;
        }
        let now = Instant::now();
        let half = self.consumer.binding.ack_wait.0 / 2;
        for (_, held) in self.in_flight.iter_mut() {
            match &mut held.state {
                State::Settling(ack) => ack.suspend(),
                _ => held.in_progress_at = now.checked_sub(half).unwrap_or(held.in_progress_at),
            }
        }
        self.doubt_consumer(now);
        if connected {
            if let Some(order) = &mut self.order {
                order.sentinel.reset();
            }
            self.begin_recovery(Doubt::Reconnect, now);
        }
    }
}

fn is_about_acks(violation: &Violation) -> bool {
    matches!(violation, Violation::Publish(to) if to.starts_with("$JS.ACK."))
}

async fn next(confirmations: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match confirmations {
        Some(confirmations) => confirmations.next().await,
        None => std::future::pending().await,
    }
}
