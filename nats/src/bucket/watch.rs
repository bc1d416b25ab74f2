//! A watch: a push consumer that delivers the last message of each key, and then every new one. Its deliveries are numbered, so that a
//! lost one is noticed; then, and after each new connection, another consumer begins from what there is.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{Bucket, Failure, entry::deletes};
use crate::{ACK_PREFIX, Link, backoff::pause, jetstream_error::STREAM_NOT_FOUND};

/// How often the server says that it has nothing to deliver.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long the server may be silent before the consumer is taken for gone.
const SILENCE: Duration = Duration::from_secs(7);
/// How long the server keeps a consumer that nobody listens to.
const INACTIVE: Duration = Duration::from_secs(30);
/// Maximum pause between two attempts to begin.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Events that wait to be read. The server waits, too, when there are more.
const CAPACITY: usize = 256;
/// Header of a heartbeat: the number of the newest delivery.
const LAST_DELIVERY_HEADER: &str = "Nats-Last-Consumer";
/// Header of a heartbeat: where the server waits for a message before it goes on.
const STALLED_HEADER: &str = "Nats-Consumer-Stalled";

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A key has this value. It may be told again, or after a newer one: the revision says which is newer.
    Value {
        /// The key.
        key: String,
        /// Number of the write that stored it.
        revision: u64,
        /// The value.
        value: Bytes,
    },
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// Number of the write that deleted it.
        revision: u64,
    },
    /// Everything that there was when the watch began, or began again, is told. What was not is not there.
    Synced,
    /// The bucket does not exist. The watch begins when it does.
    Missing,
    /// Changes may be missed until the next [`Synced`](Self::Synced), and why. The watch begins again by itself.
    Lost(String),
}

/// Tells what keys have, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<WatchEvent>,
    _task: AbortOnDropHandle<()>,
}

impl Watch {
    pub(super) fn begin(bucket: Bucket, filters: &[String]) -> Self {
        let subjects = filters.iter().map(|filter| format!("{}{filter}", bucket.prefix)).collect();
        let (sender, events) = mpsc::channel(CAPACITY);
        let task = tokio::spawn(async move { Watcher { bucket, subjects, sender }.run().await });
        Self { events, _task: AbortOnDropHandle::new(task) }
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> WatchEvent {
        match self.events.recv().await {
            Some(event) => event,
            // Not while this exists.
            None => std::future::pending().await,
        }
    }
}

/// Why a watch has to begin again.
enum Ended {
    Missing,
    Lost(String),
    /// Nobody reads what it tells.
    Unread,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(error) if error.err_code == STREAM_NOT_FOUND => Self::Missing,
            failure => Self::Lost(failure.to_string()),
        }
    }
}

struct Watcher {
    bucket: Bucket,
    subjects: Vec<String>,
    sender: mpsc::Sender<WatchEvent>,
}

/// One consumer of the watch.
struct Deliveries {
    subscriber: Subscriber,
    link: watch::Receiver<Link>,
    /// Number of the newest delivery.
    newest: u64,
    /// Number of the delivery by which everything that there was is told; `None` when it is.
    last: Option<u64>,
}

impl Watcher {
    async fn run(&self) {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ended = match self.open().await {
                Ok(deliveries) => {
                    attempt = 0;
                    self.follow(deliveries).await
                }
                Err(ended) => ended,
            };
            let event = match ended {
                Ended::Missing => WatchEvent::Missing,
                Ended::Lost(why) => WatchEvent::Lost(why),
                Ended::Unread => return,
            };
            if self.sender.send(event).await.is_err() {
                return;
            }
            sleep(pause(attempt, rand::random()).min(MAX_PAUSE)).await;
        }
    }

    async fn open(&self) -> Result<Deliveries, Ended> {
        #[derive(Deserialize)]
        struct Info {
            num_pending: u64,
            delivered: Delivered,
        }
        #[derive(Deserialize)]
        struct Delivered {
            consumer_seq: u64,
        }
        let Bucket { connection, stream, .. } = &self.bucket;
        let mut link = connection.link();
        link.borrow_and_update();
        let client = connection.client();
        let inbox = client.new_inbox();
        let subscriber = timeout(super::REQUEST_TIMEOUT, client.subscribe(inbox.clone())).await;
        let subscriber = subscriber
            .map_err(|_| Ended::Lost("NATS is not connected".to_owned()))?
            .map_err(|error| Ended::Lost(error.to_string()))?;
        // The last token of an inbox is drawn at random.
        let name = inbox.rsplit('.').next().unwrap_or_default();
        let subject = connection.api_subjects().request("CONSUMER.CREATE", &[stream, name]);
        let Info { num_pending, delivered } =
            self.bucket.ask(subject, self.consumer(name, &inbox).to_string()).await?;
        let mut deliveries = Deliveries {
            subscriber,
            link,
            newest: 0,
            // It may have delivered already.
            last: Some(num_pending + delivered.consumer_seq),
        };
        self.tell_synced(&mut deliveries, false).await?;
        Ok(deliveries)
    }

    fn consumer(&self, name: &str, inbox: &str) -> Value {
        json!({
            "stream_name": self.bucket.stream,
            "action": "create",
            "config": {
                "name": name,
                "description": "a watch",
                "deliver_subject": inbox,
                "deliver_policy": "last_per_subject",
                "ack_policy": "none",
                "replay_policy": "instant",
                "max_deliver": 1,
                "filter_subjects": self.subjects,
                "idle_heartbeat": nanoseconds(HEARTBEAT),
                "flow_control": true,
                "inactive_threshold": nanoseconds(INACTIVE),
                "mem_storage": true,
                "num_replicas": 1,
            },
        })
    }

    /// Tells what is delivered, until something is missing.
    async fn follow(&self, mut deliveries: Deliveries) -> Ended {
        let epoch = deliveries.link.borrow().epoch;
        loop {
            let message = tokio::select! {
                message = timeout(SILENCE, deliveries.subscriber.next()) => message,
                // Not before the connection is there again: until then a new watch would fail.
                lost = deliveries.link.wait_for(|link| link.connected && link.epoch != epoch) => {
                    drop(lost);
                    return Ended::Lost("the connection to NATS was lost".to_owned());
                }
            };
            let told = match message {
                Ok(Some(message)) if message.status.is_some() => self.status(&mut deliveries, &message).await,
                Ok(Some(message)) => self.tell(&mut deliveries, message).await,
                Ok(None) => Err(Ended::Lost("the NATS client was closed".to_owned())),
                Err(_) => Err(Ended::Lost("JetStream stopped delivering".to_owned())),
            };
            if let Err(ended) = told {
                return ended;
            }
        }
    }

    /// A heartbeat, or a request to say that what was delivered is read.
    async fn status(&self, deliveries: &mut Deliveries, message: &Message) -> Result<(), Ended> {
        if message.status != Some(StatusCode::IDLE_HEARTBEAT) {
            let why = message.description.as_deref().unwrap_or("without a reason");
            return Err(Ended::Lost(format!("JetStream ended the watch: {why}")));
        }
        let header =
            |name: &'static str| message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str);
        let stalled = header(STALLED_HEADER).map(Subject::from);
        if let Some(to) = message.reply.clone().or_else(|| stalled.clone()) {
            let client = self.bucket.connection.client();
            // Where it is not sent, the next heartbeat asks again.
            let _ = timeout(super::REQUEST_TIMEOUT, client.publish(to, Bytes::new())).await;
        }
        match header(LAST_DELIVERY_HEADER).and_then(|number| number.parse::<u64>().ok()) {
            Some(newest) if newest != deliveries.newest => Err(hole()),
            // It has nothing to deliver.
            Some(_) => self.tell_synced(deliveries, stalled.is_none()).await,
            None => Ok(()),
        }
    }

    async fn tell(&self, deliveries: &mut Deliveries, message: Message) -> Result<(), Ended> {
        let numbers = message.reply.as_deref().and_then(Numbers::read);
        let key = message.subject.strip_prefix(&self.bucket.prefix);
        let (Some(numbers), Some(key)) = (numbers, key) else {
            return Err(Ended::Lost(format!("a message on {} is no delivery", message.subject)));
        };
        if numbers.delivery != deliveries.newest + 1 {
            return Err(hole());
        }
        deliveries.newest = numbers.delivery;
        let (key, revision) = (key.to_owned(), numbers.revision);
        let event = match &message.headers {
            Some(headers) if deletes(headers) => WatchEvent::Deleted { key, revision },
            _ => WatchEvent::Value { key, revision, value: message.payload },
        };
        self.send(event).await?;
        self.tell_synced(deliveries, numbers.pending == 0).await
    }

    /// Keys that were deleted meanwhile are never delivered, so their number alone does not say when all is told.
    async fn tell_synced(&self, deliveries: &mut Deliveries, is_all: bool) -> Result<(), Ended> {
        if deliveries.last.is_some_and(|last| is_all || deliveries.newest >= last) {
            deliveries.last = None;
            self.send(WatchEvent::Synced).await?;
        }
        Ok(())
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Ended> {
        self.sender.send(event).await.map_err(|_| Ended::Unread)
    }
}

fn hole() -> Ended {
    Ended::Lost("a change was lost".to_owned())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The numbers in the reply subject of a delivery (NATS ADR-15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Numbers {
    revision: u64,
    delivery: u64,
    pending: u64,
}

impl Numbers {
    fn read(reply: &str) -> Option<Self> {
        let tokens: Vec<_> = reply.strip_prefix(ACK_PREFIX)?.split('.').collect();
        let tail = match tokens.len() {
            7 => &tokens[..],
            9.. => &tokens[2..],
            _ => return None,
        };
        let number = |index: usize| tail.get(index)?.parse().ok();
        Some(Self { revision: number(3)?, delivery: number(4)?, pending: number(6)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_delivery_are_read_in_both_forms() {
        let expected = Some(Numbers { revision: 90, delivery: 4, pending: 2 });
        for tail in [
            "KV_a.w.1.90.4.1700000000.2",
            "hub.acc.KV_a.w.1.90.4.1700000000.2",
            "_.acc.KV_a.w.1.90.4.1.2.token",
        ] {
            assert_eq!(Numbers::read(&format!("$JS.ACK.{tail}")), expected, "{tail}");
        }
        for other in ["$JS.ACK.a.b", "_INBOX.a.b.1.2.3.4.5", "$JS.ACK.a.b.1.x.4.1.2"] {
            assert_eq!(Numbers::read(other), None, "{other}");
        }
    }
}
