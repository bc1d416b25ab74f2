//! Autoscaling of pods that share partitions, with Kubernetes' own controllers and pods as processes.

use std::time::Duration;

use jetwright_e2e::{
    order::load::Load,
    workers::{CONSUMER, SETTLED, World},
};
use jetwright_testing::await_until;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::json;

const PARTITIONS: u32 = 8;
const KEYS: u32 = 40;
/// How long an event takes, in milliseconds, and how many a pod handles at once. It holds 16 times as many of each partition.
const HANDLER_ENV: [(&str, u64); 2] = [("SOAK_HANDLING_MILLISECONDS", 1_000), ("SOAK_CONCURRENCY", 8)];
/// 800 events: fewer than one pod may hold, and 100 s of work for it.
const ROUNDS: u32 = 20;

/// How long it takes at most until a pod has pulled all of them.
const TAKEN: Duration = Duration::from_secs(10);

/// JetStream has nothing for others then: the pods themselves say that they have more than they can do.
#[tokio::test]
async fn what_one_pod_holds_and_cannot_begin_brings_others() {
    let mut world = World::start().await;
    let mut load = Load::new(world.nats.jetstream().await, 1, PARTITIONS, KEYS);
    load.create_bucket().await;
    world.declare_stream(PARTITIONS).await;
    let autoscaling = json!({"minReplicas": 1, "maxReplicas": 4});
    world.declare_consumer(json!({"replicas": 1, "autoscaling": autoscaling}), &HANDLER_ENV).await;
    load.publish_round().await;
    load.await_drained(SETTLED).await;
    for _ in 0..ROUNDS {
        load.publish_round().await;
    }
    // How many more depends on how much of the work is left by the second step.
    await_until("more pods", SETTLED, async || {
        let deployment = world.workers.api::<Deployment>().get(CONSUMER).await?;
        let replicas = deployment.spec.and_then(|spec| spec.replicas);
        anyhow::ensure!(replicas > Some(1), "{replicas:?}");
        Ok(())
    })
    .await;
    // Two pods would need 50 s to work it off.
    await_until("the pods to have all events", TAKEN, async || {
        let pending: u64 = load.consumers().await?.iter().map(|info| info.num_pending).sum();
        anyhow::ensure!(pending == 0, "{pending} events that no pod has");
        Ok(())
    })
    .await;
    load.await_drained(SETTLED).await;
    let history = world.workers.history(Vec::new());
    world.workers.assert_in_order(&history, &load);
}
