//! Figures of the operator against a real nats-server and a real API server: how soon an EventStream is Ready, how soon what
//! others changed is put right, and what it costs to be idle. Run by `make bench-operator`, which builds the operator first.
//!
//! The operator is the release program; the servers and this program share the machine with it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a figure that cannot be had ends the program"
)]

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, stream::Config};
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use jetwright_crds::EventStream;
use jetwright_e2e::{Operator, control_plane};
use jetwright_testing::{Namespace, NatsServer, await_until, target_folder};
use kube::{
    Api,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

/// EventStreams that are made one after another.
const IN_TURN: usize = 100;
/// EventStreams that are made at once.
const AT_ONCE: usize = 500;
/// Requests to the API server under way at once while they are made.
const WRITERS: usize = 32;
/// Edits and deletions that are measured.
const REPAIRS: usize = 50;
/// How long the operator is left alone before its memory is read.
const IDLE: Duration = Duration::from_secs(30);
/// How long its processor time is counted.
const MINUTE: Duration = Duration::from_mins(1);
/// What is not done by then never will be.
const BOUND: Duration = Duration::from_mins(2);
/// Ticks a second of the times in /proc (USER_HZ, the same on all Linux architectures that matter here).
const TICKS: f64 = 100.0;

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs it too, which is no time to measure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let operator = target_folder().join("release/jetwright-operator");
    assert!(
        operator.is_file(),
        "{} is missing: run `cargo build --release -p jetwright-operator`, or `make bench-operator`",
        operator.display()
    );
    one_after_another().await;
    all_at_once().await;
}

/// An operator that looks after one namespace and one NATS server.
struct World {
    nats: NatsServer,
    jetstream: jetstream::Context,
    namespace: Namespace<'static>,
    operator: Operator,
}

impl World {
    async fn start() -> Self {
        let (control_plane, nats) = tokio::join!(control_plane(), NatsServer::start());
        let namespace = control_plane.namespace("figures").await;
        let operator = Operator::start(control_plane, &nats, namespace.name());
        let ready = format!("{}/readyz", operator.admin_url);
        await_until("the operator is ready", BOUND, async || {
            reqwest::get(&ready).await.and_then(reqwest::Response::error_for_status)
        })
        .await;
        Self { jetstream: nats.jetstream().await, nats, namespace, operator }
    }

    fn streams(&self) -> Api<EventStream> {
        self.namespace.api()
    }

    /// Makes an EventStream; when the API server answered.
    async fn create(&self, number: usize) -> Instant {
        let object = json!({
            "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventStream",
            "metadata": {"name": name(number)}, "spec": {"subjects": [format!("{}.>", name(number))]},
        });
        let object = serde_json::from_value(object).unwrap();
        self.streams().create(&PostParams::default(), &object).await.unwrap();
        Instant::now()
    }

    /// The names of EventStreams as they are seen to be Ready.
    async fn ready(&self) -> BoxStream<'static, String> {
        let version = self.streams().list(&ListParams::default()).await.unwrap().metadata.resource_version;
        let streams = self.streams();
        let events = streams.watch(&WatchParams::default().timeout(290), &version.unwrap()).await.unwrap();
        let ready = events.try_filter_map(async |event| match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) if is_ready(&object) => {
                Ok(object.metadata.name)
            }
            WatchEvent::Error(error) => panic!("{error:?}"),
            _ => Ok(None),
        });
        ready.map(Result::unwrap).boxed()
    }

    /// Says what the operator costs while nothing happens.
    async fn tell_idle(&self, of_what: &str) {
        // Time is what is measured here, so this is not a wait for something.
        tokio::time::sleep(IDLE).await;
        println!("operator, {IDLE:?} idle with {of_what}: {:.1} MiB resident", self.resident_mib());
        let before = self.processor_seconds();
        tokio::time::sleep(MINUTE).await;
        let spent = self.processor_seconds() - before;
        println!("operator, idle with {of_what}: {spent:.2} CPU seconds per minute");
    }

    fn resident_mib(&self) -> f64 {
        let kibibytes = self.operator.process.memory_bytes() / 1024;
        f64::from(u32::try_from(kibibytes).unwrap()) / 1024.0
    }

    /// Processor time that the operator has taken so far (proc_pid_stat(5): utime and stime are fields 14 and 15).
    fn processor_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.operator.process.pid())).unwrap();
        // The second field, the name in parentheses, may hold spaces.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<f64>().unwrap();
        (ticks(14) + ticks(15)) / TICKS
    }

    /// The configuration of a stream, once there is one.
    async fn config(&self, name: &str) -> Option<Config> {
        self.jetstream.get_stream(name).await.ok().map(|stream| stream.cached_info().config.clone())
    }

    /// How long it takes from now until a stream is as declared.
    async fn until_declared(&self, name: &str) -> Duration {
        let since = Instant::now();
        loop {
            if self.config(name).await.is_some_and(|config| config.max_messages == -1) {
                return since.elapsed();
            }
            assert!(since.elapsed() < BOUND, "{name} was not put right");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn name(number: usize) -> String {
    format!("s{number}")
}

fn is_ready(object: &EventStream) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// One line with the median, the 99th percentile (nearest rank) and the longest of some times.
fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let rank = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_secs_f64() * 1000.0;
    println!(
        "{what} ({} times): median {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        rank(50),
        rank(99),
        rank(100)
    );
}

async fn one_after_another() {
    let world = World::start().await;
    world.tell_idle("no objects").await;
    let mut ready = world.ready().await;
    let mut times = Vec::new();
    for number in 0..IN_TURN {
        let created = world.create(number).await;
        let seen = async {
            while let Some(seen) = ready.next().await {
                if seen == name(number) {
                    return created.elapsed();
                }
            }
            panic!("the watch ended")
        };
        times.push(tokio::time::timeout(BOUND, seen).await.unwrap());
    }
    tell("EventStream created until seen Ready, one after another", times);

    let mut times = Vec::new();
    for number in 0..REPAIRS {
        let config = world.config(&name(number)).await.unwrap();
        world.jetstream.update_stream(Config { max_messages: 3, ..config }).await.unwrap();
        times.push(world.until_declared(&name(number)).await);
    }
    tell("stream edited in NATS until it is as declared again", times);

    let mut times = Vec::new();
    for number in 0..REPAIRS {
        world.jetstream.delete_stream(name(number)).await.unwrap();
        times.push(world.until_declared(&name(number)).await);
    }
    tell("stream deleted in NATS until it is there again", times);
    println!("nats-server, meanwhile: {} MiB resident", world.nats.process().memory_bytes() >> 20);
}

async fn all_at_once() {
    let world = World::start().await;
    let mut ready = world.ready().await;
    let begun = Instant::now();
    let creating = async {
        stream::iter(0..AT_ONCE).map(|number| world.create(number)).buffer_unordered(WRITERS).count().await;
        begun.elapsed()
    };
    let seeing = async {
        let mut missing: BTreeSet<_> = (0..AT_ONCE).map(name).collect();
        while !missing.is_empty() {
            missing.remove(&ready.next().await.unwrap());
        }
        begun.elapsed()
    };
    let (created, seen) =
        tokio::time::timeout(BOUND, async { tokio::join!(creating, seeing) }).await.unwrap();
    println!(
        "{AT_ONCE} EventStreams created at once ({:.2} s until the last was accepted) until all are seen Ready: {:.2} s",
        created.as_secs_f64(),
        seen.as_secs_f64()
    );
    world.tell_idle(&format!("{AT_ONCE} EventStreams")).await;
}
