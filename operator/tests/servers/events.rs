//! Which events an object has: what a user has to look at, once, and nothing that its conditions say anyway.

use std::time::Duration;

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use k8s_openapi::api::{apps::v1::Deployment, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};

use crate::{
    workloads::{SPEC, await_deployment, run_pods},
    world::{SOON, World},
};

/// Age at which a trouble of an object that was never ready is reported, and what a reconcile may be late.
const LASTS: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_secs(15);

/// Type and reason of every event in the namespace.
async fn all(world: &World) -> Vec<(String, String)> {
    let api: Api<Event> = world.namespace.api();
    let events = api.list(&ListParams::default()).await.unwrap().items.into_iter();
    events.map(|event| (event.type_.unwrap_or_default(), event.reason.unwrap_or_default())).collect()
}

async fn await_event(world: &World, name: &str, reason: &str, bound: Duration) -> Vec<String> {
    await_until(&format!("{name} has an event {reason}"), bound, || async {
        let notes = world.events(name, reason).await;
        if notes.is_empty() { Err("no event") } else { Ok(notes) }
    })
    .await
}

/// As Helm creates them: by kind, in the order of the alphabet.
#[tokio::test]
async fn what_is_created_in_any_order_has_no_event() {
    let world = World::start().await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_condition::<EventConsumer>("reader", "Stalled", "True", "NotFound").await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventConsumer>("reader").await;
    // What is written later is written behind it.
    world.stream("orders", "subjects: [orders.*, refunds.*]").await;
    await_event(&world, "orders", "Updated", SOON).await;
    assert_eq!(all(&world).await, [("Normal".to_owned(), "Updated".to_owned())]);
}

#[tokio::test]
async fn what_is_wrong_from_the_beginning_is_told_once_it_lasts() {
    let world = World::start().await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_condition::<EventConsumer>("reader", "Stalled", "True", "NotFound").await;
    assert_eq!(all(&world).await, []);
    await_event(&world, "reader", "NotFound", LASTS + LATE).await;
    assert_eq!(all(&world).await, [("Warning".to_owned(), "NotFound".to_owned())]);
}

#[tokio::test]
async fn what_is_wrong_with_an_object_that_was_ready_is_told_at_once_and_once_for_a_generation() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    for round in 1..=2 {
        let (good, bad) =
            ("subjects: [orders.*]", "{subjects: [orders.*], limits: {maxAge: 1s}, duplicateWindow: 1m}");
        world.stream("orders", bad).await;
        world.await_condition::<EventStream>("orders", "Stalled", "True", "Invalid").await;
        await_until("as many events as edits", SOON, || async {
            let api: Api<Event> = world.namespace.api();
            let events = api.list(&ListParams::default()).await.unwrap().items;
            let count = |event: &Event| event.series.as_ref().map_or(1, |series| series.count);
            let invalid = events.iter().filter(|event| event.reason.as_deref() == Some("Invalid"));
            let told: i32 = invalid.map(count).sum();
            if told == round { Ok(()) } else { Err(format!("{told} of {round}")) }
        })
        .await;
        world.stream("orders", good).await;
        world.await_ready::<EventStream>("orders").await;
    }
}

/// Kubernetes bounds a note by its bytes, and each of these letters is two.
#[tokio::test]
async fn a_note_in_another_script_is_cut_to_what_kubernetes_takes() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let field = "я".repeat(700);
    world.consumer("fulfilment", &SPEC.replace("{containers:", &format!("{{{field}: 1, containers:"))).await;
    world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "Refused").await;
    let notes = await_event(&world, "fulfilment", "Refused", SOON).await;
    assert!(notes[0].contains("яяя") && notes[0].len() <= 1024, "{notes:?}");
}

#[tokio::test]
async fn two_updates_have_an_event_each_with_what_each_updated() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.stream("orders", "subjects: [orders.*, refunds.*]").await;
    await_event(&world, "orders", "Updated", SOON).await;
    world.stream("orders", "{subjects: [orders.*, refunds.*], limits: {maxMessages: 5}}").await;
    await_until("both are told", SOON, || async {
        let mut notes = world.events("orders", "Updated").await;
        notes.sort();
        if notes == ["updated max_msgs", "updated subjects"] { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
}

#[tokio::test]
async fn pods_that_become_more_are_told_and_those_that_somebody_else_scaled_are_not() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let has = |replicas: i32| {
        move |deployment: &Deployment| {
            deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(replicas)
        }
    };
    let api: Api<Deployment> = world.namespace.api();
    let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": 7}}));
    api.patch("fulfilment", &PatchParams::default(), &patch).await.unwrap();
    await_deployment(&world, "as many as declared", has(2)).await;
    world.consumer("fulfilment", &SPEC.replace("replicas: 2", "replicas: 5")).await;
    await_deployment(&world, "as many as declared now", has(5)).await;
    world.await_event("fulfilment", "Scaled", "scaled the pods from 2 to 5").await;
}
