//! The operator's chart: what its values make of labels, pods, images and network policies, without a cluster.

use std::{fs, process::Command};

use jetwright_e2e::path;
use jetwright_testing::{Folder, Program};
use serde_json::{Value, json};

use crate::{
    chart::helm,
    operator_chart::{VALUES, render},
};

const OPENSHIFT: [&str; 2] = ["--values", "../charts/jetwright/ci/openshift-values.yaml"];

/// The objects that Helm makes of these values.
fn objects(values: &[&str]) -> Vec<Value> {
    let manifests = render(values).unwrap();
    let documents = manifests.split("\n---").map(|text| text.strip_prefix("---").unwrap_or(text));
    documents
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .filter(|object: &Value| object.is_object())
        .collect()
}

/// Those that Helm makes of these values beside the smallest set.
fn objects_with(values: &[&str]) -> Vec<Value> {
    objects(&[&VALUES, values].concat())
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

/// The specs of all pods, by the name of what makes them.
fn pods(objects: &[Value]) -> Vec<(&str, &Value)> {
    let spec = |object: &'_ Value| match object["kind"].as_str()? {
        "Pod" => Some("/spec"),
        "Deployment" | "StatefulSet" | "Job" => Some("/spec/template/spec"),
        _ => None,
    };
    let of = |object| Some((name(object), Value::pointer(object, spec(object)?)?));
    let pods: Vec<_> = objects.iter().filter_map(of).collect();
    assert!(pods.len() >= 3, "{pods:?}");
    pods
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

#[test]
fn every_object_has_the_common_labels_and_annotations_and_keeps_its_own() {
    let common = ["--set=commonLabels.team=events", "--set=commonAnnotations.contact=events"];
    let forged = [
        "--set=commonLabels.app\\.kubernetes\\.io/part-of=shop",
        "--set=commonAnnotations.helm\\.sh/resource-policy=delete",
        "--set=metrics.annotations=true,metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.labels.release=prometheus",
    ];
    let objects = objects_with(&[&common[..], &forged].concat());
    for object in &objects {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["team"], "events", "{object}");
        assert_eq!(metadata["annotations"]["contact"], "events", "{object}");
        assert_eq!(metadata["labels"]["app.kubernetes.io/part-of"], "shop", "{object}");
    }
    let annotation =
        |kind, name, key: &str| find(&objects, kind, name)["metadata"]["annotations"][key].clone();
    let kept =
        annotation("CustomResourceDefinition", "eventstreams.jetwright.dev", "helm.sh/resource-policy");
    assert_eq!(kept, "keep");
    assert_eq!(annotation("Service", "jetwright-operator", "prometheus.io/port"), "8080");
    assert_eq!(annotation("Pod", "jetwright-verify-install", "helm.sh/hook"), "test");
    let monitor = find(&objects, "ServiceMonitor", "jetwright-operator");
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    for name in ["jetwright-operator", "jetwright-nats"] {
        let kind = if name.ends_with("nats") { "StatefulSet" } else { "Deployment" };
        let template = &find(&objects, kind, name)["spec"]["template"]["metadata"];
        assert_eq!(template["labels"]["team"], "events");
        assert_eq!(template["annotations"].get("contact"), None, "restarts nothing");
    }
}

#[test]
fn pods_have_no_user_where_the_cluster_assigns_one_and_are_as_confined_as_before() {
    for (name, pod) in pods(&objects(&OPENSHIFT)) {
        let confined = json!({
            "fsGroupChangePolicy": "OnRootMismatch", "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
        });
        assert_eq!(pod["securityContext"], confined, "{name}");
        let container = json!({
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
        });
        assert_eq!(pod["containers"][0]["securityContext"], container, "{name}");
    }
    let users = ["podSecurityContext", "nats.bundled.podSecurityContext"];
    let users = users.map(|context| format!("--set={context}.runAsUser=1000680000"));
    for (name, pod) in pods(&objects_with(&[&users[0], &users[1]])) {
        assert_eq!(pod["securityContext"]["runAsUser"], 1_000_680_000, "{name}");
        assert_eq!(pod["securityContext"]["fsGroup"], 65532, "{name}");
    }
}

#[test]
fn the_operator_has_the_volumes_and_variables_of_the_values_beside_its_own() {
    let objects = objects_with(&[
        "--set=extraVolumes[0].name=authorities,extraVolumes[0].configMap.name=authorities",
        "--set=extraVolumeMounts[0].name=authorities,extraVolumeMounts[0].mountPath=/etc/authorities",
        "--set=extraEnv[0].name=SSL_CERT_DIR,extraEnv[0].value=/etc/authorities",
    ]);
    let pod = &find(&objects, "Deployment", "jetwright-operator")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["name"], "nats-credentials");
    assert_eq!(pod["volumes"][1], json!({"name": "authorities", "configMap": {"name": "authorities"}}));
    let container = &pod["containers"][0];
    assert_eq!(container["volumeMounts"][0]["name"], "nats-credentials");
    assert_eq!(container["volumeMounts"][1], json!({"name": "authorities", "mountPath": "/etc/authorities"}));
    let variables = container["env"].as_array().unwrap();
    assert!(
        variables.contains(&json!({"name": "SSL_CERT_DIR", "value": "/etc/authorities"})),
        "{variables:?}"
    );
}

#[test]
fn a_slow_node_gets_a_minute_to_start_the_operator_before_it_is_restarted() {
    let objects = objects_with(&[]);
    let container =
        &find(&objects, "Deployment", "jetwright-operator")["spec"]["template"]["spec"]["containers"][0];
    let probe = &container["startupProbe"];
    assert_eq!(probe["httpGet"], json!({"path": "/livez", "port": "admin"}));
    assert_eq!(probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap(), 60);
}

#[test]
fn all_images_come_from_the_registry_that_charts_share_with_the_secrets_of_both() {
    let secrets =
        ["--set=global.imagePullSecrets[0].name=mirror", "--set=imagePullSecrets={registry,mirror}"];
    let registry =
        ["--set=global.imageRegistry=mirror.example.org", "--set=image.registry=registry.example.org"];
    for (name, pod) in pods(&objects_with(&[secrets, registry].concat())) {
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "mirror"}, {"name": "registry"}]), "{name}");
        let image = pod["containers"][0]["image"].as_str().unwrap();
        assert!(image.starts_with("mirror.example.org/"), "{name}: {image}");
    }
    for (name, pod) in pods(&objects_with(&[registry[1]])) {
        let image = pod["containers"][0]["image"].as_str().unwrap();
        assert_eq!(image.starts_with("registry.example.org/"), !name.ends_with("-nats"), "{name}: {image}");
        assert_eq!(pod.get("imagePullSecrets"), None, "{name}");
    }
}

#[test]
fn only_the_namespaces_that_are_named_reach_metrics() {
    let lets_in = |values: &[&str], policy: &str, port: u16| {
        let objects = objects_with(values);
        let rules = find(&objects, "NetworkPolicy", policy)["spec"]["ingress"].as_array().unwrap().clone();
        rules.into_iter().find(|rule| rule["ports"][0]["port"] == port).unwrap()["from"].clone()
    };
    let named = json!({"namespaceSelector": {"matchExpressions": [
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["monitoring", "observability"]},
    ]}});
    let peer = json!({"ipBlock": {"cidr": "10.1.0.0/16"}});
    let namespaces = "--set=networkPolicy.metricsNamespaces={monitoring,observability}";
    let from = "--set=networkPolicy.metricsFrom[0].ipBlock.cidr=10.1.0.0/16";
    for (policy, port) in [("jetwright-operator", 8080), ("jetwright-nats", 8222)] {
        assert_eq!(lets_in(&[], policy, port), json!([{"podSelector": {}}]), "the release's own namespace");
        assert_eq!(lets_in(&[namespaces], policy, port), json!([named]));
        assert_eq!(lets_in(&[from], policy, port), json!([peer]));
        assert_eq!(lets_in(&[namespaces, from], policy, port), json!([peer, named]));
    }
}

/// Memory that the operator keeps for itself, and for each object with pods, in KiB. docs/install.md has these figures too.
const PROGRAM: u64 = 15 * 1024;
const STREAM: u64 = 10;
const CONSUMER_WITH_PODS: u64 = 7 + 40;

/// A quantity in KiB.
fn kibibytes(quantity: &str) -> u64 {
    quantity.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn every_limit_that_is_set_or_advised_holds_the_objects_twice_as_a_new_list_does() {
    let number = |text: &str| -> u64 { text.replace(',', "").parse().unwrap() };
    let page = fs::read_to_string(path("../docs/install.md")).unwrap();
    let (_, resources) = page.split_once("## Resources").unwrap();
    let rows = resources.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let mut largest_of_default = None;
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let (streams, consumers) = cells[1].split_once(", ").unwrap();
        let objects = number(streams) * STREAM + number(consumers) * CONSUMER_WITH_PODS;
        let quantity = |cell: &str| kibibytes(cell.split(' ').next().unwrap());
        assert!(quantity(cells[2]) >= PROGRAM + objects, "{row}");
        assert!(quantity(cells[3]) >= PROGRAM + 2 * objects, "{row}");
        if cells[3].ends_with("(the default)") {
            largest_of_default = Some(objects);
        }
    }
    assert_eq!(largest_of_default, Some(3000 * STREAM + 6000 * CONSUMER_WITH_PODS));

    let objects = objects_with(&[]);
    let container =
        &find(&objects, "Deployment", "jetwright-operator")["spec"]["template"]["spec"]["containers"][0];
    let limit = container["resources"]["limits"]["memory"].as_str().unwrap();
    assert!(kibibytes(limit) >= PROGRAM + 2 * largest_of_default.unwrap(), "{limit}");
}

/// Paths of objects in a schema that take values which it does not describe.
fn open_objects(path: &str, schema: &Value, found: &mut Vec<String>) {
    // It says more of what another schema describes.
    if schema.get("allOf").is_some() {
        return;
    }
    if schema.get("properties").is_some() && schema["additionalProperties"] != false {
        found.push(path.to_owned());
    }
    for key in ["properties", "definitions"] {
        for (name, property) in schema[key].as_object().into_iter().flatten() {
            open_objects(&format!("{path}/{name}"), property, found);
        }
    }
}

#[test]
fn every_value_is_described_and_no_other_is_taken() {
    let schema = fs::read_to_string(path("../charts/jetwright/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut found = Vec::new();
    open_objects("", &schema, &mut found);
    assert_eq!(found, ["/global"], "which other charts share");
    for (value, told) in [
        ("global.imageRegistry=a b", "/global/imageRegistry"),
        ("podSecurityContext.runAsUsr=1", "'runAsUsr' not allowed"),
        ("securityContext.capabilites=1", "'capabilites' not allowed"),
        ("nats.bundled.podSecurityContext.runAsUser=root", "/nats/bundled/podSecurityContext/runAsUser"),
        ("extraVolumes[0].nme=a", "/extraVolumes/0': missing property 'name'"),
        ("imagePullSecrets[0].nme=a", "/imagePullSecrets/0"),
        ("image.pullSecrets[0]=a", "moved to imagePullSecrets"),
        ("networkPolicy.metricsNamespaces[0]=No Namespace", "/networkPolicy/metricsNamespaces/0"),
    ] {
        let refusal = render(&[&VALUES[..], &["--set", value]].concat()).unwrap_err();
        assert!(refusal.contains(told), "{value}: {refusal}");
    }
}

#[test]
fn the_notes_name_the_cluster_and_only_the_steps_that_are_left() {
    let notes = |values: &[&str]| {
        let install =
            ["install", "jetwright", "../charts/jetwright", "--namespace", "jetwright", "--dry-run=client"];
        let said = helm(None, &[&install[..], values].concat()).unwrap();
        said.split_once("NOTES:").unwrap().1.to_owned()
    };
    let bundled = "--set=nats.bundled.enabled=true";
    let (serve, scrape, define) =
        ("set 'defaultConnectionNamespaces={shop}'", "metricsNamespaces={", "CustomResourceDefinitions");
    let fresh = notes(&[bundled]);
    let order = [
        "name in NATS: ",
        "set the value clusterName before a rebuild",
        "What to do next:",
        serve,
        "helm test jetwright",
        scrape,
    ];
    let places = order.map(|text| fresh.find(text).unwrap_or_else(|| panic!("no {text} in {fresh}")));
    assert!(places.is_sorted(), "{fresh}");
    assert!(!fresh.contains(define), "{fresh}");

    let done =
        ["--set=defaultConnectionNamespaces={shop}", "--set=networkPolicy.metricsNamespaces={monitoring}"];
    let named = ["--set=clusterName=east", "--set=formerClusterNames={west}", "--set=crds.install=false"];
    let settled = notes(&[&[bundled][..], &done, &named].concat());
    assert!(settled.contains("name in NATS: east (formerly west)\n"), "{settled}");
    assert!(settled.contains(define), "{settled}");
    assert!(
        !settled.contains(serve) && !settled.contains(scrape) && !settled.contains("kube-system\nIt is"),
        "{settled}"
    );
    let open = notes(&[bundled, "--set=networkPolicy.enabled=false"]);
    assert!(!open.contains(scrape), "{open}");
}

#[test]
fn helm_says_nothing_of_the_chart_that_a_user_would_have_to_look_up() {
    let folder = Folder::new("quiet");
    let folder = folder.path().to_str().unwrap();
    let chart = "../charts/jetwright";
    let template = [&["template", "jetwright", chart], &VALUES[..]].concat();
    for args in [&template[..], &["package", chart, "--destination", folder]] {
        let output = Command::new(Program::Helm.path()).args(args).current_dir(path(".")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    }
}
