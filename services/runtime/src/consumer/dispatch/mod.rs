//! Holds deliveries until they are settled: begins each when it may, and keeps it until JetStream has confirmed how it
//! ended.

mod acks;
mod doubt;
mod execute;
mod in_flight;
mod intake;
mod keyed_queue;
mod order;
mod recently_settled;
mod recovery;
mod tenure;

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use jetwright_nats::{ACK_PREFIX, Link, Violation, ViolationReceiver};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::time::DelayQueue;

use self::{
    acks::SEND_TIMEOUT,
    in_flight::{Held, InFlight, State},
    order::Order,
    recently_settled::RecentlySettled,
};
use super::{
    SETTLE_TIMEOUT,
    attempt::{AttemptResult, Delivery},
    fetch::Fetched,
    observation::Observation,
    pool::{AllRoom, Attempted, HandlerPool, Job, taken},
    retry::Isolation,
    source::ConsumerLoop,
    workers::{WorkerPanic, Workers},
};
use crate::{Handler, partitions::Instruction};

/// Maximum work of one kind before other kinds have their turn.
const BATCH: usize = 64;
/// Maximum time between two checks of what is due.
const TICK: Duration = Duration::from_millis(100);

/// The deliveries of one consumer that are in flight in this process.
pub(super) struct Dispatcher<H> {
    consumer: Arc<ConsumerLoop<H>>,
    workers: Workers<Job, Attempted>,
    pool: Arc<HandlerPool>,
    /// Of the pool, which other sources use too.
    room: Room,
    /// Room for the attempts that ended.
    results: Vec<Result<Attempted, WorkerPanic>>,
    in_flight: InFlight,
    /// Redeliveries that were sent before the server received their acknowledgements are not handled again.
    ended: RecentlySettled,
    order: Option<Order>,
    /// What may begin.
    next: VecDeque<usize>,
    /// Running attempts.
    running: usize,
    /// Attempts that may run at once.
    concurrency: usize,
    /// An event that may end its process runs, or waits to run, while no other does.
    exclusive: ExclusiveRun,
    /// Where other sources use the pool, all of it while such an event waits or runs.
    all_room: Option<AllRoom>,
    /// Deliveries that are retried in place, by time.
    paused: DelayQueue<usize>,
    /// Keys with a delivery NAKed during shutdown. Later deliveries of the same key are NAKed too, to preserve order.
    nacked_keys: HashSet<u64>,
    /// Until when waiting deliveries may still begin, once the program stops.
    last_begin: Option<Instant>,
    /// Nothing is delivered any more.
    drained: bool,
    confirmations: Option<Subscriber>,
    /// The client with the subscription, and its generation.
    client: Client,
    generation: u64,
    inbox: String,
    ack_numbers: u64,
    link: watch::Receiver<Link>,
    /// What it is told, where processes share out several sources.
    instructions: Option<watch::Receiver<Instruction>>,
    /// When acknowledgements are not waited for any more, once it stops and this is known.
    ends_at: Option<Instant>,
    /// The last report was that there is something to do.
    is_busy: bool,
    /// Deliveries that another process left are asked for.
    hurries: bool,
    observations: watch::Receiver<Option<Arc<Observation>>>,
    consumer_epoch: u64,
    /// The duration of the recovery when the log last showed what it waits for.
    recovery_logged_at: Duration,
    /// Since when it is uncertain whether the consumer is the one that delivered the events in flight.
    unverified_since: Option<Instant>,
    violations: ViolationReceiver,
}

/// Room for one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Nothing waits for any.
    Unneeded,
    /// One attempt waits for it.
    Wanted,
    /// One attempt may begin.
    Taken,
}

/// Events that run alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExclusiveRun {
    /// There is none.
    None,
    /// This one begins when nothing else runs, and nothing else begins before.
    Waiting(usize),
    /// This one runs.
    Running(usize),
}

impl<H: Handler> Dispatcher<H> {
    pub(super) fn new(consumer: Arc<ConsumerLoop<H>>, pool: Arc<HandlerPool>) -> Self {
        let ordering = consumer.binding.ordering.clone();
        let concurrency = usize::try_from(consumer.runner.options.concurrency.max(1)).unwrap_or(usize::MAX);
        // There may be a thousand partitions, most of them idle.
        let expected = if consumer.tenure.is_some() { 0 } else { consumer.capacity() };
        Self {
            workers: pool.workers(),
            pool,
            room: Room::Unneeded,
            results: Vec::new(),
            in_flight: InFlight::with_capacity(expected),
            ended: RecentlySettled::default(),
            order: ordering.map(|ordering| Order::new(ordering.key_tokens, concurrency, Instant::now())),
            next: VecDeque::new(),
            running: 0,
            concurrency,
            exclusive: ExclusiveRun::None,
            all_room: None,
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
            instructions: consumer.tenure.as_ref().map(|tenure| tenure.instructions()),
            ends_at: None,
            is_busy: false,
            hurries: consumer.tenure.is_some(),
            observations: consumer.discovery.subscribe(),
            consumer_epoch: 0,
            recovery_logged_at: Duration::ZERO,
            unverified_since: None,
            violations: consumer.connection.violations(),
            consumer,
        }
    }

    /// Works until nothing more arrives and everything is settled, or until it is over and nothing runs.
    ///
    /// # Errors
    ///
    /// Code other than a handler panicked, which is a bug of this program.
    pub(super) async fn run(
        &mut self,
        mut inbound: mpsc::UnboundedReceiver<Fetched>,
    ) -> Result<(), WorkerPanic> {
        let mut tick = interval(TICK.min(self.consumer.binding.ack_wait.0 / 4).max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.consumer.stop.clone();
        while !self.is_finished() {
            self.subscribe().await;
            tokio::select! {
                // New arrivals do not postpone what is due for ever.
                biased;
                _ = tick.tick(), if self.is_anything_due() => self.tick().await,
                () = stop.cancelled(), if self.last_begin.is_none() => self.begin_stop().await,
                () = self.workers.ended() => {}
                () = taken(&mut self.all_room) => {}
                () = self.pool.room(), if self.room == Room::Wanted => self.room = Room::Taken,
                instruction = changed(&mut self.instructions) => self.instructed(instruction),
                Some(paused) = self.paused.next() => self.resume(paused.into_inner()),
                confirmation = next(&mut self.confirmations) => match confirmation {
                    Some(confirmation) => self.confirmed_all(&confirmation),
                    // The client has ended; another one will replace it.
                    None => self.confirmations = None,
                },
                fetched = inbound.recv(), if !self.drained => match fetched {
                    Some(fetched) => {
                        self.receive_some(fetched, &mut inbound);
                        self.ask_for_what_is_owed(Instant::now());
                    }
                    None => self.end_of_deliveries().await,
                },
                Ok(()) = self.link.changed() => self.connection_changed(),
                Ok(()) = self.observations.changed() => self.observed().await,
                Violation::Publish(reply) = self.violations.next_matching(is_about_acks) => self.not_permitted(&reply),
            }
            self.finish_attempts().await?;
            self.give_back_recovering().await;
            self.begin_next().await;
            self.workers.hand_over();
        }
        self.release_rest();
        Ok(())
    }

    /// Whether nothing more arrives and everything is settled. Where another process has or awaits the source, acknowledgements are waited for
    /// only until then: an event without one is delivered to that process. What runs is always waited for.
    fn is_finished(&self) -> bool {
        let is_over = |ends_at| self.running == 0 && Instant::now() >= ends_at;
        (self.drained && self.in_flight.is_empty()) || self.ends_at.is_some_and(is_over)
    }

    /// Whether time alone may change anything. There may be a thousand partitions, most of them idle.
    fn is_anything_due(&self) -> bool {
        let is_recovering = self.order.as_ref().is_some_and(|order| order.recovery.is_active());
        let may_end = self.ends_at.is_some();
        self.consumer.tenure.is_none()
            || !self.in_flight.is_empty()
            || is_recovering
            || may_end
            || self.is_busy
    }

    /// How many deliveries are in flight.
    pub(super) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// How many attempts run.
    pub(super) fn running(&self) -> usize {
        self.running
    }

    /// Subscribes to the confirmations of acknowledgements, on the current client.
    async fn subscribe(&mut self) {
        if self.confirmations.is_none() {
            self.generation = self.link.borrow().generation;
            self.client = self.consumer.connection.client();
            self.inbox = self.client.new_inbox();
            // Refused if the client has ended too; a client that is connecting may read no command.
            let subscribing = self.client.subscribe(format!("{}.*.*", self.inbox));
            self.confirmations = timeout(SEND_TIMEOUT, subscribing).await.ok().and_then(Result::ok);
        }
    }

    /// What is due: in-progress acknowledgements, unconfirmed acknowledgements, a recovery.
    async fn tick(&mut self) {
        let now = Instant::now();
        self.send_due_acks(now, None).await;
        self.report();
        self.ask_for_what_is_owed(now);
    }

    /// Asks how much is still owed, when it is time.
    fn ask_for_what_is_owed(&mut self, now: Instant) {
        if let Some(order) = &mut self.order
            && order.recovery.is_info_due(now.into_std())
        {
            self.consumer.discovery.recheck();
        }
    }
}

/// Waits for what is told next.
async fn changed(instructions: &mut Option<watch::Receiver<Instruction>>) -> Instruction {
    if let Some(instructions) = instructions
        && instructions.changed().await.is_ok()
    {
        return *instructions.borrow_and_update();
    }
    std::future::pending().await
}

fn is_about_acks(violation: &Violation) -> bool {
    matches!(violation, Violation::Publish(to) if to.starts_with(ACK_PREFIX))
}

async fn next(confirmations: &mut Option<Subscriber>) -> Option<async_nats::Message> {
    match confirmations {
        Some(confirmations) => confirmations.next().await,
        None => std::future::pending().await,
    }
}
