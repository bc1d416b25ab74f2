//! A JetStream that answers as no real server does, but a hung or a broken one may: it keeps streams and consumers, and answers when it is
//! told to. Behind it is a real NATS server, whose account has no JetStream of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use async_nats::{Client, Message, Subject};
use futures::StreamExt;
use jetwright_testing::NatsServer;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The server would refuse the requests of an account without JetStream, so that they go by another subject.
const CONFIG: &str = r#"
    accounts: { main: { users: [{user: operator, password: pw}], mappings: { "$JS.API.>": "fake.>" } } }
    no_auth_user: operator
"#;

/// What it keeps, and how it answers. Clones share it.
#[derive(Clone, Default)]
pub struct FakeJetStream(Arc<Inner>);

#[derive(Default)]
struct Inner {
    silent: AtomicBool,
    ignores_offset: AtomicBool,
    is_slow: AtomicBool,
    /// Creations that it came to neither carry out nor answer, with where their answers go.
    waiting: Mutex<Vec<(String, Value, Option<Subject>)>>,
    client: OnceLock<Client>,
    /// Whether lists of streams are under way.
    holds_lists: watch::Sender<bool>,
    things: Mutex<BTreeMap<String, Value>>,
    asked: Mutex<BTreeMap<String, usize>>,
}

impl FakeJetStream {
    /// Starts it, with the NATS server that it is behind.
    pub async fn start() -> (NatsServer, Self) {
        let (nats, fake) = (NatsServer::builder().config(CONFIG).start().await, Self::default());
        let client = nats.client().await;
        fake.0.client.get_or_init(|| client.clone());
        let mut requests = client.subscribe("fake.>").await.unwrap();
        client.flush().await.unwrap();
        let serving = fake.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let answer = serving.answer(&request);
                let (Some(reply), Some(answer)) = (request.reply, answer) else { continue };
                let (client, held) = (client.clone(), serving.0.holds_lists.subscribe());
                let is_list = request.subject.contains("STREAM.LIST");
                let sent = async move {
                    let mut held = held;
                    if is_list {
                        held.wait_for(|held| !held).await.unwrap();
                    }
                    client.publish(reply, answer.to_string().into()).await.unwrap();
                };
                if is_list {
                    tokio::spawn(sent);
                } else {
                    sent.await;
                }
            }
        });
        (nats, fake)
    }

    /// Whether it answers nothing.
    pub fn set_silent(&self, silent: bool) {
        self.0.silent.store(silent, Relaxed);
    }

    /// Whether creations of streams wait: it answers other requests meanwhile, as servers do that work at several at once.
    pub fn set_slow(&self, is_slow: bool) {
        self.0.is_slow.store(is_slow, Relaxed);
    }

    /// Carries out the creations that wait, and answers them.
    pub async fn catch_up(&self) {
        let waiting = std::mem::take(&mut *self.0.waiting.lock());
        for (name, config, reply) in waiting {
            self.0.things.lock().insert(name, stream(&config));
            if let Some(reply) = reply {
                let answer = stream(&config).to_string().into();
                self.0.client.get().unwrap().publish(reply, answer).await.unwrap();
            }
        }
    }

    /// Whether there is a stream of this name.
    pub fn has_stream(&self, name: &str) -> bool {
        self.0.things.lock().contains_key(name)
    }

    /// Whether every page of a list is its first.
    pub fn set_ignores_offset(&self, ignores: bool) {
        self.0.ignores_offset.store(ignores, Relaxed);
    }

    /// Whether answers to lists of streams, which say what there was when they were asked for, do not arrive.
    pub fn set_holds_lists(&self, holds: bool) {
        self.0.holds_lists.send_replace(holds);
    }

    /// The configuration of a stream.
    pub fn config(&self, stream: &str) -> Value {
        self.0.things.lock()[stream]["config"].clone()
    }

    /// Changes the description of a stream, as another client does.
    pub fn describe(&self, stream: &str, description: &str) {
        self.0.things.lock().get_mut(stream).unwrap()["config"]["description"] = json!(description);
    }

    /// How often it was asked by this verb.
    pub fn asked(&self, verb: &str) -> usize {
        self.0.asked.lock().get(verb).copied().unwrap_or_default()
    }

    /// How often it was asked at all.
    pub fn asked_in_all(&self) -> usize {
        self.0.asked.lock().values().sum()
    }

    fn answer(&self, request: &Message) -> Option<Value> {
        let tokens: Vec<_> = request.subject.split('.').skip(1).collect();
        let (verb, names) = tokens.split_at_checked(2)?;
        let verb = verb.join(".");
        *self.0.asked.lock().entry(verb.clone()).or_default() += 1;
        if self.0.silent.load(Relaxed) {
            return None;
        }
        let body: Value = serde_json::from_slice(&request.payload).unwrap_or_default();
        let mut things = self.0.things.lock();
        Some(match (verb.as_str(), names) {
            ("STREAM.CREATE", [name]) if self.0.is_slow.load(Relaxed) => {
                let reply = request.reply.clone();
                self.0.waiting.lock().push(((*name).to_owned(), body, reply));
                return None;
            }
            ("STREAM.CREATE" | "STREAM.UPDATE", [name]) => {
                things.insert((*name).to_owned(), stream(&body));
                stream(&body)
            }
            ("STREAM.DELETE", [name]) if things.remove(*name).is_some() => json!({"success": true}),
            ("CONSUMER.CREATE", [stream, name, ..]) => {
                let info = json!({
                    "stream_name": stream, "name": name, "config": body["config"], "created": "2026-01-01T00:00:00Z",
                });
                things.insert(format!("{stream}.{name}"), info.clone());
                info
            }
            ("STREAM.INFO" | "CONSUMER.INFO", names) => {
                things.get(&names.join(".")).cloned().unwrap_or_else(|| {
                    let code = if verb == "STREAM.INFO" { 10059 } else { 10014 };
                    json!({"error": {"code": 404, "err_code": code, "description": "not found"}})
                })
            }
            ("STREAM.LIST", []) => {
                let streams = things.iter().filter(|(name, _)| !name.contains('.'));
                self.page("streams", &streams.map(|(_, info)| info).collect::<Vec<_>>(), &body)
            }
            ("CONSUMER.LIST", [stream]) => {
                let of_stream = format!("{stream}.");
                let consumers = things.iter().filter(|(name, _)| name.starts_with(&of_stream));
                self.page("consumers", &consumers.map(|(_, info)| info).collect::<Vec<_>>(), &body)
            }
            _ => json!({"error": {"code": 503, "err_code": 10008, "description": "not here"}}),
        })
    }

    fn page(&self, kind: &str, all: &[&Value], body: &Value) -> Value {
        let offset = usize::try_from(body["offset"].as_u64().unwrap_or_default()).unwrap();
        let ignores = self.0.ignores_offset.load(Relaxed);
        let total = if ignores { usize::MAX } else { all.len() };
        let from = if ignores { 0 } else { offset };
        let page: Vec<_> = all.iter().skip(from).take(256).collect();
        json!({"total": total, "offset": offset, "limit": 256, kind: page})
    }
}

/// A stream without messages, as INFO describes it.
fn stream(config: &Value) -> Value {
    let state = json!({"messages": 0, "bytes": 0, "first_seq": 0, "last_seq": 0, "consumer_count": 0});
    json!({"config": config, "created": "2026-01-01T00:00:00Z", "state": state})
}
