//! Fetches deliveries from JetStream, as many as there is room for, and waits for the consumer if it does not exist.

mod arrivals;
mod credits;
pub(super) mod discovery;
pub(super) mod foreign;
mod merge;
mod pull;
mod status;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use jetwright_nats::{Violation, backoff::pause};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use self::{arrivals::PullEvent, credits::Room, pull::Pull};
use super::{delivery::Delivered, observation::Observation, source::ConsumerLoop};
use crate::{Handler, partitions::Instruction};

/// How often it is checked whether the lease holds again.
const LEASE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a server may take to know that no more is requested, before what has not begun is given back all the same.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is checked whether other consumers of the process have released bytes.
const BYTES_INTERVAL: Duration = Duration::from_millis(250);

/// What the dispatcher receives, in its order.
pub(super) enum Fetched {
    Deliveries {
        /// The consumer of the name, as [`Observation::consumer_epoch`] counts them.
        consumer_epoch: u64,
        deliveries: Vec<Delivered>,
    },
    /// The consumer may be gone, or another one may have its name.
    ConsumerSuspect,
    /// Its state, before anything is pulled from it.
    Opened(Arc<Observation>),
}

/// Fetches and forwards until `stop`, and then what was requested before: no other process gets it before ackWait is over. Where another
/// process waits for all of it, the open requests are ended first.
pub(super) async fn run<H: Handler>(consumer: &ConsumerLoop<H>, outbound: mpsc::UnboundedSender<Fetched>) {
    let mut fetcher = Fetcher { consumer, outbound, pull: None, consumer_epoch: 0 };
    consumer.stop.run_until_cancelled(fetcher.fetch_forever()).await;
    if let Some(mut pull) = fetcher.pull.take() {
        match consumer.tenure.as_ref().map(|tenure| tenure.instruction()) {
            None => fetcher.drain(&mut pull).await,
            Some(Instruction::Abandon) => {}
            Some(_) => {
                let closing = async {
                    pull.close().await;
                    fetcher.drain(&mut pull).await;
                    // The answer to a later question: the servers know that no request is open, and serve none with what is given back.
                    consumer.discovery.wait_for_consumer().await;
                };
                let _ = timeout(CLOSE_TIMEOUT, closing).await;
            }
        }
    }
}

struct Fetcher<'a, H> {
    consumer: &'a ConsumerLoop<H>,
    outbound: mpsc::UnboundedSender<Fetched>,
    /// Stays open for as long as its client and its consumer: what NATS sent around the loss of a connection still arrives.
    pull: Option<Pull>,
    consumer_epoch: u64,
}

/// Why fetching stopped for now.
enum Stopped {
    /// The consumer does not respond.
    Unavailable(String),
    /// The connection was lost.
    Disconnected,
    /// The client has ended, and the subscriptions with it.
    Closed,
    /// The servers do not permit it.
    PermissionDenied(Violation),
    /// The lease of the process is over.
    LeaseOver,
}

impl<H: Handler> Fetcher<'_, H> {
    fn forward(&self, deliveries: Vec<Delivered>) {
        let bytes = deliveries.iter().map(|delivered| delivered.size).sum();
        self.consumer.acquire_capacity(deliveries.len(), bytes);
        // Refused only if consuming has ended after a bug.
        let _ = self.outbound.send(Fetched::Deliveries { consumer_epoch: self.consumer_epoch, deliveries });
    }

    /// Forwards what was requested before. Cancel safe.
    async fn drain(&self, pull: &mut Pull) {
        while let Some(deliveries) = pull.drain().await {
            self.forward(deliveries);
        }
    }

    /// Pulls and forwards, and waits for the consumer if it does not respond. Cancel safe.
    async fn fetch_forever(&mut self) {
        let consumer = self.consumer;
        // Rounds that ended before JetStream had served a request, or with a permissions violation.
        let mut refused = 0;
        loop {
            while consumer.pull_expiry().is_none() {
                sleep(LEASE_INTERVAL).await;
            }
            // Wait for a consumer that does not exist, or not any more; and for the connection.
            let observation = consumer.discovery.wait_for_consumer().await;
            // What the client cannot parse would end the connection again.
            consumer.suspicion.await_initial_scan().await;
            if let Err(error) = self.open(&observation).await {
                consumer.unavailable(&error.to_string());
                sleep(pause(2, rand::random())).await;
                continue;
            }
            if refused == 0 {
                consumer.gate.open();
            }
            let _ = self.outbound.send(Fetched::Opened(Arc::clone(&observation)));
            tracing::info!(binding = consumer.name(), partition = consumer.partition(), "consuming");
            let served = self.served();
            let stopped = self.fetch_while_available(&observation).await;
            consumer.bytes.owe(0);
            let _ = self.outbound.send(Fetched::ConsumerSuspect);
            consumer.is_serving.store(false, Ordering::Relaxed);
            consumer.proof.revoke();
            if let Stopped::PermissionDenied(violation) = &stopped {
                // That does not pass by itself.
                consumer.gate.close(&violation.to_string());
            }
            let is_denied = matches!(stopped, Stopped::PermissionDenied(_));
            refused = if is_denied || self.served() == served { refused + 1 } else { 0 };
            let why = match stopped {
                Stopped::Unavailable(why) => why,
                Stopped::Disconnected => {
                    consumer.suspicion.suspect();
                    "the connection to NATS was lost".to_owned()
                }
                Stopped::Closed => {
                    consumer.suspicion.suspect();
                    self.pull = None;
                    "the NATS client was closed".to_owned()
                }
                Stopped::PermissionDenied(violation) => violation.to_string(),
                Stopped::LeaseOver => {
                    self.pull = None;
                    "the lease is over".to_owned()
                }
            };
            consumer.unavailable(&why);
            tracing::warn!(
                binding = consumer.name(),
                partition = consumer.partition(),
                why,
                "stopped pulling"
            );
            // It exists and may refuse every request, for example with a wrong configuration: then it is asked less and less.
            sleep(pause(refused, rand::random())).await;
        }
    }

    /// Subscribes to what will be pulled, if not subscribed already. Deliveries of a deleted consumer are not taken for
    /// those of another one.
    async fn open(&mut self, observation: &Observation) -> Result<(), async_nats::SubscribeError> {
        if self.consumer_epoch != observation.consumer_epoch
            || self.pull.as_ref().is_some_and(Pull::is_outdated)
        {
            (self.pull, self.consumer_epoch) = (None, observation.consumer_epoch);
        }
        if self.pull.is_none() {
            self.pull = Some(Pull::open(self.consumer, &observation.info.config).await?);
        }
        Ok(())
    }

    fn served(&self) -> u64 {
        self.pull.as_ref().map_or(0, Pull::served)
    }

    /// Pulls and forwards until the consumer does not respond, and returns why.
    async fn fetch_while_available(&mut self, observation: &Arc<Observation>) -> Stopped {
        let consumer = self.consumer;
        let Some(pull) = &mut self.pull else { return Stopped::Closed };
        if !pull.resume(&observation.info.config) {
            return Stopped::Disconnected;
        }
        consumer.proof.renew(observation.asked_at);
        let mut was_served = false;
        loop {
            if !self.is_proven().await {
                return Stopped::Unavailable("the consumer was recreated".to_owned());
            }
            let consumer = self.consumer;
            let Some(pull) = &mut self.pull else { return Stopped::Closed };
            if pull.is_disconnected() {
                return Stopped::Disconnected;
            }
            let capacity = consumer.suspicion.limit(consumer.capacity());
            let room = Room {
                capacity,
                in_flight: consumer.in_flight(),
                bytes: consumer.bytes.reserve(pull.owed_bytes()),
                is_recovering: consumer.recovering.load(Ordering::Relaxed),
            };
            let Some(bound) = consumer.pull_expiry() else { return Stopped::LeaseOver };
            let requested = pull.request(room, bound).await;
            consumer.bytes.owe(pull.owed_bytes());
            if let Err(error) = requested {
                return Stopped::Unavailable(error.to_string());
            }
            consumer.proof.hold_until(pull.open_until());
            let room_at = pull.room_at(room);
            // Room may have appeared between the check of what is in flight and this; if any room is enough, the notification was sent.
            if consumer.await_room(room_at) && room_at < room.in_flight {
                continue;
            }
            let event = tokio::select! {
                biased;
                event = pull.next() => event,
                () = consumer.capacity_freed.notified() => continue,
                // Bytes that another consumer of the process releases send no notification here.
                () = sleep(BYTES_INTERVAL), if room.bytes == 0 && !pull.owes() => continue,
            };
            consumer.proof.hold_until(pull.open_until());
            match event {
                PullEvent::Deliveries(deliveries) => self.forward(deliveries),
                PullEvent::Ended => {}
                PullEvent::MayRequest => continue,
                PullEvent::Unavailable(why) => return Stopped::Unavailable(why),
                PullEvent::Disconnected => return Stopped::Disconnected,
                PullEvent::Closed => return Stopped::Closed,
                PullEvent::PermissionDenied(violation) => return Stopped::PermissionDenied(violation),
            }
            consumer.proof.renew(Instant::now());
            if !was_served {
                consumer.serving();
                was_served = true;
            }
        }
    }

    /// Whether the consumer is still the one whose deliveries are forwarded. While no request is open the server does not report its end, so it
    /// is asked for before the next request.
    async fn is_proven(&self) -> bool {
        let Self { consumer, consumer_epoch, .. } = self;
        let is_open = self.pull.as_ref().is_some_and(Pull::owes);
        if !is_open && !consumer.proof.holds(Instant::now()) {
            consumer.discovery.wait_for_consumer().await;
        }
        consumer.discovery.consumer_epoch() == *consumer_epoch
    }
}
