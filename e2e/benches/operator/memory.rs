//! What memory the operator takes for many objects.

use crate::{
    objects::{event_consumer, stream_name, workload},
    world::World,
};

const STREAMS: usize = 3_000;
const CONSUMERS: usize = 6_000;
const WORKLOADS: usize = 300;

pub async fn of_streams() {
    let mut world = World::start().await;
    println!("operator, with no objects: {:.1} MiB resident", world.resident_mib());
    world.create_streams(STREAMS).await;
    world.quiet().await;
    world.print_memory(&format!("{STREAMS} EventStreams")).await;
}

pub async fn of_consumers() {
    let mut world = World::start().await;
    world.create_streams(STREAMS).await;
    let consumers =
        (0..CONSUMERS).map(|number| event_consumer(&format!("c{number}"), &stream_name(number % STREAMS)));
    world.create_consumers(consumers).await;
    world.quiet().await;
    world.print_memory(&format!("{STREAMS} EventStreams and {CONSUMERS} EventConsumers")).await;
}

pub async fn of_workloads() {
    let mut world = World::start().await;
    world.create_streams(20).await;
    world
        .create_consumers(
            (0..WORKLOADS).map(|number| workload(&format!("w{number}"), &stream_name(number % 20))),
        )
        .await;
    world.await_workloads(WORKLOADS).await;
    world.quiet().await;
    world.print_memory(&format!("{WORKLOADS} EventConsumers with pods of 40 variables")).await;
}
