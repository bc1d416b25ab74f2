//! A stream gets twice as many partitions, under pods that handle its events: those are published until the condition asks to stop, and again as soon as
//! it is gone.

use std::{collections::BTreeSet, time::Duration};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::{
    order::{
        holders::ensure_shared,
        load::{Load, Pace},
    },
    workers::{CONSUMER, SETTLED, Sentinel, World, is_ready},
};
use jetwright_testing::await_until;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

const PARTITIONS: (u32, u32) = (4, 8);
const PODS: usize = 2;
const KEYS: u32 = 100;
const PACE: Pace = Pace::Every(Duration::from_millis(400));

/// Waits until the pods that there are, which a rollout may replace, have their share of so many partitions.
async fn await_shared(world: &World, count: u32) {
    let jetstream = world.nats.jetstream().await;
    await_until("the partitions to be shared", SETTLED, async || {
        let pods = world.workers.pods().await?;
        let uids: BTreeSet<_> =
            pods.iter().filter(|pod| is_ready(pod)).filter_map(ResourceExt::uid).collect();
        anyhow::ensure!(
            (pods.len(), uids.len()) == (PODS, PODS),
            "{} pods, {} ready",
            pods.len(),
            uids.len()
        );
        ensure_shared(&jetstream, count, &uids).await
    })
    .await;
}

/// Waits until the stream's condition PartitionsChanging is there, or is gone.
async fn await_changing(world: &World, changes: bool) {
    await_until("the stream to get its partitions", SETTLED, async || {
        let stream = world.workers.api::<EventStream>().get("orders").await?;
        let (count, observed) = (stream.spec.partitions.as_ref(), stream.conditions());
        let is_changing = observed.iter().any(|condition| condition.type_ == "PartitionsChanging");
        anyhow::ensure!(is_changing == changes, "{count:?}: {observed:?}");
        anyhow::Ok(())
    })
    .await;
}

async fn await_divided(world: &World) {
    await_until("the consumer to have its partitions", SETTLED, async || {
        let consumer = world.workers.api::<EventConsumer>().get(CONSUMER).await?;
        let partitions =
            consumer.status.and_then(|status| status.consumer).and_then(|consumer| consumer.partitions);
        anyhow::ensure!(partitions == Some(PARTITIONS.1), "{partitions:?}");
        anyhow::Ok(())
    })
    .await;
}

#[tokio::test]
async fn pods_handle_each_event_in_order_while_the_partitions_under_them_are_doubled() {
    let mut world = World::start().await;
    world.declare_stream(PARTITIONS.0).await;
    world.declare_consumer(json!({"replicas": PODS}), &[]).await;
    await_shared(&world, PARTITIONS.0).await;
    let load = Load::new(world.nats.jetstream().await, 1, PARTITIONS.0, KEYS);
    let publishing = load.publish_all_the_time(PACE);
    let doubled = Patch::Merge(json!({"spec": {"partitions": {"count": PARTITIONS.1}}}));
    let streams = world.workers.api::<EventStream>();
    streams.patch("orders", &PatchParams::default(), &doubled).await.unwrap();
    await_changing(&world, true).await;
    let load = publishing.stop().await;
    await_changing(&world, false).await;

    let publishing = load.of_partitions(PARTITIONS.1).publish_all_the_time(PACE);
    await_divided(&world).await;
    await_shared(&world, PARTITIONS.1).await;
    let load = publishing.stop().await;
    load.await_drained(SETTLED).await;
    let sentinels = world.workers.sentinels().await;
    let sentinel = sentinels.iter().fold(Sentinel::default(), |all, (_, one)| all + *one);
    assert!(sentinel.checked > 0 && sentinel.violations == 0, "{sentinels:?}");
    let history = world.workers.history(Vec::new());
    let report = world.workers.assert_in_order(&history, &load);
    assert_eq!(report.repeated, 0, "{report:?}");
    let partitions: BTreeSet<_> = history.entries.iter().map(|entry| entry.partition).collect();
    assert!(partitions.into_iter().eq(0..PARTITIONS.1), "an event of each partition is handled");
}
