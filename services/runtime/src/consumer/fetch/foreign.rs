//! Finds deliveries that the client cannot parse, and gives them up: JetStream stores any bytes, and the client (async-nats 0.51) closes its
//! connection when it is sent some of them, at every delivery.
//!
//! After a connection ended, everything that is delivered and may be unsettled is read in JSON, each event once, before more is pulled;
//! where that takes long, one event is pulled at a time meanwhile, so that another loss of the connection names its event. What does not
//! parse becomes a dead letter with its bytes as they are, and its delivery is terminated. Where another process has the delivery it
//! does the same, which does no harm. While its dead letter cannot be kept, its delivery is held here, and others go on.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    super::{
        ConsumerLoop,
        ack::{IN_PROGRESS, Settlement},
        attempt,
    },
    discovery::ConsumerInfo,
};
use crate::{Error, ErrorKind, Handler, connection::pause, read::RawEvent};

/// Events that are looked at before any is pulled.
const FIRST_LOOK: usize = 2_000;
/// Shortest time between two events that are looked at.
const MIN_INTERVAL: Duration = Duration::from_micros(500);
/// Longest time between two tries to keep a dead letter.
const LONGEST_RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Events that cannot be parsed and are remembered; beyond that the first are forgotten.
const MAX_KNOWN: usize = 10_000;
/// How long the server may take to confirm.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// How far the search is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Search {
    /// Nothing is suspected.
    #[default]
    Idle,
    /// Nothing is pulled.
    FirstLook,
    /// One event is pulled at a time.
    GoesOn,
}

/// What is suspected of one consumer's deliveries.
#[derive(Debug, Default)]
pub(in crate::consumer) struct ForeignEvents {
    search: watch::Sender<Search>,
    suspected: Notify,
    suspicions: AtomicU64,
}

impl ForeignEvents {
    /// The connection ended, perhaps by one of the deliveries.
    pub(super) fn suspect(&self) {
        self.suspicions.fetch_add(1, Ordering::SeqCst);
        self.search.send_replace(Search::FirstLook);
        self.suspected.notify_one();
    }

    /// Returns when more may be pulled.
    pub(super) async fn first_look(&self) {
        // Refused only when this is gone.
        let _ = self.search.subscribe().wait_for(|search| *search != Search::FirstLook).await;
    }

    /// How many events may be held, of so many.
    pub(super) fn limit(&self, capacity: usize) -> usize {
        if *self.search.borrow() == Search::Idle { capacity } else { 1 }
    }
}

/// Searches whenever something is suspected, and has what cannot be kept wait. Never returns.
pub(in crate::consumer) async fn run<H: Handler>(consumer: &ConsumerLoop<H>) {
    let mut searcher = Searcher::new(consumer);
    loop {
        tokio::select! {
            () = consumer.foreign.suspected.notified() => {}
            () = sleep_until(searcher.held_at + searcher.hold_interval()), if !searcher.waiting.is_empty() => {
                searcher.hold().await;
                searcher.keep_waiting().await;
                continue;
            }
        }
        let suspicions = consumer.foreign.suspicions.load(Ordering::SeqCst);
        searcher.search_to_the_end().await;
        consumer.foreign.search.send_if_modified(|search| {
            // It may be suspected again meanwhile.
            let ends = consumer.foreign.suspicions.load(Ordering::SeqCst) == suspicions;
            if ends {
                *search = Search::Idle;
            }
            ends
        });
    }
}

struct Searcher<'a, H> {
    consumer: &'a ConsumerLoop<H>,
    /// Which consumer it was: events of a stream that was made again are others.
    created: String,
    /// By filter. Messages never change, so none is looked at twice but those that cannot be parsed.
    looked_up_to: HashMap<String, u64>,
    /// Those, by sequence: one comes again where its termination was forgotten.
    known: BTreeSet<u64>,
    /// Those of which no dead letter could be kept, by sequence and time. They take turns.
    waiting: VecDeque<(u64, Timestamp)>,
    /// When JetStream heard of these last.
    held_at: Instant,
}

impl<'a, H: Handler> Searcher<'a, H> {
    fn new(consumer: &'a ConsumerLoop<H>) -> Self {
        let (created, looked_up_to, known, waiting) = Default::default();
        Self { consumer, created, looked_up_to, known, waiting, held_at: Instant::now() }
    }

    /// Searches, again where JetStream does not answer.
    async fn search_to_the_end(&mut self) {
        for attempt in 1.. {
            let observation = self.consumer.discovery.wait_for_consumer().await;
            if observation.info.num_ack_pending == 0 {
                return;
            }
            let Err(error) = self.search(&observation.info).await else { return };
            let message = "failed to look for events that the NATS client cannot parse";
            tracing::warn!(binding = H::BINDING, %error, "{message}");
            if error.kind() == ErrorKind::Refused {
                return;
            }
            self.holding(sleep(pause(attempt + 1, rand::random()))).await;
        }
    }

    async fn search(&mut self, info: &ConsumerInfo) -> Result<(), Error> {
        let consumer = self.consumer;
        let (stream, newest) = (&consumer.binding.stream, info.delivered.stream_seq);
        if self.created != info.created {
            let held_at = self.held_at;
            *self = Self { created: info.created.clone(), held_at, ..Self::new(consumer) };
        }
        // Most often it is the one that was delivered last.
        let unsettled = info.ack_floor.stream_seq + 1..=newest.max(info.ack_floor.stream_seq + 1);
        let known: Vec<_> = self.known.range(unsettled).copied().filter(|known| *known != newest).collect();
        for sequence in [newest].into_iter().chain(known) {
            if let Some(event) = consumer.reader.raw(stream, sequence).await? {
                self.examine(event).await;
            }
        }
        let (mut not_before, mut looked_at) = (Instant::now(), 0);
        for filter in info.config.filters() {
            let looked_up_to = self.looked_up_to.get(filter).copied().unwrap_or_default();
            let mut next = looked_up_to.max(info.ack_floor.stream_seq) + 1;
            while next <= newest {
                let Some(event) = consumer.reader.next_raw(stream, filter, next).await? else { break };
                if event.sequence > newest {
                    break;
                }
                next = event.sequence + 1;
                self.looked_up_to.insert(filter.to_owned(), event.sequence);
                self.examine(event).await;
                looked_at += 1;
                if looked_at == FIRST_LOOK {
                    consumer.foreign.search.send_replace(Search::GoesOn);
                }
                not_before += MIN_INTERVAL;
                sleep_until(not_before).await;
            }
        }
        Ok(())
    }

    /// Gives an event up that the client cannot parse. While its dead letter cannot be kept it waits.
    async fn examine(&mut self, event: RawEvent) {
        if event.unparsable().is_none() {
            return self.hold_if_due().await;
        }
        let (sequence, time) = (event.sequence, event.time);
        self.known.insert(sequence);
        if self.known.len() > MAX_KNOWN {
            self.known.pop_first();
        }
        if self.waiting.contains(&(sequence, time)) {
            return;
        }
        // It is held from now on: to keep a dead letter may take longer than ackWait.
        self.waiting.push_back((sequence, time));
        self.say_in_progress(sequence, time).await;
        // Where others wait already one of them tries, and not each.
        if self.waiting.len() == 1 && self.give_up(&event).await {
            self.waiting.clear();
        }
    }

    /// Keeps those that wait, until one cannot be kept.
    async fn keep_waiting(&mut self) {
        let stream = &self.consumer.binding.stream;
        while let Some((sequence, time)) = self.waiting.front().copied() {
            let event = self.holding(self.consumer.reader.raw(stream, sequence)).await;
            let is_done = match event {
                // Another event has its sequence in a stream that was made again.
                Ok(event) => match event.filter(|event| event.time == time) {
                    Some(event) => self.give_up(&event).await,
                    None => true,
                },
                Err(_) => false,
            };
            self.waiting.pop_front();
            if !is_done {
                return self.waiting.push_back((sequence, time));
            }
        }
    }

    /// Whether its dead letter was kept, and its delivery terminated.
    async fn give_up(&self, event: &RawEvent) -> bool {
        let Some(why) = event.unparsable() else { return true };
        let given_up = self.holding(self.keep_and_terminate(event, &why)).await;
        if let Err(error) = &given_up {
            let (binding, sequence) = (H::BINDING, event.sequence);
            tracing::error!(binding, sequence, %error, "failed to keep a dead letter, will retry");
        }
        given_up.is_ok()
    }

    async fn keep_and_terminate(&self, event: &RawEvent, why: &str) -> Result<(), String> {
        let reason =
            attempt::give_up_raw(self.consumer, event, why).await.map_err(|error| error.to_string())?;
        let payload = Settlement::Term { reason }.payload();
        let client = self.consumer.connection.client();
        let to = self.ack_subject(event.sequence, event.time);
        let confirmed = timeout(CONFIRM_TIMEOUT, client.request(to, payload)).await;
        confirmed
            .map_err(|_| "JetStream does not confirm the termination".to_owned())?
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Does something that may take long, and keeps JetStream from delivering again what waits.
    async fn holding<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(self.hold_interval()), if !self.waiting.is_empty() => self.say_all_in_progress().await,
            }
        }
    }

    async fn hold_if_due(&mut self) {
        if !self.waiting.is_empty() && self.held_at.elapsed() >= self.hold_interval() {
            self.hold().await;
        }
    }

    async fn hold(&mut self) {
        self.held_at = Instant::now();
        self.say_all_in_progress().await;
    }

    async fn say_all_in_progress(&self) {
        for (sequence, time) in &self.waiting {
            self.say_in_progress(*sequence, *time).await;
        }
    }

    async fn say_in_progress(&self, sequence: u64, time: Timestamp) {
        let client = self.consumer.connection.client();
        // Where it cannot be sent the connection is lost, and everything is looked at again.
        let _ = client.publish(self.ack_subject(sequence, time), IN_PROGRESS.into()).await;
    }

    fn hold_interval(&self) -> Duration {
        (self.consumer.binding.ack_wait.0 / 4).min(LONGEST_RETRY_INTERVAL)
    }

    /// Where a delivery is acknowledged. The server looks at the stream, the consumer and the stream sequence alone.
    fn ack_subject(&self, sequence: u64, time: Timestamp) -> String {
        let binding = &self.consumer.binding;
        format!("$JS.ACK.{}.{}.1.{sequence}.1.{}.0", binding.stream, binding.consumer, time.as_nanosecond())
    }
}
