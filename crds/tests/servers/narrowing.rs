//! A schema may become narrower only where the API server lets what it took before be patched, described and deleted.

use std::fs;

use jetwright_testing::{ControlPlane, Folder, await_until};
use serde_json::Value;

use crate::support::{SERVED, apply_definitions, path};

/// What a later schema may narrow.
const BOUNDS: [&str; 8] = [
    "pattern",
    "maxLength",
    "minLength",
    "maximum",
    "minimum",
    "maxItems",
    "minItems",
    "x-kubernetes-validations",
];

const STORED: &str = "
apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {name: orders, finalizers: [jetwright.dev/cleanup]}
spec: {subjects: ['a b', '>.x'], replicas: 9, limits: {maxAge: 5 parsecs, maxBytes: 1e9, maxMessages: 0}}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: orders, finalizers: [jetwright.dev/cleanup]}
spec: {streamRef: {name: orders}, ackWait: soon, maxAckPending: 1000000, filterSubjects: ['a b']}
";

/// The schema without its bounds, as an earlier version may have had it.
fn widen(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.retain(|name, _| !BOUNDS.contains(&name.as_str()));
            fields.values_mut().for_each(widen);
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}

#[tokio::test]
async fn what_an_older_schema_took_is_patched_described_and_deleted_under_this_one() {
    let kubernetes = ControlPlane::start().await;
    let folder = Folder::new("older");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    for file in fs::read_dir(path("crds/manifests")).unwrap() {
        let mut definition: Value =
            serde_saphyr::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        widen(&mut definition["spec"]["versions"][0]["schema"]);
        kubernetes.kubectl(["apply", "-f", &write("definition.json", &definition.to_string())]).unwrap();
    }
    let stored = write("stored.yaml", STORED);
    let names = ["eventstream/orders", "eventconsumer/orders"];
    await_until("both kinds are served", SERVED, async || kubernetes.kubectl(["apply", "-f", &stored])).await;

    apply_definitions(&kubernetes);
    let other =
        write("other.yaml", &STORED.replace("'a b'", "a..b").replace("name: orders", "name: another"));
    await_until("the narrow schema is in force", SERVED, async || {
        match kubernetes.kubectl(["create", "--dry-run=server", "-f", &other]) {
            Err(error) if error.to_string().contains("in body should match") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let patch = |name: &str, subresource: &[&str], patch: &str| {
        let arguments = ["patch", name, "--type=merge", "-p", patch];
        kubernetes.kubectl(arguments.iter().chain(subresource)).unwrap()
    };
    for name in names {
        patch(name, &[], r#"{"metadata": {"labels": {"team": "red"}}}"#);
        patch(name, &[], r#"{"spec": {"deletionPolicy": "Delete"}}"#);
        patch(name, &["--subresource=status"], r#"{"status": {"observedGeneration": 2}}"#);
        patch(name, &[], r#"{"metadata": {"finalizers": null}}"#);
        kubernetes.kubectl(["delete", name]).unwrap();
    }
}
