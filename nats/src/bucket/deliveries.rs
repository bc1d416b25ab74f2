//! The consumer of a watch: a push consumer that delivers the last message of each key, or what follows a revision, and then every new one.
//! Its deliveries are numbered, so that a lost one is noticed.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::{
    Bucket, REQUEST_TIMEOUT,
    entry::Change,
    reading::Told,
    watch::{Ended, WatchEvent},
};
use crate::{ACK_PREFIX, Link};

/// How often the server says that it has nothing to deliver.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long the server may be silent before the consumer is taken for gone.
const SILENCE: Duration = Duration::from_secs(7);
/// How long the server keeps a consumer that nobody listens to.
const INACTIVE: Duration = Duration::from_secs(30);
/// Header of a heartbeat: the number of the newest delivery.
const LAST_DELIVERY_HEADER: &str = "Nats-Last-Consumer";
/// Header of a heartbeat: where the server waits for a message before it goes on.
const STALLED_HEADER: &str = "Nats-Consumer-Stalled";

/// What is delivered first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// What each key has.
    WithAll,
    /// What was written after this revision.
    After(u64),
}

/// What one consumer delivers.
pub(super) struct Deliveries {
    /// Over the connection of watches.
    bucket: Bucket,
    subscriber: Subscriber,
    link: watch::Receiver<Link>,
    epoch: u64,
    /// Number of the newest delivery.
    newest: u64,
    /// Number of the delivery by which everything that there was is told; `None` when it is.
    last: Option<u64>,
    /// The server had nothing more to deliver. Keys that were deleted meanwhile are never delivered, so their number alone does not say
    /// when all is told.
    has_all: bool,
}

impl Deliveries {
    /// Makes a consumer.
    pub(super) async fn open(bucket: &Bucket, told: &Told, begin: Begin) -> Result<Self, Ended> {
        #[derive(Deserialize)]
        struct Info {
            num_pending: u64,
            delivered: Delivered,
        }
        #[derive(Deserialize)]
        struct Delivered {
            consumer_seq: u64,
        }
        let bucket = bucket.delivering().await.map_err(Ended::Lost)?;
        let Bucket { connection, stream, .. } = &bucket;
        let mut link = connection.link();
        let connected = timeout(REQUEST_TIMEOUT, link.wait_for(|link| link.connected)).await;
        let Ok(Ok(epoch)) = connected.map(|link| link.map(|link| link.epoch)) else {
            return Err(Ended::Lost("the connection of watches is not there".to_owned()));
        };
        let client = connection.client();
        let inbox = client.new_inbox();
        let subscriber = timeout(REQUEST_TIMEOUT, client.subscribe(inbox.clone())).await;
        let subscriber = subscriber
            .map_err(|_| Ended::Lost("NATS is not connected".to_owned()))?
            .map_err(|error| Ended::Lost(error.to_string()))?;
        // The last token of an inbox is drawn at random.
        let name = inbox.rsplit('.').next().unwrap_or_default();
        let subject = connection.api_subjects().request("CONSUMER.CREATE", &[stream, name]);
        let consumer = consumer(stream, (name, &inbox), told, begin);
        let Info { num_pending, delivered } = bucket.ask(subject, consumer.to_string()).await?;
        // It may have delivered already.
        let last = (begin == Begin::WithAll).then_some(num_pending + delivered.consumer_seq);
        Ok(Self { bucket, subscriber, link, epoch, newest: 0, last, has_all: false })
    }

    /// Whether everything is told that there was when it began.
    pub(super) fn is_synced(&self) -> bool {
        self.last.is_none()
    }

    /// What to tell next, until something is missing.
    pub(super) async fn next(&mut self) -> Result<WatchEvent, Ended> {
        loop {
            if self.last.is_some_and(|last| self.has_all || self.newest >= last) {
                self.last = None;
                return Ok(WatchEvent::Synced);
            }
            let message = self.message().await?;
            // Headers may say anything: who writes to a key chooses them.
            if message.subject.starts_with(&self.bucket.prefix) {
                return self.change(message);
            }
            self.status(&message).await?;
        }
    }

    async fn message(&mut self) -> Result<Message, Ended> {
        let Self { subscriber, link, epoch, .. } = self;
        let message = tokio::select! {
            // What came before the connection was lost is told.
            biased;
            message = timeout(SILENCE, subscriber.next()) => message,
            lost = link.wait_for(|link| !link.connected || link.epoch != *epoch) => {
                drop(lost);
                return Err(Ended::Lost("the connection of watches was lost".to_owned()));
            }
        };
        match message {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Ended::Lost("the NATS client was closed".to_owned())),
            Err(_) => Err(Ended::Lost("JetStream stopped delivering".to_owned())),
        }
    }

    /// A heartbeat, or a request to say that what was delivered is read.
    async fn status(&mut self, message: &Message) -> Result<(), Ended> {
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
            let _ = timeout(REQUEST_TIMEOUT, client.publish(to, Bytes::new())).await;
        }
        match header(LAST_DELIVERY_HEADER).and_then(|number| number.parse::<u64>().ok()) {
            Some(newest) if newest != self.newest => Err(hole()),
            // It has nothing to deliver.
            Some(_) => {
                self.has_all |= stalled.is_none();
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, message: Message) -> Result<WatchEvent, Ended> {
        let Some(numbers) = message.reply.as_deref().and_then(Numbers::read) else {
            return Err(Ended::Lost(format!("a message on {} is no delivery", message.subject)));
        };
        if numbers.delivery != self.newest + 1 {
            return Err(hole());
        }
        self.newest = numbers.delivery;
        self.has_all |= numbers.pending == 0;
        let key = self.bucket.key_of(&message.subject);
        let change = Change::of(message.headers.as_ref(), message.payload);
        Ok(WatchEvent::of(key, numbers.revision, change))
    }
}

fn consumer(stream: &str, (name, inbox): (&str, &str), told: &Told, begin: Begin) -> Value {
    let mut config = json!({
        "name": name,
        "description": "a watch",
        "deliver_subject": inbox,
        "deliver_policy": "last_per_subject",
        "ack_policy": "none",
        "replay_policy": "instant",
        "max_deliver": 1,
        "filter_subjects": told.subjects().collect::<Vec<_>>(),
        "idle_heartbeat": nanoseconds(HEARTBEAT),
        "flow_control": true,
        "inactive_threshold": nanoseconds(INACTIVE),
        "mem_storage": true,
        "num_replicas": 1,
    });
    if let Begin::After(revision) = begin {
        config["deliver_policy"] = "by_start_sequence".into();
        config["opt_start_seq"] = (revision + 1).into();
    }
    json!({ "stream_name": stream, "action": "create", "config": config })
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
