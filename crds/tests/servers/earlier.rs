//! Objects that were stored under the definitions of an earlier version.

use crate::support::path;
use jetwright_testing::{ControlPlane, Folder, await_until};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

const SERVED: Duration = Duration::from_secs(30);

/// The definition of EventConsumers as it was before ports had protocols, and before an object was kept from naming itself.
fn earlier() -> Value {
    let text = fs::read_to_string(path("crds/manifests/eventconsumers.yaml")).unwrap();
    let mut definition: Value = serde_saphyr::from_str(&text).unwrap();
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let ports = &mut schema["properties"]["spec"]["properties"]["workload"]["properties"]["service"]["properties"]
        ["ports"];
    ports["x-kubernetes-list-map-keys"] = json!(["port"]);
    ports["x-kubernetes-list-type"] = json!("map");
    ports.as_object_mut().unwrap().remove("x-kubernetes-validations").unwrap();
    ports["items"]["properties"]["protocol"].as_object_mut().unwrap().remove("enum").unwrap();
    let rules = schema["x-kubernetes-validations"].as_array_mut().unwrap();
    rules.retain(|rule| rule["optionalOldSelf"] != true);
    definition
}

fn consumer(name: &str, rest: &Value) -> Value {
    let mut spec = json!({"streamRef": {"name": "orders"}});
    spec.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    json!({"apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": name}, "spec": spec})
}

fn with_ports(ports: &Value) -> Value {
    let template = json!({"spec": {"containers": [{"name": "app", "image": "x:1"}]}});
    consumer("ported", &json!({"workload": {"template": template, "service": {"ports": ports}}}))
}

#[tokio::test]
async fn what_an_earlier_definition_took_can_be_changed_and_deleted() {
    let kubernetes = ControlPlane::start().await;
    let folder = Folder::new("earlier");
    let apply = |manifest: &Value, more: &[&str]| {
        let file = folder.path().join("object.json");
        fs::write(&file, manifest.to_string()).unwrap();
        let file = format!("--filename={}", file.display());
        let base = ["apply", "--server-side", "--field-manager=user", &file];
        kubernetes.kubectl(base.iter().chain(more)).map_err(|error| error.to_string())
    };
    apply(&earlier(), &[]).unwrap();
    let itself = consumer("itself", &json!({"workloadRef": {"name": "itself"}}));
    await_until("the earlier definition is served", SERVED, || async { apply(&itself, &[]) }).await;
    apply(&with_ports(&json!([{"name": "a", "port": 80}, {"name": "b", "port": 443}])), &[]).unwrap();

    let manifests = path("crds/manifests").display().to_string();
    let upgrade = ["apply", "--server-side", "--force-conflicts", "--filename", &manifests];
    kubernetes.kubectl(upgrade).unwrap();
    let another = consumer("another", &json!({"workloadRef": {"name": "another"}}));
    await_until("the definition is served", SERVED, || async {
        match apply(&another, &["--dry-run=server"]) {
            Err(why) if why.contains("spec.workloadRef names this object itself") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let patch = |more: &[&str]| {
        kubernetes.kubectl(["patch", "eventconsumer", "itself", "--type=merge"].iter().chain(more))
    };
    patch(&["--patch", r#"{"metadata": {"finalizers": ["jetwright.dev/cleanup"]}}"#]).unwrap();
    patch(&["--subresource=status", "--patch", r#"{"status": {"lag": 1}}"#]).unwrap();
    patch(&["--patch", r#"{"metadata": {"finalizers": null}}"#]).unwrap();
    kubernetes.kubectl(["delete", "eventconsumer", "itself"]).unwrap();
    // One port goes, and another protocol comes.
    let both = json!([{"name": "b", "port": 443}, {"name": "c", "port": 443, "protocol": "UDP"}]);
    apply(&with_ports(&both), &[]).unwrap();
    let get = ["get", "eventconsumer", "ported", "--output=jsonpath={.spec.workload.service.ports[*].name}"];
    assert_eq!(kubernetes.kubectl(get).unwrap(), "b c");
}
