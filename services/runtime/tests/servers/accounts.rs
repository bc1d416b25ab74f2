//! A stream of accounts that are paid into and out of.

use std::time::Duration;

use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::{self, DeliverPolicy},
        kv, stream,
    },
};
use bytes::Bytes;
use jetwright_crds::{
    Duration as Text,
    environment::{Bindings, HANDLER_DEADLINE, StreamPartitions},
};
use jetwright_process::health::Health;
use jetwright_runtime::{
    Aggregate, Aggregates, ApplyError, DecodeError, Environment, Event, NewEvent, Projection, Service,
    ServiceError, Snapshot, StoredEvent, decode,
};
use jetwright_testing::{NatsServer, await_until};
use prometheus_client::{encoding::text::encode, registry::Registry};
use prost::{Message, Name};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    proxy::Proxy,
    support::{Bench, SOON, attempts, record_traces, transform},
};

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Paid {
    #[prost(int64, tag = "1")]
    pub amount: i64,
}

impl Name for Paid {
    const NAME: &'static str = "Paid";
    const PACKAGE: &'static str = "tests.v1";
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Closed {}

impl Name for Closed {
    const NAME: &'static str = "Closed";
    const PACKAGE: &'static str = "tests.v1";
}

pub enum AccountEvent {
    Paid(Paid),
    Closed(Closed),
}

impl Event for AccountEvent {
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
        match event_type {
            "tests.v1.Paid" => decode(payload).map(Self::Paid),
            "tests.v1.Closed" => decode(payload).map(Self::Closed),
            other => Err(DecodeError::unknown_type(other)),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub balance: i64,
    pub payments: u64,
}

impl Account {
    fn paid(self, Paid { amount }: Paid) -> Self {
        Self { balance: self.balance + amount, payments: self.payments + 1 }
    }
}

impl Aggregate for Account {
    type Event = AccountEvent;

    fn apply(&mut self, event: AccountEvent, _stored: &StoredEvent) {
        *self = match event {
            AccountEvent::Paid(paid) => self.paid(paid),
            AccountEvent::Closed(_) => Self::default(),
        };
    }
}

impl Snapshot for Account {
    const VERSION: u32 = 1;
}

/// The accounts as they are read.
pub struct Balances;

impl Projection for Balances {
    type Event = AccountEvent;
    type Entry = Account;
    const BUCKET: &'static str = "balances";

    fn key(subject: &str) -> Option<&str> {
        subject.split('.').nth(1)
    }

    fn filter(id: &str) -> String {
        format!("accounts.{id}.>")
    }

    /// Nothing is paid to nobody, and an account ends when it is closed.
    fn apply(
        entry: Option<Account>,
        event: AccountEvent,
        _stored: &StoredEvent,
    ) -> Result<Option<Account>, ApplyError> {
        match event {
            AccountEvent::Paid(Paid { amount: 0 }) => Err(ApplyError::new("nothing was paid")),
            AccountEvent::Paid(paid) => Ok(Some(entry.unwrap_or_default().paid(paid))),
            AccountEvent::Closed(_) => Ok(None),
        }
    }
}

pub fn paid(amount: i64) -> NewEvent {
    NewEvent::new("paid", Paid { amount })
}

/// The stream, as most tests have it.
pub fn config() -> stream::Config {
    stream::Config {
        name: "accounts".to_owned(),
        subjects: vec!["accounts.*.*".to_owned()],
        allow_direct: true,
        ..stream::Config::default()
    }
}

fn partitions() -> StreamPartitions {
    StreamPartitions { subject: "accounts.*.*".to_owned(), key_tokens: vec![2], count: 4 }
}

/// The stream of accounts on servers of its own.
pub struct Bank<S = NatsServer> {
    pub jetstream: jetstream::Context,
    /// Where its services connect.
    pub url: String,
    /// How long an attempt of the projection may take.
    pub handler_deadline: Text,
    /// Of the stream, as the bindings have them.
    pub partitions: Option<StreamPartitions>,
    _nats: S,
}

impl Bank {
    pub async fn open() -> Self {
        Self::with(config()).await
    }

    /// One as most tests have it, and one whose stream has partitions.
    pub async fn both() -> [Self; 2] {
        Self::both_with(config()).await
    }

    /// One whose stream has this configuration, and one whose stream has partitions too.
    pub async fn both_with(config: stream::Config) -> [Self; 2] {
        let partitions = partitions();
        let partitioned =
            stream::Config { subject_transform: Some(transform(&partitions)), ..config.clone() };
        let mut bank = Self::with(partitioned).await;
        bank.partitions = Some(partitions);
        [Self::with(config).await, bank]
    }

    /// Its stream has partitions from now on.
    pub async fn partition(&mut self) {
        let partitions = partitions();
        let stream = self.jetstream.get_stream("accounts").await.unwrap();
        let config = stream.cached_info().config.clone();
        let partitioned = stream::Config { subject_transform: Some(transform(&partitions)), ..config };
        self.jetstream.update_stream(partitioned).await.unwrap();
        self.partitions = Some(partitions);
    }

    pub async fn with(config: stream::Config) -> Self {
        record_traces();
        let nats = NatsServer::start().await;
        let jetstream = nats.jetstream().await;
        jetstream.create_stream(config).await.unwrap();
        let url = nats.url().to_owned();
        Self::on(nats, &url, jetstream)
    }
}

impl<S> Bank<S> {
    /// On servers with the stream, at this address.
    pub fn on(nats: S, url: &str, jetstream: jetstream::Context) -> Self {
        let (url, handler_deadline) = (url.to_owned(), HANDLER_DEADLINE);
        Self { jetstream, url, handler_deadline, partitions: None, _nats: nats }
    }

    /// From now on its services lose answers to what they store, when the proxy is told so.
    pub async fn losing_answers(&mut self) -> Proxy {
        let proxy = Proxy::before(&self.url, |_, payload| payload.contains(r#"{"stream":"accounts""#)).await;
        self.url.clone_from(&proxy.url);
        proxy
    }

    /// With the bucket of this name.
    pub async fn bucket(&self, name: &str) -> kv::Store {
        let config = kv::Config { bucket: name.to_owned(), ..kv::Config::default() };
        self.jetstream.create_key_value(config).await.unwrap()
    }

    pub async fn service(&self) -> Service {
        self.registered(&mut Registry::default()).await
    }

    /// As [`service`](Self::service), with what it measures.
    pub async fn registered(&self, registry: &mut Registry) -> Service {
        let mut binding = Bench::bindings(10_000).bindings["numbers"].clone();
        binding.handler_deadline = self.handler_deadline;
        "accounts".clone_into(&mut binding.stream);
        "balances".clone_into(&mut binding.consumer);
        binding.max_ack_pending = 64;
        binding.partitions.clone_from(&self.partitions);
        let environment = Environment {
            name: "tests".to_owned(),
            servers: self.url.split(',').map(|url| url.parse().unwrap()).collect(),
            credentials: None,
            bindings: Bindings { bindings: [("balances".to_owned(), binding)].into() },
            pod: None,
            unknown_fields: Vec::new(),
        };
        Service::connect(environment, &Health::new(), registry).await.unwrap()
    }

    pub async fn accounts(&self) -> Aggregates<Account> {
        self.service().await.aggregates("accounts", "accounts")
    }

    /// Stores payments into an account, however many, in their order.
    pub async fn pay(&self, id: &str, amounts: impl IntoIterator<Item = i64>) {
        self.pay_each(amounts.into_iter().map(|amount| (id, amount))).await;
    }

    /// Stores payments into accounts, in their order.
    pub async fn pay_each(&self, payments: impl IntoIterator<Item = (impl AsRef<str>, i64)>) {
        let pay = async |id: &str, amount| {
            self.store(&format!("accounts.{id}.paid"), "tests.v1.Paid", &Paid { amount }).await
        };
        let (mut payments, mut stored) = (payments.into_iter(), Vec::new());
        if let Some((id, amount)) = payments.next() {
            // A server that is not the stream's may not know of it yet.
            await_until("a first payment", SOON, async || {
                pay(id.as_ref(), amount).await.await.map(drop).map_err(|error| error.to_string())
            })
            .await;
        }
        for (id, amount) in payments {
            stored.push(pay(id.as_ref(), amount).await);
            if stored.len() == 500 {
                for stored in stored.drain(..) {
                    stored.await.unwrap();
                }
            }
        }
        for stored in stored {
            stored.await.unwrap();
        }
    }

    pub async fn close(&self, id: &str) {
        self.store(&format!("accounts.{id}.closed"), "tests.v1.Closed", &Closed {}).await.await.unwrap();
    }

    /// Stores an event of this type.
    pub async fn store(
        &self,
        subject: &str,
        event_type: &str,
        event: &impl Message,
    ) -> jetstream::context::PublishAckFuture {
        let mut headers = HeaderMap::new();
        headers.insert("Event-Type", event_type);
        let payload = event.encode_to_vec().into();
        self.jetstream.publish_with_headers(subject.to_owned(), headers, payload).await.unwrap()
    }

    /// How many messages a stream has now.
    pub async fn stored(&self, stream: &str) -> u64 {
        self.jetstream.get_stream(stream).await.unwrap().get_info().await.unwrap().state.messages
    }

    /// Somebody deletes the stream, and it is made again, empty.
    pub async fn make_stream_again(&self) {
        let subject_transform = self.partitions.as_ref().map(transform);
        self.jetstream.delete_stream("accounts").await.unwrap();
        self.jetstream.create_stream(stream::Config { subject_transform, ..config() }).await.unwrap();
    }

    /// Delivers events from this sequence on to whoever keeps the projection.
    pub async fn deliver_from(&self, start_sequence: u64) {
        let _ = self.jetstream.delete_consumer_from_stream("balances", "accounts").await;
        let config = consumer::pull::Config {
            durable_name: Some("balances".to_owned()),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: consumer::AckPolicy::Explicit,
            ack_wait: Duration::from_secs(10),
            max_ack_pending: 64,
            ..Default::default()
        };
        self.jetstream.create_consumer_on_stream(config, "accounts").await.unwrap();
    }

    /// Awaits that everything was delivered and settled.
    pub async fn await_delivered(&self) {
        await_until("everything to be delivered", SOON, async || {
            let consumer = self.jetstream.get_consumer_from_stream("balances", "accounts").await;
            let consumer: consumer::PullConsumer = consumer.map_err(|error| error.to_string())?;
            let info = consumer.cached_info();
            let waiting = (info.num_pending, info.num_ack_pending);
            if waiting == (0, 0) { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }

    /// Keeps the projection.
    pub async fn keep(&self) -> Keeping {
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let mut service = self.registered(&mut registry).await;
        service.project::<Balances>("balances").unwrap();
        let task = tokio::spawn(service.run(stop.clone()));
        Keeping { registry, stop, task }
    }
}

/// A service that keeps the projection.
pub struct Keeping {
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl Keeping {
    /// How many attempts ended so.
    pub fn handled(&self, outcome: &str) -> u64 {
        let mut metrics = String::new();
        encode(&mut metrics, &self.registry).unwrap();
        attempts(&metrics, "balances", outcome)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.task).await.unwrap().unwrap().unwrap();
    }
}
