//! EventStream: made, changed, put right, left alone.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use jetwright_crds::EventStream;
use jetwright_testing::{NatsCluster, await_until};

use crate::world::{SOON, World};

#[tokio::test]
async fn a_declared_stream_is_made_whole_and_described() {
    let world = World::start().await;
    let spec = "
        subjects: [orders.*.*]
        retention: Interest
        storage: Memory
        limits: {maxAge: 1h, maxBytes: 1Mi, maxMessages: 1000, maxMessagesPerSubject: 10, maxMessageSize: 64Ki}
        discard: New
        duplicateWindow: 30s
    ";
    world.stream("orders", spec).await;
    world.await_ready::<EventStream>("orders").await;
    let mut config = world.config("orders").await;
    let owner = format!("test/{}/orders", world.namespace.name());
    assert_eq!(config.metadata.get("jetwright.dev/owner"), Some(&owner));
    config.metadata.clear();
    let expected = Config {
        name: "orders".into(),
        subjects: vec!["orders.*.*".into()],
        retention: RetentionPolicy::Interest,
        storage: StorageType::Memory,
        max_age: Duration::from_hours(1),
        max_bytes: 1 << 20,
        max_messages: 1000,
        max_messages_per_subject: 10,
        max_message_size: 64 << 10,
        max_consumers: -1,
        discard: DiscardPolicy::New,
        duplicate_window: Duration::from_secs(30),
        num_replicas: 1,
        ..Config::default()
    };
    assert_eq!(
        config,
        Config { consumer_limits: config.consumer_limits.clone(), ..with_server_defaults(expected, &config) }
    );
    let status = world.streams().get("orders").await.unwrap().status.unwrap();
    let stream = status.stream.unwrap();
    assert_eq!((stream.name.as_str(), stream.replicas, stream.messages), ("orders", 1, 0));
    assert!(stream.created.is_some());
}

/// Fields that this server fills in and this client does not know the default of.
fn with_server_defaults(expected: Config, actual: &Config) -> Config {
    Config { compression: actual.compression.clone(), persist_mode: actual.persist_mode, ..expected }
}

#[tokio::test]
async fn an_edit_is_applied_and_a_field_taken_out_goes_back_to_its_default() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], limits: {maxAge: 1h, maxMessages: 7}}").await;
    world.await_ready::<EventStream>("orders").await;
    world.stream("orders", "{subjects: [orders.*, refunds.*], limits: {maxMessages: 8}}").await;
    world.await_ready::<EventStream>("orders").await;
    let config = world.config("orders").await;
    assert_eq!((config.max_age, config.max_messages), (Duration::ZERO, 8));
    assert_eq!(config.duplicate_window, Duration::from_mins(2));
    assert_eq!(config.subjects, ["orders.*", "refunds.*"]);
    world.await_event("orders", "Updated", "updated subjects, max_msgs, max_age").await;
    assert_eq!(world.streams().get("orders").await.unwrap().status.unwrap().drift, None);
}

#[tokio::test]
async fn an_edit_behind_the_operators_back_is_put_right_at_once_and_told() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let edited =
        Config { max_messages: 3, description: Some("mine now".into()), ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    world.await_config("orders", |config| config.max_messages == -1 && config.description.is_none()).await;
    await_until("the repair is in the status", SOON, || async {
        let status = world.streams().get("orders").await.unwrap().status.unwrap();
        match status.drift {
            Some(drift) if drift.fields == ["description", "max_msgs"] => Ok(()),
            drift => Err(format!("{drift:?}")),
        }
    })
    .await;
    let note = "corrected what another writer had changed: description, max_msgs";
    world.await_event("orders", "DriftRepaired", note).await;
    let labels =
        format!("{{controller=\"stream\",namespace=\"{}\",name=\"orders\"}}", world.namespace.name());
    assert_eq!(world.metric(&format!("jetwright_operator_drift_corrections_total{labels}")).await, Some(1.0));
}

#[tokio::test]
async fn an_edit_that_wipes_the_metadata_is_put_right_too() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let mut edited = Config { max_messages: 3, ..world.config("orders").await };
    edited.metadata.clear();
    world.jetstream.update_stream(edited).await.unwrap();
    let owned = |config: &Config| config.metadata.contains_key("jetwright.dev/owner");
    world.await_config("orders", |config| config.max_messages == -1 && owned(config)).await;
}

#[tokio::test]
async fn a_stream_whose_metadata_were_wiped_while_no_operator_ran_is_nobodys_whatever_a_status_says() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let mut edited = world.config("orders").await;
    edited.metadata.clear();
    world.jetstream.update_stream(edited).await.unwrap();
    let _next = world.another_operator(&[]);
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("not created by Jetwright and was not modified"), "{message}");
    assert!(!world.config("orders").await.metadata.contains_key("jetwright.dev/owner"));
}

#[tokio::test]
async fn a_cluster_that_gets_another_name_keeps_what_it_made_under_its_former_one() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.operator.signal("TERM");
    world.operator.wait_exit(SOON).await;
    let _renamed = world.another_operator(&["--cluster-name=renamed", "--former-cluster-names=test"]);
    let owner = |config: &Config| config.metadata["jetwright.dev/owner"].clone();
    let of = |cluster: &str| format!("{cluster}/{}/orders", world.namespace.name());
    // The mark is written together with a real change.
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 5}}").await;
    world.await_config("orders", |config| config.max_messages == 5 && owner(config) == of("renamed")).await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(world.events("orders", "NameConflict").await, Vec::<String>::new());
}

#[tokio::test]
async fn metadata_of_others_stay() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let mut edited = world.config("orders").await;
    edited.metadata.insert("team".into(), "red".into());
    world.jetstream.update_stream(edited).await.unwrap();
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 5}}").await;
    world.await_config("orders", |config| config.max_messages == 5).await;
    assert_eq!(world.config("orders").await.metadata.get("team").map(String::as_str), Some("red"));
}

#[tokio::test]
async fn a_stream_deleted_behind_the_operators_back_is_made_again_and_its_loss_told() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.jetstream.publish("orders.1", "x".into()).await.unwrap().await.unwrap();
    world.jetstream.delete_stream("orders").await.unwrap();
    let note = await_until("the loss is told", SOON, || async {
        world.events("orders", "Recreated").await.pop().ok_or("no event")
    })
    .await;
    assert!(note.contains("whatever was in it is lost"), "{note}");
    world.await_config("orders", |_| true).await;
    await_until("the loss is in the status", SOON, || async {
        match world.streams().get("orders").await.unwrap().status.unwrap().drift {
            Some(drift) if drift.fields == ["*"] => Ok(()),
            drift => Err(format!("{drift:?}")),
        }
    })
    .await;
    let labels = format!("{{namespace=\"{}\",stream=\"orders\"}}", world.namespace.name());
    assert_eq!(
        world.metric(&format!("jetwright_operator_stream_recreations_total{labels}")).await,
        Some(1.0)
    );
}

#[tokio::test]
async fn of_two_objects_for_one_stream_the_first_keeps_it_and_the_second_says_whose_it_is() {
    let world = World::start().await;
    world.stream("first", "{streamName: orders, subjects: [orders.*]}").await;
    world.await_ready::<EventStream>("first").await;
    world.stream("second", "{streamName: orders, subjects: [stolen.*]}").await;
    let message = world.await_condition::<EventStream>("second", "Stalled", "True", "NameConflict").await;
    assert!(message.contains(&format!("test/{}/first", world.namespace.name())), "{message}");
    assert_eq!(world.config("orders").await.subjects, ["orders.*"]);
    assert_eq!(world.streams().get("second").await.unwrap().status.unwrap().stream, None);
    world.await_ready::<EventStream>("first").await;
}

#[tokio::test]
async fn a_stream_that_something_else_made_is_left_alone() {
    let world = World::start().await;
    let foreign = Config { name: "orders".into(), subjects: vec!["old.*".into()], ..Config::default() };
    world.jetstream.create_stream(foreign).await.unwrap();
    let before = world.config("orders").await;
    world.stream("orders", "subjects: [orders.*]").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "NameConflict").await;
    assert!(message.contains("not created by Jetwright"), "{message}");
    assert_eq!(world.config("orders").await, before);
    // Once it is gone, the declaration takes its place without anybody touching the object.
    world.jetstream.delete_stream("orders").await.unwrap();
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(world.config("orders").await.subjects, ["orders.*"]);
}

#[tokio::test]
async fn an_object_made_again_resumes_its_stream_with_what_is_in_it() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.jetstream.publish("orders.1", "x".into()).await.unwrap().await.unwrap();
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 9}}").await;
    world.await_ready::<EventStream>("orders").await;
    let mut stream = world.jetstream.get_stream("orders").await.unwrap();
    let info = stream.info().await.unwrap();
    assert_eq!((info.state.messages, info.config.max_messages), (1, 9));
}

#[tokio::test]
async fn a_spec_that_cannot_be_is_told_with_every_field_and_jetstream_stays_as_it_was() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    world.stream("orders", "{subjects: [orders.*], limits: {maxAge: 1ms, maxBytes: 0}}").await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "Invalid").await;
    assert!(message.contains("spec.limits.maxAge") && message.contains("spec.limits.maxBytes"), "{message}");
    assert_eq!(world.config("orders").await.max_age, Duration::ZERO);
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn what_jetstream_refuses_is_told_in_its_words() {
    let world = World::start().await;
    world.stream("first", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("first").await;
    world.stream("second", "subjects: [orders.1]").await;
    let message = world.await_condition::<EventStream>("second", "Stalled", "True", "Refused").await;
    assert!(
        message.contains("subjects overlap") && message.contains("choose other subjects in spec.subjects"),
        "{message}"
    );
    // It is tried again, but not at once and not for ever.
    let asked = "jetwright_operator_jetstream_api_requests_total{verb=\"STREAM.CREATE\",outcome=\"refused\"}";
    tokio::time::sleep(Duration::from_secs(3)).await;
    let tries = world.metric(asked).await.unwrap();
    assert!(tries <= 2.0, "it was tried {tries} times in three seconds");
}

#[tokio::test]
async fn a_stream_of_another_storage_under_our_name_is_blocked_with_the_fields() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let config = Config { storage: StorageType::Memory, ..world.config("orders").await };
    // Both at once, so that the operator does not make it first.
    world.operator.signal("STOP");
    world.jetstream.delete_stream("orders").await.unwrap();
    world.jetstream.create_stream(config).await.unwrap();
    world.operator.signal("CONT");
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "ImmutableField").await;
    assert!(message.contains("storage"), "{message}");
}

#[tokio::test]
async fn a_profile_settles_for_the_servers_that_there_are() {
    let world = World::start().await;
    world.stream("payments", "{subjects: [payments.*], profile: Critical}").await;
    world.await_ready::<EventStream>("payments").await;
    let config = world.config("payments").await;
    assert_eq!((config.num_replicas, config.discard), (1, DiscardPolicy::New));
    assert_eq!(world.streams().get("payments").await.unwrap().status.unwrap().stream.unwrap().replicas, 1);
    // Three where they are asked for by number cannot be had, and are not lowered.
    world.stream("orders", "{subjects: [orders.*], replicas: 3}").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "Refused").await;
    assert!(message.contains("replicas > 1 not supported"), "{message}");
}

#[tokio::test]
async fn in_a_cluster_a_profile_has_three_replicas_and_they_are_never_lowered_unasked() {
    let cluster = NatsCluster::start(3).await;
    let jetstream = cluster.jetstream().await;
    let control_plane = crate::world::control_plane().await;
    let namespace = control_plane.namespace("cluster").await;
    let arguments = crate::world::arguments(cluster.url(), namespace.name(), jetwright_testing::free_port());
    let _operator = crate::world::operator(control_plane, &arguments);
    let streams: kube::Api<EventStream> = namespace.api();
    let spec = serde_json::json!({
        "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventStream", "metadata": {"name": "payments"},
        "spec": {"subjects": ["payments.*"], "profile": "Critical"},
    });
    streams.create(&kube::api::PostParams::default(), &serde_json::from_value(spec).unwrap()).await.unwrap();
    let replicas = |wanted: usize| {
        let jetstream = jetstream.clone();
        await_until("the replicas are as settled", Duration::from_secs(30), move || {
            let jetstream = jetstream.clone();
            async move {
                let stream = jetstream.get_stream("payments").await.map_err(|error| error.to_string())?;
                let found = stream.cached_info().config.num_replicas;
                if found == wanted { Ok(()) } else { Err(format!("{found}")) }
            }
        })
    };
    replicas(3).await;
    await_until("the status has them", SOON, || async {
        let status = streams.get("payments").await.unwrap().status.unwrap_or_default();
        match status.stream {
            Some(stream) if stream.replicas == 3 && stream.leader.is_some() => Ok(()),
            stream => Err(format!("{stream:?}")),
        }
    })
    .await;
    await_until("the replicas to be lowered by another", SOON, async || {
        let config = jetstream
            .get_stream("payments")
            .await
            .map_err(|error| error.to_string())?
            .cached_info()
            .config
            .clone();
        jetstream.update_stream(Config { num_replicas: 1, ..config }).await.map_err(|error| error.to_string())
    })
    .await;
    replicas(3).await;
}

#[tokio::test]
async fn an_object_of_a_stream_that_another_had_takes_its_place_once_that_one_is_deleted() {
    let world = World::start().await;
    world.stream("first", "{streamName: orders, subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("first").await;
    world.stream("second", "{streamName: orders, subjects: [orders.*]}").await;
    world.await_condition::<EventStream>("second", "Stalled", "True", "NameConflict").await;
    world.delete::<EventStream>("first").await;
    world.await_gone::<EventStream>("first").await;
    world.await_ready::<EventStream>("second").await;
    // And what was forgotten of the first does not keep changes from being found.
    let edited = Config { max_messages: 3, ..world.config("orders").await };
    world.jetstream.update_stream(edited).await.unwrap();
    world.await_config("orders", |config| config.max_messages == -1).await;
}

#[tokio::test]
async fn two_who_disagree_are_not_let_to_fight_for_ever() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let edited = Config { max_messages: 3, ..world.config("orders").await };
    let stubborn = async {
        loop {
            world.jetstream.update_stream(edited.clone()).await.unwrap();
            world.await_config("orders", |config| config.max_messages == -1).await;
        }
    };
    tokio::select! {
        () = stubborn => {}
        message = world.await_condition::<EventStream>("orders", "Ready", "False", "Contested") => {
            assert!(message.contains("this operator wrote this stream"), "{message}");
        }
    }
}

#[tokio::test]
async fn a_bucket_of_others_cannot_be_squatted() {
    let world = World::start().await;
    world.stream("squat", "{subjects: ['$KV.prices.>']}").await;
    let message = world.await_condition::<EventStream>("squat", "Stalled", "True", "Invalid").await;
    assert!(message.contains("belongs to the stream KV_prices"), "{message}");
}
