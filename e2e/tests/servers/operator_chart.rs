//! The operator's chart: what Helm makes of its values and Kubernetes takes, what it refuses, and what it leaves as it is when it is
//! installed, upgraded, and changed with kubectl; and an upgrade of the shop. No pod of theirs runs here.

use std::{fs, path::PathBuf};

use jetwright_e2e::path;
use jetwright_testing::{ControlPlane, Folder};
use serde_json::{Value, json};

use crate::chart::helm;

/// A release and its namespace.
const RELEASE: &str = "jetwright";
/// Values of a small installation with NATS.
pub const VALUES: [&str; 2] = ["--values", "../charts/jetwright/ci/bundled-one-values.yaml"];
/// With these Helm takes over what kubectl applied.
const TAKE_OVER: [&str; 2] = ["--take-ownership", "--force-conflicts"];

pub fn render(values: &[&str]) -> Result<String, String> {
    helm(None, &[&["template", RELEASE, "../charts/jetwright", "--namespace", RELEASE], values].concat())
}

/// Installs the chart or upgrades its release.
pub fn install(control_plane: &ControlPlane, more: &[&str]) -> Result<String, String> {
    let base = ["upgrade", "--install", RELEASE, "../charts/jetwright", "--namespace", RELEASE];
    helm(Some(control_plane), &[&base[..], &VALUES, more].concat())
}

/// An API server with namespaces in which Pod Security is restricted.
pub async fn control_plane() -> ControlPlane {
    let control_plane = ControlPlane::start().await;
    for namespace in [RELEASE, "shop", "billing"] {
        control_plane.kubectl(["create", "namespace", namespace]).unwrap();
        let label = ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
        control_plane.kubectl(["label", "namespace", namespace, &label[0], &label[1]]).unwrap();
    }
    control_plane
}

fn uid_of_a_definition(control_plane: &ControlPlane) -> String {
    let uid = ["get", "crd", "eventstreams.jetwright.dev", "--output=jsonpath={.metadata.uid}"];
    control_plane.kubectl(uid).unwrap()
}

/// The definitions as a newer version might have them, with one more word in a description.
fn newer_definitions(folder: &Folder) -> PathBuf {
    let text = fs::read_to_string(path("../crds/manifests/eventstreams.yaml")).unwrap();
    let file = folder.path().join("eventstreams.yaml");
    fs::write(&file, text.replacen("Longest time", "NEWER Longest time", 1)).unwrap();
    file
}

fn is_newer(control_plane: &ControlPlane) -> bool {
    let definition = control_plane.kubectl(["get", "crd", "eventstreams.jetwright.dev", "--output=yaml"]);
    // kubectl keeps what it applied in an annotation too.
    definition.unwrap().lines().any(|line| line.contains("NEWER") && !line.contains('{'))
}

#[test]
fn a_packaged_chart_carries_the_definitions() {
    let folder = Folder::new("package");
    let destination = folder.path().to_str().unwrap();
    helm(None, &["package", "../charts/jetwright", "--destination", destination]).unwrap();
    let package = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let template = |chart: &str| {
        let definitions = ["template", RELEASE, chart, "--show-only", "templates/crds.yaml"];
        helm(None, &[&definitions[..], &VALUES].concat()).unwrap()
    };
    let packaged = template(package.to_str().unwrap());
    assert_eq!(packaged.matches("kind: CustomResourceDefinition").count(), 2);
    assert_eq!(packaged, template("../charts/jetwright"));
}

#[tokio::test]
async fn kubernetes_takes_all_that_every_set_of_values_makes_where_pod_security_is_restricted() {
    let control_plane = control_plane().await;
    let folder = Folder::new("chart");
    let sets = fs::read_dir(path("../charts/jetwright/ci")).unwrap().map(|entry| entry.unwrap().path());
    let mut count = 0;
    for set in sets.map(|set| set.display().to_string()) {
        helm(None, &["lint", "--strict", "../charts/jetwright", "--values", &set]).unwrap();
        let manifests = folder.path().join("manifests.yaml");
        fs::write(&manifests, render(&["--values", &set]).unwrap()).unwrap();
        let file = manifests.display().to_string();
        control_plane
            .kubectl(["apply", "--dry-run=server", "--warnings-as-errors", "--filename", &file])
            .unwrap_or_else(|error| panic!("{set}: {error:#}"));
        count += 1;
    }
    assert!(count >= 4, "there are {count} sets of values");
}

#[test]
fn a_wrong_value_is_refused_with_its_name_and_what_to_do() {
    let bundled = "--set=nats.bundled.enabled=true";
    for (values, told) in [
        (&[][..], "nats.url: say where NATS is"),
        (&[bundled, "--set=replicaCount=two"], "/replicaCount': got string, want integer"),
        (&[bundled, "--set=replicas=2"], "additional properties 'replicas' not allowed"),
        (&[bundled, "--set=nats.bundled.replicas=2"], "/nats/bundled/replicas': value must be one of 1, 3"),
        (&[bundled, "--set=nats.bundled.storage.size=ten"], "/nats/bundled/storage/size"),
        (&[bundled, "--set=resyncInterval=soon"], "/resyncInterval"),
        (&[bundled, "--set=jetstreamResyncInterval=500ms"], "/jetstreamResyncInterval"),
        (&[bundled, "--set=statusStatsInterval=0s"], "/statusStatsInterval"),
        (&[bundled, "--set=verifyInstall.timeout=5m1s"], "verifyInstall.timeout: 5m1s is more than 5m"),
        (&[bundled, "--set=nats.url=nats://a:4222"], "nats.url: leave it empty, or"),
        (&[bundled, "--set=nats.credentialsSecret=a"], "nats.credentialsSecret: leave it empty"),
        (
            &[bundled, "--set=nats.bundled.memoryStore=2Gi"],
            "nats.bundled.memoryStore: 2Gi leaves the server nothing",
        ),
        (
            &[bundled, "--set=nats.bundled.users.operator.namespace=shop"],
            "nats.bundled.users.operator: the chart has",
        ),
        (&["--set=nats.url=nats://me:secret@a:4222"], "nats.url: no users and passwords in it"),
        (&["--set=nats.url=a:4222"], "write it as nats://host:4222"),
        (
            &[bundled, "--set=podLabels.app\\.kubernetes\\.io/component=mine"],
            "podLabels: the chart finds its pods by the label app.kubernetes.io/component",
        ),
        (
            &[bundled, "--set=commonLabels.app\\.kubernetes\\.io/name=mine"],
            "commonLabels: the chart finds its pods by the label app.kubernetes.io/name",
        ),
        (
            &["--set=nats.url=nats://a", "--set=nats.bundled.users.a.namespace=shop"],
            "nats.bundled.users: these are",
        ),
        (
            &[bundled, "--set=namespaces={shop}", "--set=defaultConnectionNamespaces={billing}"],
            "defaultConnectionNamespaces: billing is not looked after",
        ),
    ] {
        let refusal = render(values).unwrap_err();
        assert!(refusal.contains(told), "{values:?}: {refusal}");
    }
}

#[tokio::test]
async fn network_policies_let_in_who_has_to_talk_and_nobody_else() {
    let control_plane = control_plane().await;
    let user = ["--set=nats.bundled.users.pay.namespace=billing"];
    install(&control_plane, &[&user[..], &["--no-hooks"]].concat()).unwrap();
    let policies = control_plane.kubectl(["get", "networkpolicy", "--namespace", RELEASE, "--output=json"]);
    let policies: Value = serde_json::from_str(&policies.unwrap()).unwrap();
    let policy = |name: &str| {
        let all = policies["items"].as_array().unwrap();
        all.iter().find(|policy| policy["metadata"]["name"] == name).unwrap()["spec"].clone()
    };
    // By port: who is let in.
    let lets_in = |policy: &Value| -> Vec<(u64, Value)> {
        let rules = policy["ingress"].as_array().unwrap();
        rules.iter().map(|rule| (rule["ports"][0]["port"].as_u64().unwrap(), rule["from"].clone())).collect()
    };
    let pods = |name: &str, component: &str| {
        json!({"podSelector": {"matchLabels": {
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/name": name,
        }}})
    };
    let servers = pods("nats", "nats");
    let operator = policy("jetwright-operator");
    assert_eq!(lets_in(&operator), [(8080, json!([{"podSelector": {}}]))]);
    assert_eq!(operator["policyTypes"], json!(["Ingress", "Egress"]));
    let to_nats = json!({"ports": [{"port": 4222, "protocol": "TCP"}], "to": [servers]});
    assert!(operator["egress"].as_array().unwrap().contains(&to_nats), "{operator}");
    let nats = policy("jetwright-nats");
    let namespaces = json!([{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["billing"]}]);
    let clients =
        json!([pods("jetwright", "operator"), {"namespaceSelector": {"matchExpressions": namespaces}}]);
    let expected = [(4222, clients), (6222, json!([servers])), (8222, json!([{"podSelector": {}}]))];
    assert_eq!(lets_in(&nats), expected);
}

#[test]
fn the_operator_may_not_read_secrets_nor_anything_elsewhere_when_it_is_given_namespaces() {
    let all = render(&VALUES).unwrap();
    let roles = |manifests: &str| -> Vec<String> {
        let roles = manifests.split("\n---").filter(|object| object.contains("\nrules:"));
        roles.map(ToOwned::to_owned).collect()
    };
    assert!(roles(&all).iter().all(|role| !role.contains("secrets")), "{all}");
    let some = render(&["--values", "../charts/jetwright/ci/namespaced-values.yaml"]).unwrap();
    let cluster_wide: Vec<_> =
        roles(&some).into_iter().filter(|role| role.contains("kind: ClusterRole\n")).collect();
    assert_eq!(cluster_wide, [""; 0]);
}

#[test]
fn the_operators_rights_to_pods_are_the_documented_ones_and_without_patch_where_that_is_switched_off() {
    let verbs = |values: &[&str]| -> Vec<String> {
        let manifests = render(&[&VALUES, values].concat()).unwrap();
        let rule = manifests.split("resources: [pods]\n").nth(1).unwrap();
        let verbs = rule.split(['[', ']']).nth(1).unwrap();
        verbs.split(", ").map(ToOwned::to_owned).collect()
    };
    let document = fs::read_to_string(path("../docs/operator.md")).unwrap();
    let row = document.lines().find(|line| line.starts_with("| | `pods` | ")).unwrap();
    let documented: Vec<_> = row.split('|').nth(3).unwrap().trim().split(", ").collect();
    assert_eq!(verbs(&[]), documented);
    assert_eq!(verbs(&["--set=autoscaling.enabled=false"]), ["list", "watch"]);
}

#[test]
fn a_cluster_that_is_named_later_may_still_read_the_uid_that_was_its_name() {
    let reads_uid = |values: &[&str]| render(&[&VALUES, values].concat()).unwrap().contains("[kube-system]");
    assert!(reads_uid(&[]) && reads_uid(&["--set=clusterName=east"]));
    assert!(reads_uid(&["--set=namespaces={shop}"]));
}

#[tokio::test]
async fn an_upgrade_keeps_passwords_and_what_did_not_change() {
    let control_plane = control_plane().await;
    let state = || {
        let mut get = vec!["get", "secrets,statefulsets,deployments,crds", "--all-namespaces", "--selector"];
        get.extend(["app.kubernetes.io/managed-by=Helm", "--output"]);
        get.push("jsonpath={range .items[*]}{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}");
        control_plane.kubectl(get).unwrap()
    };
    let notes = install(&control_plane, &[]).unwrap();
    let uid = ["get", "namespace", "kube-system", "--output=jsonpath={.metadata.uid}"];
    let uid = control_plane.kubectl(uid).unwrap();
    assert!(
        notes.contains(&format!("name in NATS: {uid}\n")) && notes.contains("set the value clusterName"),
        "{notes}"
    );
    let before = state();
    assert!(before.contains("jetwright-nats-operator"), "{before}");
    install(&control_plane, &[]).unwrap();
    assert_eq!(state(), before);

    let password = || {
        let get = ["get", "secret", "nats-users", "--namespace=shop", "--output=jsonpath={.data.password}"];
        control_plane.kubectl(get).unwrap()
    };
    let users = ["--values", "../charts/shop/nats-users.yaml"];
    install(&control_plane, &users).unwrap();
    let first = password();
    helm(Some(&control_plane), &["uninstall", RELEASE, "--namespace", RELEASE, "--no-hooks"]).unwrap();
    install(&control_plane, &users).unwrap();
    assert_eq!(password(), first, "also over an uninstallation");

    let named =
        install(&control_plane, &["--set=clusterName=east", "--set=formerClusterNames={west}"]).unwrap();
    assert!(named.contains("name in NATS: east (formerly west)"), "{named}");
    let refusal = install(&control_plane, &["--set=nats.bundled.replicas=3"]).unwrap_err();
    assert!(refusal.contains("nats.bundled.replicas: the release has 1, which cannot become 3"), "{refusal}");
    let refusal = install(&control_plane, &["--set=nats.bundled.users.a.namespace=nowhere"]).unwrap_err();
    assert!(refusal.contains("kubectl create namespace nowhere"), "{refusal}");
}

#[tokio::test]
async fn an_upgrade_of_the_shop_does_not_undo_what_kubectl_scaled_unless_it_is_told_to() {
    let control_plane = control_plane().await;
    install(&control_plane, &[]).unwrap();
    let upgrade = |more: &[&str]| {
        let base = ["upgrade", "--install", "shop", "../charts/shop", "--namespace", "shop"];
        helm(Some(&control_plane), &[&base, more].concat())
    };
    let replicas = || {
        let get = ["get", "eventconsumer", "order-fulfilment", "--namespace=shop"];
        control_plane.kubectl([&get[..], &["--output=jsonpath={.spec.workload.replicas}"]].concat()).unwrap()
    };
    upgrade(&["--set=orders.autoscaling.mode=Observe"]).unwrap();
    let scale = ["scale", "eventconsumer", "order-fulfilment", "--namespace=shop", "--replicas=3"];
    control_plane.kubectl(scale).unwrap();
    let refusal = upgrade(&[]).unwrap_err();
    assert!(refusal.contains(".spec.workload.replicas"), "{refusal}");
    assert_eq!(replicas(), "3");
    upgrade(&["--set=orders.replicas=3"]).unwrap();
    assert_eq!(replicas(), "3");
    upgrade(&["--set=orders.replicas=2", "--force-conflicts"]).unwrap();
    assert_eq!(replicas(), "2");
}

#[tokio::test]
async fn the_definitions_move_from_kubectl_to_helm_and_back_and_are_upgraded_by_each() {
    let control_plane = control_plane().await;
    let folder = Folder::new("definitions");
    let newer = newer_definitions(&folder).display().to_string();
    control_plane.kubectl(["apply", "--filename", &path("../crds/manifests")]).unwrap();
    control_plane.kubectl(["apply", "--filename", &newer]).unwrap();
    let uid = uid_of_a_definition(&control_plane);

    let refusal = install(&control_plane, &[]).unwrap_err();
    assert!(refusal.contains("invalid ownership metadata"), "{refusal}");
    install(&control_plane, &TAKE_OVER).unwrap();
    assert!(!is_newer(&control_plane));

    install(&control_plane, &["--set=crds.install=false"]).unwrap();
    control_plane.kubectl(["apply", "--filename", &newer]).unwrap();
    assert!(is_newer(&control_plane));

    install(&control_plane, &TAKE_OVER).unwrap();
    assert!(!is_newer(&control_plane));
    install(&control_plane, &[]).unwrap();
    helm(Some(&control_plane), &["uninstall", RELEASE, "--namespace", RELEASE, "--no-hooks"]).unwrap();
    assert_eq!(uid_of_a_definition(&control_plane), uid, "never deleted");
}

#[test]
fn the_values_of_the_first_steps_have_a_nats_user_for_the_reader_and_serve_both_namespaces() {
    let page = fs::read_to_string(path("../docs/getting-started.md")).unwrap();
    let block = page.split("```yaml\n").find(|block| block.starts_with("nats:")).unwrap();
    let folder = Folder::new("first-steps");
    let file = folder.path().join("my-values.yaml");
    fs::write(&file, block.split("```").next().unwrap()).unwrap();
    let own = ["--values", file.to_str().unwrap()];
    let made = render(&[&["--values", "../charts/shop/nats-users.yaml"], &own[..]].concat()).unwrap();
    assert!(made.contains("--default-connection-namespaces=greenhouse,shop\n"), "{made}");
    for secret in ["name: nats-explorer\n  namespace: greenhouse\n", "name: nats-orders\n  namespace: shop\n"]
    {
        assert!(made.contains(secret), "nothing of {secret:?} in\n{made}");
    }
}
