//! The pods of an EventConsumer, as far as an API server alone goes: nothing runs them here.

mod interruptions;
mod no_op;
pub mod permissions;
pub mod pods;
mod security;
mod templates;

use jetwright_crds::{EventConsumer, EventStream, environment::Bindings};
use jetwright_testing::await_until;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{Kind, SOON, World};

pub const SPEC: &str = "
    streamRef: {name: orders}
    filterSubjects: [orders.*.placed]
    workload:
      replicas: 2
      template: {spec: {containers: [{name: app, image: 'shop/order:1', env: [{name: COLOUR, value: red}]}]}}
      service: {ports: [{name: http, port: 8080}]}
";

async fn with_orders() -> World {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world
}

pub async fn await_deployment(world: &World, what: &str, wanted: impl Fn(&Deployment) -> bool) -> Deployment {
    let api: Api<Deployment> = world.namespace.api();
    await_until(what, SOON, || async {
        let found = api.get("fulfilment").await.map_err(|error| error.to_string())?;
        if wanted(&found) { Ok(found) } else { Err(serde_json::to_string(&found).unwrap()) }
    })
    .await
}

/// Waits until an object is there and as wanted.
async fn await_object<K>(world: &World, name: &str, wanted: impl Fn(&Value) -> bool)
where
    K: Kind,
{
    let api: Api<K> = world.namespace.api();
    await_until(&format!("{} {name} as declared", K::kind(&())), SOON, || async {
        let found = api.get(name).await.map_err(|error| error.to_string())?;
        let found = serde_json::to_value(&found).unwrap();
        if wanted(&found) { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

async fn bindings(world: &World) -> Result<Bindings, String> {
    let api: Api<ConfigMap> = world.namespace.api();
    let found = api.get("fulfilment-bindings").await.map_err(|error| error.to_string())?;
    serde_saphyr::from_str(&found.data.unwrap()["bindings.yaml"]).map_err(|error| error.to_string())
}

pub async fn await_bound(world: &World, names: &[&str]) {
    await_until(&format!("the pods consume {names:?}"), SOON, || async {
        let bindings = bindings(world).await?;
        let found: Vec<_> = bindings.bindings.keys().map(String::as_str).collect();
        if found == names { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// What a cluster's controllers would say of pods that run.
pub async fn run_pods(world: &World) {
    run_pods_of(world, "fulfilment").await;
}

/// The same of another workload with two pods.
pub async fn run_pods_of(world: &World, name: &str) {
    let api: Api<Deployment> = world.namespace.api();
    let generation = api.get(name).await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2,
    }});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

fn hash(deployment: &Deployment) -> String {
    let template = deployment.spec.clone().unwrap().template.metadata.unwrap();
    template.annotations.unwrap()["jetwright.dev/bindings-hash"].clone()
}

#[tokio::test]
async fn a_workload_becomes_a_deployment_a_bindings_file_and_what_stands_beside_them() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    let deployment = await_deployment(&world, "the deployment", |_| true).await;
    let spec = deployment.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let pod = spec.template.spec.unwrap();
    assert_eq!(pod.service_account_name.as_deref(), Some("fulfilment"));
    await_object::<ServiceAccount>(&world, "fulfilment", |account| {
        account["automountServiceAccountToken"] == false
    })
    .await;
    await_object::<PodDisruptionBudget>(&world, "fulfilment", |budget| budget["spec"]["maxUnavailable"] == 1)
        .await;
    let container = &pod.containers[0];
    let variables: Vec<_> = container.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
    assert_eq!(&variables[..4], ["COLOUR", "JETWRIGHT_BINDINGS", "JETWRIGHT_ADMIN_ADDRESS", "NATS_URL"]);
    let services: Api<Service> = world.namespace.api();
    let service = services.get("fulfilment").await.unwrap().spec.unwrap();
    assert_eq!(service.ports.unwrap()[0].port, 8080);
    assert_eq!(service.selector.unwrap(), spec.selector.match_labels.unwrap());
    let bindings = bindings(&world).await.unwrap();
    assert_eq!((bindings.bindings["fulfilment"].stream.as_str(), bindings.bindings.len()), ("orders", 1));

    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "RollingOut").await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
    let selector = "jetwright.dev/workload=fulfilment".to_owned();
    assert_eq!((status.replicas, status.selector), (Some(2), Some(selector)));
}

/// As Helm creates them: by kind, in the order of the alphabet.
#[tokio::test]
async fn consumers_that_are_created_a_moment_before_their_streams_roll_their_pods_out_once() {
    let world = World::start().await;
    world.consumer("fulfilment", SPEC).await;
    world.consumer("mails", "{streamRef: {name: users}, workloadRef: {name: fulfilment}}").await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.stream("users", "subjects: [users.*.*]").await;
    await_bound(&world, &["fulfilment", "mails"]).await;
    let deployment = await_deployment(&world, "the deployment", |_| true).await;
    assert_eq!(deployment.metadata.generation, Some(1));
}

/// Pods are not held back for a stream that never comes: they have other events to handle.
#[tokio::test]
async fn a_stream_that_does_not_come_holds_pods_back_for_a_moment_only() {
    let world = with_orders().await;
    world.consumer("mails", "{streamRef: {name: nowhere}, workloadRef: {name: fulfilment}}").await;
    world.consumer("fulfilment", SPEC).await;
    await_bound(&world, &["fulfilment"]).await;
}

#[tokio::test]
async fn pods_get_their_credentials_as_files_and_the_time_that_their_handlers_may_take() {
    let world = with_orders().await;
    let spec = "
        streamRef: {name: orders}
        handlerDeadline: 2m
        workload:
          template: {spec: {containers: [{name: app, image: 'shop/order:1'}]}}
          credentials: {secretRef: {name: shop-nats}}
    ";
    world.consumer("fulfilment", spec).await;
    let pod = await_deployment(&world, "the deployment", |_| true).await.spec.unwrap().template.spec.unwrap();
    assert_eq!(pod.termination_grace_period_seconds, Some(130));
    let secret = pod.volumes.unwrap().into_iter().find_map(|volume| volume.secret).unwrap();
    assert_eq!((secret.secret_name.as_deref(), secret.default_mode), (Some("shop-nats"), Some(0o444)));
    let container = &pod.containers[0];
    let folder = container.env.iter().flatten().find(|variable| variable.name == "NATS_CREDENTIALS").unwrap();
    let mounted = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        Some(&mount.mount_path) == folder.value.as_ref() && mount.read_only == Some(true)
    };
    assert!(container.volume_mounts.iter().flatten().any(mounted), "{container:?}");
    let deadline = bindings(&world).await.unwrap().bindings["fulfilment"].handler_deadline;
    assert_eq!(deadline.to_string(), "2m");
}

#[tokio::test]
async fn pods_that_the_template_gives_an_account_lose_their_own_once_they_are_rolled_out() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    world
        .consumer("fulfilment", &SPEC.replace("{containers:", "{serviceAccountName: shop, containers:"))
        .await;
    await_deployment(&world, "the account", |deployment| {
        let pod = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        pod.service_account_name.as_deref() == Some("shop")
    })
    .await;
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "RollingOut").await;
    // Until then a pod of before may have to be made again.
    let accounts: Api<ServiceAccount> = world.namespace.api();
    accounts.get("fulfilment").await.unwrap();
    run_pods(&world).await;
    world.await_gone::<ServiceAccount>("fulfilment").await;
}

#[tokio::test]
async fn a_second_consumer_of_the_same_pods_is_bound_and_rolls_them_out() {
    let world = with_orders().await;
    world.stream("users", "subjects: [users.*.*]").await;
    world.consumer("fulfilment", SPEC).await;
    let before = hash(&await_deployment(&world, "the deployment", |_| true).await);
    world.consumer("order-users", "{streamRef: {name: users}, workloadRef: {name: fulfilment}}").await;
    await_bound(&world, &["fulfilment", "order-users"]).await;
    await_deployment(&world, "a rollout", |deployment| hash(deployment) != before).await;
    world.await_condition::<EventConsumer>("order-users", "WorkloadReady", "False", "RollingOut").await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("order-users").await;
    world.delete::<EventConsumer>("order-users").await;
    await_bound(&world, &["fulfilment"]).await;
}

#[tokio::test]
async fn a_reference_to_pods_that_are_not_there_says_what_to_do() {
    let world = with_orders().await;
    world.consumer("plain", "streamRef: {name: orders}").await;
    world.consumer("lost", "{streamRef: {name: orders}, workloadRef: {name: nowhere}}").await;
    world.consumer("wrong", "{streamRef: {name: orders}, workloadRef: {name: plain}}").await;
    let lost = world.await_condition::<EventConsumer>("lost", "Stalled", "True", "NotFound").await;
    assert!(lost.contains("there is no EventConsumer nowhere"), "{lost}");
    let wrong = world.await_condition::<EventConsumer>("wrong", "Stalled", "True", "Invalid").await;
    assert!(wrong.contains("has no spec.workload"), "{wrong}");
}

#[tokio::test]
async fn a_changed_or_deleted_object_of_the_workload_is_put_right() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    let api: Api<Deployment> = world.namespace.api();
    // Again and again: what was put right once is put right the next time too.
    for image in ["evil:1", "evil:2"] {
        let image = json!({"spec": {"replicas": 7, "template": {"spec": {"containers": [{"name": "app", "image": image}]}}}});
        api.patch("fulfilment", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
        await_deployment(&world, "the image as declared", |deployment| {
            let spec = deployment.spec.as_ref().unwrap();
            let containers = &spec.template.spec.as_ref().unwrap().containers;
            spec.replicas == Some(2) && containers[0].image.as_deref() == Some("shop/order:1")
        })
        .await;
    }
    edit::<PodDisruptionBudget>(&world, "fulfilment", json!({"spec": {"maxUnavailable": 9}})).await;
    await_object::<PodDisruptionBudget>(&world, "fulfilment", |found| found["spec"]["maxUnavailable"] == 1)
        .await;
    edit::<ServiceAccount>(&world, "fulfilment", json!({"automountServiceAccountToken": true})).await;
    await_object::<ServiceAccount>(&world, "fulfilment", |found| {
        found["automountServiceAccountToken"] == false
    })
    .await;
    edit::<Service>(&world, "fulfilment", json!({"spec": {"selector": {"jetwright.dev/workload": "other"}}}))
        .await;
    await_object::<Service>(&world, "fulfilment", |found| {
        found["spec"]["selector"] == json!({"jetwright.dev/workload": "fulfilment"})
    })
    .await;
    edit::<ConfigMap>(&world, "fulfilment-bindings", json!({"data": {"bindings.yaml": "bindings: {}"}}))
        .await;
    await_bound(&world, &["fulfilment"]).await;
    delete_and_await::<Service>(&world, "fulfilment").await;
    delete_and_await::<ServiceAccount>(&world, "fulfilment").await;
    delete_and_await::<PodDisruptionBudget>(&world, "fulfilment").await;
    delete_and_await::<ConfigMap>(&world, "fulfilment-bindings").await;
    delete_and_await::<Deployment>(&world, "fulfilment").await;
}

/// Changes an object as `kubectl edit` does.
async fn edit<K>(world: &World, name: &str, change: Value)
where
    K: Kind,
{
    let api: Api<K> = world.namespace.api();
    api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
}

/// Deletes an object, and waits until another one is in its place.
async fn delete_and_await<K>(world: &World, name: &str)
where
    K: Kind,
{
    let api: Api<K> = world.namespace.api();
    let before = api.get(name).await.unwrap().meta().uid.clone();
    api.delete(name, &DeleteParams::background()).await.unwrap();
    await_until(&format!("{} {name} is back", K::kind(&())), SOON, || async {
        let found = api.get(name).await.map_err(|error| error.to_string())?;
        if found.meta().uid == before { Err("the old one is there".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn what_is_taken_out_of_the_spec_is_taken_down() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    world.consumer("fulfilment", &SPEC[..SPEC.find("      service").unwrap()]).await;
    world.await_gone::<Service>("fulfilment").await;
    world.consumer("fulfilment", "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}").await;
    world.await_gone::<Deployment>("fulfilment").await;
    world.await_gone::<PodDisruptionBudget>("fulfilment").await;
    world.await_gone::<ServiceAccount>("fulfilment").await;
    world.await_gone::<ConfigMap>("fulfilment-bindings").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
}

#[tokio::test]
async fn an_object_of_others_is_never_taken_over() {
    let world = with_orders().await;
    let services: Api<Service> = world.namespace.api();
    let foreign = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "fulfilment"},
        "spec": {"ports": [{"port": 1}], "selector": {"app": "other"}},
    });
    services.create(&PostParams::default(), &serde_json::from_value(foreign).unwrap()).await.unwrap();
    world.consumer("fulfilment", SPEC).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "NameConflict").await;
    assert!(message.contains("Service fulfilment exists"), "{message}");
    assert_eq!(services.get("fulfilment").await.unwrap().spec.unwrap().ports.unwrap()[0].port, 1);
    // The consumer itself is none the worse.
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    services.get("fulfilment").await.unwrap();
}

#[tokio::test]
async fn every_object_under_a_name_that_the_workload_needs_is_told_with_what_to_do() {
    let world = with_orders().await;
    let foreign = [
        ("ConfigMap", "v1", "a-bindings", "delete it, or choose another metadata.name"),
        ("ServiceAccount", "v1", "b", "name it in spec.workload.template.spec.serviceAccountName"),
        ("PodDisruptionBudget", "policy/v1", "c", "delete it, or choose another metadata.name"),
    ];
    for (kind, version, name, remedy) in foreign {
        let manifest = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        create(&world, manifest.clone()).await;
        let consumer = &name[..1];
        world.consumer(consumer, SPEC).await;
        let message =
            world.await_condition::<EventConsumer>(consumer, "WorkloadReady", "False", "NameConflict").await;
        let told = format!("{kind} {name} exists and is not owned by this EventConsumer: {remedy}");
        assert!(message.contains(&told), "{message}");
        world.delete::<EventConsumer>(consumer).await;
        world.await_gone::<EventConsumer>(consumer).await;
        let found = get(&world, &manifest).await;
        assert_eq!(found["metadata"]["ownerReferences"], Value::Null, "{found}");
    }
}

fn dynamic(world: &World, manifest: &Value) -> Api<kube::api::DynamicObject> {
    let types: kube::core::TypeMeta = serde_json::from_value(manifest.clone()).unwrap();
    let kind = kube::core::GroupVersionKind::try_from(&types).unwrap();
    let resource = kube::core::ApiResource::from_gvk(&kind);
    Api::namespaced_with(world.namespace.client(), world.namespace.name(), &resource)
}

async fn create(world: &World, manifest: Value) {
    let api = dynamic(world, &manifest);
    api.create(&PostParams::default(), &serde_json::from_value(manifest).unwrap()).await.unwrap();
}

async fn get(world: &World, manifest: &Value) -> Value {
    let found = dynamic(world, manifest).get(manifest["metadata"]["name"].as_str().unwrap()).await.unwrap();
    serde_json::to_value(found).unwrap()
}

#[tokio::test]
async fn pods_are_not_given_the_events_of_a_stream_that_is_somebody_elses() {
    let world = with_orders().await;
    world.await_ready::<EventStream>("orders").await;
    world.stream("theirs", "{streamName: orders, subjects: [orders.>]}").await;
    world.await_condition::<EventStream>("theirs", "Stalled", "True", "NameConflict").await;
    world.consumer("fulfilment", &SPEC.replace("{name: orders}", "{name: theirs}")).await;
    await_bound(&world, &[]).await;
    // Once the stream is its own, the pods are told.
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.jetstream.delete_stream("orders").await.unwrap();
    world.await_ready::<EventStream>("theirs").await;
    await_bound(&world, &["fulfilment"]).await;
}

#[tokio::test]
async fn a_template_that_kubernetes_refuses_is_told_with_the_field() {
    let world = with_orders().await;
    let spec = "
        streamRef: {name: orders}
        workload: {template: {spec: {containers: [{name: app, image: a, imagePullPolcy: Never}]}}}
    ";
    world.consumer("fulfilment", spec).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", "Refused").await;
    assert!(message.contains("imagePullPolcy"), "{message}");
}

#[tokio::test]
async fn scaling_through_the_scale_subresource_reaches_the_deployment() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    let scale = json!({"spec": {"replicas": 0}});
    world.consumers().patch_scale("fulfilment", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    await_deployment(&world, "no replicas", |deployment| {
        deployment.spec.as_ref().unwrap().replicas == Some(0)
    })
    .await;
}
