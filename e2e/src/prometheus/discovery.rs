//! The pods of a cluster as targets, with the labels of Prometheus' own discovery of Kubernetes, which Debian's package does not have. They are
//! in a file that Prometheus watches.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    pin::pin,
};

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde_json::{Map, Value, json};

/// Writes the pods of all namespaces to the file whenever they change, for as long as it is polled.
pub(super) async fn follow(client: Client, file: PathBuf) {
    let pods: Api<Pod> = Api::all(client);
    let mut events = pin!(watcher::watcher(pods, watcher::Config::default()).default_backoff());
    let mut known: BTreeMap<String, Pod> = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                known.clear();
                // Until all are listed again, the file keeps those that were known.
                continue;
            }
            Ok(Event::InitApply(pod)) => {
                known.insert(pod.uid().unwrap_or_default(), pod);
                continue;
            }
            Ok(Event::Apply(pod)) => {
                known.insert(pod.uid().unwrap_or_default(), pod);
            }
            Ok(Event::Delete(pod)) => {
                known.remove(&pod.uid().unwrap_or_default());
            }
            Ok(Event::InitDone) => {}
            // The watcher retries by itself.
            Err(_) => continue,
        }
        if let Err(error) = write(&file, &targets(known.values())) {
            eprintln!("prometheus: {}: {error:#}", file.display());
        }
    }
}

/// Replaces the file in one step, so that Prometheus never reads half of it.
fn write(file: &Path, targets: &Value) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, targets.to_string())?;
    fs::rename(new, file)?;
    Ok(())
}

/// A target for each port of each pod that has an address. Pure.
fn targets<'a>(pods: impl Iterator<Item = &'a Pod>) -> Value {
    pods.flat_map(targets_of).collect()
}

fn targets_of(pod: &Pod) -> Vec<Value> {
    let Some(address) = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()) else {
        return Vec::new();
    };
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .map(|port| {
            let mut labels = labels_of(pod);
            labels.insert(
                "__meta_kubernetes_pod_container_port_name".to_owned(),
                json!(port.name.as_deref().unwrap_or_default()),
            );
            json!({"targets": [format!("{address}:{}", port.container_port)], "labels": labels})
        })
        .collect()
}

fn labels_of(pod: &Pod) -> Map<String, Value> {
    let mut labels = Map::new();
    let mut add = |name: &str, value: &str| labels.insert(format!("__meta_kubernetes_{name}"), json!(value));
    add("namespace", &pod.namespace().unwrap_or_default());
    add("pod_name", &pod.name_any());
    for (name, value) in pod.labels() {
        let name: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
        add(&format!("pod_label_{name}"), value);
        add(&format!("pod_labelpresent_{name}"), "true");
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_a_target_for_each_of_its_ports_once_it_has_an_address() {
        let mut pod = json!({
            "metadata": {"name": "orders-1", "namespace": "shop", "labels": {"jetwright.dev/workload": "orders"}},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "admin", "containerPort": 9090}, {"containerPort": 8080}]}]},
        });
        let parsed = |pod: &Value| -> Pod { serde_json::from_value(pod.clone()).unwrap() };
        assert_eq!(targets([&parsed(&pod)].into_iter()), json!([]));
        pod["status"] = json!({"podIP": "127.77.0.1"});
        let labels = |port: &str| {
            json!({
                "__meta_kubernetes_namespace": "shop",
                "__meta_kubernetes_pod_name": "orders-1",
                "__meta_kubernetes_pod_label_jetwright_dev_workload": "orders",
                "__meta_kubernetes_pod_labelpresent_jetwright_dev_workload": "true",
                "__meta_kubernetes_pod_container_port_name": port,
            })
        };
        let expected = json!([
            {"targets": ["127.77.0.1:9090"], "labels": labels("admin")},
            {"targets": ["127.77.0.1:8080"], "labels": labels("")},
        ]);
        assert_eq!(targets([&parsed(&pod)].into_iter()), expected);
    }
}
