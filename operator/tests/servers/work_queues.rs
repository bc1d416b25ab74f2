//! Consumers of a WorkQueue: each message has one.

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsCluster, await_until};

use crate::world::{SOON, World};

async fn filter<N>(world: &World<N>, name: &str) -> String {
    let stream = world.jetstream.get_stream("work").await.unwrap();
    stream.consumer_info(name).await.unwrap().config.filter_subject
}

fn consuming(filters: &str) -> String {
    format!("{{streamRef: {{name: work}}, filterSubjects: {filters}}}")
}

/// A cluster of three with a WorkQueue, and two consumers of it.
async fn with_two() -> World<NatsCluster> {
    let world = World::<NatsCluster>::clustered(3, &[]).await;
    world.stream("work", "{subjects: [work.>], retention: WorkQueue}").await;
    world.await_ready::<EventStream>("work").await;
    for (name, filters) in [("first", "[work.a]"), ("second", "[work.b]")] {
        world.consumer(name, &consuming(filters)).await;
        world.await_ready::<EventConsumer>(name).await;
    }
    world
}

#[tokio::test]
async fn filters_that_come_to_overlap_are_refused_in_a_cluster_too() {
    let world = with_two().await;
    for (name, filters) in [("second", "[work.*]"), ("third", "[work.a]"), ("fourth", "[]")] {
        world.consumer(name, &consuming(filters)).await;
        let message = world.await_condition::<EventConsumer>(name, "Stalled", "True", "Invalid").await;
        assert!(message.contains("overlaps with") && message.contains("EventConsumer "), "{name}: {message}");
    }
    assert_eq!(
        (filter(&world, "first").await, filter(&world, "second").await),
        ("work.a".into(), "work.b".into())
    );
    world.await_ready::<EventConsumer>("first").await;
    // Whoever is first gets what becomes free, so that nobody else may wait for it.
    for name in ["third", "fourth"] {
        world.delete::<EventConsumer>(name).await;
        world.await_gone::<EventConsumer>(name).await;
    }
    // Once the first has other subjects, who waits for them has them.
    world.consumer("first", &consuming("[work.x.y]")).await;
    world.await_ready::<EventConsumer>("first").await;
    await_until("the second has its subjects", SOON, || async {
        let found = filter(&world, "second").await;
        if found == "work.*" { Ok(()) } else { Err(found) }
    })
    .await;
    world.await_ready::<EventConsumer>("second").await;
}

#[tokio::test]
async fn of_two_that_are_changed_to_the_same_subjects_at_once_one_gets_them() {
    let world = with_two().await;
    let filters = consuming("[work.c]");
    tokio::join!(world.consumer("second", &filters), world.consumer("first", &filters));
    await_until("one has them, and one is refused", SOON, || async {
        let mut ready = Vec::new();
        for name in ["first", "second"] {
            let object = world.consumers().get(name).await.map_err(|error| error.to_string())?;
            let conditions = crate::world::conditions(&object);
            let found = conditions.iter().find(|condition| condition.type_ == "Ready").ok_or("none")?;
            if found.observed_generation != object.metadata.generation {
                return Err(format!("{found:?}"));
            }
            ready.push(found.status.clone());
        }
        ready.sort();
        if ready == ["False", "True"] { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    assert_ne!(filter(&world, "first").await, filter(&world, "second").await);
}

#[tokio::test]
async fn filters_of_one_consumer_may_overlap_in_part_and_none_may_cover_another() {
    let world = World::start().await;
    world.stream("work", "subjects: [work.*.*]").await;
    world.consumer("some", &consuming("[work.a.*, work.*.b]")).await;
    world.await_ready::<EventConsumer>("some").await;
    world.consumer("some", &consuming("[work.a.*, work.a.b]")).await;
    let message = world.await_condition::<EventConsumer>("some", "Stalled", "True", "Invalid").await;
    assert!(message.contains("work.a.b is covered by work.a.*"), "{message}");
}
