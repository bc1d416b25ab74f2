//! Processes share the partitions of a consumer: each key is handled by one of them at a time, in its order, whoever comes and goes.

use std::{
    collections::BTreeSet,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use async_nats::{ConnectOptions, jetstream};
use jetwright_nats::Credentials;
use jetwright_runtime::HandlerOptions;
use jetwright_testing::{MountedSecret, NatsServer};
use tokio::time::sleep;

use crate::{
    proxy::Proxy,
    sharing::{
        KEYS, NO_KEY, Observer, Operator, await_drained, bucket_config, of_partitions, on_cluster,
        publish_values, sharing, with_partitions,
    },
    support::{Bench, Running, SOON, count},
};

const PARTITIONS: u32 = 8;

async fn run(bench: &Bench, observer: &Observer) -> Running {
    bench.run_handler(observer.clone(), HandlerOptions::default()).await
}

fn assert_sentinel_is_silent(metrics: &str) {
    assert!(count(metrics, "jetwright_order_checked_total{event_consumer=\"numbers\"} ") > 0);
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_process_handles_all_partitions_and_those_that_come_and_go_share_them_in_order() {
    let bench = sharing(PARTITIONS).await;
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(2));
    let first = run(&bench, &observer).await;
    first.await_ready().await;
    operator.await_shared(PARTITIONS, 1).await;
    let jetstream = bench.jetstream.clone();
    let publishing = tokio::spawn(async move {
        for round in 0..60 {
            publish_values(&jetstream, round * 200..(round + 1) * 200).await;
            sleep(Duration::from_millis(50)).await;
        }
    });
    observer.await_values(500, SOON).await;
    let second = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 2).await;
    let third = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 3).await;
    assert_sentinel_is_silent(&first.stop().await);
    operator.await_shared(PARTITIONS, 2).await;
    publishing.await.unwrap();
    observer.await_values(12_000, SOON * 2).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    assert_sentinel_is_silent(&third.stop().await);
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(12_000);
    assert_eq!(observer.seen.lock().calls, 12_000, "some were handled again");
    assert!(operator.held(PARTITIONS).await.is_empty());
}

/// What has begun is finished, and what waits for its next attempt is given back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_waits_for_its_next_attempt_holds_up_neither_other_keys_nor_a_hand_over() {
    let bench = sharing(1).await;
    let operator = Operator::start(bench.nats.url(), 1).await;
    let observer = Observer::new(Duration::ZERO);
    observer.failing.store(0, Relaxed);
    let first = run(&bench, &observer).await;
    let holder = operator.await_shared(1, 1).await;
    // The floor of the consumer stays where it is.
    publish_values(&bench.jetstream, 0..4_000).await;
    let others = usize::try_from(4_000 - 4_000 / KEYS).unwrap();
    observer.await_values(others, SOON).await;
    let second = run(&bench, &observer).await;
    second.await_ready().await;
    observer.failing.store(NO_KEY, Relaxed);
    let begun = Instant::now();
    assert_sentinel_is_silent(&first.stop().await);
    let next = operator.await_shared(1, 1).await;
    assert_ne!(holder, next);
    observer.await_values(4_000, SOON).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(4_000);
}

/// Of a write without an answer nobody knows whether it is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_whose_answers_are_lost_neither_lose_nor_double_a_partition() {
    let mut bench = of_partitions(PARTITIONS).await;
    let is_of_bucket = |_: &str, payload: &str| payload.contains("\"stream\":\"KV_jetwright\"");
    let proxy = Proxy::aging_and_losing(bench.nats.url(), is_of_bucket).await;
    bench.url.clone_from(&proxy.url);
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(1));
    proxy.lose(6);
    let first = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 1).await;
    publish_values(&bench.jetstream, 0..2_000).await;
    proxy.lose(10);
    let second = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 2_000..4_000).await;
    observer.await_values(4_000, SOON * 2).await;
    assert_eq!(proxy.left_to_lose(), 0);
    assert_sentinel_is_silent(&first.stop().await);
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(4_000);
}

/// The number of the next delivery shows that one was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_by_a_dropped_delivery_is_waited_for_before_later_events_of_its_partition() {
    let mut bench = of_partitions(PARTITIONS).await;
    let is_delivery = |words: &str, _: &str| words.contains(" $JS.ACK.numbers.tests-p");
    let proxy = Proxy::aging_and_losing(bench.nats.url(), is_delivery).await;
    bench.url.clone_from(&proxy.url);
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(1));
    let first = run(&bench, &observer).await;
    let second = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 0..1_000).await;
    observer.await_values(200, SOON).await;
    for round in 1..4 {
        proxy.lose(3);
        publish_values(&bench.jetstream, round * 1_000..(round + 1) * 1_000).await;
        let handled = usize::try_from((round + 1) * 1_000).unwrap();
        observer.await_values(handled, SOON * 2).await;
        assert_eq!(proxy.left_to_lose(), 0);
    }
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    let metrics = [first.stop().await, second.stop().await];
    let gaps = "jetwright_order_recoveries_total{event_consumer=\"numbers\",cause=\"sequence-gap\"} ";
    assert!(metrics.iter().map(|metrics| count(metrics, gaps)).sum::<u64>() > 0);
    for metrics in &metrics {
        assert_sentinel_is_silent(metrics);
    }
    observer.assert_in_order(4_000);
}

/// Revisions grow, so nothing of the old bucket is taken for something of the new one. Who held something in the old one has stopped by
/// then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_bucket_that_is_made_again_they_go_on_when_the_last_lease_of_the_old_one_is_over() {
    let mut bench = of_partitions(PARTITIONS).await;
    let proxy = Proxy::aging(bench.nats.url()).await;
    bench.url.clone_from(&proxy.url);
    let operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(1));
    let (first, second) = (run(&bench, &observer).await, run(&bench, &observer).await);
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 0..1_000).await;
    observer.await_values(1_000, SOON).await;
    proxy.stop_aging();
    bench.jetstream.delete_stream("KV_jetwright").await.unwrap();
    bench.jetstream.create_stream(bucket_config(1, 1_000_000_000)).await.unwrap();
    // Some of these are handled while the lease of the old one holds.
    publish_values(&bench.jetstream, 1_000..2_000).await;
    observer.await_values(2_000, SOON * 3).await;
    operator.await_shared(PARTITIONS, 2).await;
    publish_values(&bench.jetstream, 2_000..3_000).await;
    observer.await_values(3_000, SOON * 3).await;
    let epochs = observer.seen.lock().begun.values().map(|(_, epoch)| *epoch).max().unwrap();
    assert!(epochs > 1_000_000_000, "{epochs}");
    assert_sentinel_is_silent(&first.stop().await);
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(3_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_operator_the_processes_share_the_partitions_among_themselves() {
    let bench = sharing(PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(1));
    let first = run(&bench, &observer).await;
    let second = run(&bench, &observer).await;
    first.await_ready().await;
    publish_values(&bench.jetstream, 0..1_000).await;
    observer.await_values(1_000, SOON * 3).await;
    let epochs: BTreeSet<_> = observer.seen.lock().begun.values().map(|(_, epoch)| *epoch).collect();
    assert_eq!(epochs.len(), usize::try_from(PARTITIONS).unwrap());
    assert!(first.handled("done") > 0 && second.handled("done") > 0);
    assert_sentinel_is_silent(&first.stop().await);
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_says_what_is_missing_where_there_is_no_bucket_and_is_ready_without_a_partition() {
    let bench = sharing(1).await;
    bench.jetstream.delete_stream("KV_jetwright").await.unwrap();
    let observer = Observer::new(Duration::ZERO);
    let first = run(&bench, &observer).await;
    first.await_unready("the key-value bucket jetwright does not exist").await;
    bench.jetstream.create_stream(bucket_config(1, 1)).await.unwrap();
    let operator = Operator::start(bench.nats.url(), 1).await;
    first.await_ready().await;
    let second = run(&bench, &observer).await;
    second.await_ready().await;
    operator.await_shared(1, 1).await;
    first.stop().await;
    second.stop().await;
}

/// A cluster loses naks when a consumer's leader changes, and answers nothing for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changing_leaders_of_the_consumers_and_of_the_bucket_reorder_nothing() {
    let (cluster, mut bench) = on_cluster(PARTITIONS).await;
    bench.url = Proxy::aging(cluster.servers()[0].url()).await.url;
    let operator = Operator::start(cluster.url(), PARTITIONS).await;
    let observer = Observer::new(Duration::from_millis(1));
    let first = run(&bench, &observer).await;
    operator.await_shared(PARTITIONS, 1).await;
    let jetstream = cluster.jetstream().await;
    let publishing = tokio::spawn({
        let jetstream = jetstream.clone();
        async move {
            for round in 0..60 {
                publish_values(&jetstream, round * 100..(round + 1) * 100).await;
                sleep(Duration::from_millis(100)).await;
            }
        }
    });
    let second = run(&bench, &observer).await;
    for round in 0..3 {
        sleep(Duration::from_millis(500)).await;
        for partition in 0..PARTITIONS {
            let subject = format!("$JS.API.CONSUMER.LEADER.STEPDOWN.numbers.tests-p{partition}");
            cluster.step_down(&subject).await;
        }
        if round == 1 {
            cluster.step_down("$JS.API.STREAM.LEADER.STEPDOWN.KV_jetwright").await;
        }
    }
    operator.await_shared(PARTITIONS, 2).await;
    publishing.await.unwrap();
    observer.await_values(6_000, SOON * 3).await;
    await_drained(&jetstream, PARTITIONS, SOON * 2).await;
    assert_sentinel_is_silent(&first.stop().await);
    assert_sentinel_is_silent(&second.stop().await);
    observer.assert_in_order(6_000);
}

/// The documentation and the charts name these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_user_needs_no_more_than_its_consumers_partitions_and_its_keys_of_the_bucket() {
    let of_partition = |number: u32| {
        ["$JS.API.CONSUMER.INFO.numbers.<>", "$JS.API.CONSUMER.MSG.NEXT.numbers.<>", "$JS.ACK.numbers.<>.>"]
            .map(|subject| subject.replace("<>", &format!("tests-p{number}")))
    };
    let mut publish: Vec<_> = (0..2).flat_map(of_partition).collect();
    publish.extend(
        [
            "$KV.jetwright.held.numbers.tests.*",
            "$KV.jetwright.member.default.>",
            "$JS.API.STREAM.MSG.GET.KV_jetwright",
            "$JS.API.STREAM.INFO.KV_jetwright",
            "$JS.API.CONSUMER.CREATE.KV_jetwright.*",
            "$JS.FC.KV_jetwright.>",
        ]
        .map(str::to_owned),
    );
    let users = format!(
        "authorization: {{ users: [{{user: admin, password: admin}}, {{user: u, password: p, permissions: \
         {{publish: {{allow: {publish:?}}}, subscribe: {{allow: [\"_INBOX.>\"]}}}}}}] }}"
    );
    let nats = NatsServer::builder().config(&users).start().await;
    let admin =
        nats.client_with(ConnectOptions::with_user_and_password("admin".into(), "admin".into())).await;
    let mut bench = with_partitions(Bench::on(nats, jetstream::new(admin)).await, 2).await;
    let secret = MountedSecret::new(&[("username", "u"), ("password", "p")]);
    bench.credentials = Some(Credentials::open("--credentials", secret.path()).unwrap());
    let proxy = Proxy::aging(bench.nats.url()).await;
    let of_admin = MountedSecret::new(&[("username", "admin"), ("password", "admin")]);
    let admin = Credentials::open("--credentials", of_admin.path()).unwrap();
    let operator = Operator::start_as(Some(admin), bench.nats.url(), 2).await;
    bench.url.clone_from(&proxy.url);
    let observer = Observer::new(Duration::ZERO);
    let (first, second) = (run(&bench, &observer).await, run(&bench, &observer).await);
    operator.await_shared(2, 2).await;
    publish_values(&bench.jetstream, 0..400).await;
    observer.await_values(400, SOON).await;
    first.stop().await;
    second.stop().await;
    observer.assert_in_order(400);
    assert!(operator.held(2).await.is_empty());
}
