//! Whose a stream or consumer is: the mark in JetStream alone says it, whatever a status says.

use std::time::Duration;

use async_nats::{
    ConnectOptions,
    jetstream::{self, consumer, stream},
};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{MountedSecret, NatsServer, await_until};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::world::{SOON, World};

const OWNER: &str = "jetwright.dev/owner";

/// A world whose operator hears of no change in JetStream, and asks only where it has to.
async fn deaf_world() -> (World, MountedSecret) {
    let config = "accounts: { main: { jetstream: enabled, users: [\n\
         {user: admin, password: admin}\n\
         {user: operator, password: operator, permissions: {subscribe: {deny: \"$JS.EVENT.>\"}}}\n\
         ] }, SYS: { users: [{user: sys, password: sys}] } }\nsystem_account: SYS\n";
    let nats = NatsServer::builder().config(config).start().await;
    let admin = ConnectOptions::with_user_and_password("admin".to_owned(), "admin".to_owned());
    let jetstream = jetstream::new(nats.client_with(admin).await);
    let secret = MountedSecret::new(&[("username", "operator"), ("password", "operator")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let world = World::on(nats, jetstream, &[&folder, "--jetstream-resync-interval=1h"]).await;
    (world, secret)
}

/// Takes a stream's marks away, as a tool does that writes configurations whole.
async fn wipe_stream(world: &World, name: &str) {
    let mut config = world.config(name).await;
    config.metadata.clear();
    world.jetstream.update_stream(config).await.unwrap();
}

async fn consumer_config(world: &World, stream: &str, name: &str) -> Result<consumer::Config, String> {
    let stream = world.jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
    stream.consumer_info(name).await.map(|info| info.config).map_err(|error| error.to_string())
}

async fn wipe_consumer(world: &World, stream: &str, name: &str) {
    let mut config = consumer_config(world, stream, name).await.unwrap();
    config.metadata.clear();
    world.jetstream.get_stream(stream).await.unwrap().update_consumer(config).await.unwrap();
}

/// Writes a status as who has the right to `patch` it can.
async fn forge_stream_status(world: &World, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    world.streams().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn forge_consumer_status(world: &World, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    world.consumers().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

async fn await_orphaned(world: &World, name: &str) -> String {
    await_until("what is left behind is said", SOON, || async {
        world.events(name, "Orphaned").await.pop().ok_or("no event")
    })
    .await
}

#[tokio::test]
async fn a_forged_status_makes_nothing_its_objects_own_and_deletes_nothing() {
    let world = World::start().await;
    let ownerless =
        stream::Config { name: "payroll".into(), subjects: vec!["payroll.*".into()], ..Default::default() };
    let made = world.jetstream.create_stream(ownerless.clone()).await.unwrap();
    let created = made.cached_info().created.unix_timestamp();
    let created = k8s_openapi::jiff::Timestamp::from_second(created).unwrap().to_string();
    let before = world.config("payroll").await;
    world.stream("thief", "{streamName: payroll, subjects: [stolen.*], deletionPolicy: Delete}").await;
    world.await_condition::<EventStream>("thief", "Stalled", "True", "NameConflict").await;
    let state = json!({
        "name": "payroll", "created": created, "replicas": 1, "messages": 0, "bytes": 0, "firstSequence": 0,
        "lastSequence": 0, "consumers": 0,
    });
    forge_stream_status(&world, "thief", json!({"stream": state, "conditions": []})).await;
    // A new generation makes the operator look at it again, with the forged status.
    world.stream("thief", "{streamName: payroll, subjects: [stolen.>], deletionPolicy: Delete}").await;
    world.await_condition::<EventStream>("thief", "Stalled", "True", "NameConflict").await;
    assert_eq!(world.config("payroll").await, before);
    world.delete::<EventStream>("thief").await;
    world.await_gone::<EventStream>("thief").await;
    assert_eq!(world.config("payroll").await, before);
}

#[tokio::test]
async fn a_forged_status_neither_hides_a_consumer_from_its_deletion_nor_points_it_at_another() {
    let world = World::start().await;
    for name in ["orders", "others"] {
        world.stream(name, &format!("subjects: [{name}.*]")).await;
        world.await_ready::<EventStream>(name).await;
    }
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let theirs = consumer::pull::Config {
        durable_name: Some("fulfilment".into()),
        ..consumer::pull::Config::default()
    };
    world.jetstream.get_stream("others").await.unwrap().create_consumer(theirs).await.unwrap();
    let forged = json!({"consumer": {"stream": "others", "name": "fulfilment"}});
    forge_consumer_status(&world, "fulfilment", forged).await;
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    let error = consumer_config(&world, "orders", "fulfilment").await.unwrap_err();
    assert!(error.contains("not found"), "{error}");
    consumer_config(&world, "others", "fulfilment").await.unwrap();
}

#[tokio::test]
async fn a_name_in_a_status_that_no_stream_can_have_holds_up_no_deletion_and_costs_no_connection() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    let too_long = "x".repeat(6000);
    let names = ["", "a.b", ">", "x\r\nPUB $JS.API.STREAM.DELETE.orders 0\r\n\r\n", &too_long];
    for (number, forged) in names.into_iter().enumerate() {
        let name = format!("reader-{number}");
        world.consumer(&name, "streamRef: {name: orders}").await;
        world.await_ready::<EventConsumer>(&name).await;
        forge_consumer_status(&world, &name, json!({"consumer": {"stream": forged, "name": name}})).await;
        world.delete::<EventConsumer>(&name).await;
        world.await_gone::<EventConsumer>(&name).await;
        consumer_config(&world, "orders", &name).await.unwrap_err();
    }
    assert!(!world.operator.log().contains("disconnected from NATS"), "{}", world.operator.log());
}

#[tokio::test]
async fn a_stream_of_a_newer_generation_stays_and_an_event_says_so() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    let mut newer = world.config("orders").await;
    newer.metadata.insert("jetwright.dev/generation".into(), "7".into());
    world.jetstream.update_stream(newer).await.unwrap();
    world.stream("orders", "{subjects: [orders.*, refunds.*], deletionPolicy: Delete}").await;
    world.await_condition::<EventStream>("orders", "Stalled", "True", "NewerGeneration").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    assert_eq!(world.config("orders").await.subjects, ["orders.*"]);
    let note = await_orphaned(&world, "orders").await;
    assert!(note.contains("generation 7") && note.contains("was not deleted"), "{note}");
}

#[tokio::test]
async fn what_lost_its_mark_is_not_deleted_with_its_object_and_an_event_says_so() {
    let (world, _secret) = deaf_world().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.stream("users", "subjects: [users.*]").await;
    world.consumer("reader", "streamRef: {name: users}").await;
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    wipe_stream(&world, "orders").await;
    wipe_consumer(&world, "users", "reader").await;
    world.delete::<EventStream>("orders").await;
    world.delete::<EventConsumer>("reader").await;
    world.await_gone::<EventStream>("orders").await;
    world.await_gone::<EventConsumer>("reader").await;
    assert_eq!(world.config("orders").await.subjects, ["orders.*"]);
    consumer_config(&world, "users", "reader").await.unwrap();
    let note = await_orphaned(&world, "orders").await;
    assert!(note.contains("stream orders has no jetwright.dev/owner in its metadata any more"), "{note}");
    let note = await_orphaned(&world, "reader").await;
    assert!(note.contains("consumer reader of stream users"), "{note}");
}

#[tokio::test]
async fn a_consumers_mark_that_vanishes_while_the_operator_watches_is_put_back() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    wipe_consumer(&world, "orders", "reader").await;
    await_until("the mark is back", SOON, || async {
        let config = consumer_config(&world, "orders", "reader").await?;
        if config.metadata.contains_key(OWNER) { Ok(()) } else { Err(format!("{:?}", config.metadata)) }
    })
    .await;
}

#[tokio::test]
async fn a_consumer_whose_mark_was_wiped_while_no_operator_ran_is_nobodys_and_stays() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    wipe_consumer(&world, "orders", "reader").await;
    let _next = world.another_operator(&[]);
    let message = world.await_condition::<EventConsumer>("reader", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("was not created by Jetwright"), "{message}");
    world.delete::<EventConsumer>("reader").await;
    world.await_gone::<EventConsumer>("reader").await;
    assert!(!consumer_config(&world, "orders", "reader").await.unwrap().metadata.contains_key(OWNER));
}

#[tokio::test]
async fn a_mark_of_another_object_is_not_overwritten_and_its_stream_is_neither_changed_nor_deleted() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    let mut forged = world.config("orders").await;
    forged.metadata.insert(OWNER.into(), "west/shop/orders".into());
    world.jetstream.update_stream(forged).await.unwrap();
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("owned by west/shop/orders"), "{message}");
    let api: Api<EventStream> = world.streams();
    assert_eq!(api.get("orders").await.unwrap().status.unwrap().stream, None);
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    assert_eq!(world.config("orders").await.metadata[OWNER], "west/shop/orders");
}

#[tokio::test]
async fn a_new_leader_takes_no_stream_for_its_objects_own_whose_mark_vanished_before_it_led() {
    let election = ["--leader-elect=true", "--leader-elect-namespace=default", "--lease-name=ownership"];
    let world = World::with(NatsServer::start().await, &election).await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    let standby = world.another_operator(&election);
    standby.await_log("waiting for leadership", SOON).await;
    world.operator.signal("STOP");
    wipe_stream(&world, "orders").await;
    world.operator.signal("KILL");
    standby.await_log("\"reconciling\"", Duration::from_secs(25)).await;
    world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    assert!(!world.config("orders").await.metadata.contains_key(OWNER));
}

#[tokio::test]
async fn a_consumer_that_got_another_objects_mark_is_neither_changed_nor_deleted_nor_taken_over_twice() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "{streamRef: {name: orders}, adoptionPolicy: TakeOver}").await;
    world.await_ready::<EventConsumer>("reader").await;
    let give_to = async |owner: &str| {
        let mut config = consumer_config(&world, "orders", "reader").await.unwrap();
        config.metadata.insert(OWNER.into(), owner.into());
        world.jetstream.get_stream("orders").await.unwrap().update_consumer(config).await.unwrap();
    };
    give_to("west/shop/reader").await;
    await_until("it is taken over", SOON, || async {
        let metadata = consumer_config(&world, "orders", "reader").await?.metadata;
        let from = metadata.get("jetwright.dev/taken-from").map(String::as_str);
        if from == Some("west/shop/reader") { Ok(()) } else { Err(format!("{metadata:?}")) }
    })
    .await;
    world.await_ready::<EventConsumer>("reader").await;
    give_to("north/shop/reader").await;
    let message = world.await_condition::<EventConsumer>("reader", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("this object has taken it over before"), "{message}");
    world.delete::<EventConsumer>("reader").await;
    world.await_gone::<EventConsumer>("reader").await;
    assert_eq!(
        consumer_config(&world, "orders", "reader").await.unwrap().metadata[OWNER],
        "north/shop/reader"
    );
}
