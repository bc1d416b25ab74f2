//! The same with processes of their own, which are killed and frozen.

use std::{env, sync::Arc, time::Duration};

use futures::StreamExt;
use jetwright_partitions::coordinator::{Declared, PodRole, Pods};
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, Pod, Service};
use jetwright_testing::{Process, await_until};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    sharing::{Operator, Seen, await_drained, consumer_id, of_partitions, publish_values, sharing},
    support::{Bench, Number, SOON},
};

const PARTITIONS: u32 = 6;
/// Where a process of these tests connects; only those have it.
const URL: &str = "TEST_SHARING_URL";
/// UID of its pod.
const POD: &str = "TEST_SHARING_POD";
/// How long its handler takes, in milliseconds.
const TAKES: &str = "TEST_SHARING_TAKES";

/// Tells the test what it handles.
struct Telling {
    client: async_nats::Client,
    pod: String,
    takes: Duration,
}

impl Handler for Telling {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        let tell = async |what: &str| {
            let said = format!("{what} {} {} {}", self.pod, event.value, metadata.source.epoch);
            self.client.publish("told", said.into()).await.map_err(HandlerError::transient)
        };
        tell("begin").await?;
        sleep(self.takes).await;
        tell("end").await?;
        self.client.flush().await.map_err(HandlerError::transient)
    }
}

/// No test: the process that those below start, from this program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of other tests"]
async fn process() {
    let Ok(url) = env::var(URL) else { return };
    let uid = env::var(POD).unwrap();
    let mut binding = Bench::bindings(2_000).bindings["numbers"].clone();
    crate::sharing::share(&mut binding, PARTITIONS);
    let environment = jetwright_runtime::Environment {
        pod: Some(Pod { namespace: "shop".to_owned(), name: format!("pod-{uid}"), uid: uid.clone() }),
        ..Bench::environment_of(&url, binding)
    };
    let client = async_nats::connect(&url).await.unwrap();
    let takes = Duration::from_millis(env::var(TAKES).unwrap().parse().unwrap());
    let (health, mut registry) = (Health::new(), Registry::default());
    let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
    let handler = Telling { client, pod: uid, takes };
    service.handle_with("numbers", handler, HandlerOptions::default()).unwrap();
    service.run(CancellationToken::new()).await.unwrap();
}

fn start(bench: &Bench, uid: &str, takes: u64) -> Process {
    Process::builder(env::current_exe().unwrap())
        .args(["partitions_processes::process", "--exact", "--ignored", "--nocapture"])
        .env(URL, &bench.url)
        .env(POD, uid)
        .env(TAKES, takes.to_string())
        .name(uid)
        .start()
}

/// What all processes told.
struct Told {
    seen: Arc<Mutex<Seen>>,
    _listening: AbortOnDropHandle<()>,
}

impl Told {
    async fn listen(bench: &Bench) -> Self {
        let client = bench.nats.client().await;
        let mut told = client.subscribe("told").await.unwrap();
        client.flush().await.unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let noting = Arc::clone(&seen);
        let listening = tokio::spawn(async move {
            while let Some(message) = told.next().await {
                let text = String::from_utf8(message.payload.to_vec()).unwrap();
                let words: Vec<_> = text.split(' ').collect();
                let (value, epoch) = (words[2].parse().unwrap(), words[3].parse().unwrap());
                let mut seen = noting.lock();
                match words[0] {
                    "begin" => seen.begin_by(words[1], value, epoch),
                    _ => seen.end(value),
                }
            }
            // The client holds the subscription.
            drop(client);
        });
        Self { seen, _listening: AbortOnDropHandle::new(listening) }
    }

    async fn await_values(&self, count: usize, within: Duration) {
        await_until(&format!("{count} values"), within, async || {
            let handled = self.seen.lock().values.len();
            if handled >= count { Ok(()) } else { Err(format!("{handled}")) }
        })
        .await;
    }

    fn assert_in_order(&self) {
        let seen = self.seen.lock();
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
    }
}

/// Shares the partitions among pods of these UIDs.
fn declare(operator: &Operator, uids: &[&str]) {
    let roles = uids.iter().map(|uid| ((*uid).to_owned(), PodRole::Current)).collect();
    let pods = Some(Pods { namespace: "shop".to_owned(), roles });
    let declared = Declared { count: PARTITIONS, drain: SOON, pods };
    operator.tell(|coordinator| coordinator.declare(consumer_id(), declared));
}

/// Kubernetes says that the container ended: nobody waits for a lease, and what the process had is asked for instead of waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_had_is_handled_by_others_within_seconds_and_in_order() {
    let bench = sharing(PARTITIONS).await;
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    declare(&operator, &["a", "b"]);
    let told = Told::listen(&bench).await;
    let (first, _second) = (start(&bench, "a", 20), start(&bench, "b", 20));
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 0..2_000).await;
    told.await_values(500, SOON).await;
    first.kill();
    let killed = Instant::now();
    told.seen.lock().forget("a");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    operator.tell(move |coordinator| coordinator.container_ended("a", now + 1));
    operator.await_shared(PARTITIONS, 1).await;
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    told.await_values(2_000, SOON * 2).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    assert!(killed.elapsed() < Duration::from_secs(9), "{:?}", killed.elapsed());
    told.assert_in_order();
}

/// Its open pull request takes events, and its clock stands still or not: others wait for its lease, and it begins nothing when it wakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_process_is_followed_after_its_lease_and_does_nothing_when_it_wakes() {
    let bench = of_partitions(PARTITIONS).await;
    let bench = Bench { url: crate::proxy::Proxy::aging(bench.nats.url()).await.url, ..bench };
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let told = Told::listen(&bench).await;
    let (first, _second) = (start(&bench, "a", 1), start(&bench, "b", 1));
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 0..400).await;
    told.await_values(400, SOON).await;
    first.signal("STOP");
    let frozen = Instant::now();
    publish_values(&bench.jetstream, 400..800).await;
    told.await_values(800, SOON * 3).await;
    assert!(frozen.elapsed() > Duration::from_secs(20), "{:?}", frozen.elapsed());
    assert!(frozen.elapsed() < Duration::from_secs(45), "{:?}", frozen.elapsed());
    first.signal("CONT");
    publish_values(&bench.jetstream, 800..1_200).await;
    told.await_values(1_200, SOON).await;
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 1_200..1_600).await;
    told.await_values(1_600, SOON).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    told.assert_in_order();
}
