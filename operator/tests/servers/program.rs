//! The operator as a program: flags, endpoints, readiness, leadership, the end.

use std::time::Duration;

use jetwright_crds::EventStream;
use jetwright_testing::{ControlPlane, NatsServer, Process, await_until, binary, free_port};

use crate::world::{SOON, World, arguments, operator};

const MEBIBYTE: u64 = 1 << 20;

#[tokio::test]
async fn wrong_flags_end_it_at_once_with_what_is_wrong() {
    let wrong = Process::builder(binary("jetwright-operator"))
        .args(["--nats-url", "nats://127.0.0.1:1", "--resync-interval", "soon"])
        .start();
    assert_eq!(wrong.wait_exit(SOON).await.code(), Some(2));
    assert!(
        wrong.log().contains("--resync-interval") && wrong.log().contains("write a number with a unit"),
        "{}",
        wrong.log()
    );
    let none = Process::builder(binary("jetwright-operator")).start();
    assert_eq!(none.wait_exit(SOON).await.code(), Some(2));
    assert!(none.log().contains("--nats-url"), "{}", none.log());
    let help = Process::builder(binary("jetwright-operator")).arg("--help").start();
    assert_eq!(help.wait_exit(SOON).await.code(), Some(0));
    assert!(help.log().contains("--leader-elect=false"), "{}", help.log());
}

#[tokio::test]
async fn without_kubernetes_it_says_how_to_name_one() {
    let lost = Process::builder(binary("jetwright-operator"))
        .args(["--nats-url", "nats://127.0.0.1:1", "--admin-address=127.0.0.1:0"])
        .start();
    assert_eq!(lost.wait_exit(SOON).await.code(), Some(1));
    assert!(lost.log().contains("set KUBECONFIG"), "{}", lost.log());
}

#[tokio::test]
async fn it_is_not_ready_until_the_definitions_are_there_and_nats_was_reached() {
    let empty = ControlPlane::start().await;
    let nats = NatsServer::start().await;
    nats.stop().await;
    let admin = free_port();
    let _operator = operator(&empty, &arguments(nats.url(), "default", admin));
    let readyz = |wanted: &'static [&'static str]| {
        await_until("/readyz names what is missing", SOON, move || async move {
            let answer =
                reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await.map_err(|e| e.to_string())?;
            let (status, text) = (answer.status().as_u16(), answer.text().await.unwrap());
            let told = wanted.iter().all(|word| text.contains(word));
            if told && (status == 503) != wanted.is_empty() {
                Ok(())
            } else {
                Err(format!("{status} {text}"))
            }
        })
    };
    readyz(&["kubectl apply -f crds/manifests", "nats"]).await;
    empty.apply(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/manifests")).await;
    readyz(&["NATS was not reached yet"]).await;
    nats.start_again().await;
    readyz(&[]).await;
}

#[tokio::test]
async fn it_ends_gracefully_when_asked_and_says_what_it_does_meanwhile() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    // The reconcile that made it ready is counted after its status is written.
    let wanted = [
        "jetwright_operator_reconciles_total",
        "process_resident_memory_bytes",
        "jetwright_operator_nats_connected 1",
    ];
    await_until("the metrics", SOON, || async {
        let metrics = world.admin("/metrics").await.map(|(_, text)| text).unwrap_or_default();
        if wanted.iter().all(|metric| metrics.contains(metric)) { Ok(()) } else { Err(metrics) }
    })
    .await;
    world.operator.signal("TERM");
    assert_eq!(world.operator.wait_exit(SOON).await.code(), Some(0));
    let lines = world.operator.log();
    let json = lines
        .lines()
        .filter(|line| !line.is_empty())
        .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
    assert!(json, "not every line is JSON:\n{lines}");
}

#[tokio::test]
async fn a_reconcile_that_changes_nothing_asks_nats_nothing_and_writes_nothing() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let info = "jetwright_operator_jetstream_api_requests_total{verb=\"STREAM.INFO\",outcome=\"ok\"}";
    // The advisory of its own creation makes it look once more.
    await_until("it has come to rest", SOON, || async {
        let before = world.metric(info).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if world.metric(info).await == before { Ok(()) } else { Err("it still asks") }
    })
    .await;
    let asked = world.metric(info).await;
    let managers = world.streams().get("orders").await.unwrap().metadata.managed_fields.unwrap();
    let wrote =
        managers.into_iter().find(|manager| manager.manager.as_deref() == Some("jetwright")).unwrap().time;
    // Times are in whole seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let ok = "jetwright_operator_reconciles_total{controller=\"stream\",outcome=\"ok\"}";
    let reconciles = world.metric(ok).await.unwrap();
    // An edit that means nothing: the finalizers change, the declaration does not.
    for finalizers in [serde_json::json!(["other/one"]), serde_json::json!(null)] {
        let patch = serde_json::json!({"metadata": {"finalizers": finalizers}});
        let params = kube::api::PatchParams::default();
        world.streams().patch("orders", &params, &kube::api::Patch::Merge(patch)).await.unwrap();
    }
    await_until("it has looked", SOON, || async {
        let now = world.metric(ok).await.unwrap();
        if now > reconciles { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    assert_eq!(world.metric(info).await, asked);
    let written = |object: EventStream| {
        let managers = object.metadata.managed_fields.unwrap();
        managers.into_iter().find(|manager| manager.manager.as_deref() == Some("jetwright")).unwrap().time
    };
    assert_eq!(written(world.streams().get("orders").await.unwrap()), wrote);
}

#[tokio::test]
async fn of_two_operators_one_leads_and_the_other_takes_over() {
    let nats = NatsServer::start().await;
    let world = World::with(
        nats,
        &["--leader-elect=true", "--leader-elect-namespace=default", "--lease-name=takeover"],
    )
    .await;
    let election = ["--leader-elect=true", "--leader-elect-namespace=default", "--lease-name=takeover"];
    world.stream("first", "subjects: [first]").await;
    world.await_ready::<EventStream>("first").await;
    let standby = world.another_operator(&election);
    standby.await_log("waiting for leadership", SOON).await;
    world.operator.signal("TERM");
    assert_eq!(world.operator.wait_exit(SOON).await.code(), Some(0));
    standby.await_log("\"reconciling\"", SOON).await;
    world.stream("second", "subjects: [second]").await;
    world.await_ready::<EventStream>("second").await;
}

#[tokio::test]
async fn a_leader_that_is_killed_is_replaced_when_its_lease_has_stood_still_for_as_long_as_it_holds() {
    let election = ["--leader-elect=true", "--leader-elect-namespace=default", "--lease-name=killed"];
    let world = World::with(NatsServer::start().await, &election).await;
    world.stream("first", "subjects: [first]").await;
    world.await_ready::<EventStream>("first").await;
    let standby = world.another_operator(&election);
    standby.await_log("waiting for leadership", SOON).await;
    world.operator.signal("KILL");
    standby.await_log("\"reconciling\"", Duration::from_secs(25)).await;
    world.stream("second", "subjects: [second]").await;
    world.await_ready::<EventStream>("second").await;
}

#[tokio::test]
async fn a_namespace_that_its_connection_does_not_serve_says_which_flag_to_set() {
    let nats = NatsServer::start().await;
    let world = World::with(nats, &["--default-connection-namespaces=elsewhere"]).await;
    world.stream("orders", "subjects: [orders.*]").await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "NoConnection").await;
    assert!(message.contains("--default-connection-namespaces"), "{message}");
    assert!(world.jetstream.get_stream("orders").await.is_err());
}

#[tokio::test]
async fn idle_it_holds_little_memory() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let held = world.operator.memory_bytes();
    // Twice what the release build holds (docs/figures.md): this one is not optimized.
    assert!(held < 50 * MEBIBYTE, "{} MiB", held / MEBIBYTE);
}

#[tokio::test]
async fn a_leader_whose_lease_another_holds_ends_at_once() {
    let nats = NatsServer::start().await;
    let world = World::with(
        nats,
        &["--leader-elect=true", "--leader-elect-namespace=default", "--lease-name=stolen"],
    )
    .await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.await_ready::<EventStream>("orders").await;
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(world.namespace.client(), "default");
    let thief = serde_json::json!({"spec": {"holderIdentity": "thief"}});
    leases
        .patch("stolen", &kube::api::PatchParams::default(), &kube::api::Patch::Merge(thief))
        .await
        .unwrap();
    assert_eq!(world.operator.wait_exit(SOON).await.code(), Some(1));
    assert!(world.operator.log().contains("leadership was lost"), "{}", world.operator.log());
}

#[tokio::test]
async fn a_leader_that_kubernetes_does_not_answer_ends_before_another_may_act() {
    let own = ControlPlane::start().await;
    own.apply(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/manifests")).await;
    let nats = NatsServer::start().await;
    let mut arguments = arguments(nats.url(), "default", free_port());
    arguments.extend(["--leader-elect=true", "--leader-elect-namespace=default"].map(str::to_owned));
    let leader = operator(&own, &arguments);
    leader.await_log("\"reconciling\"", SOON).await;
    own.api_server().signal("STOP");
    assert_eq!(leader.wait_exit(Duration::from_secs(40)).await.code(), Some(1));
    own.api_server().signal("CONT");
}
