//! In: the desired workload. Out: the objects that are to be. Pure.
//!
//! The pod template goes through as JSON, so that fields newer than this program are kept; the API server judges them. Whatever
//! the user set wins over what is added here.

use std::collections::BTreeMap;

use jetwright_crds::environment::{
    ADMIN_PORT, BINDINGS_FILE, BINDINGS_FOLDER, JETWRIGHT_ADMIN_ADDRESS, JETWRIGHT_BINDINGS, NATS_URL,
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
};
use k8s_openapi::{
    api::core::v1::{ConfigMap, Service, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::validate::Desired;
use crate::context::Settings;

/// Label that tells the pods of one workload from all others.
pub const WORKLOAD_LABEL: &str = "jetwright.dev/workload";
/// Annotation of the pods that changes with their bindings, so that they are rolled out.
const BINDINGS_HASH: &str = "jetwright.dev/bindings-hash";
/// Name of the volume with the bindings file.
const VOLUME: &str = "jetwright";
/// Variable with the name of the pod, for OpenTelemetry's attributes.
const POD_NAME: &str = "JETWRIGHT_POD_NAME";

/// Why the objects could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bindings could not be written as YAML.
    #[error("the bindings cannot be written as YAML")]
    Bindings(#[from] serde_saphyr::ser::Error),
}

/// The objects of a workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// The bindings file.
    pub bindings: ConfigMap,
    /// The pods. JSON, since it holds the user's template whole.
    pub deployment: Value,
    /// The Service, if there is to be one.
    pub service: Option<Service>,
}

/// The labels of a workload's objects.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("app.kubernetes.io/name", name),
        ("app.kubernetes.io/managed-by", "jetwright"),
        (WORKLOAD_LABEL, name),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The label that selects a workload's pods.
pub fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(WORKLOAD_LABEL.to_owned(), name.to_owned())])
}

/// Name of the ConfigMap with the bindings file.
pub fn bindings_name(name: &str) -> String {
    format!("{name}-bindings")
}

/// Makes the objects.
pub fn build(desired: &Desired, settings: &Settings) -> Result<Objects, Error> {
    let file = serde_saphyr::to_string(&desired.bindings)?;
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, file.as_bytes()).to_string();
    let bindings = ConfigMap {
        metadata: metadata(desired, bindings_name(&desired.name)),
        data: Some(BTreeMap::from([(BINDINGS_FILE.to_owned(), file)])),
        ..ConfigMap::default()
    };
    let service = desired.service_ports.clone().map(|ports| Service {
        metadata: metadata(desired, desired.name.clone()),
        spec: Some(ServiceSpec {
            selector: Some(selector(&desired.name)),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        status: None,
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(desired, desired.name.clone()),
        "spec": {
            "replicas": desired.replicas,
            "selector": { "matchLabels": selector(&desired.name) },
            "template": template(desired, settings, &hash),
        },
    });
    Ok(Objects { bindings, deployment, service })
}

fn metadata(desired: &Desired, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(desired.namespace.clone()),
        labels: Some(labels(&desired.name)),
        owner_references: Some(vec![desired.owner.clone()]),
        ..ObjectMeta::default()
    }
}

fn template(desired: &Desired, settings: &Settings, hash: &str) -> Value {
    let mut template = desired.template.clone();
    let metadata = object(&mut template, "metadata");
    object(metadata, "annotations").insert(BINDINGS_HASH.to_owned(), json!(hash));
    for (key, value) in labels(&desired.name) {
        object(metadata, "labels").insert(key, json!(value));
    }
    let spec = object(&mut template, "spec");
    unless_set(
        spec,
        "securityContext",
        json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }),
    );
    let volume = json!({ "name": VOLUME, "configMap": { "name": bindings_name(&desired.name) } });
    unless_named(spec, "volumes", "name", volume);
    // The first container is the program; others are its helpers.
    if let Some(Value::Object(container)) = spec.get_mut("containers").and_then(|list| list.get_mut(0)) {
        equip(container, desired, settings);
    }
    Value::Object(template)
}

/// Gives the program what the environment contract promises it.
fn equip(container: &mut Map<String, Value>, desired: &Desired, settings: &Settings) {
    for variable in variables(desired, settings) {
        unless_named(container, "env", "name", variable);
    }
    let mount = json!({ "name": VOLUME, "mountPath": BINDINGS_FOLDER, "readOnly": true });
    unless_named(container, "volumeMounts", "mountPath", mount);
    unless_named(
        container,
        "ports",
        "containerPort",
        json!({ "name": "admin", "containerPort": ADMIN_PORT }),
    );
    unless_set(container, "livenessProbe", json!({ "httpGet": { "path": "/livez", "port": ADMIN_PORT } }));
    let readiness = json!({ "httpGet": { "path": "/readyz", "port": ADMIN_PORT }, "periodSeconds": 2 });
    unless_set(container, "readinessProbe", readiness);
    unless_set(
        container,
        "securityContext",
        json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        }),
    );
}

fn variables(desired: &Desired, settings: &Settings) -> Vec<Value> {
    let attributes = format!(
        "k8s.namespace.name={},k8s.deployment.name={},k8s.pod.name=$({POD_NAME})",
        desired.namespace, desired.name
    );
    let plain = |name: &str, value: &str| json!({ "name": name, "value": value });
    let mut variables = vec![
        plain(JETWRIGHT_BINDINGS, &format!("{BINDINGS_FOLDER}/{BINDINGS_FILE}")),
        plain(JETWRIGHT_ADMIN_ADDRESS, &format!("0.0.0.0:{ADMIN_PORT}")),
        plain(NATS_URL, &settings.workload_nats_url),
        // Before the attributes, which refer to it.
        json!({ "name": POD_NAME, "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.name" } } }),
        plain(OTEL_SERVICE_NAME, &desired.name),
        plain(OTEL_RESOURCE_ATTRIBUTES, &attributes),
    ];
    if let Some(endpoint) = &settings.workload_otlp_endpoint {
        variables.push(plain(OTEL_EXPORTER_OTLP_ENDPOINT, endpoint));
    }
    variables
}

/// The object under a key, made where there is none.
fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("it was made an object"),
    }
}

fn unless_set(parent: &mut Map<String, Value>, key: &str, value: Value) {
    parent.entry(key).or_insert(value);
}

/// Adds an item to a list unless one with the same key is in it.
fn unless_named(parent: &mut Map<String, Value>, list: &str, key: &str, item: Value) {
    let list = parent.entry(list).or_insert_with(|| json!([]));
    if let Value::Array(items) = list
        && !items.iter().any(|known| known.get(key) == item.get(key))
    {
        items.push(item);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jetwright_crds::environment::{Binding, Bindings, Retry};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;
    use crate::context::Namespaces;

    fn settings() -> Settings {
        Settings {
            default_connection: Namespaces::All,
            workload_nats_url: "nats://nats:4222".into(),
            workload_otlp_endpoint: Some("http://jaeger:4318".into()),
            resync: Duration::from_mins(10),
            figures_every: Duration::from_mins(1),
            deletion_timeout: Duration::from_mins(10),
        }
    }

    fn desired(template: &str) -> Desired {
        let binding = Binding {
            stream: "orders".into(),
            consumer: "fulfilment".into(),
            ack_wait: jetwright_crds::Duration::from_secs(30),
            max_ack_pending: 256,
            retry: Retry::default(),
        };
        Desired {
            name: "fulfilment".into(),
            namespace: "shop".into(),
            owner: OwnerReference { name: "fulfilment".into(), ..OwnerReference::default() },
            replicas: 2,
            template: serde_saphyr::from_str(template).unwrap(),
            service_ports: None,
            bindings: Bindings { bindings: BTreeMap::from([("fulfilment".into(), binding)]) },
        }
    }

    fn container(template: &str) -> Value {
        let objects = build(&desired(template), &settings()).unwrap();
        objects.deployment["spec"]["template"]["spec"]["containers"][0].clone()
    }

    #[test]
    fn a_minimal_template_becomes_a_whole_deployment() {
        let objects =
            build(&desired("{spec: {containers: [{name: app, image: shop/order:1}]}}"), &settings()).unwrap();
        let hash = objects.deployment["spec"]["template"]["metadata"]["annotations"][BINDINGS_HASH].clone();
        let labels = json!({
            "app.kubernetes.io/name": "fulfilment", "app.kubernetes.io/managed-by": "jetwright",
            "jetwright.dev/workload": "fulfilment",
        });
        assert_eq!(
            objects.deployment,
            json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {
                    "name": "fulfilment", "namespace": "shop", "labels": labels,
                    "ownerReferences": [{"apiVersion": "", "kind": "", "name": "fulfilment", "uid": ""}],
                },
                "spec": {
                    "replicas": 2,
                    "selector": {"matchLabels": {"jetwright.dev/workload": "fulfilment"}},
                    "template": {
                        "metadata": {"annotations": {BINDINGS_HASH: hash}, "labels": labels},
                        "spec": {
                            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                            "volumes": [{"name": "jetwright", "configMap": {"name": "fulfilment-bindings"}}],
                            "containers": [{
                                "name": "app",
                                "image": "shop/order:1",
                                "env": [
                                    {"name": "JETWRIGHT_BINDINGS", "value": "/etc/jetwright/bindings.yaml"},
                                    {"name": "JETWRIGHT_ADMIN_ADDRESS", "value": "0.0.0.0:9090"},
                                    {"name": "NATS_URL", "value": "nats://nats:4222"},
                                    {"name": "JETWRIGHT_POD_NAME", "valueFrom":
                                        {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                                    {"name": "OTEL_SERVICE_NAME", "value": "fulfilment"},
                                    {"name": "OTEL_RESOURCE_ATTRIBUTES", "value":
                                        "k8s.namespace.name=shop,k8s.deployment.name=fulfilment,k8s.pod.name=$(JETWRIGHT_POD_NAME)"},
                                    {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://jaeger:4318"},
                                ],
                                "volumeMounts": [{"name": "jetwright", "mountPath": "/etc/jetwright", "readOnly": true}],
                                "ports": [{"name": "admin", "containerPort": 9090}],
                                "livenessProbe": {"httpGet": {"path": "/livez", "port": 9090}},
                                "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 2},
                                "securityContext": {
                                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                    "capabilities": {"drop": ["ALL"]},
                                },
                            }],
                        },
                    },
                },
            })
        );
    }

    #[test]
    fn the_bindings_file_reads_back_as_the_runtime_reads_it() {
        let objects = build(&desired("{spec: {containers: [{name: app}]}}"), &settings()).unwrap();
        let file = objects.bindings.data.unwrap().remove("bindings.yaml").unwrap();
        assert_eq!(serde_saphyr::from_str::<Bindings>(&file).unwrap(), desired("{}").bindings);
    }

    #[test]
    fn what_the_user_set_wins_and_what_nobody_knows_is_kept() {
        let container = container(
            "{spec: {containers: [{name: app, env: [{name: NATS_URL, value: mine}], livenessProbe: {exec: {command: [a]}},
              securityContext: {}, fromTheFuture: {x: 1}}]}}",
        );
        assert_eq!(container["env"][0], json!({"name": "NATS_URL", "value": "mine"}));
        let urls =
            container["env"].as_array().unwrap().iter().filter(|variable| variable["name"] == "NATS_URL");
        assert_eq!(urls.count(), 1);
        assert_eq!(container["livenessProbe"], json!({"exec": {"command": ["a"]}}));
        assert_eq!(
            (&container["securityContext"], &container["fromTheFuture"]),
            (&json!({}), &json!({"x": 1}))
        );
    }

    #[test]
    fn pods_roll_out_when_their_bindings_change() {
        let hash = |desired: &Desired| {
            build(desired, &settings()).unwrap().deployment["spec"]["template"]["metadata"]["annotations"]
                .clone()
        };
        let before = desired("{spec: {containers: [{name: app}]}}");
        let mut after = before.clone();
        after.bindings.bindings.clear();
        assert_eq!(hash(&before), hash(&before.clone()));
        assert_ne!(hash(&before), hash(&after));
    }
}
