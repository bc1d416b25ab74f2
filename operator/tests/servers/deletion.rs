//! What becomes of streams and consumers when their objects are deleted.

mod namespaces;
mod pods;

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{MountedSecret, NatsServer, await_until};
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;

use crate::world::{SOON, World};

#[tokio::test]
async fn a_stream_is_retained_unless_it_says_otherwise() {
    let world = World::start().await;
    world.stream("kept", "subjects: [kept]").await;
    world.stream("dropped", "{subjects: [dropped], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("kept").await;
    world.await_ready::<EventStream>("dropped").await;
    assert_eq!(world.streams().get("kept").await.unwrap().metadata.finalizers, None);
    for name in ["kept", "dropped"] {
        world.delete::<EventStream>(name).await;
        world.await_gone::<EventStream>(name).await;
    }
    world.jetstream.get_stream("kept").await.unwrap();
    let error = world.jetstream.get_stream("dropped").await.unwrap_err().to_string();
    assert!(error.contains("not found"), "{error}");
}

#[tokio::test]
async fn a_consumer_is_deleted_unless_it_says_otherwise_and_its_pods_before_it() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("kept", "{streamRef: {name: orders}, deletionPolicy: Retain}").await;
    let spec =
        "{streamRef: {name: orders}, workload: {template: {spec: {containers: [{name: app, image: a}]}}}}";
    world.consumer("dropped", spec).await;
    world.await_ready::<EventConsumer>("kept").await;
    world.await_condition::<EventConsumer>("dropped", "ConsumerReady", "True", "Reconciled").await;
    for name in ["kept", "dropped"] {
        world.delete::<EventConsumer>(name).await;
        world.await_gone::<EventConsumer>(name).await;
    }
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.consumer_info("kept").await.unwrap();
    assert!(stream.consumer_info("dropped").await.is_err());
    let deployments: Api<Deployment> = world.namespace.api();
    assert_eq!(deployments.get_opt("dropped").await.unwrap(), None);
}

#[tokio::test]
async fn a_stream_to_be_deleted_waits_for_the_consumers_that_use_it() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.consumer("fulfilment", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world.delete::<EventStream>("orders").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "InUse").await;
    assert!(message.contains("fulfilment"), "{message}");
    world.jetstream.get_stream("orders").await.unwrap();
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventStream>("orders").await;
    assert!(world.jetstream.get_stream("orders").await.is_err());
}

#[tokio::test]
async fn an_object_never_deletes_what_is_not_its_own() {
    let world = World::start().await;
    world.stream("first", "{streamName: orders, subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("first").await;
    world.stream("second", "{streamName: orders, subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_condition::<EventStream>("second", "Stalled", "True", "NameConflict").await;
    world.delete::<EventStream>("second").await;
    world.await_gone::<EventStream>("second").await;
    world.jetstream.get_stream("orders").await.unwrap();
    world.await_ready::<EventStream>("first").await;
}

#[tokio::test]
async fn with_nats_away_for_too_long_an_object_is_let_go_and_what_is_left_behind_is_told() {
    let nats = NatsServer::start().await;
    let world = World::with(nats, &["--deletion-timeout=2s"]).await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    world.nats.stop().await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    await_until("what is left is told", SOON, || async {
        let notes = world.events("orders", "Orphaned").await;
        if notes.len() == 1 { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_deletion_goes_on_when_nats_comes_back_in_time() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    world.nats.stop().await;
    world.delete::<EventStream>("orders").await;
    world.await_condition::<EventStream>("orders", "Ready", "False", "Deleting").await;
    world.nats.start_again().await;
    world.await_gone::<EventStream>("orders").await;
    assert!(world.jetstream.get_stream("orders").await.is_err());
}

#[tokio::test]
async fn changing_the_policy_sets_and_removes_the_finalizer() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(
        world.streams().get("orders").await.unwrap().metadata.finalizers,
        Some(vec!["jetwright.dev/cleanup".into()])
    );
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Retain}").await;
    await_until("the finalizer is gone", SOON, || async {
        match world.streams().get("orders").await.unwrap().metadata.finalizers {
            None => Ok(()),
            some => Err(format!("{some:?}")),
        }
    })
    .await;
}

/// The operator may do everything but delete.
const MAY_NOT_DELETE: &str = r#"
    accounts: {
      main: {
        jetstream: enabled
        users: [
          {user: operator, password: pw, permissions: {publish: {deny: ["$JS.API.STREAM.DELETE.*", "$JS.API.CONSUMER.DELETE.*.*"]}}}
          {user: admin, password: pw}
        ]
      }
    }
    no_auth_user: admin
"#;

#[tokio::test]
async fn a_deletion_that_is_refused_says_so_and_is_given_up_in_time() {
    let nats = NatsServer::builder().config(MAY_NOT_DELETE).start().await;
    let secret = MountedSecret::new(&[("username", "operator"), ("password", "pw")]);
    let folder = format!("--nats-credentials-folder={}", secret.path().display());
    let world = World::with(nats, &[&folder, "--deletion-timeout=8s"]).await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.stream("users", "{subjects: [users.*]}").await;
    world.consumer("reader", "streamRef: {name: users}").await;
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.delete::<EventStream>("orders").await;
    world.delete::<EventConsumer>("reader").await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "Refused").await;
    assert!(message.contains("publish to $JS.API.STREAM.DELETE.orders"), "{message}");
    assert!(message.contains(" since 20"), "{message}");
    let message = world.await_condition::<EventConsumer>("reader", "Ready", "False", "Refused").await;
    assert!(message.contains("publish to $JS.API.CONSUMER.DELETE.users.reader"), "{message}");
    world.await_gone::<EventStream>("orders").await;
    world.await_gone::<EventConsumer>("reader").await;
    for (name, told) in [("orders", "STREAM.DELETE.orders"), ("reader", "CONSUMER.DELETE.users.reader")] {
        for reason in ["Refused", "Orphaned"] {
            await_until(&format!("an event {reason} of {name}"), SOON, || async {
                let notes = world.events(name, reason).await;
                if matches!(&notes[..], [note] if note.contains(told)) {
                    Ok(())
                } else {
                    Err(format!("{notes:?}"))
                }
            })
            .await;
        }
    }
    world.jetstream.get_stream("orders").await.unwrap();
}

#[tokio::test]
async fn a_stream_is_not_deleted_under_an_event_consumer_that_cannot_be_read() {
    let world = World::start().await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.await_ready::<EventStream>("orders").await;
    let unreadable = serde_json::json!({
        "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": "ages"},
        "spec": {"streamRef": {"name": "orders"}, "ackWait": "300y"},
    });
    let resource = kube::api::ApiResource::erase::<EventConsumer>(&());
    let api: Api<kube::api::DynamicObject> =
        Api::namespaced_with(world.namespace.client(), world.namespace.name(), &resource);
    let object = serde_json::from_value(unreadable).unwrap();
    api.create(&kube::api::PostParams::default(), &object).await.unwrap();
    world.await_condition::<EventStream>("orders", "Ready", "True", "Reconciled").await;
    world.delete::<EventStream>("orders").await;
    let message = world.await_condition::<EventStream>("orders", "Ready", "False", "InUse").await;
    assert!(message.contains("ages"), "{message}");
    world.jetstream.get_stream("orders").await.unwrap();
    api.delete("ages", &kube::api::DeleteParams::default()).await.unwrap();
    world.await_gone::<EventStream>("orders").await;
}
