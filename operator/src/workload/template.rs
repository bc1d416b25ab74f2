//! In: the desired workload. Out: its pod template, with what the operator adds. Pure.
//!
//! The template goes through as JSON, so that fields newer than this program are kept; the API server judges them. Whatever the user
//! set wins over what is added here.

use std::collections::BTreeMap;

use jetwright_crds::{
    environment::{
        BINDINGS_FILE, BINDINGS_FOLDER, JETWRIGHT_ADMIN_ADDRESS, JETWRIGHT_BINDINGS, JETWRIGHT_POD_NAME,
        JETWRIGHT_POD_NAMESPACE, JETWRIGHT_POD_UID, NATS_CREDENTIALS, NATS_CREDENTIALS_FOLDER, NATS_URL,
        OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
    },
    labels::{APP_NAME, BINDINGS_HASH, JETWRIGHT, MANAGED_BY, WORKLOAD},
};
use serde_json::{Map, Value, json};

use super::desired::{Desired, WorkloadSettings};

/// Name of the volume with the bindings file.
const BINDINGS_VOLUME: &str = "jetwright";
/// Name of the volume with the credentials.
const CREDENTIALS_VOLUME: &str = "jetwright-credentials";
/// The credentials' files may be read by every user that a container runs as: the pod has no others.
const READABLE: i32 = 0o444;
/// Fields with containers.
const CONTAINERS: [&str; 2] = ["initContainers", "containers"];

/// Whether a template says itself which ServiceAccount its pods have; `serviceAccount` is the field's older name.
pub fn sets_service_account(template: &Map<String, Value>) -> bool {
    let spec = template.get("spec");
    let named = |field: &str| spec.and_then(|spec| spec.get(field)).and_then(Value::as_str);
    ["serviceAccountName", "serviceAccount"].into_iter().filter_map(named).any(|name| !name.is_empty())
}

/// The admin port: `admin`, unless some container of the template has a port of that name, which a Service finds by it; a number alone where
/// both names are taken.
fn admin_port(spec: &Map<String, Value>, number: u16) -> Value {
    let containers = CONTAINERS.iter().filter_map(|field| spec.get(*field)?.as_array()).flatten();
    let ports: Vec<_> = containers.filter_map(|container| container["ports"].as_array()).flatten().collect();
    let is_free = |name: &&str| !ports.iter().any(|port| port["name"] == **name);
    match ["admin", "jetwright-admin"].into_iter().find(is_free) {
        Some(name) => json!({ "name": name, "containerPort": number }),
        None => json!({ "containerPort": number }),
    }
}

/// What becomes of containers beside the program that have no security context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helpers {
    /// They get the program's.
    Hardened,
    /// They stay as they are, as operators before this one left them.
    AsWritten,
}

/// Whether a template has such containers.
pub fn has_bare_helpers(template: &Map<String, Value>) -> bool {
    let Some(spec) = template.get("spec") else { return false };
    let containers = |field: &str| spec[field].as_array().into_iter().flatten();
    let mut helpers = containers("containers").skip(1).chain(containers("initContainers"));
    helpers.any(|container| container.get("securityContext").is_none())
}

/// The labels of a workload's objects.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    let pairs = [(APP_NAME, name), (MANAGED_BY, JETWRIGHT), (WORKLOAD, name)];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// Makes the pod template; `hash` is that of the bindings.
pub fn template(desired: &Desired, settings: &WorkloadSettings, helpers: Helpers, hash: &str) -> Value {
    let mut template = desired.template.clone();
    let metadata = object(&mut template, "metadata");
    object(metadata, "annotations").insert(BINDINGS_HASH.to_owned(), json!(hash));
    for (key, value) in labels(&desired.names.workload) {
        object(metadata, "labels").insert(key, json!(value));
    }
    let own_account = !sets_service_account(&desired.template);
    let spec = object(&mut template, "spec");
    if own_account {
        spec.insert("serviceAccountName".to_owned(), json!(desired.names.workload));
    }
    set_default(
        spec,
        "securityContext",
        json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }),
    );
    let grace_period = desired.bindings.grace_period().0.as_secs();
    set_default(spec, "terminationGracePeriodSeconds", json!(grace_period));
    let bindings = json!({ "name": BINDINGS_VOLUME, "configMap": { "name": desired.names.bindings } });
    push_default(spec, "volumes", "name", bindings);
    if let Some(secret) = &desired.credentials {
        let source = json!({ "secretName": secret, "defaultMode": READABLE });
        push_default(spec, "volumes", "name", json!({ "name": CREDENTIALS_VOLUME, "secret": source }));
    }
    let admin_port = admin_port(spec, desired.admin_port);
    // The first container is the program; others are its helpers.
    if let Some(Value::Object(container)) = spec.get_mut("containers").and_then(|list| list.get_mut(0)) {
        inject_runtime(container, desired, settings);
        push_port(container, admin_port);
        set_default(container, "securityContext", container_security());
    }
    for field in CONTAINERS.into_iter().filter(|_| helpers == Helpers::Hardened) {
        let containers = spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            set_default(container, "securityContext", container_security());
        }
    }
    Value::Object(template)
}

/// What a container gives up that says nothing itself: with it, and with what the pod is given, the template is "restricted" by the Pod
/// Security Standards.
fn container_security() -> Value {
    json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    })
}

/// Gives the program what the environment contract promises it.
fn inject_runtime(container: &mut Map<String, Value>, desired: &Desired, settings: &WorkloadSettings) {
    for variable in variables(desired, settings) {
        push_default(container, "env", "name", variable);
    }
    let mount = |volume: &str, folder: &str| json!({ "name": volume, "mountPath": folder, "readOnly": true });
    push_default(container, "volumeMounts", "mountPath", mount(BINDINGS_VOLUME, BINDINGS_FOLDER));
    if desired.credentials.is_some() {
        let credentials = mount(CREDENTIALS_VOLUME, NATS_CREDENTIALS_FOLDER);
        push_default(container, "volumeMounts", "mountPath", credentials);
    }
    let port = desired.admin_port;
    set_default(container, "livenessProbe", json!({ "httpGet": { "path": "/livez", "port": port } }));
    let readiness = json!({ "httpGet": { "path": "/readyz", "port": port }, "periodSeconds": 2 });
    set_default(container, "readinessProbe", readiness);
    // The last lines of its log tell why it ended.
    set_default(container, "terminationMessagePolicy", json!("FallbackToLogsOnError"));
}

fn variables(desired: &Desired, settings: &WorkloadSettings) -> Vec<Value> {
    let attributes = format!(
        "k8s.namespace.name={},k8s.deployment.name={},k8s.pod.name=$({JETWRIGHT_POD_NAME})",
        desired.namespace, desired.names.workload
    );
    let plain = |name: &str, value: &str| json!({ "name": name, "value": value });
    let of_pod = |name: &str, path: &str| {
        let field = json!({ "apiVersion": "v1", "fieldPath": path });
        json!({ "name": name, "valueFrom": { "fieldRef": field } })
    };
    let mut variables = vec![
        plain(JETWRIGHT_BINDINGS, &format!("{BINDINGS_FOLDER}/{BINDINGS_FILE}")),
        plain(JETWRIGHT_ADMIN_ADDRESS, &format!("0.0.0.0:{}", desired.admin_port)),
        plain(NATS_URL, &settings.nats_url),
        // Before the attributes, which refer to it.
        of_pod(JETWRIGHT_POD_NAME, "metadata.name"),
        plain(OTEL_SERVICE_NAME, &desired.names.workload),
        plain(OTEL_RESOURCE_ATTRIBUTES, &attributes),
    ];
    if desired.bindings.are_shared_out() {
        // What the operator knows a pod by of which it hears that it ended. No other pod has them: they would be rolled out for nothing.
        for (name, path) in
            [(JETWRIGHT_POD_NAMESPACE, "metadata.namespace"), (JETWRIGHT_POD_UID, "metadata.uid")]
        {
            variables.push(of_pod(name, path));
        }
    }
    if desired.credentials.is_some() {
        variables.push(plain(NATS_CREDENTIALS, NATS_CREDENTIALS_FOLDER));
    }
    if let Some(endpoint) = &settings.otlp_endpoint {
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

fn set_default(parent: &mut Map<String, Value>, key: &str, value: Value) {
    parent.entry(key).or_insert(value);
}

/// Adds an item to a list unless one with the same key is in it.
fn push_default(parent: &mut Map<String, Value>, list: &str, key: &str, item: Value) {
    let list = parent.entry(list).or_insert_with(|| json!([]));
    if let Value::Array(items) = list
        && !items.iter().any(|known| known.get(key) == item.get(key))
    {
        items.push(item);
    }
}

/// Adds a port unless there is one of its number and protocol, which are what Kubernetes knows a port by.
fn push_port(container: &mut Map<String, Value>, item: Value) {
    let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_owned();
    let key = |port: &Value| (port["containerPort"].as_u64(), protocol(port));
    let ports = container.entry("ports").or_insert_with(|| json!([]));
    if let Value::Array(ports) = ports
        && !ports.iter().any(|port| key(port) == key(&item))
    {
        ports.push(item);
    }
}

#[cfg(test)]
mod tests {
    use jetwright_crds::environment::{Ordering, StreamPartitions};

    use super::{
        super::build::tests::{desired, settings},
        *,
    };

    fn made(desired: &Desired) -> Value {
        template(desired, &settings(), Helpers::Hardened, "h1")
    }

    /// What a container is given that sets nothing itself.
    fn security() -> Value {
        json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        })
    }

    fn container(template: &str) -> Value {
        made(&desired(template))["spec"]["containers"][0].clone()
    }

    #[test]
    fn a_minimal_template_is_given_all_that_a_program_needs() {
        assert_eq!(
            made(&desired("{spec: {containers: [{name: app, image: shop/order:1}]}}")),
            json!({
                "metadata": {
                    "annotations": {"jetwright.dev/bindings-hash": "h1"},
                    "labels": {
                        "app.kubernetes.io/name": "fulfilment", "app.kubernetes.io/managed-by": "jetwright",
                        "jetwright.dev/workload": "fulfilment",
                    },
                },
                "spec": {
                    "serviceAccountName": "fulfilment",
                    "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                    "terminationGracePeriodSeconds": 30,
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
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }],
                },
            })
        );
    }

    #[test]
    fn credentials_are_files_that_the_program_alone_is_given() {
        let credentials = Some("shop-nats".to_owned());
        let two = "{spec: {containers: [{name: app}, {name: helper}]}}";
        let template = made(&Desired { credentials, ..desired(two) });
        let spec = &template["spec"];
        let secret = json!({"secretName": "shop-nats", "defaultMode": 0o444});
        assert_eq!(spec["volumes"][1], json!({"name": "jetwright-credentials", "secret": secret}));
        let (program, helper) = (&spec["containers"][0], &spec["containers"][1]);
        let folder = "/var/run/secrets/jetwright/nats";
        assert_eq!(
            program["volumeMounts"][1],
            json!({"name": "jetwright-credentials", "mountPath": folder, "readOnly": true})
        );
        let variables = program["env"].as_array().unwrap();
        assert!(variables.contains(&json!({"name": "NATS_CREDENTIALS", "value": folder})), "{variables:?}");
        assert_eq!(helper, &json!({"name": "helper", "securityContext": security()}));
    }

    #[test]
    fn what_the_user_set_wins_and_what_nobody_knows_is_kept() {
        let container = container(
            "{spec: {containers: [{name: app, env: [{name: NATS_URL, value: mine}], livenessProbe: {exec: {command: [a]}},
              securityContext: {}, terminationMessagePolicy: File, fromTheFuture: {x: 1}}]}}",
        );
        assert_eq!(container["env"][0], json!({"name": "NATS_URL", "value": "mine"}));
        let urls =
            container["env"].as_array().unwrap().iter().filter(|variable| variable["name"] == "NATS_URL");
        assert_eq!(urls.count(), 1);
        assert_eq!(container["livenessProbe"], json!({"exec": {"command": ["a"]}}));
        assert_eq!(container["terminationMessagePolicy"], json!("File"));
        assert_eq!(
            (&container["securityContext"], &container["fromTheFuture"]),
            (&json!({}), &json!({"x": 1}))
        );
    }

    #[test]
    fn the_admin_port_is_probed_and_takes_no_name_that_is_taken() {
        let template = "{spec: {containers: [{name: app, ports: [{name: admin, containerPort: 7}]}]}}";
        let moved = made(&Desired { admin_port: 9191, ..desired(template) });
        let container = &moved["spec"]["containers"][0];
        assert_eq!(
            container["ports"],
            json!([{"name": "admin", "containerPort": 7}, {"name": "jetwright-admin", "containerPort": 9191}])
        );
        assert_eq!(container["livenessProbe"]["httpGet"]["port"], json!(9191));
        assert_eq!(container["readinessProbe"]["httpGet"]["port"], json!(9191));
    }

    #[test]
    fn the_admin_port_gives_way_to_one_of_its_name_in_any_container_and_not_to_one_of_another_protocol() {
        let port = |ports: &str, helpers: &str| {
            let template = format!("{{spec: {{containers: [{{name: app, ports: [{ports}]}}], {helpers}}}}}");
            container(&template)["ports"].as_array().unwrap().last().unwrap().clone()
        };
        let ours = json!({"name": "admin", "containerPort": 9090});
        assert_eq!(port("{name: dns, containerPort: 9090, protocol: UDP}", ""), ours);
        let theirs = json!({"name": "own", "containerPort": 9090, "protocol": "TCP"});
        assert_eq!(port("{name: own, containerPort: 9090, protocol: TCP}", ""), theirs);
        let helper = "initContainers: [{name: proxy, ports: [{name: admin, containerPort: 7}]}]";
        assert_eq!(port("", helper), json!({"name": "jetwright-admin", "containerPort": 9090}));
        assert_eq!(port("{name: jetwright-admin, containerPort: 8}", helper), json!({"containerPort": 9090}));
    }

    #[test]
    fn every_container_that_sets_nothing_itself_gives_up_its_privileges() {
        let template = made(&desired(
            "{spec: {containers: [{name: app}, {name: helper}, {name: own, securityContext: {privileged: true}}],
              initContainers: [{name: init}]}}",
        ));
        let spec = &template["spec"];
        for container in [&spec["containers"][0], &spec["containers"][1], &spec["initContainers"][0]] {
            assert_eq!(container["securityContext"], security(), "{container}");
        }
        assert_eq!(spec["containers"][2]["securityContext"], json!({"privileged": true}));
    }

    #[test]
    fn as_written_only_the_program_gives_up_its_privileges() {
        let with_helper = desired("{spec: {containers: [{name: app}, {name: helper}]}}");
        assert!(has_bare_helpers(&with_helper.template));
        let template = template(&with_helper, &settings(), Helpers::AsWritten, "h1");
        assert_eq!(template["spec"]["containers"][0]["securityContext"], security());
        assert_eq!(template["spec"]["containers"][1], json!({"name": "helper"}));
        for whole in [
            "{containers: [{name: app}]}",
            "{containers: [{name: app}], initContainers: [{name: a, securityContext: {}}]}",
        ] {
            assert!(!has_bare_helpers(&desired(&format!("{{spec: {whole}}}")).template), "{whole}");
        }
    }

    #[test]
    fn pods_that_share_partitions_out_know_who_they_are_and_no_others() {
        let mut shared = desired("{spec: {containers: [{name: app}]}}");
        let names = |desired: &Desired| {
            let template = made(desired);
            let variables = template["spec"]["containers"][0]["env"].as_array().unwrap().clone();
            let fields = variables.iter().filter_map(|one| {
                Some((
                    one["name"].as_str()?.to_owned(),
                    one["valueFrom"]["fieldRef"]["fieldPath"].as_str()?.to_owned(),
                ))
            });
            fields.map(|(name, path)| format!("{name} {path}")).collect::<Vec<_>>()
        };
        let pod = "JETWRIGHT_POD_NAME metadata.name";
        let partitions = StreamPartitions { subject: "orders.*".into(), key_tokens: vec![2], count: 8 };
        for binding in shared.bindings.bindings.values_mut() {
            binding.partitions = Some(partitions.clone());
        }
        assert_eq!(names(&shared), [pod]);
        for binding in shared.bindings.bindings.values_mut() {
            binding.ordering = Some(Ordering { key_tokens: vec![2] });
        }
        let all = [pod, "JETWRIGHT_POD_NAMESPACE metadata.namespace", "JETWRIGHT_POD_UID metadata.uid"];
        assert_eq!(names(&shared), all);
    }

    #[test]
    fn pods_have_the_time_that_their_slowest_handler_may_take() {
        let mut slow = desired("{spec: {containers: [{name: app}]}}");
        for binding in slow.bindings.bindings.values_mut() {
            binding.handler_deadline = jetwright_crds::Duration::from_secs(300);
        }
        assert_eq!(made(&slow)["spec"]["terminationGracePeriodSeconds"], json!(310));
        slow.template.insert("spec".to_owned(), json!({"terminationGracePeriodSeconds": 5}));
        assert_eq!(made(&slow)["spec"]["terminationGracePeriodSeconds"], json!(5));
    }

    #[test]
    fn the_users_own_account_is_the_pods() {
        for (account, name) in [("serviceAccountName", json!("shop")), ("serviceAccount", Value::Null)] {
            let template =
                made(&desired(&format!("{{spec: {{{account}: shop, containers: [{{name: app}}]}}}}")));
            assert_eq!(template["spec"]["serviceAccountName"], name, "{account}");
        }
    }
}
