//! Declarations that cannot be applied as they are: each can be corrected, and be deleted.

use async_nats::jetstream::stream::StorageType;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::{SOON, World};

#[tokio::test]
async fn a_wrong_first_value_is_corrected_as_long_as_there_is_nothing_in_jetstream() {
    let world = World::start().await;
    world.stream("first", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("first").await;
    let wrong = "{streamName: WRONG, subjects: [orders.1], storage: Memory, retention: WorkQueue}";
    world.stream("second", wrong).await;
    world.await_condition::<EventStream>("second", "Stalled", "True", "Refused").await;
    world.stream("second", "{streamName: RIGHT, subjects: [refunds.*], storage: File}").await;
    world.await_ready::<EventStream>("second").await;
    assert_eq!(world.config("RIGHT").await.storage, StorageType::File);

    world.stream("work", "{subjects: [work.*], retention: WorkQueue}").await;
    world.await_ready::<EventStream>("work").await;
    world.consumer("worker", "{streamRef: {name: work}, deliverPolicy: New}").await;
    world.await_condition::<EventConsumer>("worker", "Stalled", "True", "Invalid").await;
    world.consumer("worker", "{streamRef: {name: work}, deliverPolicy: All}").await;
    world.await_ready::<EventConsumer>("worker").await;
}

#[tokio::test]
async fn a_stream_that_is_renamed_where_its_status_does_not_tell_of_it_is_left_and_no_other_is_made() {
    let mut world = World::start().await;
    world.stream("orders", "{streamName: BEFORE, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("orders").await;
    let before = world.config("BEFORE").await;
    // As after a crash between the creation and the status, or a restored backup.
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let lost = Patch::Merge(json!({"status": {"stream": null}}));
    world.streams().patch_status("orders", &PatchParams::default(), &lost).await.unwrap();
    world.stream("orders", "{streamName: AFTER, subjects: [orders.*]}").await;
    world.operator = world.another_operator(&[]);
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "ImmutableField").await;
    assert!(message.contains("stream BEFORE") && message.contains("names AFTER"), "{message}");
    assert_eq!(world.config("BEFORE").await, before);
    assert!(world.jetstream.get_stream("AFTER").await.is_err());
    // Another object may have the name, and the first its old one.
    world.stream("another", "{streamName: AFTER, subjects: [refunds.*]}").await;
    world.await_ready::<EventStream>("another").await;
    world.stream("orders", "{streamName: BEFORE, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn a_stream_that_its_object_does_not_name_any_more_stays_when_that_is_deleted_and_an_event_says_so() {
    let mut world = World::start().await;
    world.stream("orders", "{streamName: BEFORE, subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let lost = Patch::Merge(json!({"status": {"stream": null}}));
    world.streams().patch_status("orders", &PatchParams::default(), &lost).await.unwrap();
    world.stream("orders", "{streamName: AFTER, subjects: [orders.*], deletionPolicy: Delete}").await;
    world.delete::<EventStream>("orders").await;
    world.operator = world.another_operator(&[]);
    world.await_gone::<EventStream>("orders").await;
    world.jetstream.get_stream("BEFORE").await.unwrap();
    let note = await_until("what is left behind is said", SOON, || async {
        world.events("orders", "Orphaned").await.pop().ok_or("no event")
    })
    .await;
    assert!(
        note.contains("stream BEFORE was created for this object") && note.contains("named AFTER"),
        "{note}"
    );
}

#[tokio::test]
async fn an_object_that_is_made_again_under_another_name_is_no_renamed_one() {
    let world = World::start().await;
    world.stream("orders", "{streamName: BEFORE, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("orders").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.stream("orders", "{streamName: AFTER, subjects: [refunds.*]}").await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn what_jetstream_cannot_hold_is_told_and_its_object_is_deleted_with_its_stream() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    // The schema's patterns take it.
    let wrong = "{subjects: [orders.*], deletionPolicy: Delete, limits: {maxAge: 300y, maxBytes: 9999999P}}";
    world.stream("orders", wrong).await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "Invalid").await;
    assert!(message.contains("spec.limits.maxAge: 300y") && message.contains("292 years"), "{message}");
    assert!(message.contains("spec.limits.maxBytes"), "{message}");
    world.consumer("reader", "{streamRef: {name: orders}, ackWait: 300y}").await;
    world.await_condition::<EventConsumer>("reader", "Stalled", "True", "Invalid").await;
    world.delete::<EventConsumer>("reader").await;
    world.await_gone::<EventConsumer>("reader").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    assert!(world.jetstream.get_stream("orders").await.is_err());
}
