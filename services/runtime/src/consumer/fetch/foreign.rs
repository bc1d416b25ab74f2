//! Finds deliveries that the client cannot parse, and gives them up: JetStream stores any bytes, and the client (async-nats 0.51) closes its
//! connection when it is sent some of them, at every delivery.
//!
//! After a connection ended, everything that is delivered and may be unsettled is read in JSON, each event once, before more is pulled;
//! where that takes long, one event is pulled at a time meanwhile, so that another loss of the connection names its event. What does not
//! parse becomes a dead letter with its bytes as they are, and its delivery is terminated. Where another process has the delivery it
//! does the same, which does no harm.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

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

/// Searches whenever something is suspected. Never returns.
pub(in crate::consumer) async fn run<H: Handler>(consumer: &ConsumerLoop<H>) {
    let mut searcher = Searcher { consumer, created: String::new(), looked_up_to: HashMap::new() };
    loop {
        consumer.foreign.suspected.notified().await;
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
    /// By filter. Messages never change, so none is looked at twice.
    looked_up_to: HashMap<String, u64>,
}

impl<H: Handler> Searcher<'_, H> {
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
            sleep(pause(attempt + 1, rand::random())).await;
        }
    }

    async fn search(&mut self, info: &ConsumerInfo) -> Result<(), Error> {
        let consumer = self.consumer;
        let (stream, newest) = (&consumer.binding.stream, info.delivered.stream_seq);
        if self.created != info.created {
            self.created.clone_from(&info.created);
            self.looked_up_to.clear();
        }
        // Most often it is the one that was delivered last.
        if let Some(event) = consumer.reader.raw(stream, newest).await? {
            self.examine(event).await;
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

    /// Gives an event up that the client cannot parse. While its dead letter cannot be kept its delivery is held, so that it does not come
    /// again.
    async fn examine(&self, event: RawEvent) {
        let Some(why) = event.unparsable() else { return };
        let (consumer, sequence) = (self.consumer, event.sequence);
        for attempt in 1.. {
            match self.give_up(&event, &why).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::error!(binding = H::BINDING, sequence, %error, "failed to keep a dead letter, will retry");
                    let client = consumer.connection.client();
                    // Where it cannot be sent the connection is lost, and everything is looked at again.
                    let _ = client.publish(self.ack_subject(&event), IN_PROGRESS.into()).await;
                    sleep(pause(attempt + 2, rand::random()).min(consumer.binding.ack_wait.0 / 4)).await;
                }
            }
        }
    }

    async fn give_up(&self, event: &RawEvent, why: &str) -> Result<(), String> {
        let reason =
            attempt::give_up_raw(self.consumer, event, why).await.map_err(|error| error.to_string())?;
        let payload = Settlement::Term { reason }.payload();
        let client = self.consumer.connection.client();
        let confirmed = timeout(CONFIRM_TIMEOUT, client.request(self.ack_subject(event), payload)).await;
        confirmed
            .map_err(|_| "JetStream does not confirm the termination".to_owned())?
            .map(drop)
            .map_err(|error| error.to_string())
    }

    /// Where its delivery is acknowledged. The server looks at the stream, the consumer and the stream sequence alone.
    fn ack_subject(&self, event: &RawEvent) -> String {
        let binding = &self.consumer.binding;
        let RawEvent { sequence, time, .. } = event;
        format!("$JS.ACK.{}.{}.1.{sequence}.1.{}.0", binding.stream, binding.consumer, time.as_nanosecond())
    }
}
