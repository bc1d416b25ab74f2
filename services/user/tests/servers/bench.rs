//! A NATS server with what the service needs, and the service on it.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, consumer, message::StreamMessage};
use jetwright_testing::{Folder, NatsServer, Process, ProcessBuilder, await_until};
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

pub const SOON: Duration = Duration::from_secs(20);
pub const ANN: &str = "ann@example.org";

/// A NATS server with the streams, and with the consumer unless a test makes it later.
pub struct Bench {
    pub nats: NatsServer,
    pub jetstream: jetstream::Context,
    /// The stream of users.
    stream: &'static str,
    folder: Arc<Folder>,
}

/// The service, ready.
pub struct UserService {
    pub process: Process,
    pub http: String,
    pub admin: String,
    client: reqwest::Client,
}

impl Bench {
    pub async fn start() -> Self {
        let bench = Self::without_consumer().await;
        bench.create_consumer().await;
        bench
    }

    pub async fn without_consumer() -> Self {
        Self::with_stream("users").await
    }

    /// The stream of users has this name.
    pub async fn with_stream(stream: &'static str) -> Self {
        let nats = NatsServer::start().await;
        let jetstream = nats.jetstream().await;
        Self::on(nats, jetstream, stream).await
    }

    /// On this server, where the test itself may do everything.
    pub async fn on(nats: NatsServer, jetstream: jetstream::Context, stream: &'static str) -> Self {
        let directory = jetstream::stream::Config {
            name: "KV_user-directory".to_owned(),
            subjects: vec!["$KV.user-directory.>".to_owned()],
            max_messages_per_subject: 1,
            ..jetstream::stream::Config::default()
        };
        jetstream.create_stream(directory).await.unwrap();
        let bench = Self { nats, jetstream, stream, folder: Folder::new("user-service") };
        bench.create_stream().await;
        bench
    }

    async fn create_stream(&self) {
        let users = jetstream::stream::Config {
            name: self.stream.to_owned(),
            subjects: vec!["users.*.*".to_owned()],
            ..jetstream::stream::Config::default()
        };
        self.jetstream.create_stream(users).await.unwrap();
    }

    /// Somebody deletes the stream of users, and it is made again, empty.
    pub async fn make_stream_again(&self) {
        self.jetstream.delete_stream(self.stream).await.unwrap();
        self.create_stream().await;
    }

    pub async fn create_consumer(&self) {
        let config = consumer::pull::Config {
            durable_name: Some("user-directory".to_owned()),
            filter_subject: "users.*.created".to_owned(),
            ack_policy: consumer::AckPolicy::Explicit,
            ..consumer::pull::Config::default()
        };
        self.jetstream.create_consumer_on_stream(config, self.stream).await.unwrap();
    }

    pub async fn delete_consumer(&self) {
        self.jetstream.delete_consumer_from_stream("user-directory", self.stream).await.unwrap();
    }

    /// The service's program with the environment that the operator gives it.
    pub fn program(&self) -> ProcessBuilder {
        self.program_with("")
    }

    /// The same with a bindings file that has these lines more, the first of them in the binding.
    pub fn program_with(&self, more: &str) -> ProcessBuilder {
        let bindings = self.folder.path().join("bindings.yaml");
        let yaml = format!(
            "bindings:\n  user-directory:\n    stream: {}\n    consumer: user-directory\n    \
             ackWait: 30s\n    maxAckPending: 256\n    \
             retry: {{maxAttempts: 6, backoff: {{initial: 50ms, factor: 2, max: 1s}}}}\n{more}",
            self.stream
        );
        fs::write(&bindings, yaml).unwrap();
        Process::builder(env!("CARGO_BIN_EXE_jetwright-user-service"))
            .env("NATS_URL", self.nats.url())
            .env("JETWRIGHT_BINDINGS", bindings)
            .env("JETWRIGHT_ADMIN_ADDRESS", "127.0.0.1:0")
            .env("USERS_HTTP_ADDRESS", "127.0.0.1:0")
    }

    /// The service, connected.
    pub async fn service(&self) -> UserService {
        let service = UserService::start(self.program()).await;
        await_until("the service to be connected", SOON, async || {
            let (_, body) = service.ready().await;
            if body["reasons"].get("nats").is_none() { Ok(()) } else { Err(body) }
        })
        .await;
        service
    }

    pub async fn events(&self) -> u64 {
        self.jetstream.get_stream(self.stream).await.unwrap().get_info().await.unwrap().state.messages
    }

    /// What the directory holds of a user, once it does.
    pub async fn in_directory(&self, id: &str) -> (Value, u64) {
        await_until(&format!("user {id} in the directory"), SOON, || self.entry(id)).await
    }

    /// Whether the directory had something of a user that was taken away.
    pub async fn is_deleted(&self, id: &str) -> bool {
        let message = self.message(id).await.unwrap();
        message.headers.get("KV-Operation").is_some_and(|operation| operation.as_str() == "DEL")
    }

    async fn message(&self, id: &str) -> Result<StreamMessage, String> {
        let stream = self.jetstream.get_stream("KV_user-directory").await.unwrap();
        let subject = format!("$KV.user-directory.{id}");
        stream.get_last_raw_message_by_subject(&subject).await.map_err(|error| error.to_string())
    }

    pub async fn entry(&self, id: &str) -> Result<(Value, u64), String> {
        let message = self.message(id).await?;
        Ok((serde_json::from_slice(&message.payload).unwrap(), message.sequence))
    }
}

impl UserService {
    /// Starts the program; where it listens is in its log.
    pub async fn start(program: ProcessBuilder) -> Self {
        let process = program.start();
        let line = process.await_log("\"message\":\"serving\"", SOON).await;
        let line: Value = serde_json::from_str(&line).unwrap();
        let url = |name: &str| format!("http://{}", line[name].as_str().unwrap());
        Self { http: url("http"), admin: url("admin"), process, client: reqwest::Client::new() }
    }

    pub async fn post(&self, body: &Value, headers: &[(&str, &str)]) -> Response {
        let mut request = self.client.post(format!("{}/users", self.http)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub async fn post_text(&self, content_type: &str, body: String) -> Response {
        let request = self.client.post(format!("{}/users", self.http)).header("content-type", content_type);
        request.body(body).send().await.unwrap()
    }

    /// Registers a user and returns it.
    pub async fn register(&self, email: &str) -> Value {
        let response = self.post(&json!({"email": email}), &[]).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.client.get(format!("{}{path}", self.http)).send().await.unwrap()).await
    }

    pub async fn show(&self, id: &str) -> (StatusCode, Value) {
        self.get(&format!("/users/{id}")).await
    }

    /// A user with its event of this sequence in it.
    pub async fn show_at_least(&self, id: &str, minimum: &str) -> Response {
        let request = self.client.get(format!("{}/users/{id}", self.http));
        request.header("minimum-event-sequence", minimum).send().await.unwrap()
    }

    pub async fn ready(&self) -> (StatusCode, Value) {
        answer(self.client.get(format!("{}/readyz", self.admin)).send().await.unwrap()).await
    }

    pub async fn await_ready(&self) {
        await_until("the service to be ready", SOON, async || match self.ready().await {
            (StatusCode::OK, _) => Ok(()),
            (_, body) => Err(body),
        })
        .await;
    }

    /// The log's lines with this trace id.
    pub fn lines_of_trace(&self, trace_id: &str) -> Vec<Value> {
        let log = self.process.log();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["trace_id"] == trace_id).collect()
    }
}

pub async fn answer(response: Response) -> (StatusCode, Value) {
    (response.status(), response.json().await.unwrap())
}
