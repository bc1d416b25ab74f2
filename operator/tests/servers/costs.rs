//! What many objects cost while nothing changes, and while NATS does not answer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{MountedSecret, NatsServer, await_until};
use kube::{Api, api::ListParams};

use crate::{
    fake_jetstream::FakeJetStream,
    world::{SOON, World, conditions},
};

/// What a hundred objects take at the bounds of what is written a second.
const LONG: Duration = Duration::from_mins(1);

async fn declare_streams(world: &World, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(8, |number| async move {
            world.stream(&format!("s{number}"), &format!("subjects: ['s{number}.*']")).await;
        })
        .await;
}

async fn declare_consumers(world: &World, stream: &str, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(8, |number| async move {
            let name = format!("{stream}-{number}");
            world.consumer(&name, &format!("streamRef: {{name: {stream}}}")).await;
        })
        .await;
}

/// Waits until so many objects of a kind have `Ready` with this reason.
async fn await_reason<K>(world: &World, reason: &str, count: usize)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = world.namespace.api();
    await_until(&format!("{count} objects with reason {reason}"), LONG, || async {
        let objects = api.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let is_so = |object: &&K| {
            conditions(object).iter().any(|found| found.type_ == "Ready" && found.reason == reason)
        };
        let found = objects.iter().filter(is_so).count();
        if found == count { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

async fn requests(world: &World, verb: &str) -> f64 {
    let of_verb = format!("jetwright_operator_jetstream_api_requests_total{{verb=\"{verb}\",");
    sum(world, &of_verb).await
}

async fn sum(world: &World, metric: &str) -> f64 {
    let (_, text) = world.admin("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// What JetStream was asked for by each verb.
async fn requests_by_verb(world: &World) -> BTreeMap<String, u64> {
    const METRIC: &str = "jetwright_operator_jetstream_api_requests_total{verb=\"";
    let (_, text) = world.admin("/metrics").await.unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix(METRIC)) {
        let (verb, _) = line.split_once('"').unwrap();
        let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
        *counts.entry(verb.to_owned()).or_default() += count;
    }
    counts
}

/// Waits until the operator reconciled at least so often, and then not any more.
async fn await_rest(world: &World, count: f64) {
    await_until("the operator has come to rest", LONG, || async {
        if world.admin("/metrics").await.is_none() {
            return Err("it does not answer yet".to_owned());
        }
        let before = sum(world, "jetwright_operator_reconciles_total").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let after = sum(world, "jetwright_operator_reconciles_total").await;
        if after >= count && after - before < 0.5 { Ok(()) } else { Err(after.to_string()) }
    })
    .await;
}

/// Waits until everything was compared this often.
async fn await_comparisons(world: &World, count: f64) {
    let before = requests(world, "STREAM.LIST").await;
    await_until("comparisons", SOON, || async {
        let done = requests(world, "STREAM.LIST").await - before;
        if done >= count { Ok(()) } else { Err(done.to_string()) }
    })
    .await;
}

#[tokio::test]
async fn consumers_are_compared_by_lists_of_each_stream() {
    let flags = ["--jetstream-resync-interval=1s", "--status-stats-interval=1s"];
    let world = World::with(NatsServer::start().await, &flags).await;
    declare_streams(&world, 3).await;
    for (stream, count) in [("s0", 300), ("s1", 20)] {
        declare_consumers(&world, stream, count).await;
    }
    await_reason::<EventConsumer>(&world, "Reconciled", 320).await;
    await_comparisons(&world, 3.0).await;
    let before = (
        requests(&world, "STREAM.LIST").await,
        requests(&world, "CONSUMER.LIST").await,
        requests(&world, "CONSUMER.INFO").await,
    );
    await_comparisons(&world, 4.0).await;
    let comparisons = requests(&world, "STREAM.LIST").await - before.0;
    let lists = requests(&world, "CONSUMER.LIST").await - before.1;
    let infos = requests(&world, "CONSUMER.INFO").await - before.2;
    assert!(infos < 0.5, "{infos} requests for one consumer each");
    // Two pages of the one stream and one of the other; a comparison may be under way.
    assert!(lists >= 3.0 && lists <= 3.0 * (comparisons + 1.0), "{lists} lists in {comparisons} comparisons");
    // And they find what others changed.
    let figures = || async {
        let reader = world.consumers().get("s0-299").await.map_err(|error| error.to_string())?;
        if reader.status.unwrap().lag == Some(1) { Ok(()) } else { Err("no lag".to_owned()) }
    };
    world.jetstream.publish("s0.a", "x".into()).await.unwrap().await.unwrap();
    await_until("the lag is in the status", LONG, figures).await;
}

/// As a user that was given its rights for an earlier operator.
#[tokio::test]
async fn where_lists_of_consumers_are_not_permitted_each_is_asked_for_and_the_missing_right_is_said_once() {
    let config = r#"
        accounts: {
          main: {
            jetstream: enabled
            users: [
              {user: operator, password: pw, permissions: {publish: {deny: ["$JS.API.CONSUMER.LIST.>"]}}}
              {user: admin, password: pw}
            ]
          }
        }
        no_auth_user: admin
    "#;
    let nats = NatsServer::builder().config(config).start().await;
    let secret = MountedSecret::new(&[("username", "operator"), ("password", "pw")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let world = World::with(nats, &[&folder, "--jetstream-resync-interval=1s"]).await;
    declare_streams(&world, 2).await;
    for stream in ["s0", "s1"] {
        declare_consumers(&world, stream, 5).await;
    }
    await_reason::<EventConsumer>(&world, "Reconciled", 10).await;
    await_comparisons(&world, 4.0).await;
    let before = requests(&world, "CONSUMER.INFO").await;
    await_comparisons(&world, 3.0).await;
    let asked = requests(&world, "CONSUMER.INFO").await - before;
    assert!(asked >= 20.0, "{asked}");
    let log = world.operator.log();
    let said = log.lines().filter(|line| line.contains("$JS.API.CONSUMER.LIST.*") && line.contains("permit"));
    assert_eq!(said.count(), 1, "{log}");
}

#[tokio::test]
async fn a_restart_asks_by_lists_alone() {
    const ONCE: &[&str] = &["--jetstream-resync-interval=1h"];
    let mut world = World::with(NatsServer::start().await, ONCE).await;
    declare_streams(&world, 300).await;
    declare_consumers(&world, "s0", 300).await;
    for number in 1..20 {
        declare_consumers(&world, &format!("s{number}"), 16).await;
    }
    await_reason::<EventStream>(&world, "Reconciled", 300).await;
    await_reason::<EventConsumer>(&world, "Reconciled", 604).await;
    world.stop().await;
    world.start_again(ONCE);
    await_rest(&world, 904.0).await;
    // Two pages of streams, two of the consumers of the one stream, and one of each of nineteen.
    let lists = BTreeMap::from([("STREAM.LIST".to_owned(), 2), ("CONSUMER.LIST".to_owned(), 21)]);
    assert_eq!(requests_by_verb(&world).await, lists);
}

#[tokio::test]
async fn what_others_changed_while_no_operator_ran_is_put_right_after_a_restart() {
    const ONCE: &[&str] = &["--jetstream-resync-interval=1h"];
    let mut world = World::with(NatsServer::start().await, ONCE).await;
    declare_streams(&world, 3).await;
    declare_consumers(&world, "s0", 3).await;
    await_reason::<EventStream>(&world, "Reconciled", 3).await;
    await_reason::<EventConsumer>(&world, "Reconciled", 3).await;
    world.stop().await;
    let mut config = world.config("s0").await;
    config.description = Some("another's".to_owned());
    world.jetstream.update_stream(config).await.unwrap();
    world.jetstream.delete_stream("s1").await.unwrap();
    let stream = world.jetstream.get_stream("s0").await.unwrap();
    stream.delete_consumer("s0-1").await.unwrap();
    world.start_again(ONCE);
    world.await_config("s0", |config| config.description.is_none()).await;
    world.await_config("s1", |config| config.subjects == ["s1.*"]).await;
    await_until("the consumer is there", SOON, || async { stream.consumer_info("s0-1").await.map(drop) })
        .await;
}

#[tokio::test]
async fn what_another_client_writes_while_the_first_list_is_under_way_is_put_right() {
    const ONCE: &[&str] = &["--jetstream-resync-interval=1h"];
    let (nats, fake) = FakeJetStream::start().await;
    let jetstream = nats.jetstream().await;
    let mut world = World::on(nats, jetstream, ONCE).await;
    declare_streams(&world, 2).await;
    await_reason::<EventStream>(&world, "Reconciled", 2).await;
    world.stop().await;
    fake.set_holds_lists(true);
    let (lists, infos) = (fake.asked("STREAM.LIST"), fake.asked("STREAM.INFO"));
    world.start_again(ONCE);
    let asked = async |verb: &str, before: usize| {
        await_until(&format!("{verb} was asked for"), SOON, || async {
            if fake.asked(verb) > before { Ok(()) } else { Err("not yet") }
        })
        .await;
    };
    asked("STREAM.LIST", lists).await;
    fake.describe("s0", "another's");
    let client = world.nats.client().await;
    let advisory = r#"{"stream": "s0"}"#;
    client.publish("$JS.EVENT.ADVISORY.STREAM.UPDATED.s0", advisory.into()).await.unwrap();
    asked("STREAM.INFO", infos).await;
    fake.set_holds_lists(false);
    await_until("it is as declared", SOON, || async {
        let description = fake.config("s0")["description"].clone();
        if description.is_null() { Ok(()) } else { Err(description) }
    })
    .await;
}

#[tokio::test]
async fn a_jetstream_that_hangs_does_not_hold_up_the_first_reconciles() {
    let (nats, fake) = FakeJetStream::start().await;
    let jetstream = nats.jetstream().await;
    fake.set_holds_lists(true);
    let world = World::on(nats, jetstream, &[]).await;
    world.stream("orders", "subjects: ['orders.*']").await;
    await_until("it was reconciled", LONG, || async {
        let object = world.streams().get("orders").await.map_err(|error| error.to_string())?;
        if conditions(&object).is_empty() { Err("no conditions".to_owned()) } else { Ok(()) }
    })
    .await;
    fake.set_holds_lists(false);
    await_until("it is made", LONG, || async {
        if fake.asked("STREAM.CREATE") > 0 { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test]
async fn a_comparison_with_a_jetstream_that_hangs_ends_after_a_few_requests() {
    let (nats, fake) = FakeJetStream::start().await;
    let jetstream = nats.jetstream().await;
    let world =
        World::on(nats, jetstream, &["--jetstream-resync-interval=1s", "--jetstream-timeout=1s"]).await;
    declare_streams(&world, 60).await;
    declare_consumers(&world, "s0", 40).await;
    await_reason::<EventStream>(&world, "Reconciled", 60).await;
    await_reason::<EventConsumer>(&world, "Reconciled", 40).await;
    fake.set_silent(true);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = fake.asked_in_all();
    tokio::time::sleep(Duration::from_secs(12)).await;
    let asked = fake.asked_in_all() - before;
    assert!(asked <= 10, "{asked} requests to a JetStream that does not answer");
    // It is found when it answers again.
    fake.set_silent(false);
    let before = fake.asked("STREAM.LIST");
    await_until("it is compared again", LONG, || async {
        if fake.asked("STREAM.LIST") > before { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test]
async fn a_list_whose_pages_are_all_the_first_one_ends() {
    let (nats, fake) = FakeJetStream::start().await;
    fake.set_ignores_offset(true);
    let jetstream = nats.jetstream().await;
    let world = World::on(nats, jetstream, &["--jetstream-resync-interval=1s"]).await;
    declare_streams(&world, 3).await;
    declare_consumers(&world, "s0", 3).await;
    await_reason::<EventConsumer>(&world, "Reconciled", 3).await;
    let (before, begun) = (fake.asked_in_all(), Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = fake.asked_in_all() - before;
    // At most one comparison a second, each with two lists of two pages.
    assert!(asked as u64 <= 4 * (begun.elapsed().as_secs() + 2), "{asked} requests");
    let listed = fake.asked("STREAM.LIST");
    await_until("it is compared again", SOON, || async {
        if fake.asked("STREAM.LIST") > listed { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test]
async fn with_nats_away_each_object_says_so_and_is_not_reconciled_again_until_it_is_back() {
    const COUNT: u16 = 400;
    let world = World::with(NatsServer::start().await, &["--jetstream-resync-interval=1h"]).await;
    declare_streams(&world, COUNT.into()).await;
    await_reason::<EventStream>(&world, "Reconciled", COUNT.into()).await;
    let reconciles = || sum(&world, "jetwright_operator_reconciles_total");
    let before = reconciles().await;
    world.nats.stop().await;
    await_reason::<EventStream>(&world, "Disconnected", COUNT.into()).await;
    // Once when the link went, once when it had been away for a while, and once to write what it may say then; the watch of each status
    // wakes nobody.
    let cost = reconciles().await - before;
    assert!(cost <= 3.6 * f64::from(COUNT), "{cost} reconciles of {COUNT} objects");
    let before = reconciles().await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let cost = reconciles().await - before;
    assert!(cost < 0.5, "{cost} reconciles of objects that had said it");
    world.nats.start_again().await;
    await_reason::<EventStream>(&world, "Reconciled", COUNT.into()).await;
}

#[tokio::test]
async fn figures_of_many_objects_are_written_twenty_a_second() {
    const COUNT: u16 = 100;
    let flags = ["--jetstream-resync-interval=1s", "--status-stats-interval=1s"];
    let world = World::with(NatsServer::start().await, &flags).await;
    declare_streams(&world, COUNT.into()).await;
    await_reason::<EventStream>(&world, "Reconciled", COUNT.into()).await;
    let writes = || sum(&world, "jetwright_operator_kubernetes_requests_total{verb=\"patch\"}");
    await_until("it has come to rest", LONG, || async {
        let before = writes().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let written = writes().await - before;
        if written < 0.5 { Ok(()) } else { Err(written.to_string()) }
    })
    .await;
    for number in 0..COUNT {
        world.jetstream.publish(format!("s{number}.a"), "x".into()).await.unwrap().await.unwrap();
    }
    let begun = Instant::now();
    await_until("all figures are written", LONG, || async {
        let objects =
            world.streams().list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let has_one = |object: &&EventStream| {
            let stream = object.status.as_ref().and_then(|status| status.stream.as_ref());
            stream.is_some_and(|stream| stream.messages == 1)
        };
        let told = objects.iter().filter(has_one).count();
        if told == usize::from(COUNT) { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    // A second's worth goes at once.
    let took = begun.elapsed().as_secs_f64();
    assert!(took >= (f64::from(COUNT) - 20.0) / 20.0 - 1.0, "{COUNT} statuses in {took} s");
}
