//! The EventStream that keeps a consumer's dead letters: made, shared, put right, left alone, and never deleted.

use std::{collections::BTreeMap, time::Duration};

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use jetwright_crds::{
    EventConsumer, EventStream,
    dead_letter::{prefix, subject},
    environment::{Bindings, DeadLetters},
};
use jetwright_testing::{NatsCluster, await_until, free_port};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{SOON, World, arguments, control_plane, manifest, operator};

const WORKLOAD: &str = "workload: {template: {spec: {containers: [{name: app, image: 'shop/order:1'}]}}}";

/// A consumer of orders with pods.
fn spec(rest: &str) -> String {
    format!("{{streamRef: {{name: orders}}, {WORKLOAD}, {rest}}}")
}

async fn with_consumer() -> World {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &spec("")).await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    world
}

async fn dead_letters_of(world: &World, consumer: &str) -> Option<DeadLetters> {
    await_until(&format!("bindings of {consumer}"), SOON, || async {
        let api: Api<ConfigMap> = world.namespace.api();
        let found = api.get("fulfilment-bindings").await.map_err(|error| error.to_string())?;
        let file = &found.data.unwrap()["bindings.yaml"];
        let mut bindings: Bindings = serde_saphyr::from_str(file).map_err(|error| error.to_string())?;
        bindings.bindings.remove(consumer).ok_or_else(|| file.clone())
    })
    .await
    .dead_letters
}

/// Stores what a pod would, and says how much there is then.
async fn write_dead_letter(world: &World, sequence: u64) -> u64 {
    let subject = subject(&prefix("orders", "fulfilment"), sequence, 1_795_251_600_000_000_001);
    world.jetstream.publish(subject, "x".into()).await.unwrap().await.unwrap();
    messages(world).await
}

async fn messages(world: &World) -> u64 {
    world.jetstream.get_stream("orders-dlq").await.unwrap().cached_info().state.messages
}

async fn edit(world: &World, name: &str, change: Value) {
    world.streams().patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

#[tokio::test]
async fn the_dead_letters_of_a_workload_get_a_stream_that_keeps_them_until_they_are_too_old() {
    let world = with_consumer().await;
    let ready =
        world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(ready, "dead letters are kept in stream orders-dlq");
    let kept = world.streams().get("orders-dlq").await.unwrap();
    assert_eq!(kept.metadata.owner_references, None);
    let labels = [("app.kubernetes.io/managed-by", "jetwright"), ("jetwright.dev/dead-letters-of", "orders")];
    let labels: BTreeMap<_, _> = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(kept.metadata.labels, Some(labels));
    world.await_ready::<EventStream>("orders-dlq").await;

    let mut config = world.config("orders-dlq").await;
    config.metadata.clear();
    let expected = Config {
        name: "orders-dlq".into(),
        subjects: vec!["jetwright.dlq.orders.>".into()],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages_per_subject: 1,
        allow_direct: true,
        allow_message_ttl: true,
        num_replicas: 1,
        // What is left out has JetStream's default.
        max_messages: -1,
        max_bytes: -1,
        max_message_size: -1,
        max_consumers: -1,
        duplicate_window: Duration::from_mins(2),
        consumer_limits: config.consumer_limits.clone(),
        compression: config.compression.clone(),
        persist_mode: config.persist_mode,
        ..Config::default()
    };
    assert_eq!(config, expected);

    let kept_for = |days: u64| DeadLetters {
        prefix: "jetwright.dlq.orders.fulfilment".into(),
        max_age: Some(jetwright_crds::Duration::from_secs(days * 86_400)),
    };
    assert_eq!(dead_letters_of(&world, "fulfilment").await, Some(kept_for(90)));
    world.consumer("fulfilment", &spec("deadLetter: {maxAge: 7d}")).await;
    await_until("the pods know the age", SOON, || async {
        let told = dead_letters_of(&world, "fulfilment").await;
        if told == Some(kept_for(7)) { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

#[tokio::test]
async fn all_consumers_of_a_stream_share_its_dead_letters_which_are_stored_as_its_events_are() {
    let world = World::start().await;
    world.stream("orders", "{profile: Ephemeral, streamName: ORDERS, subjects: [orders.*.*]}").await;
    world.consumer("fulfilment", &spec("")).await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    let before = world.streams().get("orders-dlq").await.unwrap();
    world
        .consumer(
            "invoices",
            "{streamRef: {name: orders}, consumerName: INV, workloadRef: {name: fulfilment}}",
        )
        .await;
    world.await_condition::<EventConsumer>("invoices", "DeadLettersReady", "True", "Reconciled").await;
    let prefix = dead_letters_of(&world, "invoices").await.unwrap().prefix;
    assert_eq!(prefix, "jetwright.dlq.ORDERS.INV");
    let after = world.streams().get("orders-dlq").await.unwrap();
    assert_eq!((after.uid(), after.metadata.generation), (before.uid(), Some(1)));
    assert_eq!(world.streams().list(&ListParams::default()).await.unwrap().items.len(), 2);
    let config = world.config("ORDERS-dlq").await;
    assert_eq!((config.storage, config.max_age), (StorageType::Memory, Duration::ZERO));
}

#[tokio::test]
async fn who_drops_dead_letters_or_has_no_pods_gets_no_stream_for_them() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &spec("deadLetter: {policy: Drop}")).await;
    world.consumer("plain", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("plain").await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    assert_eq!(dead_letters_of(&world, "fulfilment").await, None);
    let streams = world.streams().list(&ListParams::default()).await.unwrap().items;
    assert_eq!(streams.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["orders"]);
    let told = async || {
        let object = world.consumers().get("fulfilment").await.unwrap();
        let conditions = crate::world::conditions(&object);
        conditions.iter().any(|condition| condition.type_ == "DeadLettersReady")
    };
    assert!(!told().await);

    // One that changes its mind back leaves what was kept meanwhile.
    world.consumer("fulfilment", &spec("")).await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(write_dead_letter(&world, 1).await, 1);
    world.consumer("fulfilment", &spec("deadLetter: {policy: Drop}")).await;
    await_until("nothing is said of dead letters", SOON, || async {
        if told().await { Err("it is") } else { Ok(()) }
    })
    .await;
    assert_eq!(messages(&world).await, 1);
    world.await_ready::<EventStream>("orders-dlq").await;
}

#[tokio::test]
async fn dead_letters_outlive_the_consumer_and_the_stream() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*.*], deletionPolicy: Delete}").await;
    world.consumer("fulfilment", &spec("")).await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(write_dead_letter(&world, 1).await, 1);
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    assert!(world.jetstream.get_stream("orders").await.is_err());
    assert_eq!(messages(&world).await, 1);
    world.await_ready::<EventStream>("orders-dlq").await;
    // Even who deletes the object by itself deletes no dead letter.
    world.delete::<EventStream>("orders-dlq").await;
    world.await_gone::<EventStream>("orders-dlq").await;
    assert_eq!(messages(&world).await, 1);
}

#[tokio::test]
async fn what_has_to_be_so_is_put_right_and_limits_of_the_users_stay() {
    let world = with_consumer().await;
    // Again and again: what was put right once is put right the next time too.
    for size in ["1Gi", "2Gi"] {
        let wrong = json!({"spec": {
            "discard": "Old", "retention": "Interest", "deletionPolicy": "Delete",
            "limits": {"maxMessagesPerSubject": 7, "maxBytes": size},
        }});
        edit(&world, "orders-dlq", wrong).await;
        await_until("it is put right", SOON, || async {
            let spec = serde_json::to_value(world.streams().get("orders-dlq").await.unwrap().spec).unwrap();
            let right = json!({
                "streamName": "orders-dlq", "subjects": ["jetwright.dlq.orders.>"], "retention": "Limits",
                "storage": "File", "replicas": 1, "limits": {"maxMessagesPerSubject": 1, "maxBytes": size},
                "discard": "New", "allowDirect": true, "allowMessageTtl": true, "deletionPolicy": "Retain",
            });
            if spec == right { Ok(()) } else { Err(spec.to_string()) }
        })
        .await;
    }
    world
        .await_config("orders-dlq", |config| {
            (config.max_bytes, config.max_messages_per_subject) == (2 << 30, 1)
                && (config.discard, config.retention) == (DiscardPolicy::New, RetentionPolicy::Limits)
        })
        .await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
}

#[tokio::test]
async fn one_that_somebody_deletes_is_made_again_and_goes_on_with_what_was_kept() {
    let world = with_consumer().await;
    assert_eq!(write_dead_letter(&world, 1).await, 1);
    let before = world.streams().get("orders-dlq").await.unwrap().uid();
    world.delete::<EventStream>("orders-dlq").await;
    await_until("it is made again", SOON, || async {
        let found = world.streams().get("orders-dlq").await.map_err(|error| error.to_string())?;
        if found.uid() == before { Err("the old one is there".to_owned()) } else { Ok(()) }
    })
    .await;
    world.await_ready::<EventStream>("orders-dlq").await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(write_dead_letter(&world, 2).await, 2);
}

#[tokio::test]
async fn an_event_stream_of_the_name_that_is_somebody_elses_is_not_taken_over_and_told() {
    let world = World::start().await;
    let theirs = "{streamName: mine, subjects: [mine.*]}";
    world.stream("orders-dlq", theirs).await;
    world.await_ready::<EventStream>("orders-dlq").await;
    let before = world.streams().get("orders-dlq").await.unwrap();
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &spec("")).await;
    let refused = ("DeadLettersReady", "False", "NameConflict");
    let message = world.await_condition::<EventConsumer>("fulfilment", refused.0, refused.1, refused.2).await;
    assert!(
        message.contains("EventStream orders-dlq was not created for the dead letters of orders")
            && message.contains("give it and its stream another name, or set spec.deadLetter.policy to Drop"),
        "{message}"
    );
    world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "NameConflict").await;
    // The consumer itself is none the worse.
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let after = world.streams().get("orders-dlq").await.unwrap();
    assert_eq!((&after.spec, after.metadata.labels.as_ref()), (&before.spec, None));
    assert_eq!(world.config("mine").await.subjects, ["mine.*"]);
    assert!(world.jetstream.get_stream("orders-dlq").await.is_err());

    // Once it is out of the way, the stream is made without anybody touching the consumer.
    world.delete::<EventStream>("orders-dlq").await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(world.config("orders-dlq").await.subjects, ["jetwright.dlq.orders.>"]);
}

#[tokio::test]
async fn a_stream_of_the_name_in_jetstream_that_something_else_made_is_left_alone_and_told() {
    let world = World::start().await;
    let foreign = Config { name: "orders-dlq".into(), subjects: vec!["old.*".into()], ..Config::default() };
    world.jetstream.create_stream(foreign).await.unwrap();
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &spec("")).await;
    let message = world
        .await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "False", "NameConflict")
        .await;
    assert!(
        message.contains("EventStream orders-dlq: stream orders-dlq was not created by Jetwright"),
        "{message}"
    );
    assert_eq!(world.config("orders-dlq").await.subjects, ["old.*"]);
}

#[tokio::test]
async fn dead_letters_of_a_stream_that_was_made_anew_under_another_name_are_not_mixed_with_those_of_before() {
    let world = with_consumer().await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "False", "NotFound").await;
    world.stream("orders", "{streamName: orders2, subjects: [orders2.*.*]}").await;
    let message = world
        .await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "False", "NameConflict")
        .await;
    assert!(
        message.contains("still points at stream orders-dlq")
            && message.contains("recreated for orders2-dlq"),
        "{message}"
    );
    world.delete::<EventStream>("orders-dlq").await;
    world.await_condition::<EventConsumer>("fulfilment", "DeadLettersReady", "True", "Reconciled").await;
    assert_eq!(world.config("orders2-dlq").await.subjects, ["jetwright.dlq.orders2.>"]);
    assert_eq!(world.config("orders-dlq").await.subjects, ["jetwright.dlq.orders.>"]);
}

#[tokio::test]
async fn in_a_cluster_dead_letters_have_as_many_replicas_as_their_events() {
    let cluster = NatsCluster::start(3).await;
    let jetstream = cluster.jetstream().await;
    let control_plane = control_plane().await;
    let namespace = control_plane.namespace("dead-letters").await;
    let _operator = operator(control_plane, &arguments(cluster.url(), namespace.name(), free_port()));
    let (streams, post): (Api<EventStream>, _) = (namespace.api(), PostParams::default());
    let orders = manifest::<EventStream>("orders", "{profile: Critical, subjects: [orders.*.*]}");
    streams.create(&post, &serde_json::from_value(orders).unwrap()).await.unwrap();
    let fulfilment = manifest::<EventConsumer>("fulfilment", &spec(""));
    let fulfilment: EventConsumer = serde_json::from_value(fulfilment).unwrap();
    namespace.api().create(&post, &fulfilment).await.unwrap();
    let replicas = async |wanted: usize| {
        await_until(&format!("{wanted} replicas"), Duration::from_secs(30), || async {
            let stream = jetstream.get_stream("orders-dlq").await.map_err(|error| error.to_string())?;
            let found = stream.cached_info().config.num_replicas;
            if found == wanted { Ok(()) } else { Err(found.to_string()) }
        })
        .await;
    };
    replicas(3).await;
    let fewer = Patch::Merge(json!({"spec": {"replicas": 1}}));
    streams.patch("orders", &PatchParams::default(), &fewer).await.unwrap();
    replicas(1).await;
}
