//! Autoscaling of pods that share partitions, with Kubernetes' own controllers and pods as processes.

use std::cell::Cell;

use jetwright_e2e::{
    order::load::Load,
    workers::{CONSUMER, SETTLED, World},
};
use jetwright_testing::await_until;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

const PARTITIONS: u32 = 8;
const KEYS: u32 = 40;
const MAX_REPLICAS: i32 = 4;
/// How long an event takes, in milliseconds, and how many a pod handles at once. It holds 16 times as many of each partition.
const HANDLER_ENV: [(&str, u64); 2] = [("SOAK_HANDLING_MILLISECONDS", 3_000), ("SOAK_CONCURRENCY", 8)];
/// 800 events: fewer than one pod may hold, and 300 s of work for it: when a second pod is judged, too much for three is left.
const ROUNDS: u32 = 20;

/// JetStream has nothing for others then: the pods themselves say that they have more than they can do.
#[tokio::test]
async fn what_one_pod_holds_and_cannot_begin_brings_others() {
    let mut world = World::start().await;
    let mut load = Load::new(world.nats.jetstream().await, 1, PARTITIONS, KEYS);
    load.create_bucket().await;
    world.declare_stream(PARTITIONS).await;
    let autoscaling = json!({"minReplicas": 1, "maxReplicas": MAX_REPLICAS});
    world.declare_consumer(json!({"replicas": 1, "autoscaling": autoscaling}), &HANDLER_ENV).await;
    load.publish_round().await;
    load.await_drained(SETTLED).await;
    for _ in 0..ROUNDS {
        load.publish_round().await;
    }
    let pending_before = Cell::new(None);
    await_until("more pods", SETTLED, async || {
        let deployment = world.workers.api::<Deployment>().get(CONSUMER).await?;
        let replicas = deployment.spec.and_then(|spec| spec.replicas);
        if replicas == Some(1) {
            let consumers = load.consumers().await?;
            pending_before.set(Some(consumers.iter().map(|info| info.num_pending).sum::<u64>()));
        }
        anyhow::ensure!(
            replicas == Some(MAX_REPLICAS),
            "{replicas:?}, {pending_before:?} events that no pod has"
        );
        Ok(())
    })
    .await;
    assert_eq!(pending_before.get(), Some(0), "the one pod has all of them");
    load.await_drained(SETTLED).await;
    let history = world.workers.history(Vec::new());
    world.workers.assert_in_order(&history, &load);
}
