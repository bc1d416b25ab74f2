//! The chart as a platform team uses it: tested, upgraded, moved between kubectl and Helm, refused to be removed too early, removed.

use std::{collections::BTreeMap, env, fs};

use jetwright_crds::EventStream;
use jetwright_e2e::cluster::{Cluster, LATER, OPERATOR, OwnNamespace, SHOP, SOON, checkout, stream};
use jetwright_testing::{Folder, await_until};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, api::ListParams};

/// Values of the operator's own release, taken as they are.
const REUSED: &str = "--reuse-values --wait --timeout 5m";
/// Most that the operator's image may take, in bytes, as it is released.
const IMAGE: u64 = 27_000_000;
/// The same of the profile that builds faster, which the tests use unless JETWRIGHT_IMAGES_PROFILE says otherwise.
const QUICK_IMAGE: u64 = 33_000_000;

/// The operator's chart.
fn chart() -> String {
    checkout("charts/jetwright")
}

/// A second release, with a NATS server of its own, that looks after its own namespace alone.
async fn install(cluster: &Cluster, namespace: &OwnNamespace) {
    let tag = operator_image(cluster).await.rsplit(':').next().unwrap().to_owned();
    let at = namespace.name();
    cluster
        .helm(&format!(
            "install {at} {} --namespace {at} --wait --timeout 5m --set crds.install=false --set namespaces={{{at}}} \
             --set defaultConnectionNamespaces={{{at}}} --set clusterName={at} --set replicaCount=1 --set-string image.tag={tag} \
             --set nats.bundled.enabled=true --set nats.bundled.replicas=1 --set nats.bundled.storage.size=1Gi \
             --set nats.bundled.image.repository=jetwright/nats --set-string nats.bundled.image.tag={tag}",
            chart()
        ))
        .await;
}

async fn operator_image(cluster: &Cluster) -> String {
    let deployment = cluster.api::<Deployment>(OPERATOR).get("jetwright-operator").await.unwrap();
    deployment.spec.unwrap().template.spec.unwrap().containers.remove(0).image.unwrap()
}

async fn definition(cluster: &Cluster) -> CustomResourceDefinition {
    Api::all(cluster.client()).get("eventstreams.jetwright.dev").await.unwrap()
}

#[tokio::test]
async fn helm_test_passes_and_an_upgrade_keeps_passwords_streams_and_running_services() {
    let cluster = Cluster::connect().await;
    let said = cluster.helm(&format!("test jetwright --namespace {OPERATOR} --logs --timeout 3m")).await;
    assert!(said.contains("Succeeded"), "{said}");

    let before = cluster.secret(SHOP, "nats-orders").await;
    let restarts = pods_of_the_shop(&cluster).await;
    cluster
        .helm(&format!("upgrade jetwright {} --namespace {OPERATOR} {REUSED} --set logLevel=debug", chart()))
        .await;
    assert_eq!(cluster.secret(SHOP, "nats-orders").await, before);
    assert_eq!(pods_of_the_shop(&cluster).await, restarts, "the services do not notice");
    cluster.await_all_ready(SHOP, LATER).await;
    cluster
        .helm(&format!("upgrade jetwright {} --namespace {OPERATOR} {REUSED} --set logLevel=info", chart()))
        .await;
}

/// Names and restarts of the shop's pods.
async fn pods_of_the_shop(cluster: &Cluster) -> Vec<(String, i32)> {
    let pods = cluster.api::<Pod>(SHOP).list(&ListParams::default()).await.unwrap();
    let restarts = |pod: &Pod| {
        let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
        statuses.into_iter().flatten().map(|status| status.restart_count).sum()
    };
    pods.items.iter().map(|pod| (pod.metadata.name.clone().unwrap_or_default(), restarts(pod))).collect()
}

#[tokio::test]
async fn a_release_of_one_namespace_is_installed_beside_and_refuses_to_go_before_its_streams() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("release").await;
    let at = namespace.name();
    install(&cluster, &namespace).await;
    cluster.apply(at, &stream("last", "profile: Standard, deletionPolicy: Delete")).await;
    cluster.await_condition::<EventStream>((at, "last"), ("Ready", "True"), SOON).await;

    let refusal =
        cluster.try_helm(&format!("uninstall {at} --namespace {at} --wait --timeout 3m")).await.refusal();
    assert!(refusal.contains(&format!("EventStream {at}/last")), "{refusal}");
    assert!(refusal.contains("kubectl "), "{refusal}");
    cluster.await_condition::<EventStream>((at, "last"), ("Ready", "True"), SOON).await;

    cluster.kubectl(&format!("delete eventstream last --namespace {at} --timeout=60s")).await;
    cluster.helm(&format!("uninstall {at} --namespace {at} --wait --timeout 3m")).await;
    await_until("nothing of the release is left", SOON, async || {
        let kinds = "deployments,statefulsets,jobs,pods,services,networkpolicies,poddisruptionbudgets,roles,rolebindings";
        let left = cluster.kubectl(&format!("get {kinds} --namespace {at} -o name")).await;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let cluster_wide = cluster.kubectl("get clusterroles,clusterrolebindings -o name").await;
    assert!(!cluster_wide.contains(at), "{cluster_wide}");
}

#[tokio::test]
async fn the_definitions_move_from_helm_to_kubectl_and_back_with_every_object_in_place() {
    let cluster = Cluster::connect().await;
    let uid = async || definition(&cluster).await.metadata.uid;
    let (before, objects) = (uid().await, cluster.kubectl("get eventstreams --all-namespaces -o name").await);

    cluster
        .helm(&format!(
            "upgrade jetwright {} --namespace {OPERATOR} {REUSED} --set crds.install=false",
            chart()
        ))
        .await;
    cluster.kubectl(&format!("apply -f {}", checkout("crds/manifests"))).await;
    assert_eq!(uid().await, before);

    cluster
        .helm(&format!(
            "upgrade jetwright {} --namespace {OPERATOR} {REUSED} --set crds.install=true --take-ownership --force-conflicts",
            chart()
        ))
        .await;
    assert_eq!(uid().await, before);
    assert_eq!(cluster.kubectl("get eventstreams --all-namespaces -o name").await, objects);
    // From here on an upgrade reaches them without further words.
    cluster.helm(&format!("upgrade jetwright {} --namespace {OPERATOR} {REUSED}", chart())).await;
    cluster.await_all_ready(SHOP, LATER).await;
}

#[tokio::test]
async fn values_that_cannot_be_are_refused_with_their_name() {
    let cluster = Cluster::connect().await;
    let template = format!("template jetwright {} --namespace {OPERATOR}", chart());
    let refusals = [
        ("", "nats.url"),
        ("--set nats.bundled.enabled=true --set nats.bundled.replicas=2", "replicas"),
        ("--set nats.bundled.enabled=true --set replicas=3", "replicas"),
        ("--set nats.url=nats://a:4222 --set resyncInterval=soon", "resyncInterval"),
    ];
    for (values, told) in refusals {
        let refusal = cluster.try_helm(&format!("{template} {values}")).await.refusal();
        assert!(refusal.contains(told), "{values}: {refusal}");
    }
    cluster.helm(&format!("lint --strict {} --set nats.bundled.enabled=true", chart())).await;
    cluster.helm(&format!("lint --strict {}", checkout("charts/shop"))).await;
}

#[tokio::test]
async fn the_operators_image_is_small_and_no_image_has_anything_that_runs_as_root() {
    let cluster = Cluster::connect().await;
    let image = operator_image(&cluster).await;
    let size: u64 = cluster
        .docker(&format!("image inspect --format {{{{.Size}}}} {image}"))
        .await
        .trim()
        .parse()
        .unwrap();
    let is_released = env::var("JETWRIGHT_IMAGES_PROFILE").is_ok_and(|profile| profile == "release");
    let most = if is_released { IMAGE } else { QUICK_IMAGE };
    assert!(size <= most, "{size} bytes");
    let (_, tag) = image.rsplit_once(':').unwrap();
    for name in ["operator", "user-service", "order-service", "payment-simulator", "nats"] {
        let inspect = format!("image inspect --format {{{{.Config.User}}}} jetwright/{name}:{tag}");
        assert_eq!(cluster.docker(&inspect).await.trim(), "65532:65532", "{name}");
    }
}

#[tokio::test]
async fn every_image_says_what_it_is_and_carries_licences() {
    let cluster = Cluster::connect().await;
    let image = operator_image(&cluster).await;
    let (_, tag) = image.rsplit_once(':').unwrap();
    let folder = Folder::new("licenses");
    for name in ["operator", "user-service", "order-service", "payment-simulator", "nats"] {
        let image = format!("jetwright/{name}:{tag}");
        let labels =
            cluster.docker(&format!("image inspect --format {{{{.Config.Labels|json}}}} {image}")).await;
        let labels: BTreeMap<String, String> = serde_json::from_str(&labels).unwrap();
        let label = |key: &str| labels.get(&format!("org.opencontainers.image.{key}")).cloned();
        assert_eq!(label("title"), Some(format!("jetwright/{name}")), "{labels:?}");
        assert_eq!(label("licenses").as_deref(), Some("Apache-2.0"), "{labels:?}");
        assert!(
            label("version").is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
        );

        let container = cluster.docker(&format!("create {image}")).await;
        let (container, to) = (container.trim(), folder.path().join(name));
        cluster.docker(&format!("cp {container}:/licenses {}", to.display())).await;
        cluster.docker(&format!("rm {container}")).await;
        let parts = fs::read_to_string(to.join("THIRD-PARTY.txt")).unwrap();
        assert!(parts.contains("Apache License"), "{name}");
    }
}
