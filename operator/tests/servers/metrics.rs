//! The metrics of streams, consumers and objects, as they are scraped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use async_nats::jetstream::consumer::PullConsumer;
use futures::{StreamExt, stream};
use jetwright_crds::{
    EventConsumer, EventStream,
    dead_letter::{prefix, subject},
};
use jetwright_testing::{NatsServer, await_until, free_port};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams};
use serde_json::json;

use crate::{
    workloads::{SPEC, await_deployment, run_pods},
    world::{SOON, World, arguments, control_plane, operator},
};

/// Sampled every second.
const OFTEN: &str = "--stats-interval=1s";
/// Longest that several hundred objects take on a busy machine.
const LONG: Duration = Duration::from_mins(2);

/// What is exported, once the operator serves it.
async fn scrape(admin: u16) -> String {
    let scrape = || reqwest::get(format!("http://127.0.0.1:{admin}/metrics"));
    await_until("a scrape", SOON, scrape).await.text().await.unwrap()
}

/// The samples of the metrics about objects.
fn about_objects(text: &str) -> Vec<&str> {
    let starts = ["jetwright_stream_", "jetwright_consumer_", "jetwright_object_"];
    text.lines().filter(|line| starts.iter().any(|start| line.starts_with(start))).collect()
}

/// The values of the metrics of one thing, by what follows the prefix.
fn values(text: &str, prefix: &str, label: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| line.starts_with(prefix) && line.contains(label));
    let named = samples.map(|line| {
        let (name, value) = (line.split('{').next().unwrap(), line.rsplit(' ').next().unwrap());
        (name.trim_start_matches(prefix).to_owned(), value.parse().unwrap())
    });
    named.collect()
}

/// Waits until the metrics of one thing have these values.
async fn await_values(
    world: &World,
    prefix: &str,
    label: &str,
    wanted: &[(&str, f64)],
) -> BTreeMap<String, f64> {
    await_until(&format!("{prefix}{{{label}}} {wanted:?}"), SOON, || async {
        let found = values(&scrape(world.admin).await, prefix, label);
        let is_so =
            |(name, value): &(&str, f64)| found.get(*name).is_some_and(|found| (found - value).abs() < 0.001);
        if wanted.iter().all(is_so) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

async fn with_workload() -> World {
    let world = World::with(NatsServer::start().await, &[OFTEN]).await;
    world.stream("orders", "{streamName: ORDERS, subjects: [orders.*.*], limits: {maxMessages: 100}}").await;
    world.stream("users", "subjects: [users.*]").await;
    world.consumer("fulfilment", SPEC).await;
    world.consumer("mails", "streamRef: {name: users}").await;
    await_deployment(&world, "the deployment", |_| true).await;
    world.await_ready::<EventStream>("orders-dlq").await;
    world.await_ready::<EventConsumer>("mails").await;
    world
}

#[tokio::test]
async fn figures_of_a_stream_and_its_consumer_follow_what_jetstream_has() {
    let world = with_workload().await;
    for _ in 0..5 {
        world.jetstream.publish("orders.1.placed", "x".into()).await.unwrap().await.unwrap();
    }
    let orders = [
        ("messages", 5.0),
        ("last_sequence", 5.0),
        ("max_messages", 100.0),
        ("consumers", 1.0),
        ("has_leader", 1.0),
        ("replicas_wanted", 1.0),
        ("replicas_current", 1.0),
        ("discard_new", 0.0),
    ];
    let found =
        await_values(&world, "jetwright_stream_", "event_stream=\"orders\",stream=\"ORDERS\"", &orders).await;
    assert!(found["bytes"] > 0.0 && !found.contains_key("max_bytes"), "{found:?}");
    assert!((now() - found["sampled_timestamp_seconds"]).abs() < 10.0, "{found:?}");
    assert!((now() - found["first_timestamp_seconds"]).abs() < 30.0, "{found:?}");
    let empty = values(&scrape(world.admin).await, "jetwright_stream_", "event_stream=\"users\"");
    assert!(empty.contains_key("messages") && !empty.contains_key("first_timestamp_seconds"), "{empty:?}");

    let label = "event_consumer=\"fulfilment\",stream=\"ORDERS\",consumer=\"fulfilment\"";
    let fresh = [
        ("pending", 5.0),
        ("ack_pending", 0.0),
        ("waiting_pulls", 0.0),
        ("paused", 0.0),
        ("dead_letters", 0.0),
        ("replicas_wanted", 2.0),
        ("replicas_ready", 0.0),
    ];
    let found = await_values(&world, "jetwright_consumer_", label, &fresh).await;
    assert!(!found.contains_key("delivered_timestamp_seconds"), "nothing was delivered: {found:?}");
    run_pods(&world).await;

    let stream = world.jetstream.get_stream("ORDERS").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("fulfilment").await.unwrap();
    let mut messages = consumer.fetch().max_messages(3).messages().await.unwrap();
    let (first, second) = (messages.next().await.unwrap().unwrap(), messages.next().await.unwrap().unwrap());
    first.double_ack().await.unwrap();
    // Answered, so that the redelivery comes before what is new.
    let nak = second.reply.clone().unwrap();
    world.nats.client().await.request(nak, "-NAK".into()).await.unwrap();
    let again = consumer.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(again.info().unwrap().delivered, 2);
    let dead = subject(&prefix("ORDERS", "fulfilment"), 1, 1_795_251_600_000_000_001);
    world.jetstream.publish(dead, "x".into()).await.unwrap().await.unwrap();
    let others = subject(&prefix("ORDERS", "other"), 1, 1_795_251_600_000_000_001);
    world.jetstream.publish(others, "x".into()).await.unwrap().await.unwrap();
    let taken = [
        ("pending", 2.0),
        ("ack_pending", 2.0),
        ("redelivered", 1.0),
        ("delivered_stream_sequence", 3.0),
        ("ack_floor_stream_sequence", 1.0),
        ("dead_letters", 1.0),
        ("replicas_ready", 2.0),
    ];
    let found = await_values(&world, "jetwright_consumer_", label, &taken).await;
    for time in ["delivered_timestamp_seconds", "ack_floor_timestamp_seconds", "sampled_timestamp_seconds"] {
        assert!((now() - found[time]).abs() < 30.0, "{time}: {found:?}");
    }
    let plain = values(&scrape(world.admin).await, "jetwright_consumer_", "event_consumer=\"mails\"");
    assert!(!plain.contains_key("dead_letters") && !plain.contains_key("replicas_wanted"), "{plain:?}");
}

#[tokio::test]
async fn conditions_are_exported_as_the_status_has_them_and_everything_goes_with_its_object() {
    let world = with_workload().await;
    world.consumer("lost", "streamRef: {name: nowhere}").await;
    let condition = |kind: &str, name: &str, said: &str| {
        let namespace = world.namespace.name();
        format!(
            "jetwright_object_condition{{kind=\"{kind}\",namespace=\"{namespace}\",name=\"{name}\",{said}}} 1"
        )
    };
    let wanted = [
        condition("EventStream", "orders", "condition=\"Ready\",status=\"True\",reason=\"Reconciled\""),
        condition(
            "EventConsumer",
            "fulfilment",
            "condition=\"WorkloadReady\",status=\"False\",reason=\"RollingOut\"",
        ),
        condition(
            "EventConsumer",
            "fulfilment",
            "condition=\"DeadLettersReady\",status=\"True\",reason=\"Reconciled\"",
        ),
        condition("EventConsumer", "lost", "condition=\"Ready\",status=\"False\",reason=\"NotFound\""),
    ];
    await_until("the conditions", SOON, || async {
        let text = scrape(world.admin).await;
        if wanted.iter().all(|line| text.contains(line)) { Ok(()) } else { Err(text) }
    })
    .await;
    await_values(&world, "jetwright_consumer_", "event_consumer=\"mails\"", &[("pending", 0.0)]).await;
    await_values(&world, "jetwright_stream_", "event_stream=\"users\"", &[("messages", 0.0)]).await;
    world.delete::<EventConsumer>("mails").await;
    world.delete::<EventStream>("users").await;
    world.await_gone::<EventConsumer>("mails").await;
    await_until("their series are gone", SOON, || async {
        let text = scrape(world.admin).await;
        let left: Vec<_> = about_objects(&text)
            .into_iter()
            .filter(|line| line.contains("\"mails\"") || line.contains("\"users\""))
            .map(str::to_owned)
            .collect();
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    })
    .await;
    await_values(&world, "jetwright_stream_", "event_stream=\"orders\"", &[("messages", 0.0)]).await;
}

#[tokio::test]
async fn all_that_is_exported_stands_on_the_page_of_the_metrics() {
    let world = with_workload().await;
    await_values(&world, "jetwright_consumer_", "event_consumer=\"mails\"", &[("pending", 0.0)]).await;
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md")).unwrap();
    let described: BTreeSet<_> = page
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
            let (name, kind) = (cells.next()?.trim_end_matches('`'), cells.next()?);
            Some(format!("{} {kind}", name.trim_end_matches("_total").trim_end_matches("_info")))
        })
        .collect();
    assert!(described.len() > 40, "{described:?}");
    let text = scrape(world.admin).await;
    let exported = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let unknown: Vec<_> = exported.filter(|exported| !described.contains(*exported)).collect();
    assert_eq!(unknown, [""; 0]);
}

#[tokio::test]
async fn a_standby_exports_nothing_about_objects() {
    let world = with_workload().await;
    let control_plane = control_plane().await;
    let leases: Api<Lease> = Api::namespaced(control_plane.client().await, world.namespace.name());
    let held = json!({
        "metadata": {"name": "held"},
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 3600, "renewTime": "2026-01-01T00:00:00.000000Z"},
    });
    leases.create(&PostParams::default(), &serde_json::from_value(held).unwrap()).await.unwrap();
    let admin = free_port();
    let mut flags = arguments(world.nats.url(), world.namespace.name(), admin);
    let lease = format!("--leader-elect-namespace={}", world.namespace.name());
    flags.extend(["--leader-elect=true", "--lease-name=held", OFTEN, &lease].map(str::to_owned));
    let standby = operator(control_plane, &flags);
    standby.await_log("waiting for leadership", SOON).await;
    await_values(&world, "jetwright_consumer_", "event_consumer=\"mails\"", &[("pending", 0.0)]).await;
    let text = scrape(admin).await;
    assert!(text.contains("jetwright_operator_leader 0"), "{text}");
    assert_eq!(about_objects(&text), [""; 0]);
    assert!(!text.contains("jetwright_operator_stats_requests_total{"), "{text}");
}

async fn stats_requests(world: &World) -> f64 {
    crate::world::metrics_sum(world.admin, "jetwright_operator_stats_requests_total").await
}

#[tokio::test]
async fn samples_of_many_streams_are_spread_and_bounded_and_reconcile_nothing() {
    const STREAMS: usize = 300;
    const WITH_CONSUMER: usize = 60;
    // Whatever else reconciles objects is a while away.
    let flags = [OFTEN, "--jetstream-resync-interval=1h", "--status-stats-interval=1h"];
    let world = World::with(NatsServer::start().await, &flags).await;
    stream::iter(0..STREAMS)
        .for_each_concurrent(8, |number| {
            let world = &world;
            async move {
                let name = format!("s{number}");
                world.stream(&name, &format!("subjects: ['s{number}.*']")).await;
                if number < WITH_CONSUMER {
                    world.consumer(&name, &format!("streamRef: {{name: {name}}}")).await;
                }
            }
        })
        .await;
    await_until("everything is sampled", LONG, || async {
        let text = scrape(world.admin).await;
        let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        let found = (count("jetwright_stream_messages{"), count("jetwright_consumer_pending{"));
        if found == (STREAMS, WITH_CONSUMER) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // Two pages of streams, and a page of consumers of each stream with one, at 50 a second.
    let interval = (2.0 + 60.0) / 50.0;
    await_until("the interval has grown", SOON, || async {
        let found = world.metric("jetwright_operator_stats_interval_seconds ").await;
        if found.is_some_and(|found| (found - interval).abs() < 0.001) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
    assert_eq!(world.operator.log().matches("sampling figures less often").count(), 1);
    let reconciles = || crate::world::metrics_sum(world.admin, "jetwright_operator_reconciles_total");
    await_until("it has come to rest", LONG, || async {
        let before = reconciles().await;
        // A busy machine may stop the operator for a second.
        tokio::time::sleep(Duration::from_secs(3)).await;
        if (reconciles().await - before).abs() < 0.5 { Ok(()) } else { Err("it still reconciles".to_owned()) }
    })
    .await;
    // The time begins before the first count is asked for, and ends after the last one: however long an answer takes, no more can be sent in it.
    let (rest, begun, before) = (reconciles().await, Instant::now(), stats_requests(&world).await);
    world.jetstream.publish("s0.x", "x".into()).await.unwrap().await.unwrap();
    await_values(&world, "jetwright_consumer_", "event_consumer=\"s0\"", &[("pending", 1.0)]).await;
    await_until("several rounds", LONG, || async {
        let sent = stats_requests(&world).await - before;
        if sent >= 200.0 { Ok(()) } else { Err(sent.to_string()) }
    })
    .await;
    let (sent, took) = (stats_requests(&world).await - before, begun.elapsed().as_secs_f64());
    assert!(sent <= 50.0 * took + 2.0, "{sent} requests in {took} s");
    assert!((reconciles().await - rest).abs() < 0.5, "a sample reconciled something");
}

#[tokio::test]
async fn where_consumers_may_not_be_listed_each_is_asked_for() {
    let nats = NatsServer::builder()
        .config(
            r#"accounts: { main: { jetstream: enabled, users: [
              {user: admin, password: pw}
              {user: operator, password: pw, permissions: {publish: {deny: ["$JS.API.CONSUMER.LIST.>"]}}}
            ] } }"#,
        )
        .start()
        .await;
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".to_owned(), "pw".to_owned());
    let jetstream = async_nats::jetstream::new(nats.client_with(admin).await);
    let secret = jetwright_testing::MountedSecret::new(&[("username", "operator"), ("password", "pw")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let world = World::on(nats, jetstream, &[&folder, OFTEN]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    for name in ["a", "b"] {
        world.consumer(name, "streamRef: {name: orders}").await;
        world.await_ready::<EventConsumer>(name).await;
    }
    for pending in [1.0, 2.0] {
        world.jetstream.publish("orders.x", "x".into()).await.unwrap().await.unwrap();
        for name in ["a", "b"] {
            let label = format!("event_consumer=\"{name}\"");
            await_values(&world, "jetwright_consumer_", &label, &[("pending", pending)]).await;
        }
    }
    let log = world.operator.log();
    assert_eq!(
        log.lines()
            .filter(|line| line.contains("$JS.API.CONSUMER.LIST.*") && line.contains("permit"))
            .count(),
        1,
        "{log}"
    );
}

#[tokio::test]
async fn thresholds_that_objects_set_are_exported_and_go_with_their_fields() {
    let world = World::with(NatsServer::start().await, &[OFTEN]).await;
    world
        .stream("orders", "{subjects: [orders.>], monitoring: {peersExpected: 1, minMessagesCritical: 7}}")
        .await;
    let consumer = |rest: &str| format!("{{streamRef: {{name: orders}}, monitoring: {{{rest}}}}}");
    world.consumer("mails", &consumer("lagCritical: 100, deliveryDelay: 1500ms")).await;
    let found = |text: &str, kind: &str| -> BTreeMap<String, f64> {
        let start = format!("jetwright_{kind}_monitoring{{");
        let samples = text.lines().filter(|line| line.starts_with(&start));
        let named = samples.map(|line| {
            let threshold = line.split("threshold=\"").nth(1).unwrap().split('"').next().unwrap();
            (threshold.to_owned(), line.rsplit(' ').next().unwrap().parse().unwrap())
        });
        named.collect()
    };
    let await_thresholds = async |kind: &str, wanted: &[(&str, f64)]| {
        let wanted: BTreeMap<_, _> =
            wanted.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        await_until(&format!("thresholds of the {kind} are as wanted"), SOON, || async {
            let found = found(&scrape(world.admin).await, kind);
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    };
    await_thresholds("stream", &[("peers_expected", 1.0), ("min_messages_critical", 7.0)]).await;
    await_thresholds("consumer", &[("lag_critical", 100.0), ("delivery_delay", 1.5)]).await;
    world.consumer("mails", &consumer("lagCritical: 5")).await;
    await_thresholds("consumer", &[("lag_critical", 5.0)]).await;
    world.stream("orders", "subjects: [orders.>]").await;
    await_thresholds("stream", &[]).await;
}
