//! Many objects at once.

use std::{collections::BTreeSet, time::Instant};

use futures::StreamExt;
use jetwright_e2e::Operator;
use kube::Api;

use crate::{
    objects::{WRITERS, create, event_consumer, event_streams, stream_name},
    world::{NAMESPACE, World},
};

/// EventStreams that are made at once.
const STREAMS: usize = 3_000;
/// The fewest requests that write an EventStream with a finalizer: its creation (by the user), the finalizer, the status.
const WRITES: u64 = 2;
/// The reconciles that it takes: one for its declaration, one for what the finalizer changed.
const RECONCILES: u64 = 2;

/// 3,000 EventStreams at once, until all are Ready; beside that, what the API server takes for creating as many that nobody looks after.
pub async fn streams_at_once() {
    let world = World::start().await;
    world.control_plane.kubectl(["create", "namespace", "alone"]).unwrap();
    let begun = Instant::now();
    create(&Api::namespaced(world.client.clone(), "alone"), event_streams(STREAMS, "Delete")).await;
    let alone = begun.elapsed();

    let before = world.quiet().await;
    let mut ready = world.ready().await;
    let begun = Instant::now();
    let streams = world.streams();
    let creating = create(&streams, event_streams(STREAMS, "Delete"));
    let seeing = async {
        let mut missing: BTreeSet<_> = (0..STREAMS).map(stream_name).collect();
        while !missing.is_empty() {
            missing.remove(&ready.next().await.unwrap());
        }
        begun.elapsed()
    };
    let ((), seen) = tokio::join!(creating, seeing);
    let spent = world.quiet().await.since(&before);
    let objects = u64::try_from(STREAMS).unwrap();
    let per_object =
        |count: u64| f64::from(u32::try_from(count).unwrap()) / f64::from(u32::try_from(objects).unwrap());
    println!(
        "{STREAMS} EventStreams by {WRITERS} writers until all are Ready: {:.1} s, {:.1} times the {:.1} s of the creates alone",
        seen.as_secs_f64(),
        seen.as_secs_f64() / alone.as_secs_f64(),
        alone.as_secs_f64()
    );
    println!(
        "– of each: {:.2} reconciles, {:.2} reads and {:.2} writes of Kubernetes, {:.2} requests to NATS; {:.1} CPU seconds in all",
        per_object(spent.reconciles),
        per_object(spent.reads),
        per_object(spent.creates + spent.patches + spent.others),
        per_object(spent.jetstream),
        spent.seconds
    );
    world.print_idle(&format!("{STREAMS} EventStreams")).await;
    assert!(spent.reconciles <= objects * RECONCILES, "{} reconciles", spent.reconciles);
    assert!(spent.creates + spent.patches + spent.others <= objects * WRITES, "{spent:?}");
}

/// 10,000 EventStreams and 20,000 EventConsumers on 200 of them, and a restart with all of them.
pub async fn ten_thousand() {
    let mut world = World::start().await;
    let begun = Instant::now();
    world.create_streams(10_000).await;
    let consumers =
        (0..20_000).map(|number| event_consumer(&format!("c{number}"), &stream_name(number % 200)));
    world.create_consumers(consumers).await;
    world.quiet().await;
    println!(
        "10,000 EventStreams and 20,000 EventConsumers: {:.0} s until quiet",
        begun.elapsed().as_secs_f64()
    );
    world.print_memory("10,000 EventStreams and 20,000 EventConsumers").await;
    world.print_idle("10,000 EventStreams and 20,000 EventConsumers").await;

    world.operator.process.signal("TERM");
    world.operator.process.wait_exit(std::time::Duration::from_mins(1)).await;
    let begun = Instant::now();
    world.operator = Operator::start(&world.control_plane, &world.nats, NAMESPACE);
    world.await_operator().await;
    let after = world.quiet().await;
    println!(
        "a restart with them: {} requests to NATS, {} reads and {} writes of Kubernetes, {:.1} CPU seconds, quiet after {:.0} s",
        after.jetstream,
        after.reads,
        after.creates + after.patches + after.others,
        after.seconds,
        begun.elapsed().as_secs_f64()
    );
    assert!(after.jetstream <= 250, "{} requests", after.jetstream);
}
