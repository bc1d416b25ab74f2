//! The commands that check an installation, as the chart's hooks run them.

use std::{path::Path, time::Duration};

use futures::StreamExt;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{ControlPlane, NatsServer, Process, await_until, binary};
use k8s_openapi::{
    api::{
        authentication::v1::TokenRequest,
        core::v1::ServiceAccount,
        rbac::v1::{Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{SOON, World, control_plane};

/// A check that fails, with what it waits for before and after.
const LONG: Duration = Duration::from_secs(50);

/// Starts a command with this kubeconfig.
fn start(kubeconfig: &Path, arguments: &[&str]) -> Process {
    Process::builder(binary("jetwright-operator")).env("KUBECONFIG", kubeconfig).args(arguments).start()
}

/// Runs a command to its end: its exit code, and what it printed.
async fn run(kubeconfig: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let process = start(kubeconfig, arguments);
    let code = process.wait_exit(LONG).await.code();
    (code, process.log())
}

async fn verify_install(world: &World, timeout: &str) -> (Option<i32>, String) {
    let kubeconfig = world.namespace.control_plane().kubeconfig();
    run(kubeconfig, &["verify-install", "--namespace", world.namespace.name(), "--timeout", timeout]).await
}

async fn verify_uninstall(world: &World) -> (Option<i32>, String) {
    let kubeconfig = world.namespace.control_plane().kubeconfig();
    run(kubeconfig, &["verify-uninstall", "--namespaces", world.namespace.name()]).await
}

/// Fails if a check has left an object or a stream.
async fn assert_nothing_left(world: &World) {
    let left = world.streams().list(&ListParams::default()).await.unwrap().items;
    assert!(left.is_empty(), "{left:?}");
    let streams: Vec<_> = world.jetstream.stream_names().collect().await;
    assert!(streams.is_empty(), "{streams:?}");
}

/// A kubeconfig of a service account that has these rights in a namespace and no others.
pub async fn with_rights(world: &World, rules: Value) -> std::path::PathBuf {
    let namespace = world.namespace.name();
    let name = json!({"name": "verify", "namespace": namespace});
    let role = json!({"metadata": name, "rules": rules});
    let binding = json!({
        "metadata": name,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "verify"},
        "subjects": [{"kind": "ServiceAccount", "name": "verify", "namespace": namespace}],
    });
    let accounts: Api<ServiceAccount> = world.namespace.api();
    let post = PostParams::default();
    accounts.create(&post, &serde_json::from_value(json!({"metadata": name})).unwrap()).await.unwrap();
    let role: Role = serde_json::from_value(role).unwrap();
    world.namespace.api().create(&post, &role).await.unwrap();
    let binding: RoleBinding = serde_json::from_value(binding).unwrap();
    world.namespace.api().create(&post, &binding).await.unwrap();
    let request: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": []}})).unwrap();
    let token = accounts.create_token_request("verify", &post, &request).await.unwrap().status.unwrap().token;

    let admin = std::fs::read_to_string(world.namespace.control_plane().kubeconfig()).unwrap();
    let mut kubeconfig: Value = serde_json::from_str(&admin).unwrap();
    kubeconfig["users"][0]["user"] = json!({"token": token});
    kubeconfig["contexts"][0]["context"]["namespace"] = json!(namespace);
    let path = world.operator.folder().join("verify-kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    await_until("the rights are known", SOON, || async {
        let reviewer = client_of(&path).await;
        let streams: Api<EventStream> = Api::namespaced(reviewer, namespace);
        streams.list(&ListParams::default()).await.map(drop)
    })
    .await;
    path
}

async fn client_of(kubeconfig: &Path) -> Client {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap()
}

#[tokio::test]
async fn an_installation_that_works_passes_with_the_documented_rights_and_nothing_is_left() {
    let world = World::start().await;
    let rules = json!([
        {"apiGroups": ["jetwright.dev"], "resources": ["eventstreams"], "verbs": ["get", "list", "create", "delete", "patch"]},
        {"apiGroups": ["jetwright.dev"], "resources": ["eventconsumers"], "verbs": ["list"]},
    ]);
    let kubeconfig = with_rights(&world, rules).await;
    let (code, said) = run(&kubeconfig, &["verify-install", "--timeout=30s"]).await;
    assert_eq!(code, Some(0), "{said}");
    let steps: Vec<_> = said.lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(steps, ["definitions", "made", "ready", "gone", "the installation works"], "{said}");
    assert!(said.contains("with every field that this version knows"), "{said}");
    assert!(said.contains("with what belongs to it"), "{said}");
    assert_nothing_left(&world).await;
    // Those rights suffice for the other check too, and for no other namespace.
    let here = format!("--namespaces={}", world.namespace.name());
    assert_eq!(run(&kubeconfig, &["verify-uninstall", &here]).await.0, Some(0));
    let (code, said) = run(&kubeconfig, &["verify-uninstall"]).await;
    assert_eq!(code, Some(1));
    assert!(
        said.contains("EventConsumers cannot be listed (all namespaces)") && said.contains("forbidden"),
        "{said}"
    );
}

#[tokio::test]
async fn with_nats_away_it_says_so_and_nothing_is_left() {
    let nats = NatsServer::start().await;
    let world = World::with(nats, &[]).await;
    world.nats.stop().await;
    let (code, said) = verify_install(&world, "15s").await;
    assert_eq!(code, Some(1), "{said}");
    for words in [
        "was not ready in time (Disconnected: ",
        world.nats.url(),
        "nats.credentialsSecret",
        "without the operator",
    ] {
        assert!(said.contains(words), "{words} is not in:\n{said}");
    }
    world.nats.start_again().await;
    assert_nothing_left(&world).await;
}

#[tokio::test]
async fn with_no_operator_it_says_so_and_nothing_is_left() {
    let world = World::start().await;
    world.operator.kill();
    let (code, said) = verify_install(&world, "1s").await;
    assert_eq!(code, Some(1), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("FAILED: ") && last.contains("no operator has looked at it"), "{said}");
    assert!(last.contains(&format!("looks after namespace {}", world.namespace.name())), "{said}");
    assert_nothing_left(&world).await;
}

#[tokio::test]
async fn in_a_namespace_that_no_connection_serves_it_names_the_charts_value_and_nothing_is_left() {
    let world = World::with(NatsServer::start().await, &["--default-connection-namespaces=elsewhere"]).await;
    let (code, said) = verify_install(&world, "3s").await;
    assert_eq!(code, Some(1), "{said}");
    let advice = format!("add {} to the chart's value defaultConnectionNamespaces", world.namespace.name());
    assert!(said.contains("(NoConnection: ") && said.contains(&advice), "{said}");
    assert_nothing_left(&world).await;
}

#[tokio::test]
async fn asked_to_end_it_leaves_nothing() {
    let world = World::with(NatsServer::start().await, &["--default-connection-namespaces=elsewhere"]).await;
    for signal in ["TERM", "INT"] {
        let kubeconfig = world.namespace.control_plane().kubeconfig();
        let check = start(kubeconfig, &["verify-install", "--namespace", world.namespace.name()]);
        // By then the operator has its finalizer on the object.
        check.await_log("waiting: ", SOON).await;
        let made = world.streams().list(&ListParams::default().labels("jetwright.dev/verify")).await.unwrap();
        assert_eq!(made.items.len(), 1);
        check.signal(signal);
        assert_eq!(check.wait_exit(Duration::from_secs(25)).await.code(), Some(1), "{}", check.log());
        assert!(check.log().ends_with("FAILED: interrupted\n"), "{}", check.log());
        assert_nothing_left(&world).await;
    }
}

#[tokio::test]
async fn what_another_run_may_still_be_at_is_known_by_its_label_and_left_alone() {
    let world = World::start().await;
    world.operator.kill();
    let kubeconfig = world.namespace.control_plane().kubeconfig();
    let other = start(kubeconfig, &["verify-install", "--namespace", world.namespace.name()]);
    other.await_log("made: ", SOON).await;
    other.kill();
    let labelled = ListParams::default().labels("jetwright.dev/verify");
    let made = world.streams().list(&labelled).await.unwrap().items;
    let _operator = world.another_operator(&[]);
    let (code, said) = verify_install(&world, "30s").await;
    assert_eq!(code, Some(0), "{said}");
    let left = world.streams().list(&labelled).await.unwrap().items;
    let names = |objects: Vec<EventStream>| {
        objects.into_iter().map(|object| object.metadata.name).collect::<Vec<_>>()
    };
    assert_eq!((left.len(), names(left)), (1, names(made)));
}

#[tokio::test]
async fn definitions_that_are_missing_or_older_are_told_with_what_upgrades_them() {
    let own = ControlPlane::start().await;
    let (code, said) = run(own.kubeconfig(), &["verify-install"]).await;
    assert_eq!(code, Some(1), "{said}");
    let missing = "FAILED: there is no definition of EventStream in jetwright.dev/v1alpha1: ";
    assert!(said.starts_with(missing) && said.contains("crds.install=true"), "{said}");
    let (code, said) = run(own.kubeconfig(), &["verify-uninstall"]).await;
    assert_eq!((code, said.contains("the operator can go")), (Some(0), true), "{said}");

    own.apply(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/manifests")).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(own.client().await);
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/limits";
    let without = serde_json::from_value(json!([{"op": "remove", "path": field}])).unwrap();
    let patch = Patch::<()>::Json(without);
    definitions.patch("eventstreams.jetwright.dev", &PatchParams::default(), &patch).await.unwrap();
    // The schema is published some moments later.
    await_until("the older definition is told", LONG, || async {
        let (code, said) = run(own.kubeconfig(), &["verify-install", "--timeout=1s"]).await;
        let older = said.contains("older than this program")
            && said.contains("they lack EventStream.spec.limits; upgrade");
        if code == Some(1) && older { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn objects_that_need_the_operator_hold_its_removal_up_until_a_line_that_is_printed_lets_them_go() {
    let world = World::start().await;
    world.stream("free", "subjects: [free]").await;
    world.stream("orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    world.consumer("mails", "streamRef: {name: orders}").await;
    world.await_ready::<EventStream>("free").await;
    world.await_ready::<EventConsumer>("mails").await;
    let namespace = world.namespace.name();
    let (code, said) = verify_uninstall(&world).await;
    assert_eq!(code, Some(1), "{said}");
    for words in [format!("EventConsumer {namespace}/mails"), format!("EventStream {namespace}/orders")] {
        assert!(said.contains(&words), "{words} is not in:\n{said}");
    }
    assert!(!said.contains("free"), "{said}");

    // The second way: the operator runs, and what is in JetStream stays.
    follow(&world, line(&said, r#""Retain""#));
    await_until("nothing needs the operator", SOON, || async {
        let (code, said) = verify_uninstall(&world).await;
        if code == Some(0) { Ok(()) } else { Err(said) }
    })
    .await;
    world.jetstream.get_stream("orders").await.unwrap();

    // The third way: there is no operator any more.
    world.stream("invoices", "{subjects: [invoices.*], deletionPolicy: Delete}").await;
    await_until("the operator has put its finalizer there", SOON, || async {
        let (code, said) = verify_uninstall(&world).await;
        if code == Some(1) { Ok(()) } else { Err(said) }
    })
    .await;
    world.operator.kill();
    let (_, said) = verify_uninstall(&world).await;
    follow(&world, line(&said, r#""finalizers":null"#));
    assert_eq!(verify_uninstall(&world).await.0, Some(0));

    // The first way: they go, with their streams.
    world.stream("payments", "{subjects: [payments.*], deletionPolicy: Delete}").await;
    let _next = world.another_operator(&[]);
    world.await_ready::<EventStream>("payments").await;
    let (_, said) = verify_uninstall(&world).await;
    follow(&world, line(&said, " delete "));
    assert_eq!(world.streams().get_opt("payments").await.unwrap(), None);
    assert!(world.jetstream.get_stream("payments").await.is_err());
}

/// The line to be typed that contains this.
fn line<'a>(said: &'a str, part: &str) -> &'a str {
    said.lines().find(|line| line.contains("  kubectl ") && line.contains(part)).unwrap()
}

/// Types a line for a shell.
fn follow(world: &World, line: &str) {
    let words = line.trim().strip_prefix("kubectl ").unwrap().replace('\'', "");
    world.namespace.control_plane().kubectl(words.split(' ')).unwrap();
}

#[tokio::test]
async fn the_commands_are_in_the_help_and_need_no_flags_of_the_operator() {
    let kubeconfig = control_plane().await.kubeconfig();
    let (code, said) = run(kubeconfig, &["--help"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("verify-install") && said.contains("verify-uninstall") && said.contains("--nats-url"),
        "{said}"
    );
    let (code, said) = run(kubeconfig, &["verify-install", "--timeout=1h"]).await;
    assert_eq!((code, said.contains("5m at most")), (Some(2), true), "{said}");
    let (code, said) = run(Path::new("/nowhere"), &["verify-uninstall"]).await;
    assert_eq!((code, said.contains("set KUBECONFIG")), (Some(1), true), "{said}");
}
