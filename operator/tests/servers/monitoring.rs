//! Thresholds that objects set are in the metadata of their stream and consumer, where NATS' own tools read them.

use std::collections::BTreeMap;

use jetwright_crds::{EventConsumer, EventStream, monitoring::METADATA_PREFIX};
use jetwright_testing::await_until;

use crate::world::{SOON, World};

type Thresholds = BTreeMap<String, String>;

fn thresholds<'a>(metadata: impl IntoIterator<Item = (&'a String, &'a String)>) -> Thresholds {
    let known =
        metadata.into_iter().filter_map(|(key, value)| Some((key.strip_prefix(METADATA_PREFIX)?, value)));
    known.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn wanted(thresholds: &[(&str, &str)]) -> Thresholds {
    thresholds.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn of_consumer(world: &World, name: &str) -> Thresholds {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    thresholds(&stream.consumer_info(name).await.unwrap().config.metadata)
}

async fn await_thresholds_of_stream(world: &World, those: &[(&str, &str)]) {
    world.await_config("orders", |config| thresholds(&config.metadata) == wanted(those)).await;
}

async fn await_thresholds_of_consumer(world: &World, name: &str, those: &[(&str, &str)]) {
    await_until("the consumer's thresholds are as wanted", SOON, || async {
        let found = of_consumer(world, name).await;
        if found == wanted(those) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

#[tokio::test]
async fn thresholds_are_written_put_right_and_taken_out_with_their_fields_and_those_of_others_stay() {
    let world = World::start().await;
    world
        .stream("orders", "{subjects: [orders.>], monitoring: {minMessagesCritical: 5, peerLagCritical: 9}}")
        .await;
    world
        .consumer(
            "reader",
            "{streamRef: {name: orders}, monitoring: {lagCritical: 100, lastAckCritical: 1h}}",
        )
        .await;
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    let both = [("enabled", "true"), ("msgs-critical", "5"), ("peer-lag-critical", "9")];
    await_thresholds_of_stream(&world, &both).await;
    let of_reader = [("enabled", "true"), ("last-ack-critical", "1h"), ("unprocessed-critical", "100")];
    await_thresholds_of_consumer(&world, "reader", &of_reader).await;

    let mut changed = world.config("orders").await;
    changed.metadata.insert("io.nats.monitor.msgs-critical".into(), "7".into());
    changed.metadata.insert("io.nats.monitor.subjects-warn".into(), "3".into());
    world.jetstream.update_stream(changed).await.unwrap();
    let by_hand = ("subjects-warn", "3");
    await_thresholds_of_stream(&world, &[&both[..], &[by_hand]].concat()).await;

    world.stream("orders", "{subjects: [orders.>], monitoring: {minMessagesCritical: 5}}").await;
    await_thresholds_of_stream(&world, &[both[0], both[1], by_hand]).await;
    world.stream("orders", "subjects: [orders.>]").await;
    await_thresholds_of_stream(&world, &[by_hand]).await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    await_thresholds_of_consumer(&world, "reader", &[]).await;
}
