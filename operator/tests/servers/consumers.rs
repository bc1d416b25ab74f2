//! EventConsumer: made, changed, put right, left alone.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;

use crate::world::{SOON, World};

async fn config(world: &World, stream: &str, name: &str) -> Result<Config, String> {
    let stream = world.jetstream.get_stream(stream).await.map_err(|error| error.to_string())?;
    stream.consumer_info(name).await.map(|info| info.config).map_err(|error| error.to_string())
}

async fn await_config(world: &World, name: &str, wanted: impl Fn(&Config) -> bool) {
    await_until(&format!("consumer {name} is as wanted"), SOON, || async {
        let config = config(world, "orders", name).await?;
        if wanted(&config) { Ok(()) } else { Err(format!("{config:?}")) }
    })
    .await;
}

async fn with_orders() -> World {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world
}

#[tokio::test]
async fn a_declared_consumer_is_made_whole_and_described() {
    let world = with_orders().await;
    let spec = "
        streamRef: {name: orders}
        filterSubjects: [orders.*.placed]
        deliverPolicy: New
        ackWait: 10s
        maxAckPending: 64
        retry: {maxAttempts: 4}
    ";
    world.consumer("fulfilment", spec).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let mut found = config(&world, "orders", "fulfilment").await.unwrap();
    let owner = format!("test/{}/fulfilment", world.namespace.name());
    assert_eq!(found.metadata.get("jetwright.dev/owner"), Some(&owner));
    found.metadata.clear();
    let expected = Config {
        durable_name: Some("fulfilment".into()),
        name: Some("fulfilment".into()),
        deliver_policy: DeliverPolicy::New,
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(10),
        max_deliver: 4,
        filter_subject: "orders.*.placed".into(),
        max_ack_pending: 64,
        max_waiting: 512,
        ..Config::default()
    };
    assert_eq!(found, expected);
    world.jetstream.publish("orders.1.placed", "x".into()).await.unwrap().await.unwrap();
    let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
    let consumer = status.consumer.unwrap();
    assert_eq!((consumer.stream.as_str(), consumer.name.as_str()), ("orders", "fulfilment"));
    assert_eq!((status.lag, status.ack_pending, status.redelivered), (Some(0), Some(0), Some(0)));
    assert_eq!((status.replicas, status.selector), (None, None));
}

#[tokio::test]
async fn an_edit_is_applied_and_a_field_taken_out_goes_back_to_its_default() {
    let world = with_orders().await;
    let spec = "{streamRef: {name: orders}, ackWait: 10s, maxAckPending: 5, filterSubjects: [orders.*.a, orders.*.b]}";
    world.consumer("fulfilment", spec).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    assert_eq!(config(&world, "orders", "fulfilment").await.unwrap().filter_subjects.len(), 2);
    world.consumer("fulfilment", "{streamRef: {name: orders}, filterSubjects: [orders.*.a]}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let found = config(&world, "orders", "fulfilment").await.unwrap();
    assert_eq!((found.ack_wait, found.max_ack_pending), (Duration::from_secs(30), 1000));
    assert_eq!((found.filter_subject.as_str(), found.filter_subjects.len()), ("orders.*.a", 0));
}

#[tokio::test]
async fn an_edit_behind_the_operators_back_is_put_right_although_it_has_no_advisory() {
    let world = with_orders().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let edited = Config { max_deliver: 1, ..config(&world, "orders", "fulfilment").await.unwrap() };
    stream.update_consumer(edited).await.unwrap();
    await_config(&world, "fulfilment", |config| config.max_deliver == -1).await;
    await_until("the repair is in the status", SOON, || async {
        let drift = world.consumers().get("fulfilment").await.unwrap().status.unwrap().drift;
        match drift {
            Some(drift) if drift.fields == ["max_deliver"] => Ok(()),
            drift => Err(format!("{drift:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn an_administrators_pause_stays() {
    let world = with_orders().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let until = time::OffsetDateTime::now_utc() + Duration::from_hours(1);
    stream.pause_consumer("fulfilment", until).await.unwrap();
    world.consumer("fulfilment", "{streamRef: {name: orders}, maxAckPending: 7}").await;
    await_config(&world, "fulfilment", |config| config.max_ack_pending == 7).await;
    let paused = stream.consumer_info("fulfilment").await.unwrap().paused;
    assert!(paused, "the edit ended the pause");
}

#[tokio::test]
async fn a_consumer_deleted_behind_the_operators_back_is_made_again() {
    let world = with_orders().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.delete_consumer("fulfilment").await.unwrap();
    await_config(&world, "fulfilment", |_| true).await;
}

#[tokio::test]
async fn with_its_stream_deleted_behind_the_operators_back_both_are_made_again() {
    let world = with_orders().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world.jetstream.delete_stream("orders").await.unwrap();
    await_config(&world, "fulfilment", |_| true).await;
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
}

#[tokio::test]
async fn a_consumer_waits_for_its_stream_in_whatever_order_they_come() {
    let world = World::start().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    let message = world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "NotFound").await;
    assert!(message.contains("there is no EventStream orders"), "{message}");
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
}

#[tokio::test]
async fn a_consumer_whose_event_stream_is_deleted_says_so_at_once() {
    let world = with_orders().await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world.delete::<EventStream>("orders").await;
    world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "NotFound").await;
}

#[tokio::test]
async fn no_consumer_is_made_on_a_stream_that_the_event_stream_only_names() {
    let world = World::start().await;
    let foreign = async_nats::jetstream::stream::Config {
        name: "payroll".into(),
        ..async_nats::jetstream::stream::Config::default()
    };
    world.jetstream.create_stream(foreign).await.unwrap();
    world.stream("mine", "{streamName: payroll, subjects: [payroll]}").await;
    world.consumer("spy", "streamRef: {name: mine}").await;
    world.await_condition::<EventConsumer>("spy", "ConsumerReady", "False", "StreamNotReady").await;
    let error = config(&world, "payroll", "spy").await.unwrap_err();
    assert!(error.contains("not found"), "{error}");
}

#[tokio::test]
async fn a_consumer_that_something_else_made_is_left_alone() {
    let world = with_orders().await;
    world.await_ready::<EventStream>("orders").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let foreign = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("fulfilment".into()),
        max_ack_pending: 3,
        ..Default::default()
    };
    stream.create_consumer(foreign).await.unwrap();
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "NameConflict").await;
    assert_eq!(config(&world, "orders", "fulfilment").await.unwrap().max_ack_pending, 3);
}

#[tokio::test]
async fn a_consumer_of_the_last_message_of_every_subject_needs_no_filter() {
    let world = with_orders().await;
    world.consumer("last", "{streamRef: {name: orders}, deliverPolicy: LastPerSubject}").await;
    world.await_ready::<EventConsumer>("last").await;
    assert_eq!(config(&world, "orders", "last").await.unwrap().deliver_policy, DeliverPolicy::LastPerSubject);
}

#[tokio::test]
async fn on_a_server_with_limits_of_its_own_nothing_is_taken_for_somebody_elses_change() {
    // The block takes the place of the test's own, so it names a store in the server's folder again.
    let limits = "jetstream { store_dir: store, limits { max_request_batch: 100, max_ack_pending: 2000, duplicate_window: \"5m\" } }";
    let nats = jetwright_testing::NatsServer::builder().config(limits).start().await;
    let world = World::with(nats, &["--jetstream-resync-interval=1s"]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    // Every object is looked at again.
    let _second = world.another_operator(&[]);
    world.consumer("reader", "{streamRef: {name: orders}, ackWait: 10s}").await;
    await_config(&world, "reader", |config| config.ack_wait == Duration::from_secs(10)).await;
    world.await_ready::<EventConsumer>("reader").await;
    assert_eq!(world.consumers().get("reader").await.unwrap().status.unwrap().drift, None);
    assert_eq!(world.streams().get("orders").await.unwrap().status.unwrap().drift, None);
}

#[tokio::test]
async fn scaling_pods_writes_nothing_to_jetstream() {
    let world = with_orders().await;
    let spec = |replicas: u8| {
        format!(
            "{{streamRef: {{name: orders}}, workload: {{replicas: {replicas}, template: {{spec: {{containers: [{{name: app, image: a}}]}}}}}}}}"
        )
    };
    world.consumer("fulfilment", &spec(1)).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let before = config(&world, "orders", "fulfilment").await.unwrap();
    world.consumer("fulfilment", &spec(2)).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    assert_eq!(config(&world, "orders", "fulfilment").await.unwrap(), before);
}
