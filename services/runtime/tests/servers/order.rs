//! Order per key against what breaks it: bursts, lost deliveries, restarts, kills, silent and changing leaders.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
    time::Duration,
};

use async_nats::jetstream::{AckKind, consumer};
use futures::StreamExt;
use jetwright_crds::environment::Ordering;
use jetwright_process::health::Health;
use jetwright_runtime::{Environment, HandlerOptions, PublishOptions, Service};
use jetwright_testing::{NatsCluster, await_until};
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::cluster,
    proxy::Proxy,
    support::{
        Bench, Call, Gate, Number, Running, SOON, Scripted, count, number_headers, publish_of, text_of,
    },
};

/// Calls that came after a later one of their key. The key of a number is what it leaves divided by `keys`.
fn inversions(calls: &[Call], keys: u64) -> Vec<(u64, u64)> {
    let mut newest: HashMap<u64, u64> = HashMap::new();
    let mut inverted = Vec::new();
    for call in calls {
        let newest = newest.entry(call.value % keys).or_default();
        if call.value < *newest {
            inverted.push((*newest, call.value));
        }
        *newest = call.value.max(*newest);
    }
    inverted
}

fn assert_in_order(handler: &Scripted, keys: u64) {
    let inverted = inversions(&handler.calls(), keys);
    assert!(
        inverted.is_empty(),
        "{} of {} calls: {:?}",
        inverted.len(),
        handler.calls().len(),
        &inverted[..10.min(inverted.len())]
    );
}

fn assert_sentinel_is_silent(metrics: &str, calls: usize) {
    assert_eq!(count(metrics, "jetwright_order_checked_total{event_consumer=\"numbers\"} "), calls as u64);
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

async fn ordered() -> Bench {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 10_000;
    bench.create_consumer().await;
    bench
}

async fn bursts(concurrency: u32, size: u64, every: Duration, rounds: u64) {
    const KEYS: u64 = 4;
    let bench = ordered().await;
    let handler = Scripted::content();
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency, ..HandlerOptions::default() }).await;
    service.await_ready().await;
    let client = bench.nats.client().await;
    for value in 0..size * rounds {
        let payload = Number { value }.encode_to_vec().into();
        client
            .publish_with_headers(format!("numbers.{}", value % KEYS), number_headers(), payload)
            .await
            .unwrap();
        if value % size == size - 1 {
            client.flush().await.unwrap();
            sleep(every).await;
        }
    }
    bench.await_drained().await;
    assert_in_order(&handler, KEYS);
    let calls = handler.calls().len();
    assert_eq!(calls as u64, size * rounds);
    assert_sentinel_is_silent(&service.stop().await, calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_over_many_pull_requests_keep_the_order_of_each_key() {
    bursts(64, 700, Duration::from_millis(300), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_bursts_one_at_a_time_keep_the_order_of_each_key() {
    bursts(1, 6, Duration::from_millis(100), 60).await;
}

/// Without order, events begin as JetStream delivers them all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_at_a_time_begins_in_the_order_of_deliveries() {
    let bench = Bench::start().await;
    let handler = Scripted::content();
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency: 1, ..HandlerOptions::default() }).await;
    for value in 0..2000 {
        publish_of(&service.publisher, 0, value).await;
    }
    bench.await_drained().await;
    assert_in_order(&handler, 1);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_delivery_is_waited_for_before_later_ones_begin() {
    losing_deliveries(64).await;
}

/// More comes than the process has room for, before what was lost comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_delivery_is_waited_for_although_there_is_no_room_for_it() {
    losing_deliveries(1).await;
}

async fn losing_deliveries(concurrency: u32) {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    // A delivery is a message that is acknowledged.
    let proxy = Proxy::before(&bench.url, |words, _| words.contains("$JS.ACK.")).await;
    bench.url.clone_from(&proxy.url);
    let handler = Scripted::content();
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency, ..HandlerOptions::default() }).await;
    service.await_ready().await;
    let publisher = service.publisher.clone();
    for value in 0..50 {
        publish_of(&publisher, value % 5, value).await;
    }
    handler.await_calls(50).await;
    proxy.lose(3);
    for value in 50..300 {
        publish_of(&publisher, value % 5, value).await;
    }
    bench.await_drained().await;
    assert_eq!(proxy.left_to_lose(), 0);
    assert_in_order(&handler, 5);
    assert_eq!(handler.calls().len(), 300);
    let metrics = service.stop().await;
    assert!(
        count(
            &metrics,
            "jetwright_order_recoveries_total{event_consumer=\"numbers\",cause=\"sequence-gap\"} "
        ) > 0
    );
    assert_sentinel_is_silent(&metrics, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_a_backlog_goes_on_where_it_stopped() {
    let bench = ordered().await;
    let publisher = bench.publisher().await;
    for value in 0..2500 {
        publish_of(&publisher, 0, value).await;
    }
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(1)).await;
        Ok(())
    });
    for calls in [50, 100, 150] {
        let service = bench.run(&handler).await;
        handler.await_calls(calls).await;
        service.stop().await;
    }
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let values: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(values, (0..2500).collect::<Vec<_>>());
    service.stop().await;
}

/// Redeliveries come in the order of their time-outs: whoever died had told JetStream that one of ten was in progress.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_process_that_died_had_in_progress_is_not_overtaken() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    for value in 0..10 {
        publish_of(&publisher, 0, value).await;
    }
    {
        let consumer: consumer::PullConsumer =
            bench.jetstream.get_consumer_from_stream("tests", "numbers").await.unwrap();
        let mut batch = consumer.fetch().max_messages(10).messages().await.unwrap();
        let mut delivered = Vec::new();
        while let Some(message) = batch.next().await {
            delivered.push(message.unwrap());
        }
        sleep(Duration::from_millis(1200)).await;
        delivered[2].ack_with(AckKind::Progress).await.unwrap();
        bench.jetstream.client().flush().await.unwrap();
    }
    for value in 10..40 {
        publish_of(&publisher, 0, value).await;
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let values: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(values, (0..40).collect::<Vec<_>>());
    service.stop().await;
}

/// A service on one of three servers.
struct OnCluster {
    handler: Scripted,
    stop: CancellationToken,
    task: JoinHandle<()>,
    registry: std::sync::Arc<std::sync::Mutex<Registry>>,
    publisher: jetwright_runtime::Publisher,
}

impl OnCluster {
    async fn run(url: &str, handler: &Scripted, ordered: bool, ack_wait: u64) -> Self {
        let mut bindings = Bench::bindings(ack_wait);
        let binding = bindings.bindings.get_mut("numbers").unwrap();
        binding.max_ack_pending = 1000;
        binding.ordering = ordered.then(|| Ordering { key_tokens: vec![2] });
        let servers = vec![url.parse().unwrap()];
        let environment = Environment {
            name: "tests".to_owned(),
            servers,
            credentials: None,
            bindings,
            pod: None,
            unknown_fields: Vec::new(),
        };
        let (mut registry, stop) = (Registry::default(), CancellationToken::new());
        let mut service = Service::connect(environment, &Health::new(), &mut registry).await.unwrap();
        service.handle("numbers", handler.clone()).unwrap();
        let (publisher, stopping) = (service.publisher(), stop.clone());
        let task = tokio::spawn(async move { service.run(stopping).await.unwrap() });
        let registry = std::sync::Arc::new(std::sync::Mutex::new(registry));
        Self { handler: handler.clone(), stop, task, registry, publisher }
    }

    async fn stop(self) -> String {
        self.stop.cancel();
        tokio::time::timeout(SOON * 2, self.task).await.expect("it stops in time").unwrap();
        text_of(&self.registry.lock().unwrap())
    }
}

/// Three servers with the stream and its consumer on all of them, and the consumer's leader.
async fn replicated(ack_wait: Duration) -> (NatsCluster, usize) {
    let cluster = cluster().await;
    let config = consumer::pull::Config {
        durable_name: Some("tests".to_owned()),
        ack_wait,
        max_ack_pending: 1000,
        ..Default::default()
    };
    cluster.create_consumer("numbers", config).await;
    let leader = await_leader(&cluster).await;
    (cluster, leader)
}

async fn await_leader(cluster: &NatsCluster) -> usize {
    let jetstream = cluster.jetstream().await;
    await_until("a leader of the consumer", SOON, async || {
        let info: consumer::PullConsumer = jetstream
            .get_consumer_from_stream("tests", "numbers")
            .await
            .map_err(|error| error.to_string())?;
        let leader = info.cached_info().cluster.clone().and_then(|cluster| cluster.leader);
        let leader = leader.ok_or("none yet")?;
        cluster.servers().iter().position(|server| server.name() == leader).ok_or(leader)
    })
    .await
}

async fn await_drained(cluster: &NatsCluster) {
    let jetstream = cluster.jetstream().await;
    await_until("a drained consumer", SOON * 4, async || {
        let info: consumer::PullConsumer = jetstream
            .get_consumer_from_stream("tests", "numbers")
            .await
            .map_err(|error| error.to_string())?;
        let info = info.cached_info();
        let waiting = (info.num_pending, info.num_ack_pending);
        if waiting == (0, 0) { Ok(()) } else { Err(format!("pending and unacknowledged: {waiting:?}")) }
    })
    .await;
}

/// The consumer's leader stands still for six seconds, and its connection to nobody's program.
async fn silent_leader(ordered: bool) {
    const EVENTS: u64 = 1200;
    let (cluster, frozen) = replicated(Duration::from_secs(20)).await;
    let other =
        cluster.servers().iter().enumerate().find(|(place, _)| *place != frozen).unwrap().1.url().to_owned();
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(100)).await;
        Ok(())
    });
    let service = OnCluster::run(&other, &handler, ordered, 20_000).await;
    for value in 0..EVENTS {
        publish_of(&service.publisher, value % 20, value).await;
    }
    handler.await_calls(100).await;
    cluster.servers()[frozen].process().signal("STOP");
    sleep(Duration::from_secs(6)).await;
    cluster.servers()[frozen].process().signal("CONT");
    await_drained(&cluster).await;
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    handler.calls().iter().for_each(|call| *times.entry(call.value).or_default() += 1);
    let twice = times.values().filter(|times| **times > 1).count();
    assert_eq!((times.len() as u64, twice), (EVENTS, 0));
    if ordered {
        assert_in_order(&service.handler, 20);
    }
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
    assert_eq!(count(&metrics, "jetwright_settlements_unconfirmed_total{event_consumer=\"numbers\"} "), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_consumers_leader_is_silent_nothing_is_handled_twice() {
    silent_leader(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_consumers_leader_is_silent_no_order_is_lost() {
    silent_leader(true).await;
}

/// What a stop gives back is not replicated: a new leader knows nothing of it, and has it wait for ackWait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_back_and_forgotten_by_a_change_of_leader_is_not_overtaken() {
    let (cluster, leader) = replicated(Duration::from_secs(4)).await;
    let url = cluster.servers()[(leader + 1) % 3].url().to_owned();
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(20)).await;
        Ok(())
    });
    let service = OnCluster::run(&url, &handler, true, 4000).await;
    for value in 0..400 {
        publish_of(&service.publisher, value % 2, value).await;
    }
    handler.await_calls(20).await;
    service.stop().await;
    cluster.step_down("$JS.API.CONSUMER.LEADER.STEPDOWN.numbers.tests").await;
    await_leader(&cluster).await;
    let quick = handler.clone();
    let service = OnCluster::run(&url, &quick, true, 4000).await;
    await_drained(&cluster).await;
    assert_in_order(&handler, 2);
    assert_eq!(handler.values().len(), 400);
    assert!(!service.stop().await.contains("jetwright_order_violations_total{"));
}

/// Acknowledgements cross the changes: what was confirmed is delivered again beside its confirmation, and what was not is delivered later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_consumer_changes_its_leader_every_second_its_order_holds() {
    const EVENTS: u64 = 6000;
    let (cluster, leader) = replicated(Duration::from_secs(4)).await;
    let url = cluster.servers()[(leader + 1) % 3].url().to_owned();
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(5)).await;
        Ok(())
    });
    let service = OnCluster::run(&url, &handler, true, 4000).await;
    let publisher = service.publisher.clone();
    let publishing = tokio::spawn(async move {
        for value in 0..EVENTS {
            publish_of(&publisher, value % 20, value).await;
            sleep(Duration::from_millis(1)).await;
        }
    });
    let client = cluster.client().await;
    for _ in 0..8 {
        sleep(Duration::from_secs(1)).await;
        // Refused while there is no leader.
        let _ = client.request("$JS.API.CONSUMER.LEADER.STEPDOWN.numbers.tests", "".into()).await;
    }
    publishing.await.unwrap();
    await_drained(&cluster).await;
    assert_in_order(&handler, 20);
    assert_eq!(handler.values().len() as u64, EVENTS);
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

/// A server that is killed forgets acknowledgements, and delivers again as if for the first time, what is still being handled too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_handled_is_not_handled_beside_itself_when_nats_is_killed() {
    let mut bench = Bench::without_consumer().await.ack_wait(1000);
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let running = std::sync::Arc::new(std::sync::Mutex::new((HashMap::<u64, u32>::new(), Vec::new())));
    let noted = std::sync::Arc::clone(&running);
    let handler = Scripted::new(move |value, _| {
        let noted = std::sync::Arc::clone(&noted);
        async move {
            {
                let (running, beside) = &mut *noted.lock().unwrap();
                let now = running.entry(value).or_default();
                *now += 1;
                if *now > 1 {
                    beside.push(value);
                }
            }
            sleep(Duration::from_millis(700)).await;
            *noted.lock().unwrap().0.get_mut(&value).unwrap() -= 1;
            Ok(())
        }
    });
    let service: Running = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..600).await;
    for _ in 0..3 {
        let before = handler.calls().len();
        handler.await_calls(before + 30).await;
        bench.nats.kill();
        bench.nats.start_again().await;
    }
    let begun = Instant::now();
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 600, "{:?}", begun.elapsed());
    assert_eq!(running.lock().unwrap().1, Vec::<u64>::new());
    service.stop().await;
}

/// Where the server keeps what the consumer has delivered.
async fn state_of_consumer(bench: &Bench) -> PathBuf {
    let address = bench.nats.monitoring_url().trim_start_matches("http://").to_owned();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /jsz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let store = PathBuf::from(body["config"]["store_dir"].as_str().unwrap());
    store.join("$G/streams/numbers/obs").join(&bench.binding.consumer).join("o.dat")
}

/// A server that is killed forgets its last deliveries, and here all of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_forgot_and_loses_again_is_not_overtaken() {
    let mut bench = Bench::without_consumer().await.ack_wait(3000).ordered();
    bench.create_consumer().await;
    // The deliveries of number 65.
    let is_lost = |words: &str, payload: &str| words.contains("$JS.ACK.") && payload.ends_with('A');
    let proxy = Proxy::before(&bench.url, is_lost).await;
    bench.url.clone_from(&proxy.url);
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    publish_of(&service.publisher, 0, 64).await;
    handler.await_calls(1).await;
    proxy.lose(2);
    for value in 65..70 {
        publish_of(&service.publisher, 0, value).await;
    }
    await_until("a lost delivery", SOON, async || (proxy.left_to_lose() == 1).then_some(()).ok_or("none"))
        .await;
    let state = state_of_consumer(&bench).await;
    bench.nats.kill();
    fs::remove_file(state).unwrap();
    bench.nats.start_again().await;
    await_until("number 69", SOON, async || {
        handler.values().contains(&69).then_some(()).ok_or_else(|| format!("{:?}", handler.attempts()))
    })
    .await;
    bench.await_drained().await;
    assert_eq!((proxy.left_to_lose(), handler.values()), (0, (64..70).collect()));
    assert_in_order(&handler, 1);
    service.stop().await;
}

/// What waits for a handler of its key is released, as JetStream makes it again, and waits for that handler once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_forgot_waits_again_for_the_event_of_its_key_that_is_handled() {
    let bench = Bench::without_consumer().await.ack_wait(3000).ordered();
    bench.create_consumer().await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|value| value == 0));
    let service = bench.run(&handler).await;
    service.await_ready().await;
    for value in 0..5 {
        publish_of(&service.publisher, 0, value).await;
    }
    await_until("five deliveries", SOON, async || match bench.consumer_info().await.num_ack_pending {
        5 => Ok(()),
        pending => Err(format!("{pending} deliveries")),
    })
    .await;
    let state = state_of_consumer(&bench).await;
    bench.nats.kill();
    fs::remove_file(state).unwrap();
    bench.nats.start_again().await;
    // Of another key, and behind the others. The service may need longer to connect again than a publish waits.
    let options = PublishOptions { message_id: Some("5".to_owned()), ..PublishOptions::default() };
    await_until("number 5 is stored", SOON, async || {
        service.publisher.publish("numbers.1", &Number { value: 5 }, options.clone()).await
    })
    .await;
    await_until("number 5", SOON, async || {
        handler.values().contains(&5).then_some(()).ok_or_else(|| format!("{:?}", handler.attempts()))
    })
    .await;
    assert_eq!(handler.values(), [0, 5], "beside the handler of number 0");
    gate.open();
    bench.await_drained().await;
    let called: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(called, [0, 5, 1, 2, 3, 4]);
    service.stop().await;
}
