//! Subjects and names that belong to others: no object of a namespace captures, takes or squats them.

use async_nats::jetstream::stream::Config;
use futures::TryStreamExt as _;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::{SOON, World};

const WORKLOAD: &str = "workload: {template: {spec: {containers: [{name: app, image: a}]}}}";

async fn streams(world: &World) -> Vec<String> {
    let mut names: Vec<String> = world.jetstream.stream_names().try_collect().await.unwrap();
    names.sort();
    names
}

/// Waits until an object is refused, and what it says.
async fn refused<N>(world: &World<N>, name: &str) -> String {
    world.await_condition::<EventStream>(name, "Stalled", "True", "Invalid").await
}

#[tokio::test]
async fn subjects_and_names_of_others_are_refused_and_the_object_can_be_corrected_or_deleted() {
    let world = World::start().await;
    for (name, spec, words) in [
        ("dead-letters", "{subjects: [jetwright.dlq.payments.>]}", "dead letters of stream payments"),
        ("any-letters", "{subjects: ['jetwright.dlq.*.*.*.*']}", "dead letters of stream *"),
        ("replays-dlq", "{subjects: [jetwright.replay.payments.>]}", "dead letters of stream payments"),
        ("all", "{subjects: [jetwright.>]}", "belong to Jetwright"),
        ("any", "{subjects: ['jetwright.*.payments.>']}", "belong to Jetwright"),
        ("maps", "{subjects: [jetwright.partitions.payments]}", "belong to Jetwright"),
        ("on-disk", "{subjects: [jetwright.verify.a], limits: {maxBytes: 64Ki}}", "storage: Memory"),
        ("large", "{subjects: [jetwright.verify.b], storage: Memory, limits: {maxBytes: 65Ki}}", "64Ki"),
        ("squat", "{streamName: KV_prices, subjects: [prices.>]}", "$KV.prices.>"),
        ("more", "{streamName: KV_prices, subjects: ['$KV.prices.>', prices.>]}", "$KV.prices.>"),
        ("part", "{streamName: KV_prices, subjects: ['$KV.prices.a.>']}", "$KV.prices.>"),
        ("bucket", "{subjects: ['$KV.prices.>']}", "belongs to the stream KV_prices"),
        ("files", "{streamName: OBJ_files, subjects: ['$O.files.>']}", "$O.files.C.>, $O.files.M.>"),
        ("mqtt", "{subjects: ['$MQTT.>']}", "belong to the servers"),
        ("sessions", "{streamName: $MQTT_sess, subjects: [sessions]}", "begins with $"),
        ("services", "{subjects: ['$SRV.>']}", "belong to the servers"),
        ("gateway", "{subjects: [_GR_.>]}", "belong to the servers"),
    ] {
        world.stream(name, &format!("{{deletionPolicy: Delete, {}", &spec[1..])).await;
        let message = refused(&world, name).await;
        assert!(message.contains(words), "{name}: {message}");
    }
    assert_eq!(streams(&world).await, [""; 0]);
    world.stream("squat", "{streamName: KV_prices, subjects: ['$KV.prices.>']}").await;
    world.stream("files", "{streamName: OBJ_files, subjects: ['$O.files.M.>', '$O.files.C.>']}").await;
    world.await_ready::<EventStream>("squat").await;
    world.await_ready::<EventStream>("files").await;
    for name in ["mqtt", "dead-letters"] {
        world.delete::<EventStream>(name).await;
        world.await_gone::<EventStream>(name).await;
    }
}

/// Two namespaces of one cluster: the first has payments, with consumers whose dead letters are kept; the second is another team's.
async fn two_teams() -> (World, World<()>) {
    let world = World::start().await;
    let other = world.beside(&[]).await;
    world.stream("payments", "subjects: [payments.*]").await;
    world.await_ready::<EventStream>("payments").await;
    (world, other)
}

async fn keep_dead_letters(world: &World) {
    world.consumer("mails", &format!("{{streamRef: {{name: payments}}, {WORKLOAD}}}")).await;
    world.await_condition::<EventConsumer>("mails", "DeadLettersReady", "True", "Reconciled").await;
}

#[tokio::test]
async fn no_other_namespace_gets_dead_letters_by_the_names_and_labels_of_what_keeps_them() {
    let (world, other) = two_teams().await;
    other.stream("payments", "subjects: [taken.*]").await;
    other.await_condition::<EventStream>("payments", "Stalled", "True", "NameConflict").await;
    other.stream("payments-dlq", "{streamName: theirs, subjects: [jetwright.dlq.payments.>]}").await;
    let label = json!({"metadata": {"labels": {"jetwright.dev/dead-letters-of": "payments"}}});
    let label = Patch::Merge(label);
    other.streams().patch("payments-dlq", &PatchParams::default(), &label).await.unwrap();
    let message = refused(&other, "payments-dlq").await;
    assert!(message.contains("owns that stream in JetStream"), "{message}");
    keep_dead_letters(&world).await;
    assert_eq!(streams(&world).await, ["payments", "payments-dlq"]);
}

#[tokio::test]
async fn a_forged_status_makes_the_operator_keep_no_dead_letters_of_others() {
    let (world, other) = two_teams().await;
    other.stream("payments", "subjects: [taken.*]").await;
    other.await_condition::<EventStream>("payments", "Stalled", "True", "NameConflict").await;
    let state = json!({
        "name": "payments", "replicas": 1, "messages": 0, "bytes": 0, "firstSequence": 0, "lastSequence": 0, "consumers": 0,
    });
    let forged = Patch::Merge(json!({"status": {"stream": state}}));
    other.streams().patch_status("payments", &PatchParams::default(), &forged).await.unwrap();
    other.consumer("thief", &format!("{{streamRef: {{name: payments}}, {WORKLOAD}}}")).await;
    await_until("nothing is kept for it", SOON, || async {
        let object = other.consumers().get("thief").await.map_err(|error| error.to_string())?;
        let ready = crate::world::condition(&object, "DeadLettersReady");
        let refused =
            ready.as_ref().is_some_and(|ready| ready.status == "False" && ready.reason != "StreamNotReady");
        if refused { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    assert_eq!(streams(&world).await, ["payments"]);
    keep_dead_letters(&world).await;
}

#[tokio::test]
async fn what_keeps_the_dead_letters_of_a_stream_waits_for_it_and_stays_when_it_goes() {
    let world = World::start().await;
    let keeping = "{streamName: letters, subjects: [jetwright.dlq.orders.>, jetwright.replay.orders.>]}";
    world.stream("orders-dlq", keeping).await;
    refused(&world, "orders-dlq").await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders-dlq").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.stream("orders-dlq", &keeping.replace('}', ", limits: {maxMessages: 5}}")).await;
    world.await_ready::<EventStream>("orders-dlq").await;
    assert_eq!(world.config("letters").await.max_messages, 5);
    // Once another has the stream's name, its dead letters are that one's: nothing is done to them here any more.
    let theirs = Config { name: "orders".into(), subjects: vec!["orders.*".into()], ..Config::default() };
    world.jetstream.create_stream(theirs).await.unwrap();
    world.stream("orders-dlq", &keeping.replace('}', ", limits: {maxMessages: 6}}")).await;
    refused(&world, "orders-dlq").await;
    assert_eq!(world.config("letters").await.max_messages, 5);
}

#[tokio::test]
async fn dead_letters_in_memory_are_kept_again_after_the_servers_lost_everything() {
    let world = World::start().await;
    world.stream("payments", "{subjects: [payments.*], profile: Ephemeral}").await;
    keep_dead_letters(&world).await;
    for stream in ["payments", "payments-dlq"] {
        world.jetstream.delete_stream(stream).await.unwrap();
    }
    await_until("both are there again", SOON, || async {
        let names = streams(&world).await;
        if names == ["payments", "payments-dlq"] { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    world.await_condition::<EventConsumer>("mails", "DeadLettersReady", "True", "Reconciled").await;
}
