//! Figures of the shop: the services and the payment simulator as release programs, as the operator declares them of the chart, on one
//! real nats-server. How many orders are accepted and ended a second, how long that takes, what a repeated request costs, and which
//! program has the processor. Run by `make bench-shop`, which builds the programs first.
//!
//! Everything shares the machine: the servers, the API server that the declarations come from, and this program, which places orders over
//! HTTP and hears of their ends in NATS.
#![allow(
    missing_docs,
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program, and the helpers of the tests do more than is needed here"
)]

#[path = "../tests/servers/accounts.rs"]
mod accounts;
#[path = "../tests/servers/chart.rs"]
mod chart;
#[path = "../tests/servers/cluster.rs"]
mod cluster;
#[path = "../tests/servers/kubelet.rs"]
mod kubelet;
#[path = "../tests/servers/pod.rs"]
mod pod;
#[path = "../tests/servers/shop.rs"]
mod shop;

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::Subscriber;
use futures::{StreamExt, future::join_all};
use jetwright_testing::processor_seconds;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

use shop::{ADMIN_PORT, Answer, Shop, order, placed};

/// What is sold: so much that none of it runs out, at prices that no payment is declined for.
const CATALOGUE: &str = "mug=1250:100000000,notebook=799:100000000,poster=1999:100000000";
const ARTICLES: [&str; 3] = ["mug", "notebook", "poster"];
/// Users who order.
const USERS: usize = 50;
/// Callers at once.
const CALLERS: usize = 64;
/// Orders that are placed as fast as they are taken.
const ORDERS: usize = 8000;
/// Orders a second, and for how many seconds, where time is measured that nobody waits for others.
const STEADY: [usize; 2] = [100, 15];
/// Requests that repeat earlier ones.
const REPEATED: usize = 8000;
/// What has not ended by then never will.
const BOUND: Duration = Duration::from_mins(3);

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs it too, which is no time to measure.
    if !env::args().any(|argument| argument == "--bench") {
        return;
    }
    let shop = Arc::new(Shop::of_catalogue(CATALOGUE).await);
    let users = join_all((0..USERS).map(|user| {
        let shop = Arc::clone(&shop);
        async move { shop.register(&format!("user-{user}@example.org")).await }
    }));
    let bench = Bench { users: users.await.into(), shop };
    // The oldest orders of the stream, when they are asked for again.
    let keyed = bench.keyed().await;
    // Connections, and code that is read for the first time.
    bench.as_fast_as_taken(500).await;
    let before = bench.seen().await;
    let fast = bench.as_fast_as_taken(ORDERS).await;
    let after = bench.seen().await;
    fast.tell();
    before.tell_since(&after, ORDERS);
    bench.steadily().await.tell();
    let before = bench.seen().await;
    bench.repeated(&keyed).await;
    before.tell_since(&bench.seen().await, REPEATED);
}

#[derive(Clone)]
struct Bench {
    shop: Arc<Shop>,
    users: Arc<[String]>,
}

/// Orders, and how long each took.
struct Run {
    name: String,
    accepted_after: Vec<Duration>,
    ended_after: Vec<Duration>,
    until_accepted: Duration,
    until_ended: Duration,
}

impl Bench {
    /// Places orders, each caller one after another.
    async fn as_fast_as_taken(&self, orders: usize) -> Run {
        let callers = Semaphore::new(CALLERS);
        self.run(format!("{orders} orders of {CALLERS} callers"), orders, async |number| {
            let permit = callers.acquire().await.unwrap();
            let _ = number;
            permit
        })
        .await
    }

    /// Places orders at a rate.
    async fn steadily(&self) -> Run {
        let ([rate, seconds], begun) = (STEADY, Instant::now());
        self.run(format!("{rate} orders a second"), rate * seconds, async |number| {
            let at = Duration::from_secs(1) * u32::try_from(number).unwrap() / u32::try_from(rate).unwrap();
            tokio::time::sleep_until((begun + at).into()).await;
        })
        .await
    }

    /// Places orders, each when it may, and awaits the end of all.
    async fn run<T>(&self, name: String, orders: usize, may: impl AsyncFn(usize) -> T) -> Run {
        let client = self.shop.nats.client().await;
        let ends = client.subscribe("orders.*.*").await.unwrap();
        client.flush().await.unwrap();
        let begun = Instant::now();
        let hearing = tokio::spawn(hear(ends, orders));
        let placing = join_all((0..orders).map(|number| {
            let may = &may;
            async move {
                let turn = may(number).await;
                let placing = Instant::now();
                let id = placed(&self.place(number, &[]).await);
                drop(turn);
                (id, placing, Instant::now())
            }
        }));
        let accepted = placing.await;
        let until_accepted = begun.elapsed();
        let ended = timeout(BOUND, hearing).await.unwrap().unwrap();
        let ended_after = accepted.iter().map(|(id, placing, _)| ended[id] - *placing).collect();
        let until_ended = *ended.values().max().unwrap() - begun;
        let accepted_after = accepted.iter().map(|(_, placing, accepted)| *accepted - *placing).collect();
        Run { name, accepted_after, ended_after, until_accepted, until_ended }
    }

    async fn place(&self, number: usize, headers: &[(&str, &str)]) -> Answer {
        let (user, article) = (&self.users[number % USERS], ARTICLES[number % ARTICLES.len()]);
        self.shop.post_order(order(user, article, 1), headers).await
    }

    /// Places an order under a key for each caller, and awaits their ends.
    async fn keyed(&self) -> Vec<(String, String)> {
        join_all((0..CALLERS).map(|number| async move {
            let key = format!("key-{number}");
            let id = placed(&self.place(number, &[("idempotency-key", &key)]).await);
            self.shop.ended(&id).await;
            (key, id)
        }))
        .await
    }

    /// Repeats the requests of orders that have ended, under their keys.
    async fn repeated(&self, keyed: &[(String, String)]) {
        let begun = Instant::now();
        let callers = keyed.iter().enumerate().map(|(number, (key, id))| async move {
            let mut took = Vec::new();
            for _ in 0..REPEATED / CALLERS {
                let asked = Instant::now();
                assert_eq!(&placed(&self.place(number, &[("idempotency-key", key)]).await), id);
                took.push(asked.elapsed());
            }
            took
        });
        let took: Vec<_> = join_all(callers).await.into_iter().flatten().collect();
        let rate = rate(took.len(), begun.elapsed());
        println!("repeated requests of {CALLERS} callers: {rate:.0} a second");
        tell_times("repeated request", took);
    }

    async fn seen(&self) -> Versioned {
        let shop = &self.shop;
        let processes = [
            ("nats-server", shop.nats.process().pid()),
            ("order service", shop.orders.process().pid()),
            ("user service", shop.users.process().pid()),
            ("payment simulator", shop.payments.process.pid()),
            ("operator", shop.operator.process.pid()),
            ("this program", std::process::id()),
        ];
        let metrics = reqwest::get(format!("{}/metrics", shop.orders.url(ADMIN_PORT))).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        Versioned { processor: processes.map(|(name, pid)| (name, processor_seconds(pid))).into(), metrics }
    }
}

/// Hears when so many orders end.
async fn hear(mut events: Subscriber, orders: usize) -> HashMap<String, Instant> {
    let mut ended = HashMap::new();
    while ended.len() < orders {
        let event = events.next().await.unwrap();
        let mut tokens = event.subject.split('.').skip(1);
        let (id, name) = (tokens.next().unwrap(), tokens.next().unwrap());
        assert!(name == "placed" || name == "confirmed", "{}", event.subject);
        if name == "confirmed" {
            ended.entry(id.to_owned()).or_insert_with(Instant::now);
        }
    }
    ended
}

impl Run {
    fn tell(self) {
        let Self { name, accepted_after, ended_after, until_accepted, until_ended } = self;
        let orders = accepted_after.len();
        println!(
            "{name}: {:.0} accepted a second, {:.0} ended a second",
            rate(orders, until_accepted),
            rate(orders, until_ended)
        );
        tell_times("until accepted", accepted_after);
        tell_times("until ended", ended_after);
    }
}

/// What programs and steps have used by now.
struct Versioned {
    processor: Vec<(&'static str, f64)>,
    metrics: String,
}

impl Versioned {
    fn tell_since(&self, later: &Self, requests: usize) {
        for ((name, before), (_, after)) in self.processor.iter().zip(&later.processor) {
            let each = (after - before) * 1e6 / as_float(requests);
            println!("  processor time of the {name}: {:.2} s, {each:.0} µs each", after - before);
        }
        for (what, sum, count) in [
            ("step", "fulfilment_step_duration_seconds_sum", "fulfilment_step_duration_seconds_count"),
            ("handler", "jetwright_process_duration_seconds_sum", "jetwright_process_duration_seconds_count"),
        ] {
            let [sums, counts] =
                [sum, count].map(|name| (values(&self.metrics, name), values(&later.metrics, name)));
            for (labels, after) in &sums.1 {
                let spent = after - sums.0.get(labels).unwrap_or(&0.0);
                let times = counts.1[labels] - counts.0.get(labels).unwrap_or(&0.0);
                if times > 0.0 {
                    println!("  {what} {labels}: {times:.0} times, mean {:.2} ms", spent * 1e3 / times);
                }
            }
        }
    }
}

/// The values of a metric by its labels.
fn values(metrics: &str, name: &str) -> std::collections::BTreeMap<String, f64> {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    lines.map(|(labels, value)| (labels.to_owned(), value.parse().unwrap())).collect()
}

/// One line with percentiles (nearest rank).
fn tell_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let rank =
        |percent: usize| times[(times.len() * percent).div_ceil(100).max(1) - 1].as_secs_f64() * 1000.0;
    let [half, most, nearly, all] = [50, 95, 99, 100].map(rank);
    println!("  {what}: median {half:.1} ms, p95 {most:.1} ms, p99 {nearly:.1} ms, longest {all:.1} ms");
}

fn rate(count: usize, took: Duration) -> f64 {
    as_float(count) / took.as_secs_f64()
}

fn as_float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}
