//! EventStream: the sequences of a stream that vanished never come again, and no update endangers what is in one.

use async_nats::jetstream::stream::Config;
use jetwright_crds::EventStream;
use jetwright_testing::await_until;
use kube::api::{Patch, PatchParams};

use crate::world::{SOON, World};

/// No stream of a test has as many messages.
const FAR: u64 = 1_000_000_000;

async fn publish(world: &World, subject: &str) -> u64 {
    await_until(&format!("{subject} is stored"), SOON, || async {
        let answer = world.jetstream.publish(subject.to_owned(), "x".into()).await;
        answer.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())
    })
    .await
    .sequence
}

/// Waits until the operator has made a stream again after it was deleted; the sequence of its next message.
async fn next_sequence(world: &World, stream: &str) -> u64 {
    world.await_config(stream, |_| true).await;
    publish(world, &format!("{stream}.1")).await
}

#[tokio::test]
async fn the_sequences_of_a_stream_that_somebody_deletes_never_come_again() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let mut highest = publish(&world, "orders.1").await;
    assert_eq!(highest, 1);
    for _ in 0..3 {
        world.jetstream.delete_stream("orders").await.unwrap();
        let next = next_sequence(&world, "orders").await;
        assert!(next >= highest + FAR - 1, "{next} after {highest}");
        highest = next;
    }
    // There is one for each time that is known of.
    await_until("the loss is told", SOON, || async {
        let told = world.events("orders", "Recreated").await;
        let first = told.iter().any(|note| note.contains("its sequences begin at 100"));
        if first { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
}

#[tokio::test]
async fn nor_do_they_when_the_operator_was_not_there_and_another_stream_had_the_name_meanwhile() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    publish(&world, "orders.1").await;
    // The status is of before the message: at most a minute may pass until it is told.
    world.operator.kill();
    world.jetstream.delete_stream("orders").await.unwrap();
    let second = world.another_operator(&[]);
    let next = next_sequence(&world, "orders").await;
    assert!(next >= FAR, "{next}");
    await_until("the status has it", SOON, || async {
        let status = world.streams().get("orders").await.unwrap().status.unwrap();
        if status.highest_sequence >= Some(FAR - 1) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;

    second.kill();
    world.jetstream.delete_stream("orders").await.unwrap();
    let foreign = Config {
        name: "orders".into(),
        subjects: vec!["old.*".into()],
        metadata: [("jetwright.dev/owner".into(), "elsewhere/shop/orders".into())].into(),
        ..Config::default()
    };
    world.jetstream.create_stream(foreign).await.unwrap();
    let third = world.another_operator(&[]);
    world.await_condition::<EventStream>("orders", "Ready", "False", "NameConflict").await;
    third.kill();
    world.jetstream.delete_stream("orders").await.unwrap();
    let _fourth = world.another_operator(&[]);
    let next = next_sequence(&world, "orders").await;
    assert!(next >= 2 * FAR - 1, "{next}");
}

#[tokio::test]
async fn an_object_that_is_made_again_with_its_stream_begins_anew() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    publish(&world, "orders.1").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.stream("orders", "subjects: [orders.*]").await;
    assert_eq!(next_sequence(&world, "orders").await, 1);
}

/// Restarts the server, and looks at what is in the stream then: messages and last sequence.
async fn after_a_restart(world: &World, stream: &str) -> (u64, u64) {
    world.nats.stop().await;
    world.nats.start_again().await;
    let state = await_until("the server is back", SOON, || async {
        let stream = world.jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(stream.cached_info().state.clone())
    })
    .await;
    (state.messages, state.last_sequence)
}

#[tokio::test]
async fn after_no_kind_of_update_does_a_restart_of_the_server_empty_a_stream() {
    let world = World::start().await;
    for stream in ["fresh", "orders"] {
        world.stream(stream, &format!("subjects: [{stream}.*]")).await;
        world.await_ready::<EventStream>(stream).await;
    }
    world.jetstream.delete_stream("orders").await.unwrap();
    for stream in ["fresh", "orders"] {
        let first = next_sequence(&world, stream).await;
        assert_eq!(first >= FAR, stream == "orders", "{first}");
        let in_it = (2, publish(&world, &format!("{stream}.2")).await);
        let began = world.config(stream).await.first_sequence;

        world.stream(stream, &format!("{{subjects: [{stream}.*], limits: {{maxMessages: 9}}}}")).await;
        world.await_config(stream, |config| config.max_messages == 9).await;
        assert_eq!(after_a_restart(&world, stream).await, in_it, "a new declaration");
        assert_eq!(world.config(stream).await.first_sequence, began);

        let edited = Config { max_messages: 3, ..world.config(stream).await };
        world.jetstream.update_stream(edited).await.unwrap();
        world.await_config(stream, |config| config.max_messages == 9).await;
        assert_eq!(after_a_restart(&world, stream).await, in_it, "what another changed, put right");

        let mut wiped = Config { first_sequence: None, ..world.config(stream).await };
        wiped.metadata.clear();
        world.jetstream.update_stream(wiped).await.unwrap();
        world.await_config(stream, |config| config.metadata.contains_key("jetwright.dev/owner")).await;
        assert_eq!(after_a_restart(&world, stream).await, in_it, "metadata put back");
    }
}

#[tokio::test]
async fn a_forged_sequence_in_a_status_is_not_believed_and_does_not_stay() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let mut status = world.streams().get("orders").await.unwrap().status.unwrap();
    status.highest_sequence = Some(1 << 62);
    if let Some(stream) = &mut status.stream {
        stream.last_sequence = 1 << 61;
    }
    let forged = Patch::Merge(serde_json::json!({ "status": status }));
    world.streams().patch_status("orders", &PatchParams::default(), &forged).await.unwrap();
    world.jetstream.delete_stream("orders").await.unwrap();
    let next = next_sequence(&world, "orders").await;
    assert!((FAR - 1..2 * FAR).contains(&next), "{next}");
    await_until("the status is right again", SOON, || async {
        let status = world.streams().get("orders").await.unwrap().status.unwrap();
        if status.highest_sequence < Some(1 << 53) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}
