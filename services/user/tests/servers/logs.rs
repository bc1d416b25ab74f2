//! What the service logs where something fails: what failed, why, of what, and what happens next; never an event's content or a secret.

use async_nats::{HeaderMap, jetstream::stream};
use data_encoding::{BASE64, HEXLOWER};
use jetwright_testing::{MountedSecret, NatsServer, RawClient, await_until};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::bench::{Bench, SOON, UserService};

const PASSWORD: &str = "canary-password-7b1f";
const WRONG_PASSWORD: &str = "canary-password-wrong";
/// In every payload.
const CONTENT: &str = "canary-content-5d2e";
/// In a header that nobody reads.
const HEADER: &str = "canary-header-9c4a";
/// Everything of the project's own.
const ALL: &str =
    "off,jetwright_user_service=trace,jetwright_runtime=trace,jetwright_nats=trace,jetwright_process=trace";

/// Every form in which a text may stand in a log.
fn forms(text: &str) -> Vec<String> {
    let bytes: Vec<_> = text.bytes().take(8).map(|byte| byte.to_string()).collect();
    let base64 = BASE64.encode(text.as_bytes());
    vec![
        text.to_owned(),
        base64.trim_end_matches('=')[..8].to_owned(),
        HEXLOWER.encode(text.as_bytes()),
        bytes.join(", "),
    ]
}

struct World {
    bench: Bench,
    secret: MountedSecret,
    service: UserService,
}

impl World {
    /// The service, which comes with a wrong password at first.
    async fn start() -> Self {
        let config = format!(
            "accounts: {{ main: {{ jetstream: enabled, users: [\n\
             {{user: admin, password: admin}}\n{{user: service, password: {PASSWORD}}}\n] }} }}\nno_auth_user: admin\n"
        );
        let nats = NatsServer::builder().config(&config).start().await;
        let jetstream = nats.jetstream().await;
        let bench = Bench::on(nats, jetstream, "users").await;
        bench.create_consumer().await;
        let secret = MountedSecret::new(&[("username", "service"), ("password", WRONG_PASSWORD)]);
        let program = bench.program_with("    deadLetters: {prefix: jetwright.dlq.users.user-directory}\n");
        let program = program.env("RUST_LOG", ALL).env("NATS_CREDENTIALS", secret.path());
        let service = UserService::start(program).await;
        Self { bench, secret, service }
    }

    async fn create_dead_letters(&self) {
        let config = stream::Config {
            name: "users-dlq".to_owned(),
            subjects: vec!["jetwright.dlq.users.>".to_owned()],
            ..stream::Config::default()
        };
        self.bench.jetstream.create_stream(config).await.unwrap();
    }

    /// Publishes an event that cannot be decoded; its sequence.
    async fn publish_undecodable(&self) -> u64 {
        let mut headers = HeaderMap::new();
        headers.insert("Event-Type", "events.v1.UserCreated");
        headers.insert("Other", HEADER);
        let payload = format!("\u{1}{CONTENT}").into_bytes();
        let sent = self.bench.jetstream.publish_with_headers("users.7.created", headers, payload.into());
        sent.await.unwrap().await.unwrap().sequence
    }

    /// The lines with this message, and these fields.
    fn lines(&self, message: &str, fields: &Value) -> Vec<Value> {
        let log = self.service.process.log();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let is_such = |line: &Value| {
            let mut fields = fields.as_object().unwrap().iter();
            line["message"] == message && fields.all(|(name, value)| line[name] == *value)
        };
        lines.filter(is_such).collect()
    }

    async fn await_line(&self, message: &str, fields: Value) -> Value {
        await_until(&format!("{message} {fields}"), SOON, async || {
            self.lines(message, &fields).into_iter().next().ok_or_else(|| self.service.process.last_lines())
        })
        .await
    }

    /// The only line with this message and these fields.
    async fn only_line(&self, message: &str, fields: Value) -> Value {
        let line = self.await_line(message, fields.clone()).await;
        assert_eq!(self.lines(message, &fields).len(), 1, "{message} {fields}");
        line
    }

    async fn await_connected(&self) {
        await_until("the service to be connected", SOON, async || {
            let (_, body) = self.service.ready().await;
            if body["reasons"].get("nats").is_none() { Ok(()) } else { Err(body) }
        })
        .await;
    }

    /// The answer to a registration of somebody with such an address.
    async fn register(&self, name: &str) -> StatusCode {
        let email = format!("{CONTENT}-{name}@example.org");
        self.service.post(&json!({"email": email}), &[]).await.status()
    }
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

#[tokio::test]
async fn no_failure_puts_an_events_content_or_a_secret_into_the_log_and_each_has_one_line() {
    let world = World::start().await;
    world.create_dead_letters().await;

    // The servers refuse who it is.
    let refused = world.only_line("failed to connect to NATS, will retry", json!({})).await;
    assert!(text(&refused, "reason").contains("uthoriz"), "{refused}");
    world.secret.change(&[("username", "service"), ("password", PASSWORD)]);
    world.await_connected().await;

    // An event is no event, and becomes a dead letter.
    let sequence = world.publish_undecodable().await;
    let given_up = world.only_line("gave up event", json!({"sequence": sequence})).await;
    assert_eq!(
        [
            text(&given_up, "level"),
            text(&given_up, "reason"),
            text(&given_up, "binding"),
            text(&given_up, "subject")
        ],
        ["ERROR", "undecodable", "user-directory", "users.7.created"]
    );
    assert!(!text(&given_up, "error").is_empty() && given_up["trace_id"].is_string(), "{given_up}");

    // The client cannot parse one.
    let block = format!("NATS/1.0\r\nX {HEADER}: {HEADER}\r\n\r\n");
    RawClient::connect(world.bench.nats.url())
        .await
        .publish("users.8.created", block.as_bytes(), CONTENT.as_bytes())
        .await;
    world.only_line("gave up event", json!({"sequence": sequence + 1})).await;

    // The dead letter cannot be kept.
    world.bench.jetstream.delete_stream("users-dlq").await.unwrap();
    let sequence = world.publish_undecodable().await;
    let message = "failed to write a dead letter, will retry";
    let failed = world.await_line(message, json!({"sequence": sequence})).await;
    assert!(text(&failed, "error").contains("jetwright.dlq.users.user-directory"), "{failed}");
    world.only_line("gave up event", json!({"sequence": sequence})).await;
    world.create_dead_letters().await;

    // The handler fails.
    world.bench.jetstream.delete_stream("KV_user-directory").await.unwrap();
    assert_eq!(world.register("handled").await, StatusCode::CREATED);
    let retried =
        world.await_line("handler failed, will retry", json!({"sequence": sequence + 1, "attempt": 1})).await;
    assert!(!text(&retried, "error").is_empty() && retried["after"].is_string(), "{retried}");

    // A publish is refused, and then is not answered.
    world.bench.jetstream.delete_stream("users").await.unwrap();
    assert!(world.register("refused").await.is_server_error());
    world.await_line("request failed: unavailable", json!({})).await;
    // The event that the client could not parse had cost it a connection, too.
    let before = world.lines("disconnected from NATS", &json!({})).len();
    world.bench.nats.kill();
    await_until("one line of the connection that is lost", SOON, async || {
        match world.lines("disconnected from NATS", &json!({})).len() {
            lines if lines == before + 1 => Ok(()),
            lines => Err(lines),
        }
    })
    .await;
    assert_eq!(world.register("unanswered").await, StatusCode::SERVICE_UNAVAILABLE);

    let log = world.service.process.log();
    for (what, canary) in
        [("a password", PASSWORD), ("a password", WRONG_PASSWORD), ("content", CONTENT), ("a header", HEADER)]
    {
        for form in forms(canary) {
            let line = log.lines().find(|line| line.contains(&form));
            assert_eq!(line, None, "{what} is in the log, as {form}");
        }
    }
}
