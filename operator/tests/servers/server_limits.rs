//! Servers that allow less than JetStream's defaults: what a spec leaves out is their choice, and what it sets is judged by them.

use std::time::Duration;

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, await_until};

use crate::world::{SOON, World};

/// The block takes the place of the test's own, so it names a store in the server's folder again.
const LIMITS: &str =
    "jetstream { store_dir: store, limits { max_ack_pending: 500, duplicate_window: \"1m\" } }";
const POD: &str =
    "{streamRef: {name: orders}, workload: {template: {spec: {containers: [{name: app, image: a}]}}}}";

async fn limited() -> World {
    World::with(NatsServer::builder().config(LIMITS).start().await, &["--jetstream-resync-interval=1s"]).await
}

async fn max_ack_pending(world: &World, name: &str) -> i64 {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.consumer_info(name).await.unwrap().config.max_ack_pending
}

async fn await_consumer(world: &World, name: &str) {
    world.await_condition::<EventConsumer>(name, "ConsumerReady", "True", "Reconciled").await;
}

/// Requests that changed a consumer, or were to.
async fn writes(world: &World) -> f64 {
    let metric = "jetwright_operator_jetstream_api_requests_total{verb=\"CONSUMER.CREATE\"";
    let (_, text) = world.admin("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(metric));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn a_spec_that_is_silent_is_ready_on_servers_that_allow_less_than_the_defaults() {
    let world = limited().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(world.config("orders").await.duplicate_window, Duration::from_mins(1));
    world.consumer("plain", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("plain").await;
    assert_eq!(max_ack_pending(&world, "plain").await, 500);

    world.consumer("pods", POD).await;
    await_consumer(&world, "pods").await;
    assert_eq!(max_ack_pending(&world, "pods").await, 500);
    let asked = writes(&world).await;
    assert!((asked - 3.0).abs() < 0.5, "one for plain, and one refusal and one for pods: {asked}");
    // What was refused once is known, also for others.
    world.consumer("more", POD).await;
    await_consumer(&world, "more").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((writes(&world).await - 4.0).abs() < 0.5, "{}", writes(&world).await);
    for name in ["plain", "pods", "more"] {
        assert_eq!(world.consumers().get(name).await.unwrap().status.unwrap().drift, None, "{name}");
    }
}

#[tokio::test]
async fn a_number_that_the_server_does_not_allow_is_refused_in_its_words_and_never_lowered() {
    let world = limited().await;
    world.stream("orders", "{subjects: [orders.*], duplicateWindow: 90s}").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "Refused").await;
    assert!(message.contains("server limit of 1m"), "{message}");
    world.stream("orders", "{subjects: [orders.*], duplicateWindow: 30s}").await;
    world.await_ready::<EventStream>("orders").await;
    world.consumer("plain", "{streamRef: {name: orders}, maxAckPending: 501}").await;
    let message = world.await_condition::<EventConsumer>("plain", "Ready", "False", "Refused").await;
    assert!(message.contains("system limit of 500"), "{message}");
}

#[tokio::test]
async fn a_field_that_was_declared_goes_back_to_the_servers_choice_and_one_that_was_not_is_left() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], duplicateWindow: 30s}").await;
    world.await_ready::<EventStream>("orders").await;
    let window =
        |expected: Duration| world.await_config("orders", move |found| found.duplicate_window == expected);
    window(Duration::from_secs(30)).await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    window(Duration::from_mins(2)).await;
    let metadata = world.config("orders").await.metadata;
    assert_eq!(metadata.get("jetwright.dev/declared").map(String::as_str), Some(""));

    // Somebody's choice where the spec has none is no drift.
    let edited = async_nats::jetstream::stream::Config {
        duplicate_window: Duration::from_secs(50),
        max_messages: 5,
        ..world.config("orders").await
    };
    let update = async || world.jetstream.update_stream(edited.clone()).await.unwrap();
    update().await;
    await_until("the rest of the edit is corrected", SOON, || async {
        let found = world.config("orders").await;
        if found.max_messages == -1 { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let alone = async_nats::jetstream::stream::Config { max_messages: -1, ..edited.clone() };
    world.jetstream.update_stream(alone).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.config("orders").await.duplicate_window, Duration::from_secs(50));
}

#[tokio::test]
async fn a_mark_of_an_earlier_version_resets_nothing() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], duplicateWindow: 30s}").await;
    world.await_ready::<EventStream>("orders").await;
    let mut earlier = world.config("orders").await;
    assert_eq!(earlier.metadata.remove("jetwright.dev/declared").as_deref(), Some("duplicate_window"));
    world.jetstream.update_stream(earlier).await.unwrap();
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(world.config("orders").await.duplicate_window, Duration::from_secs(30));
}
