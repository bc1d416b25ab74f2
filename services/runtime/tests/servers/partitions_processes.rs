//! The same with processes of their own, which are killed and frozen.

use std::{env, sync::Arc, time::Duration};

use futures::StreamExt;
use jetwright_partitions::{
    coordinator::{Declared, PodRole, Pods},
    subjects::Partitions,
};
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, Pod, Service};
use jetwright_testing::{Process, await_until};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    sharing::{
        KEYS, NO_KEY, Operator, Seen, await_drained, consumer_id, of_partitions, on_cluster, publish_values,
        sharing, unacknowledged,
    },
    support::{Bench, Number, SOON},
};

const PARTITIONS: u32 = 6;
/// Where a process of these tests connects; only those have it.
const URL: &str = "TEST_SHARING_URL";
/// UID of its pod.
const POD: &str = "TEST_SHARING_POD";
/// How long its handler takes, in milliseconds.
const TAKES: &str = "TEST_SHARING_TAKES";
/// The key of which nothing succeeds.
const FAILS: &str = "TEST_SHARING_FAILS";

/// Tells the test what it handles.
struct Telling {
    client: async_nats::Client,
    pod: String,
    takes: Duration,
    fails: u64,
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
        let has_failed = event.value % KEYS == self.fails;
        tell(if has_failed { "fail" } else { "end" }).await?;
        self.client.flush().await.map_err(HandlerError::transient)?;
        if has_failed {
            return Err(HandlerError::RetryAfter(Duration::from_hours(1), "not yet".into()));
        }
        Ok(())
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
    let fails = env::var(FAILS).map_or(NO_KEY, |key| key.parse().unwrap());
    let (health, mut registry) = (Health::new(), Registry::default());
    let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
    let handler = Telling { client, pod: uid, takes, fails };
    service.handle_with("numbers", handler, HandlerOptions::default()).unwrap();
    service.run(CancellationToken::new()).await.unwrap();
}

fn start(bench: &Bench, uid: &str, takes: u64) -> Process {
    start_failing(bench, uid, takes, NO_KEY)
}

fn start_failing(bench: &Bench, uid: &str, takes: u64, fails: u64) -> Process {
    Process::builder(env::current_exe().unwrap())
        .args(["partitions_processes::process", "--exact", "--ignored", "--nocapture"])
        .env(URL, &bench.url)
        .env(POD, uid)
        .env(TAKES, takes.to_string())
        .env(FAILS, fails.to_string())
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
        Self::listen_to(bench.nats.client().await).await
    }

    async fn listen_to(client: async_nats::Client) -> Self {
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
                    "fail" => seen.fail(value),
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

/// Kills the process of this pod, and says so as Kubernetes does.
fn kill(process: &Process, uid: &'static str, told: &Told, operator: &Operator) {
    process.kill();
    told.seen.lock().forget(uid);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    operator.tell(move |coordinator| coordinator.container_ended(uid, now + 1));
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
    let killed = Instant::now();
    kill(&first, "a", &told, &operator);
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

async fn await_unacknowledged(bench: &Bench, count: usize) {
    await_until(&format!("{count} unacknowledged deliveries"), SOON, async || {
        let all = (0..PARTITIONS).map(|partition| format!("tests-p{partition}"));
        let there = unacknowledged(bench, all).await;
        if there == count { Ok(()) } else { Err(there) }
    })
    .await;
}

/// It comes after the others of its key when their time is over, and all of them come before anything new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_an_event_that_was_said_to_be_in_progress_keeps_its_place() {
    let bench = sharing(PARTITIONS).await;
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    declare(&operator, &["a"]);
    let told = Told::listen(&bench).await;
    let first = start(&bench, "a", 60_000);
    operator.await_shared(PARTITIONS, 1).await;
    // Ten of each key.
    publish_values(&bench.jetstream, 0..10 * KEYS).await;
    await_unacknowledged(&bench, usize::try_from(10 * KEYS).unwrap()).await;
    let client = bench.nats.client().await;
    let of_stream = Partitions::new("numbers.*", &[2], PARTITIONS).unwrap();
    for key in 0..KEYS {
        // The third of its key: values are the sequences less one.
        let (partition, sequence) = (of_stream.partition_of(&format!("numbers.{key}")), 2 * KEYS + key + 1);
        let to = format!("$JS.ACK.numbers.tests-p{partition}.1.{sequence}.1.0.0");
        client.publish(to, "+WPI".into()).await.unwrap();
    }
    client.flush().await.unwrap();
    kill(&first, "a", &told, &operator);
    let _second = start(&bench, "b", 1);
    declare(&operator, &["b"]);
    publish_values(&bench.jetstream, 10 * KEYS..20 * KEYS).await;
    told.await_values(usize::try_from(20 * KEYS).unwrap(), SOON * 3).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    told.assert_in_order();
}

/// With three replicas a nak is not replicated: the next leader delivers again when the time is over, and what is new meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn naks_that_a_change_of_leader_forgets_reorder_nothing_of_a_killed_process() {
    let (cluster, mut bench) = on_cluster(PARTITIONS).await;
    bench.url = crate::proxy::Proxy::aging(cluster.servers()[0].url()).await.url;
    let operator = Operator::start(cluster.url(), PARTITIONS).await;
    declare(&operator, &["a"]);
    let told = Told::listen_to(cluster.client().await).await;
    let first = start(&bench, "a", 60_000);
    operator.await_shared(PARTITIONS, 1).await;
    publish_values(&bench.jetstream, 0..10 * KEYS).await;
    await_unacknowledged(&bench, usize::try_from(10 * KEYS).unwrap()).await;
    let client = cluster.client().await;
    let _second = start(&bench, "b", 1);
    kill(&first, "a", &told, &operator);
    declare(&operator, &["b"]);
    publish_values(&bench.jetstream, 10 * KEYS..20 * KEYS).await;
    // From before the naks until after the first of them.
    while told.seen.lock().values.is_empty() {
        for partition in 0..PARTITIONS {
            let subject = format!("$JS.API.CONSUMER.LEADER.STEPDOWN.numbers.tests-p{partition}");
            let _ = client.request(subject, "".into()).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
    told.await_values(usize::try_from(20 * KEYS).unwrap(), SOON * 3).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    told.assert_in_order();
}

/// The floor of its consumer stays where it is, so that nothing between it and the newest delivery is known by numbers alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_holds_the_floor_while_many_others_pass_goes_on_in_its_place_after_a_kill() {
    let bench = sharing(PARTITIONS).await;
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    declare(&operator, &["a"]);
    let told = Told::listen(&bench).await;
    let first = start_failing(&bench, "a", 0, 0);
    operator.await_shared(PARTITIONS, 1).await;
    // No more of the key than there is room for.
    let is_there = |value: &u64| !value.is_multiple_of(KEYS) || *value < 100 * KEYS;
    let (of_key, others) = (100, 100_000);
    let last = others * KEYS / (KEYS - 1);
    let values: Vec<_> = (0..last).filter(is_there).collect();
    publish_values(&bench.jetstream, values.iter().copied()).await;
    told.await_values(values.len() - of_key, SOON * 6).await;
    kill(&first, "a", &told, &operator);
    let _second = start(&bench, "b", 0);
    declare(&operator, &["b"]);
    told.await_values(values.len(), SOON * 3).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    told.assert_in_order();
}
