//! A shop: NATS with its streams and buckets, a payment gateway, and the order service before them.

use std::time::Duration;

use async_nats::jetstream::{self, consumer, kv, stream};
use jetwright_crds::{
    Duration as Text,
    environment::{Backoff, Binding, Bindings, HANDLER_DEADLINE, Retry, StreamPartitions},
};
use jetwright_order_service::{
    catalogue::Catalogue,
    configuration,
    gateway::Gateway,
    handlers_and_routes,
    inventory::{self, Inventory},
    order,
    orders::Orders,
    payments,
    saga::adapters::Adapters,
    users::Users,
};
use jetwright_partitions::subjects::Partitions;
use jetwright_process::{health::Health, http::Drain};
use jetwright_proto::events::v1::UserCreated;
use jetwright_runtime::{Environment, PublishOptions, Publisher, Service, Setup};
use jetwright_testing::{NatsServer, await_until};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::gateway::Gateway as StandIn;

pub const SOON: Duration = Duration::from_secs(20);

/// What the shop sells.
pub const WARES: &str = "mug=1250:100,rare=500:1,unlucky=13:100";
/// Attempts at a placed order.
const MAX_ATTEMPTS: u32 = 6;

pub struct Shop {
    pub nats: NatsServer,
    pub jetstream: jetstream::Context,
    pub gateway: StandIn,
    /// Publishes what other services would.
    pub others: Publisher,
    /// Of the stream of orders.
    partitions: Option<StreamPartitions>,
    pub payments_url: String,
}

impl Shop {
    /// With the stream of orders as the chart has it in a new shop.
    pub async fn open() -> Self {
        let orders = StreamPartitions { subject: "orders.*.*".to_owned(), key_tokens: vec![2], count: 8 };
        Self::with(Some(orders)).await
    }

    /// With the stream of orders as shops have it that are older than partitions.
    pub async fn open_without_partitions() -> Self {
        Self::with(None).await
    }

    async fn with(partitions: Option<StreamPartitions>) -> Self {
        let filter = tracing_subscriber::EnvFilter::new("info");
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let nats = NatsServer::start().await;
        let jetstream = nats.jetstream().await;
        for bucket in ["order-users", "inventory"] {
            let config = kv::Config { bucket: bucket.to_owned(), ..Default::default() };
            jetstream.create_key_value(config).await.unwrap();
        }
        let gateway = StandIn::default();
        let payments_url = gateway.serve().await;
        let others = connect(&nats, Bindings::default()).await.publisher();
        let shop = Self { nats, jetstream, gateway, others, partitions, payments_url };
        for name in ["users", "orders", "payments", "notifications"] {
            shop.make_stream(name).await;
        }
        shop.make_consumer("users", "order-users", "users.*.created").await;
        shop.make_order_consumers().await;
        shop
    }

    /// What the saga works with, without the service.
    pub async fn adapters(&self) -> Adapters {
        let service = connect(&self.nats, self.bindings()).await;
        Adapters {
            orders: Orders::new(service.aggregates("orders", order::PREFIX)),
            users: Users { known: service.view(), reader: service.reader(), stream: "users".to_owned() },
            inventory: Inventory::new(
                service.key_value(inventory::BUCKET),
                &wares(),
                &mut Registry::default(),
            ),
            gateway: Gateway::new(&self.payments_url.parse().unwrap(), SOON).unwrap(),
            payments: service.aggregates(payments::STREAM, payments::PREFIX),
            publisher: service.publisher(),
        }
    }

    /// What the operator would tell the order service.
    pub fn bindings(&self) -> Bindings {
        let partitions_of = |stream: &str| self.partitions.clone().filter(|_| stream == "orders");
        let binding = |stream: &str, consumer: &str, max_attempts| Binding {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            ack_wait: Text::from_secs(5),
            max_ack_pending: 64,
            retry: Retry {
                max_attempts,
                backoff: Backoff { initial: Text::from_millis(50), factor: 2, max: Text::from_secs(1) },
            },
            handler_deadline: HANDLER_DEADLINE,
            partitions: partitions_of(stream),
            ordering: None,
            dead_letters: None,
        };
        let bindings = [
            ("order-users", "users", 6),
            ("order-fulfilment", "orders", MAX_ATTEMPTS),
            ("order-compensation", "orders", 1000),
        ];
        let bindings =
            bindings.map(|(name, stream, attempts)| (name.to_owned(), binding(stream, name, attempts)));
        Bindings { bindings: bindings.into() }
    }

    /// Starts the order service.
    pub async fn serve(&self) -> Running {
        self.serve_with(wares()).await
    }

    /// Starts the order service with another catalogue.
    pub async fn serve_with(&self, catalogue: Catalogue) -> Running {
        let environment = Environment {
            name: "order-service".to_owned(),
            servers: vec![self.nats.url().parse().unwrap()],
            credentials: None,
            bindings: self.bindings(),
            pod: None,
            unknown_fields: Vec::new(),
        };
        let settings = configuration::ShopConfig {
            catalogue,
            currency: "EUR".to_owned(),
            payments_url: self.payments_url.parse().unwrap(),
            payments_timeout: Duration::from_secs(2),
        };
        let mut setup = Setup::connect(environment).await.unwrap();
        let router = handlers_and_routes(&mut setup, settings).unwrap();
        setup.serve_http("127.0.0.1:0".parse().unwrap(), router).await.unwrap();
        let url = format!("http://{}", setup.http_address().unwrap().unwrap());
        let (health, registry) = (setup.health.clone(), std::mem::take(&mut setup.registry));
        let stop = CancellationToken::new();
        let running = setup.run(stop.clone(), Drain::at_once(SOON));
        let tasks = tokio::spawn(async move { running.await.unwrap() });
        // The stock is there then, too.
        await_until("readiness", SOON, async || health.ready().map_err(|why| format!("{why:?}"))).await;
        Running { url, client: reqwest::Client::new(), registry, stop, tasks }
    }

    /// A user registers.
    pub async fn register(&self) -> String {
        let user_id = Uuid::now_v7().to_string();
        self.register_as(&user_id).await;
        user_id
    }

    /// A user of this id registers.
    pub async fn register_as(&self, user_id: &str) {
        let user = UserCreated { user_id: user_id.to_owned(), email: "ann@x.test".to_owned(), created_at: 1 };
        let subject = format!("users.{user_id}.created");
        self.others.publish(&subject, &user, PublishOptions::default()).await.unwrap();
    }

    /// Somebody deletes the stream of users, and it is made again, empty.
    pub async fn make_users_again(&self) {
        self.jetstream.delete_stream("users").await.unwrap();
        self.make_stream("users").await;
        self.make_consumer("users", "order-users", "users.*.created").await;
    }

    /// Recreates the consumers of orders: everything is delivered again, with attempts from 1.
    pub async fn make_order_consumers_again(&self) {
        for name in ["order-fulfilment", "order-compensation"] {
            self.jetstream.delete_consumer_from_stream(name, "orders").await.unwrap();
        }
        self.make_order_consumers().await;
    }

    async fn make_order_consumers(&self) {
        let number = if self.partitions.is_some() { ".*" } else { "" };
        for (name, event) in [("order-fulfilment", "placed"), ("order-compensation", "rejected")] {
            self.make_consumer("orders", name, &format!("orders.*.{event}{number}")).await;
        }
    }

    /// Removes every user.
    pub async fn forget_users(&self) {
        self.jetstream.get_stream("users").await.unwrap().purge().await.unwrap();
        self.jetstream.get_stream("KV_order-users").await.unwrap().purge().await.unwrap();
    }

    async fn make_stream(&self, name: &str) {
        let subjects = vec![format!("{name}.*.*")];
        let partitions = self.partitions.as_ref().filter(|_| name == "orders");
        let subject_transform = partitions.map(|partitions| {
            let StreamPartitions { subject, key_tokens, count } = partitions;
            let partitions = Partitions::new(subject, key_tokens, *count).unwrap();
            let source = partitions.transform_source().to_owned();
            stream::SubjectTransform { source, destination: partitions.transform_destination() }
        });
        let config =
            stream::Config { name: name.to_owned(), subjects, subject_transform, ..Default::default() };
        self.jetstream.create_stream(config).await.unwrap();
    }

    async fn make_consumer(&self, stream: &str, name: &str, filter: &str) {
        let config = consumer::pull::Config {
            durable_name: Some(name.to_owned()),
            filter_subject: filter.to_owned(),
            ack_wait: Duration::from_secs(5),
            max_ack_pending: 64,
            ..Default::default()
        };
        self.jetstream.create_consumer_on_stream(config, stream).await.unwrap();
    }

    /// The subjects of a stream's messages without the ids in them, in order: `orders.*.placed`.
    pub async fn events(&self, stream: &str) -> Vec<String> {
        let mut stream = self.jetstream.get_stream(stream).await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut events = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let tokens: Vec<_> = message.subject.split('.').collect();
            events.push(format!("{}.*.{}", tokens[0], tokens[2]));
        }
        events
    }

    /// The stock of an article.
    pub async fn stock(&self, sku: &str) -> Value {
        let bucket = self.jetstream.get_key_value("inventory").await.unwrap();
        serde_json::from_slice(&bucket.get(sku).await.unwrap().unwrap()).unwrap()
    }

    /// Awaits that an article has so many pieces left and none set aside.
    pub async fn await_stock(&self, sku: &str, available: u64) {
        await_until(&format!("{available} of {sku}"), SOON, async || {
            let stock = self.stock(sku).await;
            if stock == json!({"available": available, "reserved": {}}) { Ok(()) } else { Err(stock) }
        })
        .await;
    }

    /// Awaits that the consumer has delivered something again.
    pub async fn await_retried(&self, stream: &str, consumer: &str) {
        await_until(&format!("{consumer} to try again"), SOON, async || {
            let consumer: consumer::PullConsumer = self
                .jetstream
                .get_consumer_from_stream(consumer, stream)
                .await
                .map_err(|error| error.to_string())?;
            let delivered = consumer.cached_info().delivered.consumer_sequence;
            if delivered > 1 { Ok(()) } else { Err(format!("delivered {delivered} times")) }
        })
        .await;
    }

    /// Awaits that orders are fulfilled or undone.
    pub async fn await_settled(&self) {
        self.await_handled("orders", "order-fulfilment").await;
        self.await_handled("orders", "order-compensation").await;
    }

    pub async fn await_handled(&self, stream: &str, consumer: &str) {
        await_until(&format!("all of {consumer} handled"), SOON, async || {
            let consumer: consumer::PullConsumer = self
                .jetstream
                .get_consumer_from_stream(consumer, stream)
                .await
                .map_err(|error| error.to_string())?;
            let info = consumer.cached_info();
            let waiting = (info.num_pending, info.num_ack_pending);
            if waiting == (0, 0) { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }
}

fn wares() -> Catalogue {
    WARES.parse().unwrap()
}

/// A service without handlers.
async fn connect(nats: &NatsServer, bindings: Bindings) -> Service {
    let environment = Environment {
        name: "others".to_owned(),
        servers: vec![nats.url().parse().unwrap()],
        credentials: None,
        bindings,
        pod: None,
        unknown_fields: Vec::new(),
    };
    Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap()
}

/// The running order service.
pub struct Running {
    pub url: String,
    pub client: reqwest::Client,
    registry: Registry,
    stop: CancellationToken,
    tasks: JoinHandle<()>,
}

impl Running {
    /// Sends an order; returns the status and the body.
    pub async fn post(&self, body: &Value, key: Option<&str>) -> (u16, Value) {
        let mut request = self.client.post(format!("{}/orders", self.url)).json(body);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Places an order of one line and returns its id.
    pub async fn place(&self, user_id: &str, sku: &str, quantity: u32) -> String {
        let body = json!({"user_id": user_id, "lines": [{"sku": sku, "quantity": quantity}]});
        let (status, accepted) = self.post(&body, None).await;
        assert_eq!(status, 202, "{accepted}");
        accepted["order_id"].as_str().unwrap().to_owned()
    }

    pub async fn get(&self, order_id: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}/orders/{order_id}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// Awaits the end of an order.
    pub async fn ended(&self, order_id: &str) -> Value {
        await_until("the end of the order", SOON, async || match self.get(order_id).await {
            (200, order) if order["state"] != "placed" => Ok(order),
            (status, order) => Err(format!("{status} {order}")),
        })
        .await
    }

    pub fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.tasks).await.unwrap().unwrap();
    }
}
