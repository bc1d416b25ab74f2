//! Partitions that become more, and consumers that get order with them: what their statuses say meanwhile.

use std::time::Duration;

use async_nats::jetstream::consumer::{Config, pull};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;

use crate::world::{World, condition, metrics_sum};

/// How long a change takes at most: 10 s in which nobody publishes, 10 s until every server has it, and what the machine adds.
const CHANGE: Duration = Duration::from_mins(1);

fn orders(partitions: Option<u32>) -> String {
    let partitions = partitions.map(|count| format!(", partitions: {{count: {count}, keyTokens: [2]}}"));
    format!("{{subjects: ['orders.*.*']{}}}", partitions.unwrap_or_default())
}

/// Waits until the condition of the consumer, which is not ready, says something with these words.
async fn await_said(world: &World, words: &str) -> String {
    await_until(&format!("it says {words}"), CHANGE, async || {
        let object = world.consumers().get("fulfilment").await.unwrap();
        let found = condition(&object, "ConsumerReady").filter(|found| found.status == "False");
        let message = found.map(|found| found.message).unwrap_or_default();
        if message.contains(words) { Ok(message) } else { Err(message) }
    })
    .await
}

#[tokio::test]
async fn a_consumer_that_gets_order_says_that_it_waits_for_its_stream_and_asks_now_and_then() {
    let world = World::start().await;
    world.stream("orders", &orders(None)).await;
    world.await_ready::<EventStream>("orders").await;
    let unordered = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}";
    world.consumer("fulfilment", unordered).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let foreign = pull::Config {
        durable_name: Some("foreign".into()),
        filter_subject: "orders.*.placed".into(),
        ..pull::Config::default()
    };
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.create_consumer(foreign).await.unwrap();
    world.stream("orders", &orders(Some(2))).await;
    world.consumer("fulfilment", &unordered.replacen('{', "{ordering: PerKey, ", 1)).await;
    await_said(&world, "it gets order when EventStream orders has its partitions").await;
    let narrow = ("PartitionsChanging", "False", "FiltersTooNarrow");
    world.await_condition_within::<EventStream>(CHANGE, "orders", narrow).await;
    let reconciles = async || {
        metrics_sum(world.admin, "jetwright_operator_reconciles_total{controller=\"consumer\"").await
    };
    let before = reconciles().await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let after = reconciles().await;
    assert!(after - before <= 4.0, "{before} {after}");
    stream.delete_consumer("foreign").await.unwrap();
    world
        .await_condition_within::<EventConsumer>(CHANGE, "fulfilment", ("Ready", "True", "Reconciled"))
        .await;
    let Config { filter_subject, .. } = stream.consumer_info("fulfilment-p1").await.unwrap().config;
    assert_eq!(filter_subject, "orders.*.placed.1");
}
