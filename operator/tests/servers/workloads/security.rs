//! Who gets pods, and which.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, await_until};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{SPEC, await_bound, await_deployment, run_pods, with_orders};
use crate::world::{SOON, World, arguments, conditions, operator};

/// Long enough for what should not happen.
const A_WHILE: Duration = Duration::from_secs(2);

async fn count<K>(world: &World) -> usize
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api: Api<K> = world.namespace.api();
    api.list(&ListParams::default()).await.unwrap().items.len()
}

/// Objects of workloads that there are.
async fn owned(world: &World) -> usize {
    count::<Deployment>(world).await
        + count::<ConfigMap>(world).await
        + count::<Service>(world).await
        + count::<ServiceAccount>(world).await
        + count::<PodDisruptionBudget>(world).await
}

async fn deployment(world: &World) -> Deployment {
    let api: Api<Deployment> = world.namespace.api();
    api.get("fulfilment").await.unwrap()
}

fn image(deployment: &Deployment) -> Option<&str> {
    deployment.spec.as_ref()?.template.spec.as_ref()?.containers[0].image.as_deref()
}

/// Replaces the operator by one with other flags.
async fn restart(world: &mut World, flags: &[&str]) {
    world.operator.signal("TERM");
    world.operator.wait_exit(Duration::from_secs(30)).await;
    let mut arguments = arguments(world.nats.url(), world.namespace.name(), world.admin);
    arguments.extend(flags.iter().map(ToString::to_string));
    world.operator = operator(world.namespace.control_plane(), &arguments);
}

async fn scale(world: &World, replicas: i32) {
    let scale = json!({"spec": {"replicas": replicas}});
    world.consumers().patch_scale("fulfilment", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    await_deployment(world, "its replicas", |deployment| {
        deployment.spec.as_ref().unwrap().replicas == Some(replicas)
    })
    .await;
}

/// Pods that run keep running as they are, while a change of the declaration waits; they can be scaled.
async fn assert_held(world: &World, changed: &str, reason: &str) -> String {
    let before = deployment(world).await;
    world.consumer("fulfilment", changed).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", reason).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(deployment(world).await.metadata.resource_version, before.metadata.resource_version);
    scale(world, 5).await;
    let scaled = deployment(world).await;
    assert_eq!(scaled.spec.unwrap().template, before.spec.unwrap().template);
    let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
    assert_eq!(status.selector.as_deref(), Some("jetwright.dev/workload=fulfilment"));
    message
}

#[tokio::test]
async fn there_are_no_pods_where_no_connection_serves_the_namespace_and_what_runs_goes_on() {
    let unserved = "--default-connection-namespaces=";
    let mut world = World::with(NatsServer::start().await, &[unserved]).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "NoConnection").await;
    assert!(message.contains("--default-connection-namespaces"), "{message}");
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(owned(&world).await, 0);

    restart(&mut world, &[]).await;
    await_deployment(&world, "the deployment once it is served", |_| true).await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    restart(&mut world, &[unserved]).await;
    assert_held(&world, &SPEC.replace("order:1", "order:2"), "NoConnection").await;
    restart(&mut world, &[]).await;
    let applied = await_deployment(&world, "the change once it is served again", |deployment| {
        image(deployment) == Some("shop/order:2")
    })
    .await;
    assert_eq!(applied.spec.unwrap().replicas, Some(5));
    await_deployment(&world, "no trace of the scaling", |deployment| {
        let managers = deployment.metadata.managed_fields.iter().flatten();
        managers.filter(|entry| entry.manager.as_deref() == Some("jetwright")).count() == 1
    })
    .await;
}

#[tokio::test]
async fn there_are_no_first_pods_for_streams_that_do_not_exist_and_existing_ones_stay() {
    let world = World::start().await;
    world.consumer("fulfilment", SPEC).await;
    world.consumer("mails", "{streamRef: {name: nowhere}, workloadRef: {name: fulfilment}}").await;
    let message = world
        .await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "StreamNotReady")
        .await;
    assert!(message.contains("EventStream orders"), "{message}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(owned(&world).await, 0);

    world.stream("orders", "subjects: [orders.*.*]").await;
    await_bound(&world, &["fulfilment"]).await;
    await_deployment(&world, "the deployment", |_| true).await;
    run_pods(&world).await;
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "True", "Reconciled").await;
    let before = deployment(&world).await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "StreamNotReady").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(deployment(&world).await.metadata.generation, before.metadata.generation);
    await_bound(&world, &["fulfilment"]).await;
    scale(&world, 3).await;
}

#[tokio::test]
async fn a_template_beyond_the_permitted_pod_security_changes_nothing_and_says_everything_that_is_wrong() {
    let world = with_orders().await;
    let root = "{hostNetwork: true, volumes: [{name: host, hostPath: {path: /}}], containers: [{name: app, image: 'x:1',
        securityContext: {privileged: true}}]}";
    let spec =
        format!("{{streamRef: {{name: orders}}, workload: {{replicas: 2, template: {{spec: {root}}}}}}}");
    world.consumer("fulfilment", &spec).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "PodSecurity").await;
    for wrong in [
        "spec.hostNetwork must not be true",
        "spec.volumes[host] must not be a hostPath",
        "spec.containers[app].securityContext.privileged must not be true",
        "spec.containers[app].securityContext.allowPrivilegeEscalation must be false",
        "workloads.podSecurity",
    ] {
        assert!(message.contains(wrong), "{message}");
    }
    world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "PodSecurity").await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(owned(&world).await, 0);

    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    run_pods(&world).await;
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "True", "Reconciled").await;
    assert_held(&world, &SPEC.replace("{containers:", "{hostPID: true, containers:"), "PodSecurity").await;
}

/// A pod that level "restricted" takes, with nothing left for the operator to add.
fn hardened() -> Value {
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let container = |name: &str| json!({"name": name, "image": "x:1", "securityContext": context});
    json!({
        "metadata": {"annotations": {}},
        "spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": [container("init")],
            "containers": [container("app"), container("helper")],
            "volumes": [],
        },
    })
}

/// The pod with a value set, or taken out where it is null, at each path.
fn changed(changes: &Value) -> Value {
    let mut pod = hardened();
    for (path, value) in changes.as_object().unwrap() {
        let mut place = &mut pod;
        for step in path.trim_start_matches('/').split('/') {
            place = match step.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[step.replace('~', "/")],
            };
        }
        *place = value.clone();
    }
    pod
}

/// One change each, of the pod above; `~` stands for a slash in a key.
fn cases() -> Vec<Value> {
    let mut cases: Vec<Value> = serde_saphyr::from_str(include_str!("pod_security_cases.yaml")).unwrap();
    cases.push(json!({}));
    cases
}

/// Whether Kubernetes' own admission takes the pod, in a namespace where it enforces a level.
async fn is_admitted(world: &World, namespace: &str, template: &Value) -> bool {
    let resource = kube::core::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(world.namespace.client(), namespace, &resource);
    let mut pod = template.clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("case");
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match api.create(&dry_run, &serde_json::from_value(pod).unwrap()).await {
        Ok(_) => true,
        Err(kube::Error::Api(status)) if status.message.contains("violates PodSecurity") => false,
        Err(error) => panic!("{template}: {error}"),
    }
}

async fn assert_like_admission(level: &str) {
    let flag = format!("--workload-pod-security={level}");
    let world = World::with(NatsServer::start().await, &[&flag]).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    let labelled = world.namespace.control_plane().namespace("pod-security").await;
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let namespaces: Api<Namespace> = Api::all(world.namespace.client());
    namespaces.patch(labelled.name(), &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    await_until("the level is enforced", SOON, || async {
        let root = json!({"/spec/hostNetwork": true});
        if is_admitted(&world, labelled.name(), &changed(&root)).await { Err("it is not") } else { Ok(()) }
    })
    .await;
    let cases = cases();
    for (number, case) in cases.iter().enumerate() {
        let spec = json!({
            "streamRef": {"name": "orders"}, "deadLetter": {"policy": "Drop"},
            "workload": {"replicas": 0, "template": changed(case)},
        });
        world.consumer(&format!("case-{number}"), &spec.to_string()).await;
    }
    let mut refused = 0;
    for (number, case) in cases.iter().enumerate() {
        let name = format!("case-{number}");
        let found = await_until(&format!("{name} is judged"), SOON, || async {
            let object = world.consumers().get(&name).await.map_err(|error| error.to_string())?;
            let found = conditions(&object).into_iter().find(|condition| condition.type_ == "WorkloadReady");
            found.filter(|found| found.reason != "StreamNotReady").ok_or_else(|| format!("{object:?}"))
        })
        .await;
        let is_admitted = is_admitted(&world, labelled.name(), &changed(case)).await;
        assert_eq!(found.reason != "PodSecurity", is_admitted, "{level}: {case}: {found:?}");
        assert!(found.reason == "PodSecurity" || found.reason != "Refused", "{case}: {found:?}");
        refused += usize::from(!is_admitted);
    }
    assert!(refused > 25, "{refused}");
}

#[tokio::test]
async fn every_verdict_on_a_template_at_level_restricted_is_that_of_kubernetes() {
    assert_like_admission("restricted").await;
}

#[tokio::test]
async fn every_verdict_on_a_template_at_level_baseline_is_that_of_kubernetes() {
    assert_like_admission("baseline").await;
}

#[tokio::test]
async fn what_the_administrator_permits_is_made() {
    let world = World::with(NatsServer::start().await, &["--workload-pod-security=privileged"]).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &SPEC.replace("{containers:", "{hostPID: true, containers:")).await;
    await_deployment(&world, "the deployment", |_| true).await;
}
