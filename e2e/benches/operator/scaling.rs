//! What consumers with order per key and autoscaled workloads cost while nothing happens.

use std::time::Duration;

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::objects::object;
use jetwright_testing::{await_until, processor_seconds};
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::{
    objects::{create, event_consumer, stream_name},
    world::{BOUND, World},
};

/// Consumers altogether, and those with order per key, on a stream of their own each.
const CONSUMERS: usize = 1_000;
const ORDERED: usize = 100;
const PARTITIONS: u32 = 8;
/// Streams of the others.
const STREAMS: usize = 20;
/// Workloads that are scaled by their lag.
const AUTOSCALED: usize = 1_000;
/// How long everything is left alone before it is measured, and how long that takes.
const IDLE: Duration = Duration::from_secs(30);
const MINUTE: Duration = Duration::from_mins(1);

fn ordered_stream(number: usize) -> EventStream {
    let partitions = json!({"count": PARTITIONS, "keyTokens": [2]});
    let spec =
        json!({"subjects": [format!("o{number}.*.*")], "partitions": partitions, "deletionPolicy": "Delete"});
    object(&format!("o{number}"), &spec)
}

fn ordered_consumer(number: usize) -> EventConsumer {
    let spec = json!({"streamRef": {"name": format!("o{number}")}, "ordering": "PerKey"});
    object(&format!("ordered{number}"), &spec)
}

fn autoscaled(name: &str, stream: &str, ordering: &str) -> EventConsumer {
    let containers = json!([{"name": "app", "image": "shop/app:1"}]);
    let autoscaling = json!({"minReplicas": 0, "maxReplicas": 10});
    // As they become without events. From one pod, the step to none would come while nothing is to happen.
    let workload = json!({
        "replicas": 0, "template": {"spec": {"containers": containers}}, "autoscaling": autoscaling,
    });
    object(name, &json!({"streamRef": {"name": stream}, "ordering": ordering, "workload": workload}))
}

impl World {
    async fn await_ready_consumers(&self, count: usize) {
        let api = self.api::<EventConsumer>();
        await_until("all consumers to be in JetStream", BOUND, async || {
            let objects = api.list(&ListParams::default()).await.unwrap().items;
            let is_made = |object: &&EventConsumer| {
                let status = object.status.as_ref().map(|status| serde_json::to_value(status).unwrap());
                let conditions = status.and_then(|status| status["conditions"].as_array().cloned());
                let is_it =
                    |condition: &Value| condition["type"] == "ConsumerReady" && condition["status"] == "True";
                conditions.is_some_and(|conditions| conditions.iter().any(is_it))
            };
            let made = objects.iter().filter(is_made).count();
            if made == count { Ok(()) } else { Err(format!("{made} of {count}")) }
        })
        .await;
    }

    /// Prints what a minute costs in which nothing happens.
    async fn print_minute(&self, of_what: &str) {
        // Time is what is measured here, so this is not a wait for something.
        tokio::time::sleep(IDLE).await;
        let (before, server) = (self.counts().await, processor_seconds(self.nats.process().pid()));
        tokio::time::sleep(MINUTE).await;
        let spent = self.counts().await.since(&before);
        let server = processor_seconds(self.nats.process().pid()) - server;
        println!(
            "a minute at rest with {of_what}: {} requests to Kubernetes, {} to JetStream's API and {} more that sample figures, {} reconciles; CPU \
             seconds: operator {:.2}, nats-server {server:.2}; operator {:.1} MiB resident",
            spent.kubernetes(),
            spent.jetstream,
            spent.samples,
            spent.reconciles,
            spent.seconds,
            self.resident_mib()
        );
    }
}

pub async fn of_consumers_with_order() {
    let world = World::start().await;
    world.create_streams(STREAMS).await;
    create(&world.streams(), (0..ORDERED).map(ordered_stream)).await;
    let unordered = CONSUMERS - ORDERED;
    let others =
        (0..unordered).map(|number| event_consumer(&format!("c{number}"), &stream_name(number % STREAMS)));
    world.create_consumers(others.chain((0..ORDERED).map(ordered_consumer))).await;
    world.await_ready_consumers(CONSUMERS).await;
    world
        .print_minute(&format!(
            "{CONSUMERS} consumers, {ORDERED} of them PerKey over {PARTITIONS} partitions"
        ))
        .await;
}

pub async fn of_autoscaled_workloads() {
    let world = World::start().await;
    world.create_streams(STREAMS).await;
    let workloads = (0..AUTOSCALED)
        .map(|number| autoscaled(&format!("a{number}"), &stream_name(number % STREAMS), "Unordered"));
    world.create_consumers(workloads).await;
    world.await_ready_consumers(AUTOSCALED).await;
    world.await_workloads(AUTOSCALED).await;
    world.print_minute(&format!("{AUTOSCALED} autoscaled workloads without pods")).await;
}

pub async fn of_autoscaled_workloads_with_order() {
    let world = World::start().await;
    create(&world.streams(), (0..ORDERED).map(ordered_stream)).await;
    let workloads =
        (0..ORDERED).map(|number| autoscaled(&format!("a{number}"), &format!("o{number}"), "PerKey"));
    world.create_consumers(workloads).await;
    world.await_ready_consumers(ORDERED).await;
    world.await_workloads(ORDERED).await;
    let what = format!("{ORDERED} autoscaled workloads, PerKey over {PARTITIONS} partitions, without pods");
    world.print_minute(&what).await;
}
