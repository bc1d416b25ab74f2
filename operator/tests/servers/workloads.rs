//! The pods of an EventConsumer, as far as an API server alone goes: nothing runs them here.

use jetwright_crds::{EventConsumer, environment::Bindings};
use jetwright_testing::await_until;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::world::{SOON, World};

const SPEC: &str = "
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

async fn await_deployment(world: &World, what: &str, wanted: impl Fn(&Deployment) -> bool) -> Deployment {
    let api: Api<Deployment> = world.namespace.api();
    await_until(what, SOON, || async {
        let found = api.get("fulfilment").await.map_err(|error| error.to_string())?;
        if wanted(&found) { Ok(found) } else { Err(serde_json::to_string(&found).unwrap()) }
    })
    .await
}

async fn bindings(world: &World) -> Result<Bindings, String> {
    let api: Api<ConfigMap> = world.namespace.api();
    let found = api.get("fulfilment-bindings").await.map_err(|error| error.to_string())?;
    serde_saphyr::from_str(&found.data.unwrap()["bindings.yaml"]).map_err(|error| error.to_string())
}

async fn await_bound(world: &World, names: &[&str]) {
    await_until(&format!("the pods consume {names:?}"), SOON, || async {
        let bindings = bindings(world).await?;
        let found: Vec<_> = bindings.bindings.keys().map(String::as_str).collect();
        if found == names { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// What a cluster's controllers would say of pods that run.
async fn run_pods(world: &World) {
    let api: Api<Deployment> = world.namespace.api();
    let generation = api.get("fulfilment").await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "readyReplicas": 2,
    }});
    api.patch_status("fulfilment", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

fn hash(deployment: &Deployment) -> String {
    let template = deployment.spec.clone().unwrap().template.metadata.unwrap();
    template.annotations.unwrap()["jetwright.dev/bindings-hash"].clone()
}

#[tokio::test]
async fn a_workload_becomes_a_deployment_a_service_and_a_bindings_file() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    let deployment = await_deployment(&world, "the deployment", |_| true).await;
    let spec = deployment.spec.unwrap();
    assert_eq!(spec.replicas, Some(2));
    let container = &spec.template.spec.unwrap().containers[0];
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
    let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "evil:1"}]}}}});
    api.patch("fulfilment", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    await_deployment(&world, "the image as declared", |deployment| {
        let containers = &deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers;
        containers[0].image.as_deref() == Some("shop/order:1")
    })
    .await;
    let services: Api<Service> = world.namespace.api();
    services.delete("fulfilment", &DeleteParams::default()).await.unwrap();
    await_until("the service is back", SOON, || services.get("fulfilment")).await;
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
