//! A consumer is not deleted under its pods. Nothing runs them here: the test says when one is told to stop, as the garbage collector does,
//! and when it is gone, as a kubelet does.

use std::time::Duration;

use jetwright_crds::EventConsumer;
use jetwright_testing::{NatsServer, await_until};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::{
    workloads::{SPEC, await_deployment},
    world::{SOON, World},
};

const POD: &str = "fulfilment-5d4-abcde";

/// A world whose EventConsumer has a pod on a node, which takes at most so many seconds to stop.
async fn with_pod(flags: &[&str], grace_seconds: i64) -> World {
    let world = World::with(NatsServer::start().await, flags).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let pod = json!({
        "metadata": {"name": POD, "labels": {"jetwright.dev/workload": "fulfilment"}},
        "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": grace_seconds,
            "containers": [{"name": "app", "image": "shop/order:1"}],
        },
    });
    pods(&world).create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    world
}

fn pods(world: &World) -> Api<Pod> {
    world.namespace.api()
}

/// The pod is told to stop.
async fn stop(world: &World) {
    pods(world).delete(POD, &DeleteParams::default()).await.unwrap();
}

/// The pod has stopped.
async fn stopped(world: &World) {
    pods(world).delete(POD, &DeleteParams::default().grace_period(0)).await.unwrap();
}

async fn has_consumer(world: &World) -> bool {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.consumer_info("fulfilment").await.is_ok()
}

/// Waits until the EventConsumer says what its deletion waits for.
async fn await_deleting(world: &World, words: &str) {
    await_until(&format!("the deletion waits for {words:?}"), SOON, || async {
        let ready = world.await_condition::<EventConsumer>("fulfilment", "Ready", "False", "Deleting").await;
        if ready.contains(words) { Ok(()) } else { Err(ready) }
    })
    .await;
}

#[tokio::test]
async fn a_consumer_outlives_pods_that_finish_their_work_for_longer_than_the_deletion_timeout() {
    let world = with_pod(&["--deletion-timeout=2s"], 60).await;
    world.delete::<EventConsumer>("fulfilment").await;
    stop(&world).await;
    await_deleting(&world, POD).await;
    await_deleting(&world, " since 20").await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(has_consumer(&world).await);
    await_deleting(&world, POD).await;
    stopped(&world).await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert!(!has_consumer(&world).await);
    assert_eq!(world.events("fulfilment", "Orphaned").await, Vec::<String>::new());
    assert_eq!(world.metric("jetwright_operator_orphaned_total{kind=\"pods\"}").await, None);
}

/// As on a node that is gone: nobody says that the pod has stopped.
#[tokio::test]
async fn a_pod_that_outlives_its_grace_period_is_left_behind_and_told() {
    let world = with_pod(&["--deletion-timeout=2s"], 3).await;
    world.delete::<EventConsumer>("fulfilment").await;
    stop(&world).await;
    await_deleting(&world, POD).await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert!(!has_consumer(&world).await);
    await_until("the pod is told of", SOON, || async {
        let notes = world.events("fulfilment", "Orphaned").await;
        if matches!(&notes[..], [note] if note.contains(POD)) { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
    assert_eq!(world.metric("jetwright_operator_orphaned_total{kind=\"pods\"}").await, Some(1.0));
}

#[tokio::test]
async fn the_time_that_pods_take_is_not_taken_from_the_time_for_nats() {
    let world = with_pod(&["--deletion-timeout=5s"], 60).await;
    world.nats.stop().await;
    world.delete::<EventConsumer>("fulfilment").await;
    stop(&world).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    await_deleting(&world, POD).await;
    stopped(&world).await;
    await_deleting(&world, "disconnected from NATS").await;
    await_deleting(&world, " since 20").await;
    world.nats.start_again().await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert!(!has_consumer(&world).await);
    assert_eq!(world.events("fulfilment", "Orphaned").await, Vec::<String>::new());
}

/// Both are deleted together, as with their namespace.
#[tokio::test]
async fn the_consumer_of_a_guest_outlives_the_pods_of_its_host() {
    let world = with_pod(&[], 60).await;
    world.consumer("mails", "{streamRef: {name: orders}, workloadRef: {name: fulfilment}}").await;
    world.await_condition::<EventConsumer>("mails", "ConsumerReady", "True", "Reconciled").await;
    world.delete::<EventConsumer>("fulfilment").await;
    world.delete::<EventConsumer>("mails").await;
    stop(&world).await;
    let message = world.await_condition::<EventConsumer>("mails", "Ready", "False", "Deleting").await;
    assert!(message.contains(POD), "{message}");
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.consumer_info("mails").await.unwrap();
    stopped(&world).await;
    world.await_gone::<EventConsumer>("mails").await;
    assert!(stream.consumer_info("mails").await.is_err());
}

/// `kubectl delete --cascade=orphan`: the API server adds the finalizer, and takes the dependents away from the object later.
#[tokio::test]
async fn what_is_deleted_with_its_dependents_orphaned_keeps_its_pods_and_its_consumer() {
    let world = with_pod(&[], 60).await;
    world.stream("kept", "{subjects: [kept.*], deletionPolicy: Delete}").await;
    world.await_ready::<jetwright_crds::EventStream>("kept").await;
    let orphan = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    world.consumers().delete("fulfilment", &orphan).await.unwrap();
    world.streams().delete("kept", &orphan).await.unwrap();
    let finalizers = |object: Option<Vec<String>>| object.unwrap_or_default();
    await_until("only Kubernetes' own finalizer is left", SOON, || async {
        let consumer = world.consumers().get("fulfilment").await.map_err(|error| error.to_string())?;
        let stream = world.streams().get("kept").await.map_err(|error| error.to_string())?;
        let left = [finalizers(consumer.metadata.finalizers), finalizers(stream.metadata.finalizers)];
        if left == [["orphan"], ["orphan"]] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    await_deployment(&world, "the deployment is still there", |deployment| {
        deployment.metadata.deletion_timestamp.is_none()
    })
    .await;
    assert!(has_consumer(&world).await);
    world.jetstream.get_stream("kept").await.unwrap();
}
