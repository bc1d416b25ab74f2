//! Updates that would lose messages: they are made only where the user accepts that.

use async_nats::jetstream::stream::{Config, RetentionPolicy};
use jetwright_crds::EventStream;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::world::World;

/// A stream with five messages of two subjects.
async fn filled(spec: &str) -> World {
    let world = World::start().await;
    world.stream("orders", spec).await;
    world.await_ready::<EventStream>("orders").await;
    for subject in ["orders.1", "orders.1", "orders.1", "orders.2", "orders.2"] {
        world.jetstream.publish(subject, "x".into()).await.unwrap().await.unwrap();
    }
    world
}

async fn messages(world: &World) -> u64 {
    world.jetstream.get_stream("orders").await.unwrap().get_info().await.unwrap().state.messages
}

async fn await_data_loss(world: &World) -> String {
    world.await_condition::<EventStream>("orders", "Stalled", "True", "DataLoss").await
}

async fn accept(world: &World, fields: &str) {
    let patch =
        Patch::Merge(json!({"metadata": {"annotations": {"jetwright.dev/accept-data-loss": fields}}}));
    world.streams().patch("orders", &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn interest_drops_what_nobody_consumes_only_with_consent() {
    let world = filled("subjects: [orders.*]").await;
    world.stream("orders", "{subjects: [orders.*], retention: Interest}").await;
    let message = await_data_loss(&world).await;
    assert!(message.contains("5 messages") && message.contains("\"retention=Interest\""), "{message}");
    assert_eq!(
        (messages(&world).await, world.config("orders").await.retention),
        (5, RetentionPolicy::Limits)
    );
    accept(&world, "retention=WorkQueue, limits.maxMessages=1").await;
    await_data_loss(&world).await;
    accept(&world, "retention=Interest").await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(
        (messages(&world).await, world.config("orders").await.retention),
        (0, RetentionPolicy::Interest)
    );
}

#[tokio::test]
async fn each_limit_that_shrinks_below_what_is_there_needs_consent_to_its_value() {
    for (limit, consent) in [
        ("maxAge: 1s", "limits.maxAge=1000ms"),
        ("maxBytes: 64", "limits.maxBytes=64"),
        ("maxMessages: 2", "limits.maxMessages=2"),
        ("maxMessagesPerSubject: 1", "limits.maxMessagesPerSubject=1"),
    ] {
        let world = filled("subjects: [orders.*]").await;
        let spec = format!("{{subjects: [orders.*], limits: {{{limit}}}, allowDirect: true}}");
        world.stream("orders", &spec).await;
        let message = await_data_loss(&world).await;
        assert!(message.contains("5 messages"), "{limit}: {message}");
        assert!(!world.config("orders").await.allow_direct, "{limit}: nothing of it is applied");
        assert_eq!(messages(&world).await, 5, "{limit}");
        accept(&world, consent).await;
        world.await_ready::<EventStream>("orders").await;
        assert!(world.config("orders").await.allow_direct, "{limit}");
    }
}

#[tokio::test]
async fn what_loses_nothing_or_promised_nothing_needs_no_consent() {
    let world = filled("{subjects: [orders.*], profile: Ephemeral}").await;
    world.stream("orders", "{subjects: [orders.*], profile: Ephemeral, limits: {maxMessages: 2}}").await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(messages(&world).await, 2);

    let world = filled("subjects: [orders.*]").await;
    let fits = "{subjects: [orders.*], limits: {maxMessages: 5, maxBytes: 1Mi, maxMessagesPerSubject: 4}}";
    world.stream("orders", fits).await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(messages(&world).await, 5);
    // Nor does it where another writer has raised a limit, and nothing has come since.
    let edited = Config { max_messages: 100, ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    world.await_config("orders", |config| config.max_messages == 5).await;
}
