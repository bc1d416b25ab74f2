//! What a reconcile costs that finds everything as declared.

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, await_until};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{SPEC, await_bound, await_deployment, run_pods};
use crate::world::{SOON, World};

/// The sum of the metrics whose lines begin so, and do not contain what is left out.
async fn sum(world: &World, metric: &str, left_out: &str) -> f64 {
    let (_, text) = world.admin("/metrics").await.unwrap();
    let lines = text.lines().filter(|line| line.starts_with(metric) && !line.contains(left_out));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// Requests to Kubernetes, watches aside, and to JetStream.
async fn requests(world: &World) -> (f64, f64) {
    (
        sum(world, "jetwright_operator_kubernetes_requests_total", "verb=\"watch\"").await,
        sum(world, "jetwright_operator_jetstream_api_requests_total", "no label").await,
    )
}

async fn reconciles(world: &World) -> f64 {
    sum(world, "jetwright_operator_reconciles_total", "no label").await
}

/// One workload with a guest, all ready.
async fn with_workload(flags: &[&str]) -> World {
    let world = World::with(NatsServer::start().await, flags).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    world.consumer("mails", "{streamRef: {name: orders}, workloadRef: {name: fulfilment}}").await;
    await_deployment(&world, "the deployment", |_| true).await;
    await_bound(&world, &["fulfilment", "mails"]).await;
    run_pods(&world).await;
    for name in ["orders", "orders-dlq"] {
        world.await_ready::<EventStream>(name).await;
    }
    for name in ["fulfilment", "mails"] {
        world.await_ready::<EventConsumer>(name).await;
    }
    world
}

#[tokio::test]
async fn figures_in_statuses_cost_their_writes_and_no_reads() {
    let world = with_workload(&["--jetstream-resync-interval=1s", "--status-stats-interval=1s"]).await;
    let reads = || sum(&world, "jetwright_operator_kubernetes_requests_total{verb=\"get\"", "no label");
    await_until("it has come to rest", SOON, || async {
        let before = reads().await;
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let after = reads().await;
        if after.to_bits() == before.to_bits() { Ok(()) } else { Err(format!("{before} {after}")) }
    })
    .await;
    let before = reads().await;
    for number in 1..=3 {
        world.jetstream.publish("orders.1.placed", "x".into()).await.unwrap().await.unwrap();
        await_until("the message is in the statuses", SOON, || async {
            let stream =
                world.streams().get("orders").await.unwrap().status.unwrap().stream.unwrap().messages;
            let lag = world.consumers().get("mails").await.unwrap().status.unwrap().lag.unwrap();
            if (stream, lag) == (number, number) { Ok(()) } else { Err(format!("{stream} {lag}")) }
        })
        .await;
    }
    assert!((reads().await - before).abs() < 0.5, "{} reads", reads().await - before);
}

#[tokio::test]
async fn a_reconcile_that_changes_nothing_asks_neither_kubernetes_nor_nats() {
    // Everything is compared with JetStream now and then, which is no reconcile.
    let world = with_workload(&["--jetstream-resync-interval=1h"]).await;
    world.consumer("plain", "streamRef: {name: orders}").await;
    world.stream("payments", "{subjects: ['payments.*'], partitions: {count: 24, keyTokens: [2]}}").await;
    world.consumer("ordered", "{streamRef: {name: payments}, ordering: PerKey}").await;
    world.consumer("unordered", "{streamRef: {name: payments}, filterSubjects: [payments.1]}").await;
    for name in ["ordered", "unordered"] {
        world.await_ready::<EventConsumer>(name).await;
    }
    world.consumer("lost", "streamRef: {name: nowhere}").await;
    world.await_ready::<EventConsumer>("plain").await;
    world.await_condition::<EventConsumer>("lost", "Stalled", "True", "NotFound").await;
    await_until("it has come to rest", SOON, || async {
        let before = (requests(&world).await, reconciles(&world).await);
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let after = (requests(&world).await, reconciles(&world).await);
        if after == before { Ok(()) } else { Err(format!("{before:?} {after:?}")) }
    })
    .await;

    let (asked, reconciled) = (requests(&world).await, reconciles(&world).await);
    assert!(asked.0 > 0.0 && asked.1 > 0.0, "requests are counted: {asked:?}");
    // An edit that means nothing: the finalizers change, the declaration does not.
    for finalizers in [json!(["other/one"]), Value::Null] {
        let keep = |finalizer: &str| match &finalizers {
            Value::Null => json!([finalizer]),
            _ => json!([finalizer, "other/one"]),
        };
        let params = PatchParams::default();
        let edit = |finalizers: Value| Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        for name in ["orders", "orders-dlq", "payments"] {
            world.streams().patch(name, &params, &edit(finalizers.clone())).await.unwrap();
        }
        for name in ["fulfilment", "mails", "plain", "lost", "ordered", "unordered"] {
            let edited = edit(keep("jetwright.dev/cleanup"));
            world.consumers().patch(name, &params, &edited).await.unwrap();
        }
    }
    await_until("all nine are reconciled again", SOON, || async {
        let now = reconciles(&world).await;
        if now >= reconciled + 9.0 { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(requests(&world).await, asked);
}

#[tokio::test]
async fn a_stream_that_is_made_costs_two_writes_and_two_reconciles() {
    let world = World::with(NatsServer::start().await, &["--jetstream-resync-interval=1h"]).await;
    world.stream("warm", "subjects: [warm.*]").await;
    world.await_ready::<EventStream>("warm").await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let before = (requests(&world).await, reconciles(&world).await);
    let writes = || sum(&world, "jetwright_operator_kubernetes_requests_total{verb=\"patch\"", "no label");
    let written = writes().await;
    world.stream("orders", "{subjects: [orders.*.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    // What is heard of its own request comes a moment later.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let after = (requests(&world).await, reconciles(&world).await);
    // For the finalizer, and with it.
    assert!(after.1 - before.1 < 2.5, "{} reconciles", after.1 - before.1);
    // The finalizer and the status.
    assert!(writes().await - written < 2.5, "{} writes", writes().await - written);
    // Whether it is there, its creation, and what the advisory of that asks for.
    assert!(after.0.1 - before.0.1 < 3.5, "{} requests to NATS", after.0.1 - before.0.1);
}
