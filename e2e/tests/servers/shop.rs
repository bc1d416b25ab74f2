//! The shop: its chart applied to a cluster with an operator, and what the operator declared run as pods.

use std::time::Duration;

use async_nats::jetstream;
use futures::TryStreamExt;
use jetwright_crds::EventConsumer;
use jetwright_e2e::{Operator, control_plane};
use jetwright_testing::{Namespace, NatsServer, Process, await_until, binary, free_port};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::{
    accounts,
    chart::Chart,
    cluster::{await_condition, await_declared, report_available, service_url},
    pod::Pod,
};

/// How long a test waits for what should take less than a second.
pub const SOON: Duration = Duration::from_secs(30);

/// How long the first order of a shop with order may take.
const FIRST_ORDER: Duration = Duration::from_mins(2);

/// The id of no user.
pub const NOBODY: &str = "00000000-0000-4000-8000-000000000000";
/// Prices in cents, and pieces in stock; payments of amounts that end in 13 are declined.
const CATALOGUE: &str = "mug=1250:1000,notebook=799:1000,poster=1999:2,raffle-ticket=113:100";
/// The port of the pods' programs for their probes and metrics.
pub const ADMIN_PORT: u16 = 9090;

pub struct Shop {
    pub nats: NatsServer,
    pub jetstream: jetstream::Context,
    pub namespace: Namespace<'static>,
    pub operator: Operator,
    pub payments: Simulator,
    pub users: Pod,
    pub orders: Pod,
    users_url: String,
    pub orders_url: String,
    client: reqwest::Client,
    /// How long an order may take.
    patience: Duration,
}

/// The chart's values: one pod of each service, whose payments go here.
pub fn values(payments_url: &str) -> Value {
    values_of(CATALOGUE, payments_url)
}

fn values_of(catalogue: &str, payments_url: &str) -> Value {
    json!({
        // With order, the first orders of a new NATS wait for half a minute. Tests scale by themselves.
        "orders": {"replicas": 1, "ordering": "Unordered", "autoscaling": {"enabled": false}},
        "catalogue": catalogue,
        "payments": {"url": payments_url},
    })
}

/// The payment simulator, which is no part of what the operator runs.
pub struct Simulator {
    pub url: String,
    admin_url: String,
    #[allow(dead_code, reason = "`benches/shop.rs` looks at its processor time")]
    pub process: Process,
}

impl Simulator {
    async fn start(latency: Duration) -> Self {
        let (url, admin_url) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let process = Process::builder(binary("jetwright-payment-simulator"))
            .env("PAYMENT_SIMULATOR_HTTP_ADDRESS", &url)
            .env("PAYMENT_SIMULATOR_SIMULATION_LATENCY_MILLISECONDS", latency.as_millis().to_string())
            .env("JETWRIGHT_ADMIN_ADDRESS", &admin_url)
            .start();
        process.await_log("\"message\":\"serving\"", SOON).await;
        Self { url: format!("http://{url}"), admin_url: format!("http://{admin_url}"), process }
    }

    /// How often a payment was asked for and authorized.
    pub async fn authorized(&self) -> u64 {
        let line = "http_server_request_duration_seconds_count{http_request_method=\"POST\",\
                    http_route=\"/authorizations\",http_response_status_code=\"201\"}";
        metric(&self.admin_url, line).await
    }

    /// What was decided about an order.
    pub async fn decision(&self, order_id: &str) -> Value {
        let url = format!("{}/authorizations/{order_id}", self.url);
        reqwest::get(url).await.unwrap().json().await.unwrap()
    }
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Shop {
    /// A shop that is open: all of it ready.
    pub async fn open() -> Self {
        Self::with_payments_that_take(Duration::ZERO).await
    }

    /// A shop whose payments are answered so late.
    pub async fn with_payments_that_take(latency: Duration) -> Self {
        Box::pin(Self::with(latency, values(""))).await
    }

    /// A shop that fulfils orders as a new one does, each order by one pod at a time.
    pub async fn with_order(latency: Duration) -> Self {
        let mut values = values("");
        values["orders"]["ordering"] = json!("PerKey");
        // The bucket by which pods agree is new, so what a pod owns is served half a minute later.
        Self { patience: FIRST_ORDER, ..Box::pin(Self::with(latency, values)).await }
    }

    /// A shop that sells this.
    #[allow(dead_code, reason = "`benches/shop.rs` sells more than tests do")]
    pub async fn of_catalogue(catalogue: &str) -> Self {
        Box::pin(Self::with(Duration::ZERO, values_of(catalogue, ""))).await
    }

    async fn with(latency: Duration, mut values: Value) -> Self {
        let (control_plane, payments) = tokio::join!(control_plane(), Simulator::start(latency));
        let namespace = control_plane.namespace("shop").await;
        let nats = accounts::start_nats(&namespace).await;
        let operator = Operator::start(control_plane, &nats, namespace.name());
        values["payments"]["url"] = json!(payments.url);
        Chart::shop().apply(&namespace, values).await;
        await_declared(&namespace).await;
        let (users, orders) = tokio::join!(
            Pod::start(&namespace, "user-directory", 0),
            Pod::start(&namespace, "order-fulfilment", 0)
        );
        for workload in ["user-directory", "order-fulfilment"] {
            report_available(&namespace, workload).await;
        }
        for consumer in ["user-directory", "order-fulfilment", "order-compensation", "order-users"] {
            await_condition::<EventConsumer>(&namespace, consumer, "Ready", "True").await;
        }
        Self {
            jetstream: nats.jetstream().await,
            users_url: service_url(&namespace, "user-directory", &users).await,
            orders_url: service_url(&namespace, "order-fulfilment", &orders).await,
            client: reqwest::Client::builder().timeout(SOON).build().unwrap(),
            nats,
            namespace,
            operator,
            payments,
            users,
            orders,
            patience: SOON,
        }
    }

    /// Another operator for the same namespace and NATS.
    pub fn another_operator(&self) -> Operator {
        Operator::start(self.namespace.control_plane(), &self.nats, self.namespace.name())
    }

    /// Asks the user service for a registration.
    pub async fn post_user(&self, body: impl Into<String>, headers: &[(&str, &str)]) -> Answer {
        let request = self.client.post(format!("{}/users", self.users_url)).body(body.into());
        self.send(request, headers).await.unwrap()
    }

    /// Asks the order service for an order.
    pub async fn post_order(&self, body: impl Into<String>, headers: &[(&str, &str)]) -> Answer {
        self.try_post_order(&self.orders_url, body, headers).await.unwrap()
    }

    /// Asks the order service at this address.
    pub async fn try_post_order(
        &self,
        url: &str,
        body: impl Into<String>,
        headers: &[(&str, &str)],
    ) -> Result<Answer, reqwest::Error> {
        self.send(self.client.post(format!("{url}/orders")).body(body.into()), headers).await
    }

    async fn send(
        &self,
        request: reqwest::RequestBuilder,
        headers: &[(&str, &str)],
    ) -> Result<Answer, reqwest::Error> {
        let request = request.header("content-type", "application/json");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.json().await? })
    }

    /// Registers a user over HTTP, and returns the id.
    pub async fn register(&self, email: &str) -> String {
        let answer = self.post_user(json!({"email": email}).to_string(), &[]).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body["id"].as_str().unwrap().to_owned()
    }

    /// Places an order over HTTP, and returns the id.
    pub async fn place(&self, user_id: &str, sku: &str, quantity: u32) -> String {
        placed(&self.post_order(order(user_id, sku, quantity), &[]).await)
    }

    /// Places an order as a patient caller does: again and again under one key, until somebody takes it.
    pub async fn place_patiently(&self, user_id: &str, sku: &str, key: &str) -> String {
        let order = order(user_id, sku, 1);
        await_until(&format!("order {key} is taken"), SOON, async || {
            let headers = [("idempotency-key", key)];
            match self.try_post_order(&self.orders_url, order.clone(), &headers).await {
                Ok(answer) if answer.status == 202 => Ok(placed(&answer)),
                Ok(answer) if answer.status == 503 => Err(answer.body.to_string()),
                Ok(answer) => panic!("{answer:?}"),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// A user as the user service shows it.
    pub async fn user(&self, id: &str) -> (u16, Value) {
        self.get(&format!("{}/users/{id}", self.users_url)).await.unwrap()
    }

    /// An order as the order service shows it.
    pub async fn order(&self, id: &str) -> Result<(u16, Value), reqwest::Error> {
        self.get(&format!("{}/orders/{id}", self.orders_url)).await
    }

    async fn get(&self, url: &str) -> Result<(u16, Value), reqwest::Error> {
        let response = self.client.get(url).send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    }

    /// An order, once it has ended.
    pub async fn ended(&self, id: &str) -> Value {
        await_until(&format!("the end of order {id}"), self.patience, async || match self.order(id).await {
            Ok((200, order)) if order["state"] != "placed" => Ok(order),
            Ok((status, order)) => Err(format!("{status} {order}")),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Requires that an order is confirmed.
    pub async fn confirmed(&self, id: &str) -> Value {
        let order = self.ended(id).await;
        assert_eq!(order["state"], "confirmed", "{order}");
        order
    }

    /// Waits until an article has so many pieces left and none are set aside.
    pub async fn await_stock(&self, sku: &str, available: u64) {
        let bucket = self.jetstream.get_key_value("inventory").await.unwrap();
        await_until(&format!("{available} of {sku} are left"), SOON, async || {
            let entry = bucket.get(sku).await.map_err(|error| error.to_string())?.unwrap();
            let stock: Value = serde_json::from_slice(&entry).unwrap();
            let is_so = stock == json!({"available": available, "reserved": {}});
            if is_so { Ok(()) } else { Err(stock.to_string()) }
        })
        .await;
    }

    /// Messages that a consumer has not delivered yet, and those that nobody has acknowledged.
    pub async fn waiting(&self, stream: &str, consumer: &str) -> (u64, usize) {
        let stream = self.jetstream.get_stream(stream).await.unwrap();
        let consumers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        // With order, each partition has a consumer.
        let is_of = |name: &str| {
            let rest = name.strip_prefix(consumer);
            let number = rest.and_then(|rest| rest.strip_prefix("-p"));
            rest == Some("") || number.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let own: Vec<_> = consumers.iter().filter(|info| is_of(&info.name)).collect();
        assert!(!own.is_empty(), "{consumer} is not there");
        let waiting = own.iter().map(|info| info.num_pending).sum();
        (waiting, own.iter().map(|info| info.num_ack_pending).sum())
    }

    /// Waits until a consumer has nothing left.
    pub async fn await_handled(&self, stream: &str, consumer: &str) {
        await_until(&format!("{consumer} has handled everything"), self.patience, async || {
            let waiting = self.waiting(stream, consumer).await;
            if waiting == (0, 0) { Ok(()) } else { Err(format!("{waiting:?}")) }
        })
        .await;
    }

    /// Starts one more pod of the order service, as `kubectl scale` asks for; where it takes orders.
    pub async fn scale_orders_to_two(&self) -> (Pod, String) {
        let name = "order-fulfilment";
        let control_plane = control_plane().await;
        let scaled = ["-n", self.namespace.name(), "scale", "eventconsumer", name, "--replicas=2"];
        control_plane.kubectl(scaled).unwrap();
        let deployments: Api<Deployment> = self.namespace.api();
        await_until("the Deployment has two replicas", SOON, async || {
            let replicas = deployments.get(name).await.unwrap().spec.unwrap().replicas;
            if replicas == Some(2) { Ok(()) } else { Err(format!("{replicas:?}")) }
        })
        .await;
        let pod = Box::pin(Pod::start(&self.namespace, name, 1)).await;
        let url = service_url(&self.namespace, name, &pod).await;
        (pod, url)
    }
}

/// The body of an order of one line.
pub fn order(user_id: &str, sku: &str, quantity: u32) -> String {
    json!({"user_id": user_id, "lines": [{"sku": sku, "quantity": quantity}]}).to_string()
}

/// The id of an order that was taken.
pub fn placed(answer: &Answer) -> String {
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.body["order_id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/orders/{id}"));
    id.to_owned()
}

/// The log of a pod: each line is JSON.
pub fn log(pod: &Pod) -> Vec<Value> {
    let log = pod.process().log();
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

/// The value of a metric of a program that serves them here, whose line begins with this; 0 where there is none yet.
pub async fn metric(admin_url: &str, line: &str) -> u64 {
    let text = reqwest::get(format!("{admin_url}/metrics")).await.unwrap().text().await.unwrap();
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok()).unwrap_or(0)
}

/// How many attempts at orders a pod has ended so.
pub async fn handled(pod: &Pod, outcome: &str) -> u64 {
    let start =
        format!(r#"jetwright_attempts_total{{event_consumer="order-fulfilment",outcome="{outcome}","#);
    let text = reqwest::get(format!("{}/metrics", pod.url(ADMIN_PORT))).await.unwrap().text().await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}
