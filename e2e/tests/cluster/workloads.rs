//! Pods that do not start, and objects that are somebody else's: the EventConsumer tells why.

use jetwright_crds::EventConsumer;
use jetwright_e2e::cluster::{Cluster, LATER};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};

/// The services' image, as the shop runs it.
async fn image(cluster: &Cluster) -> String {
    let deployment = cluster.api::<Deployment>("shop").get("user-directory").await.unwrap();
    deployment.spec.unwrap().template.spec.unwrap().containers.remove(0).image.unwrap()
}

/// A stream, and a consumer with a workload made of this container. A stream of dead letters would outlive the test.
fn manifests(name: &str, workload: &str) -> String {
    format!(
        "apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {{name: {name}}}
spec: {{profile: Ephemeral, subjects: [{name}.*], deletionPolicy: Delete}}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {{name: {name}}}
spec: {{streamRef: {{name: {name}}}, deadLetter: {{policy: Drop}}, workload: {{{workload}}}}}
"
    )
}

#[tokio::test]
async fn pods_that_do_not_start_are_told_with_their_reason() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("pods").await;
    let at = namespace.name();
    let image = image(&cluster).await;
    let pod = |name: &str, container: &str, more: &str| {
        manifests(
            &format!("{at}-{name}"),
            &format!("template: {{spec: {{containers: [{{name: app, {container}}}]}}}}{more}"),
        )
    };
    let wrong = [
        ("image", pod("image", "image: example.invalid/none:1", ""), "ImagePull", "example.invalid/none:1"),
        // The user service without its bindings: it says what is missing, and ends.
        ("crash", pod("crash", &format!("image: {image}"), ""), "CrashLoop", "exit code"),
        (
            "room",
            pod("room", &format!("image: {image}, resources: {{requests: {{memory: 900Gi}}}}"), ""),
            "Unschedulable",
            "memory",
        ),
        (
            "secret",
            pod("secret", &format!("image: {image}"), ", credentials: {secretRef: {name: nobody-made-it}}"),
            "VolumeMount",
            "nobody-made-it",
        ),
        (
            "root",
            pod("root", &format!("image: {image}, securityContext: {{privileged: true}}"), ""),
            "PodSecurity",
            "privileged",
        ),
    ];
    for (_, manifest, ..) in &wrong {
        cluster.apply(at, manifest).await;
    }
    for (name, _, reason, told) in &wrong {
        let name = format!("{at}-{name}");
        jetwright_testing::await_until(&format!("{name} says {reason}"), LATER, async || {
            let condition = cluster
                .await_condition::<EventConsumer>((at, &name), ("WorkloadReady", "False"), LATER)
                .await;
            let is_told = condition.reason == *reason && condition.message.contains(told);
            if is_told { Ok(()) } else { Err(format!("{condition:?}")) }
        })
        .await;
    }
    cluster.kubectl(&format!("delete eventconsumer --all --namespace {at} --timeout=120s")).await;
    cluster.kubectl(&format!("delete eventstream --all --namespace {at} --timeout=120s")).await;
}

#[tokio::test]
async fn a_workload_has_its_service_account_and_budget_and_pods_that_nobody_can_write_to() {
    let cluster = Cluster::connect().await;
    let account = cluster.api::<ServiceAccount>("shop").get("order-fulfilment").await.unwrap();
    assert_eq!(account.automount_service_account_token, Some(false));
    let budget = cluster.api::<PodDisruptionBudget>("shop").get("order-fulfilment").await.unwrap();
    assert_eq!(budget.status.unwrap().expected_pods, 2);
    let deployment = cluster.api::<Deployment>("shop").get("order-fulfilment").await.unwrap();
    let spec = deployment.spec.unwrap().template.spec.unwrap();
    assert!(spec.termination_grace_period_seconds >= Some(30), "{spec:?}");
    let security = spec.containers[0].security_context.clone().unwrap();
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let pods = cluster.api::<Pod>("shop").list(&kube::api::ListParams::default()).await.unwrap();
    assert!(pods.items.iter().all(|pod| {
        pod.spec
            .as_ref()
            .unwrap()
            .volumes
            .iter()
            .flatten()
            .all(|volume| !volume.name.starts_with("kube-api-access"))
    }));
}

#[tokio::test]
async fn an_object_of_somebody_else_is_never_taken_over() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("taken").await;
    let at = namespace.name();
    let image = image(&cluster).await;
    cluster
        .kubectl(&format!(
            "create deployment {at} --namespace {at} --image=example.invalid/none:1 --replicas=0"
        ))
        .await;
    let workload =
        format!("replicas: 0, template: {{spec: {{containers: [{{name: app, image: {image}}}]}}}}");
    cluster.apply(at, &manifests(at, &workload)).await;
    let conflict =
        cluster.await_condition::<EventConsumer>((at, at), ("WorkloadReady", "False"), LATER).await;
    assert_eq!(conflict.reason, "NameConflict");
    assert!(conflict.message.contains(&format!("Deployment {at}")), "{conflict:?}");
    let theirs = cluster.api::<Deployment>(at).get(at).await.unwrap();
    assert_eq!(
        theirs.spec.unwrap().template.spec.unwrap().containers[0].image.as_deref(),
        Some("example.invalid/none:1")
    );
    // Once it is out of the way, the workload is made.
    cluster.kubectl(&format!("delete deployment {at} --namespace {at}")).await;
    cluster.await_condition::<EventConsumer>((at, at), ("Ready", "True"), LATER).await;
    cluster.kubectl(&format!("delete eventconsumer,eventstream --all --namespace {at} --timeout=60s")).await;
}
