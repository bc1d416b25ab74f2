//! Figures of aggregates and projections on one nats-server of this machine, each as a line `name, figure`. Run by
//! `make bench-aggregates`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a figure that cannot be had ends the program"
)]

use std::{
    env,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, kv, stream};
use jetwright_crds::{
    Duration as Text,
    environment::{Binding, Bindings, HANDLER_DEADLINE, Retry},
};
use jetwright_process::health::Health;
use jetwright_runtime::{
    Aggregate, Aggregates, ApplyError, Environment, NewEvent, Projection, Service, Snapshot, StoredEvent,
};
use jetwright_testing::{NatsServer, await_until};
use prometheus_client::registry::Registry;
use prost::{Message, Name};
use serde::{Deserialize, Serialize};

/// Events of a long history.
const LONG: u64 = 10_000;
/// Loads of which a figure is the median.
const LOADS: usize = 50;
/// Keys of the projection.
const KEYS: u64 = 10_000;
/// How many other aggregates there are while one is loaded.
const OTHERS: [u64; 3] = [1000, 100_000, 1_000_000];
/// Events under way at once while they are stored.
const IN_FLIGHT: usize = 1000;

/// Paid into an account, with as much beside it as events usually have.
#[derive(Clone, PartialEq, Message)]
struct Paid {
    #[prost(int64, tag = "1")]
    amount: i64,
    #[prost(string, tag = "2")]
    note: String,
}

impl Name for Paid {
    const NAME: &'static str = "Paid";
    const PACKAGE: &'static str = "bench.v1";
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Account {
    balance: i64,
    /// The amount of every thousandth payment, so that a snapshot is more than a number.
    amounts: Vec<i64>,
    payments: u64,
}

impl Aggregate for Account {
    type Event = Paid;

    fn apply(&mut self, paid: Paid, _stored: &StoredEvent) {
        self.balance += paid.amount;
        self.payments += 1;
        if self.payments.is_multiple_of(1000) {
            self.amounts.push(paid.amount);
        }
    }
}

impl Snapshot for Account {
    const VERSION: u32 = 1;
}

struct Balances;

impl Projection for Balances {
    type Event = Paid;
    type Entry = i64;
    const BUCKET: &'static str = "balances";

    fn key(subject: &str) -> Option<&str> {
        subject.split('.').nth(1)
    }

    fn filter(id: &str) -> String {
        format!("accounts.{id}.>")
    }

    fn apply(balance: Option<i64>, paid: Paid, _: &StoredEvent) -> Result<Option<i64>, ApplyError> {
        Ok(Some(balance.unwrap_or_default() + paid.amount))
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs it too, which is no time to measure.
    if env::args().any(|argument| argument == "--bench") {
        Box::pin(measure()).await;
    }
}

async fn measure() {
    let nats = NatsServer::start().await;
    let jetstream = nats.jetstream().await;
    for (name, allow_direct) in [("accounts", true), ("others", false), ("many", true)] {
        let subjects = vec![format!("{name}.*.*")];
        let config = stream::Config { name: name.to_owned(), subjects, allow_direct, ..Default::default() };
        jetstream.create_stream(config).await.unwrap();
    }
    for bucket in ["snapshots", "balances"] {
        let config = kv::Config { bucket: bucket.to_owned(), ..Default::default() };
        jetstream.create_key_value(config).await.unwrap();
    }
    for (subject, events) in
        [("accounts.ann.paid", LONG), ("accounts.bob.paid", 10), ("others.ann.paid", LONG)]
    {
        pay(&jetstream, (0..events).map(|_| subject.to_owned())).await;
    }
    let service = service(&nats).await;
    let plain: Aggregates<Account> = service.aggregates("accounts", "accounts");
    let others: Aggregates<Account> = service.aggregates("others", "others");
    let kept = plain.clone().with_snapshots(service.key_value("snapshots"), 1000);

    tell("load of 10 events", loads(&plain, "bob", 10).await);
    tell("load of 10,000 events", loads(&plain, "ann", LONG).await);
    tell(
        "load of 10,000 events one by one, where the stream has no allowDirect",
        loads(&others, "ann", LONG).await,
    );
    kept.load("ann").await.unwrap();
    let bucket = jetstream.get_key_value("snapshots").await.unwrap();
    await_until("the snapshot", Duration::from_secs(5), async || {
        bucket.get("ann").await.map_err(|error| error.to_string())?.ok_or_else(|| "none".to_owned())
    })
    .await;
    tell("load of 10,000 events with a snapshot", loads(&kept, "ann", LONG).await);
    pay(&jetstream, (0..500).map(|_| "accounts.ann.paid".to_owned())).await;
    tell("load of 10,500 events with a snapshot of 10,000", loads(&kept, "ann", LONG + 500).await);
    appends(&plain).await;

    pay(&jetstream, (0..KEYS).map(|key| format!("accounts.key-{key}.paid"))).await;
    let begun = Instant::now();
    let rebuilt = service.rebuild::<Balances>("balances").await.unwrap();
    let (made, took) = (rebuilt.rebuilt, begun.elapsed());
    println!("rebuild of {made} keys from {} events, {:.2} s", rebuilt.events, took.as_secs_f64());
    beside_others(&jetstream, &service.aggregates("many", "many")).await;
}

/// Loads an aggregate while its stream has ever more others. Its first event is stored before them all, and its last one after
/// them.
async fn beside_others(jetstream: &jetstream::Context, accounts: &Aggregates<Account>) {
    for others in OTHERS {
        append(accounts, &format!("two-{others}")).await;
        pay(jetstream, (0..5).map(|_| format!("many.ten-{others}.paid"))).await;
    }
    let mut stored = 0;
    for others in OTHERS {
        pay(jetstream, (stored..others).map(|other| format!("many.other-{other}.paid"))).await;
        stored = others;
        let (two, ten) = (format!("two-{others}"), format!("ten-{others}"));
        append(accounts, &two).await;
        pay(jetstream, (0..5).map(|_| format!("many.{ten}.paid"))).await;
        tell(&format!("load of 2 events beside {others} other aggregates"), loads(accounts, &two, 2).await);
        tell(
            &format!("load of 10 events, whose writer expected nothing, beside {others} others"),
            loads(accounts, &ten, 10).await,
        );
    }
}

async fn append(accounts: &Aggregates<Account>, id: &str) {
    let account = accounts.load(id).await.unwrap();
    accounts.append(&account, NewEvent::new("paid", paid())).await.unwrap();
}

/// Loads an aggregate again and again, and returns how long each took.
async fn loads(accounts: &Aggregates<Account>, id: &str, events: u64) -> Vec<Duration> {
    let mut took = Vec::with_capacity(LOADS);
    for _ in 0..LOADS {
        let begun = Instant::now();
        let account = accounts.load(id).await.unwrap();
        took.push(begun.elapsed());
        assert_eq!(account.state().payments, events);
    }
    took
}

/// Load and append, one after another.
async fn appends(accounts: &Aggregates<Account>) {
    let mut took = Vec::with_capacity(LOADS);
    for _ in 0..LOADS {
        let begun = Instant::now();
        append(accounts, "bob").await;
        took.push(begun.elapsed());
    }
    tell("load of some events, and append of one", took);
}

fn tell(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    let (median, longest) = (milliseconds(took[took.len() / 2]), milliseconds(took[took.len() - 1]));
    println!("{name}, median {median:.2} ms, longest {longest:.2} ms");
}

fn paid() -> Paid {
    Paid { amount: 1, note: "x".repeat(100) }
}

/// Stores payments under these subjects, in their order.
async fn pay(jetstream: &jetstream::Context, subjects: impl Iterator<Item = String>) {
    let mut stored = Vec::new();
    for subject in subjects {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Event-Type", "bench.v1.Paid");
        let payload = paid().encode_to_vec().into();
        stored.push(jetstream.publish_with_headers(subject, headers, payload).await.unwrap());
        if stored.len() == IN_FLIGHT {
            for stored in stored.drain(..) {
                stored.await.unwrap();
            }
        }
    }
    for stored in stored {
        stored.await.unwrap();
    }
}

async fn service(nats: &NatsServer) -> Service {
    let binding = Binding {
        stream: "accounts".to_owned(),
        consumer: "balances".to_owned(),
        ack_wait: Text::from_secs(30),
        max_ack_pending: 256,
        retry: Retry::default(),
        handler_deadline: HANDLER_DEADLINE,
        partitions: None,
        ordering: None,
        dead_letters: None,
    };
    let environment = Environment {
        name: "bench".to_owned(),
        servers: vec![nats.url().parse().unwrap()],
        credentials: None,
        bindings: Bindings { bindings: [("balances".to_owned(), binding)].into() },
        pod: None,
        unknown_fields: Vec::new(),
    };
    Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap()
}
