//! Objects of a newer version's schema, which this operator cannot read, as after a rollback.

use std::{fs, path::Path};

use jetwright_testing::{ControlPlane, NatsServer, await_until, free_port};

use crate::world::{SOON, arguments, conditions, operator};

const READABLE: &str = "
apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {name: orders}
spec: {streamName: ORDERS, subjects: [orders.*], deletionPolicy: Delete}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {name: users}
spec: {subjects: [users.*], deletionPolicy: Delete}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: reader}
spec: {streamRef: {name: orders}}
";

/// A control plane whose definitions have a profile and a policy more.
async fn newer_control_plane() -> ControlPlane {
    let control_plane = ControlPlane::start().await;
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
    control_plane.apply(&manifests).await;
    for (kind, field, word) in
        [("eventstreams", "profile", "Golden"), ("eventconsumers", "deliverPolicy", "Newest")]
    {
        let path =
            format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{field}/enum/-");
        let edit = serde_json::json!([{"op": "add", "path": path, "value": word}]).to_string();
        let definition = format!("{kind}.jetwright.dev");
        control_plane.kubectl(["patch", "crd", &definition, "--type=json", "-p", &edit]).unwrap();
    }
    control_plane
}

#[tokio::test]
async fn an_object_that_cannot_be_read_says_so_holds_up_nobody_and_takes_what_is_its_own_with_it() {
    let control_plane = newer_control_plane().await;
    let nats = NatsServer::start().await;
    let jetstream = nats.jetstream().await;
    let namespace = control_plane.namespace("unreadable").await;
    let operator = operator(&control_plane, &arguments(nats.url(), namespace.name(), free_port()));
    let kubectl = |arguments: &[&str]| {
        control_plane
            .kubectl(["-n", namespace.name()].iter().chain(arguments))
            .map_err(|error| error.to_string())
    };
    let file = jetwright_testing::Folder::new("objects");
    let file = file.path().join("objects.yaml");
    fs::write(&file, READABLE).unwrap();
    await_until("the objects are applied", SOON, async || kubectl(&["apply", "-f", file.to_str().unwrap()]))
        .await;
    let condition = async |object: &str, type_: &str, words: &str| {
        await_until(&format!("{object} has {type_}=True, {words}"), SOON, async || {
            let text = kubectl(&["get", object, "-o", "json"])?;
            let object: serde_json::Value = serde_json::from_str(&text).unwrap();
            let found = conditions(&object).into_iter().find(|found| found.type_ == type_);
            let told = found.filter(|found| found.status == "True" && found.message.contains(words));
            told.map(|_| ()).ok_or(text)
        })
        .await;
    };
    for object in ["es/orders", "es/users", "ec/reader"] {
        condition(object, "Ready", "").await;
    }

    let unreadable = [
        ("es/orders", r#"{"spec": {"profile": "Golden"}}"#),
        ("ec/reader", r#"{"spec": {"deliverPolicy": "Newest"}}"#),
    ];
    // The consumer's first value is free as long as the status tells of no consumer, which the operator would put right.
    operator.signal("STOP");
    kubectl(&[
        "patch",
        "ec/reader",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status": {"consumer": null}}"#,
    ])
    .unwrap();
    for (object, patch) in unreadable {
        kubectl(&["patch", object, "--type=merge", "-p", patch]).unwrap();
    }
    operator.signal("CONT");
    for (object, _) in unreadable {
        condition(object, "Stalled", "cannot read the object").await;
    }
    kubectl(&["patch", "es/users", "--type=merge", "-p", r#"{"spec": {"limits": {"maxMessages": 5}}}"#])
        .unwrap();
    condition("es/users", "Ready", "").await;

    // The stream waits for the consumer that uses it, and each takes with it what carries its mark.
    kubectl(&["delete", "--wait=false", "es/orders"]).unwrap();
    condition("es/orders", "Reconciling", "EventConsumers still refer to it: reader").await;
    jetstream.get_stream("ORDERS").await.unwrap().consumer_info("reader").await.unwrap();
    kubectl(&["delete", "--wait=false", "ec/reader"]).unwrap();
    await_until("all is gone", SOON, async || {
        let left = kubectl(&["get", "es/orders", "ec/reader", "--ignore-not-found", "-o", "name"])?;
        let stream = jetstream.get_stream("ORDERS").await.is_ok();
        if left.is_empty() && !stream { Ok(()) } else { Err(format!("{left} {stream}")) }
    })
    .await;
    jetstream.get_stream("users").await.unwrap();
}
