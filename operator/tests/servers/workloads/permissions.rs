//! An operator that may do no more than the documentation says.

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{Process, await_until, binary, free_port};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
    rbac::v1::Role,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{
    SPEC, await_deployment,
    pods::{POD, await_reason, make_pod, roll_out, tell_of_missing_secret},
    run_pods,
};
use crate::{
    verify::with_rights,
    world::{SOON, World, arguments},
};

/// The table of docs/operator.md, as rules of a Role.
pub fn documented() -> Value {
    let document = include_str!("../../../../docs/operator.md");
    let section = document.split("\n## Permissions\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let words = |cell: &str| -> Vec<String> {
        let words = cell.split(',').map(|word| word.trim().trim_matches('`').to_owned());
        words.collect()
    };
    let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains("` |"));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        json!({"apiGroups": words(cells[0]), "resources": words(cells[1]), "verbs": words(cells[2])})
    })
    .collect()
}

#[tokio::test]
async fn an_operator_with_the_documented_rights_and_no_others_does_all_of_it() {
    let world = World::start().await;
    world.operator.kill();
    let kubeconfig = with_rights(&world, documented()).await;
    let operator = Process::builder(binary("jetwright-operator"))
        .env("KUBECONFIG", kubeconfig)
        .args(arguments(world.nats.url(), world.namespace.name(), free_port()))
        .start();
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    roll_out(&world, json!([])).await;
    make_pod(&world, POD, "5d4").await;
    tell_of_missing_secret(&world).await;
    await_reason(&world, "VolumeMount").await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<Deployment>("fulfilment").await;
    world.await_gone::<Service>("fulfilment").await;
    world.await_gone::<ServiceAccount>("fulfilment").await;
    world.await_gone::<PodDisruptionBudget>("fulfilment").await;
    world.await_gone::<ConfigMap>("fulfilment-bindings").await;
    let pods: Api<Pod> = world.namespace.api();
    pods.delete(POD, &DeleteParams::default().grace_period(0)).await.unwrap();
    world.await_gone::<EventConsumer>("fulfilment").await;
    // What it may not do would be retried behind the scenes.
    let log = operator.log();
    // The uid of kube-system is asked for wherever it may be read.
    let refused: Vec<_> =
        log.lines().filter(|line| line.contains("forbidden") && !line.contains("kube-system")).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test]
async fn nothing_is_reconciled_before_every_watch_has_brought_what_there_is_and_a_metric_says_so() {
    let world = World::start().await;
    world.operator.kill();
    let rules = documented();
    let is_of_pods = |rule: &&Value| rule["resources"].as_array().unwrap().contains(&json!("pods"));
    let blind = rules.as_array().unwrap().iter().filter(|rule| !is_of_pods(rule)).cloned().collect();
    let kubeconfig = with_rights(&world, blind).await;
    let operator = Process::builder(binary("jetwright-operator"))
        .env("KUBECONFIG", kubeconfig)
        .args(arguments(world.nats.url(), world.namespace.name(), world.admin))
        .start();
    world.stream("orders", "subjects: [orders.*.*]").await;
    operator.await_log("a watch failed; it is started again", SOON).await;
    let ready = format!("jetwright_operator_scope_ready{{scope=\"{}\"}}", world.namespace.name());
    await_until("the scope is not ready", SOON, || async {
        let found = world.metric(&ready).await;
        if found == Some(0.0) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(world.streams().get("orders").await.unwrap().status, None);

    let all = Patch::Merge(json!({"rules": documented()}));
    let api: Api<Role> = world.namespace.api();
    api.patch("verify", &PatchParams::default(), &all).await.unwrap();
    world.await_ready::<EventStream>("orders").await;
    await_until("the scope is ready", SOON, || async {
        let found = world.metric(&ready).await;
        if found == Some(1.0) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
