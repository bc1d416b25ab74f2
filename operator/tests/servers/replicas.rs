//! How many servers keep a copy of a stream, and what the condition Durable says of it.

use std::time::Duration;

use jetwright_crds::EventStream;
use jetwright_testing::{NatsCluster, await_until, publish_until_stored};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::{SOON, World, condition};

/// How long servers may take to copy a stream.
const COPIED: Duration = Duration::from_secs(30);
/// How long the operator may take to miss a server.
const MISSED: Duration = Duration::from_secs(15);
/// What the test itself and a busy machine add to that.
const TOLERANCE: Duration = Duration::from_secs(5);

const PLAIN: &str = "subjects: [orders.*]";
const CRITICAL: &str = "{subjects: [orders.*], profile: Critical}";

async fn await_durable<N>(world: &World<N>, status: &str, reason: &str) -> String {
    await_durable_of(world, "orders", status, reason).await
}

async fn await_durable_of<N>(world: &World<N>, stream: &str, status: &str, reason: &str) -> String {
    await_until(&format!("{stream} has Durable={status} ({reason})"), COPIED, || async {
        let object = world.streams().get(stream).await.map_err(|error| error.to_string())?;
        let conditions = crate::world::conditions(&object);
        let durable = conditions.iter().find(|condition| condition.type_ == "Durable");
        let told = durable.filter(|durable| {
            durable.status == status
                && durable.reason == reason
                && durable.observed_generation == object.metadata.generation
        });
        told.map(|told| told.message.clone()).ok_or_else(|| format!("{conditions:?}"))
    })
    .await
}

async fn updates<N>(world: &World<N>) -> f64 {
    let metric = "jetwright_operator_jetstream_api_requests_total{verb=\"STREAM.UPDATE\"";
    let (_, text) = world.admin("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_profile_brings_an_existing_stream_to_three_copies_which_stay_when_it_is_taken_out() {
    let world = World::<NatsCluster>::clustered(3, &["--jetstream-resync-interval=1s"]).await;
    world.stream("orders", PLAIN).await;
    world.await_ready::<EventStream>("orders").await;
    await_durable(&world, "True", "Reconciled").await;
    assert_eq!(world.config("orders").await.num_replicas, 1);

    world.stream("orders", CRITICAL).await;
    await_durable(&world, "True", "Reconciled").await;
    world.await_ready::<EventStream>("orders").await;
    let info = await_until("the stream to answer", SOON, || world.jetstream.get_stream("orders")).await;
    let info = info.cached_info();
    let peers = &info.cluster.as_ref().unwrap().replicas;
    assert_eq!((info.config.num_replicas, peers.iter().filter(|peer| peer.current).count()), (3, 2));
    world.await_condition::<EventStream>("orders", "Reconciling", "False", "Reconciled").await;

    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 9}}").await;
    world.await_ready::<EventStream>("orders").await;
    let config = world.config("orders").await;
    assert_eq!((config.num_replicas, config.max_messages), (3, 9), "replicas are not lowered unasked");

    let led = world.nats.stream_leader("orders").await;
    world.nats.servers()[(led + 1) % 3].stop().await;
    let message = await_durable(&world, "False", "NotCurrent").await;
    assert!(message.contains("2 of 3 copies are current"), "{message}");
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn a_cluster_of_two_is_asked_once_for_three_copies_and_the_rest_of_the_spec_is_applied() {
    let world = World::<NatsCluster>::clustered(2, &["--jetstream-resync-interval=1s"]).await;
    world.stream("orders", PLAIN).await;
    world.await_ready::<EventStream>("orders").await;
    let before = updates(&world).await;
    world.stream("orders", "{subjects: [orders.*], profile: Critical, limits: {maxMessages: 7}}").await;
    let message = await_durable(&world, "False", "TooFewServers").await;
    assert!(message.contains("no suitable peers") && message.contains("1 of 3"), "{message}");
    world.await_ready::<EventStream>("orders").await;
    let config = world.config("orders").await;
    assert_eq!((config.num_replicas, config.max_messages), (1, 7));
    // One for three copies, one for what else was declared; other wake-ups ask for nothing.
    publish_until_stored(&world.jetstream, "orders.1", "x").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!((updates(&world).await - before - 2.0).abs() < 0.5, "{} updates", updates(&world).await - before);
    world.await_one_event("orders", "Updated").await;
}

#[tokio::test]
async fn on_a_lone_server_a_profile_is_not_durable_and_asks_for_nothing() {
    let world = World::start().await;
    world.stream("orders", PLAIN).await;
    world.await_ready::<EventStream>("orders").await;
    await_durable(&world, "True", "Reconciled").await;
    let before = updates(&world).await;
    world.stream("orders", "{subjects: [orders.*], profile: Critical, discard: Old}").await;
    let message = await_durable(&world, "False", "TooFewServers").await;
    assert!(message.contains("1 of 3 copies") && message.contains("not clustered"), "{message}");
    world.await_ready::<EventStream>("orders").await;
    assert!((updates(&world).await - before).abs() < 0.5);
    world.stream("orders", "{subjects: [orders.*], profile: Critical, discard: Old, replicas: 1}").await;
    await_durable(&world, "True", "Reconciled").await;
}

#[tokio::test]
async fn a_server_that_is_killed_is_missed_in_durable_within_seconds_and_counts_again_when_it_is_back() {
    let world = World::<NatsCluster>::clustered(3, &[]).await;
    let streams = ["orders", "payments", "users"];
    for stream in streams {
        world.stream(stream, &format!("{{subjects: [{stream}.*], profile: Critical}}")).await;
    }
    for stream in streams {
        await_durable_of(&world, stream, "True", "Reconciled").await;
    }
    // Of this stream it is a follower, whose end no server announces.
    let led = world.nats.stream_leader("orders").await;
    let killed = &world.nats.servers()[(led + 1) % 3];
    killed.kill();
    // Of a stream that it led, the next leader has not heard from its other follower for a moment.
    let missed = format!("2 of 3 copies are current: server {} is away", killed.name());
    for stream in streams {
        await_until(&format!("{stream} has {missed:?}"), MISSED + TOLERANCE, || async {
            let object = world.streams().get(stream).await.map_err(|error| error.to_string())?;
            let durable = condition(&object, "Durable");
            let told = durable.as_ref().is_some_and(|durable| {
                durable.status == "False" && durable.reason == "NotCurrent" && durable.message == missed
            });
            if told { Ok(()) } else { Err(format!("{durable:?}")) }
        })
        .await;
    }
    world.await_ready::<EventStream>("orders").await;
    killed.start_again().await;
    for stream in streams {
        await_durable_of(&world, stream, "True", "Reconciled").await;
        world.await_ready::<EventStream>(stream).await;
    }
}

/// Writes into a status how many copies the stream has, as a backup of another cluster has it, or somebody who may patch statuses.
async fn forge_replicas<N>(world: &World<N>, replicas: u8) {
    let forged = Patch::Merge(json!({"status": {"stream": {"replicas": replicas}}}));
    world.streams().patch_status("orders", &PatchParams::default(), &forged).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_had_three_copies_is_made_again_with_one_on_a_lone_server() {
    let world = World::start().await;
    world.stream("orders", CRITICAL).await;
    world.await_ready::<EventStream>("orders").await;
    forge_replicas(&world, 3).await;
    world.jetstream.delete_stream("orders").await.unwrap();
    await_until("the stream is made again", SOON, || async {
        world.jetstream.get_stream("orders").await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    world.await_ready::<EventStream>("orders").await;
    await_durable(&world, "False", "TooFewServers").await;
}

#[tokio::test]
async fn more_copies_in_a_status_than_there_can_be_hold_up_no_update() {
    let world = World::<NatsCluster>::clustered(3, &[]).await;
    world.stream("orders", PLAIN).await;
    world.await_ready::<EventStream>("orders").await;
    forge_replicas(&world, 7).await;
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 9}}").await;
    world.await_ready::<EventStream>("orders").await;
    let config = world.config("orders").await;
    assert_eq!((config.num_replicas, config.max_messages), (1, 9));
}
