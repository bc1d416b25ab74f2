//! adoptionPolicy: streams and consumers that have no owner, or another one.

use std::time::Duration;

use async_nats::jetstream::{consumer, stream};
use futures::StreamExt as _;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use kube::ResourceExt;

use crate::world::{SOON, World, arguments, control_plane, operator};

const OWNER: &str = "jetwright.dev/owner";
const TAKEN_FROM: &str = "jetwright.dev/taken-from";
const TAKEN_BY_UID: &str = "jetwright.dev/taken-by-uid";

/// A stream that no operator made, with one message in it.
async fn ownerless(world: &World) {
    let config = stream::Config {
        name: "orders".into(),
        subjects: vec!["old.*".into()],
        max_messages: 100,
        metadata: [("team".to_owned(), "red".to_owned())].into(),
        ..stream::Config::default()
    };
    world.jetstream.create_stream(config).await.unwrap();
    world.jetstream.publish("old.1", "x".into()).await.unwrap().await.unwrap();
}

async fn messages(world: &World, name: &str) -> u64 {
    world.jetstream.get_stream(name).await.unwrap().cached_info().state.messages
}

async fn event<N>(world: &World<N>, name: &str, reason: &str) -> String {
    await_until(&format!("an event {reason}"), SOON, || async {
        world.events(name, reason).await.pop().ok_or("no event")
    })
    .await
}

async fn consumer_info(world: &World, name: &str) -> consumer::Info {
    world.jetstream.get_stream("orders").await.unwrap().consumer_info(name).await.unwrap()
}

#[tokio::test]
async fn a_stream_without_an_owner_is_adopted_with_what_is_in_it_only_where_its_object_says_so() {
    let world = World::start().await;
    ownerless(&world).await;
    let before = world.config("orders").await;
    for policy in ["Refuse", "TakeOver"] {
        world.stream("orders", &format!("{{subjects: [orders.*], adoptionPolicy: {policy}}}")).await;
        let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
        assert!(message.contains("set spec.adoptionPolicy: AdoptUnowned"), "{message}");
        assert_eq!(world.config("orders").await, before);
    }
    world.stream("orders", "{subjects: [orders.*], adoptionPolicy: AdoptUnowned}").await;
    world.await_ready::<EventStream>("orders").await;
    let config = world.config("orders").await;
    assert_eq!((config.subjects, config.max_messages), (vec!["orders.*".to_owned()], -1));
    let owner = format!("test/{}/orders", world.namespace.name());
    assert_eq!((&config.metadata[OWNER], &config.metadata["team"]), (&owner, &"red".to_owned()));
    assert_eq!(config.metadata.get(TAKEN_FROM), None);
    assert_eq!(messages(&world, "orders").await, 1);
    let note = event(&world, "orders", "Adopted").await;
    assert_eq!(note, "adopted the stream, which had no owner: changed subjects, max_msgs");
    assert_eq!(world.streams().get("orders").await.unwrap().status.unwrap().drift, None);
}

#[tokio::test]
async fn adopt_unowned_takes_nothing_that_has_an_owner() {
    let world = World::start().await;
    world.stream("first", "{streamName: orders, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("first").await;
    world.stream("second", "{streamName: orders, subjects: [stolen], adoptionPolicy: AdoptUnowned}").await;
    let message = world.await_condition::<EventStream>("second", "Stalled", "True", "NameConflict").await;
    assert!(
        message.contains(&format!("owned by test/{}/first", world.namespace.name()))
            && message.contains("set spec.adoptionPolicy: TakeOver"),
        "{message}"
    );
    assert_eq!(world.config("orders").await.subjects, ["orders.*"]);
}

#[tokio::test]
async fn adopt_unowned_also_answers_a_mark_that_was_wiped_while_no_operator_ran() {
    let world = World::start().await;
    let spec = "{subjects: [orders.*], adoptionPolicy: AdoptUnowned}";
    world.stream("orders", spec).await;
    world.consumer("reader", "{streamRef: {name: orders}, adoptionPolicy: AdoptUnowned}").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let mut config = world.config("orders").await;
    config.metadata.clear();
    world.jetstream.update_stream(config).await.unwrap();
    let mut config = consumer_info(&world, "reader").await.config;
    config.metadata.clear();
    world.jetstream.get_stream("orders").await.unwrap().update_consumer(config).await.unwrap();
    let _next = world.another_operator(&[]);
    world.await_config("orders", |config| config.metadata.contains_key(OWNER)).await;
    await_until("the consumer is adopted", SOON, || async {
        let metadata = consumer_info(&world, "reader").await.config.metadata;
        if metadata.contains_key(OWNER) { Ok(()) } else { Err(format!("{metadata:?}")) }
    })
    .await;
    world.await_ready::<EventConsumer>("reader").await;
    assert_eq!(event(&world, "reader", "Adopted").await, "adopted the consumer, which had no owner");
}

#[tokio::test]
async fn an_adopted_consumer_goes_on_where_it_was() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let theirs = consumer::pull::Config { durable_name: Some("reader".into()), ..Default::default() };
    let theirs = stream.create_consumer(theirs).await.unwrap();
    for number in 1..=3 {
        world.jetstream.publish(format!("orders.{number}"), "x".into()).await.unwrap().await.unwrap();
    }
    let mut delivered = theirs.messages().await.unwrap().take(2);
    while let Some(message) = delivered.next().await {
        message.unwrap().double_ack().await.unwrap();
    }
    drop(delivered);
    world.consumer("reader", "{streamRef: {name: orders}, ackWait: 7s, adoptionPolicy: AdoptUnowned}").await;
    world.await_ready::<EventConsumer>("reader").await;
    let info = consumer_info(&world, "reader").await;
    assert_eq!((info.ack_floor.stream_sequence, info.config.ack_wait), (2, Duration::from_secs(7)));
    let note = event(&world, "reader", "Adopted").await;
    assert!(note.starts_with("adopted the consumer, which had no owner: changed "), "{note}");
}

/// Another cluster on the same NATS.
async fn cluster(world: &World, name: &str) -> World<()> {
    world.beside(&[&format!("--cluster-name={name}")]).await
}

fn owner<N>(cluster: &str, world: &World<N>, object: &str) -> String {
    format!("{cluster}/{}/{object}", world.namespace.name())
}

/// The line of the metric that counts updates of streams.
async fn writes(world: &World) -> Option<String> {
    let (_, text) = world.admin("/metrics").await.unwrap();
    text.lines().find(|line| line.contains("verb=\"STREAM.UPDATE\"")).map(str::to_owned)
}

#[tokio::test]
async fn two_clusters_that_both_take_over_do_not_take_turns() {
    let east = World::start().await;
    let of_east = owner("test", &east, "orders");
    let taking = "{subjects: [orders.*], adoptionPolicy: TakeOver}";
    east.stream("orders", taking).await;
    east.await_ready::<EventStream>("orders").await;
    east.jetstream.publish("orders.1", "x".into()).await.unwrap().await.unwrap();
    let west = cluster(&east, "west").await;
    let of_west = owner("west", &west, "orders");
    west.stream("orders", taking).await;
    west.await_ready::<EventStream>("orders").await;
    let uid = west.streams().get("orders").await.unwrap().uid().unwrap();
    let metadata = east.config("orders").await.metadata;
    assert_eq!(metadata[OWNER], of_west);
    assert_eq!((&metadata[TAKEN_FROM], &metadata[TAKEN_BY_UID]), (&of_east, &uid));
    assert_eq!(messages(&east, "orders").await, 1);
    let note = event(&west, "orders", "TookOver").await;
    assert_eq!(note, format!("took over the stream from {of_east}"));

    let message = east.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    assert!(message.contains(&format!("{of_west} has taken it over from this object")), "{message}");
    // Neither a new generation nor a new start takes it back, nor a new object of the name.
    let before = writes(&east).await;
    east.stream("orders", "{subjects: [orders.>], adoptionPolicy: TakeOver}").await;
    east.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    east.delete::<EventStream>("orders").await;
    east.await_gone::<EventStream>("orders").await;
    east.stream("orders", taking).await;
    east.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    assert_eq!(writes(&east).await, before);
    assert_eq!(east.config("orders").await.metadata, metadata);
    west.await_ready::<EventStream>("orders").await;

    // Nor do three take turns.
    let north = cluster(&east, "north").await;
    let of_north = owner("north", &north, "orders");
    north.stream("orders", taking).await;
    north.await_ready::<EventStream>("orders").await;
    west.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    let metadata = east.config("orders").await.metadata;
    assert_eq!((&metadata[OWNER], &metadata[TAKEN_FROM]), (&of_north, &of_west));
    let before = writes(&east).await;
    east.stream("orders", "{subjects: [orders.>], adoptionPolicy: TakeOver}").await;
    east.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    assert_eq!(writes(&east).await, before);
    assert_eq!(east.config("orders").await.metadata, metadata);
}

#[tokio::test]
async fn an_object_takes_over_once_whoever_owns_the_stream_later() {
    let world = World::start().await;
    world.stream("first", "{streamName: orders, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("first").await;
    let taking = "{streamName: orders, subjects: [orders.*], adoptionPolicy: TakeOver}";
    world.stream("second", taking).await;
    world.await_ready::<EventStream>("second").await;
    world.await_condition::<EventStream>("first", "Stalled", "True", "NameConflict").await;
    let mut given = world.config("orders").await;
    given.metadata.insert(OWNER.into(), "west/shop/orders".into());
    world.jetstream.update_stream(given.clone()).await.unwrap();
    let message = world.await_condition::<EventStream>("second", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("this object has taken it over before"), "{message}");
    assert_eq!(world.config("orders").await.metadata, given.metadata);
    // An object made again is another one.
    world.delete::<EventStream>("second").await;
    world.await_gone::<EventStream>("second").await;
    world.stream("second", taking).await;
    world.await_ready::<EventStream>("second").await;
    assert_eq!(world.config("orders").await.metadata[TAKEN_FROM], "west/shop/orders");
}

#[tokio::test]
async fn a_rebuilt_cluster_takes_over_streams_consumers_and_dead_letters() {
    let world = World::start().await;
    let consumer = |policy: &str| {
        format!(
            "{{streamRef: {{name: orders}}, adoptionPolicy: {policy}, \
             workload: {{template: {{spec: {{containers: [{{name: app, image: a}}]}}}}}}}}"
        )
    };
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", &consumer("Refuse")).await;
    world.await_condition::<EventConsumer>("reader", "DeadLettersReady", "True", "Reconciled").await;
    world.await_condition::<EventConsumer>("reader", "ConsumerReady", "True", "Reconciled").await;
    let created = consumer_info(&world, "reader").await.created;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let _rebuilt = world.another_operator(&["--cluster-name=rebuilt"]);
    let ours = format!("rebuilt/{}/", world.namespace.name());
    world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    world.stream("orders", "{subjects: [orders.*], adoptionPolicy: TakeOver}").await;
    world.await_ready::<EventStream>("orders").await;
    world.consumer("reader", &consumer("TakeOver")).await;
    world.await_condition::<EventConsumer>("reader", "ConsumerReady", "True", "Reconciled").await;
    world.await_condition::<EventConsumer>("reader", "DeadLettersReady", "True", "Reconciled").await;
    for stream in ["orders", "orders-dlq"] {
        let metadata = world.config(stream).await.metadata;
        assert_eq!(metadata[OWNER], format!("{ours}{stream}"));
        assert_eq!(metadata[TAKEN_FROM], format!("test/{}/{stream}", world.namespace.name()));
    }
    let info = consumer_info(&world, "reader").await;
    assert_eq!((info.created, &info.config.metadata[OWNER]), (created, &format!("{ours}reader")));
    let note = event(&world, "reader", "TookOver").await;
    assert_eq!(note, format!("took over the consumer from test/{}/reader", world.namespace.name()));
}

#[tokio::test]
async fn what_cannot_become_as_declared_is_not_adopted() {
    let world = World::start().await;
    ownerless(&world).await;
    let before = world.config("orders").await;
    world.stream("orders", "{subjects: [orders.*], storage: Memory, adoptionPolicy: AdoptUnowned}").await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "ImmutableField").await;
    assert!(message.contains("storage"), "{message}");
    assert_eq!(world.config("orders").await, before);
}

#[tokio::test]
async fn a_cluster_that_is_named_later_loses_nothing_and_writes_nothing() {
    let world = World::start().await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let arguments = arguments(world.nats.url(), world.namespace.name(), world.admin);
    let mut unnamed = arguments.clone();
    unnamed.retain(|argument| !argument.starts_with("--cluster-name"));
    let first = operator(control_plane().await, &unnamed);
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    let before = (world.config("orders").await, consumer_info(&world, "reader").await.config);
    assert!(!before.0.metadata[OWNER].starts_with("test/"), "{:?}", before.0.metadata);
    first.signal("TERM");
    first.wait_exit(SOON).await;
    let _named = operator(control_plane().await, &arguments);
    for controller in ["stream", "consumer"] {
        let line =
            format!("jetwright_operator_reconciles_total{{controller=\"{controller}\",outcome=\"ok\"}}");
        await_until("it is reconciled", SOON, || async { world.metric(&line).await.ok_or("not yet") }).await;
    }
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    assert_eq!((world.config("orders").await, consumer_info(&world, "reader").await.config), before);
    // It is its own: with the next real change the new name is written.
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 5}}").await;
    let named = owner("test", &world, "orders");
    world.await_config("orders", |config| config.max_messages == 5 && config.metadata[OWNER] == named).await;
}
