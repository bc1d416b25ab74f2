//! What the chart makes of its values, and what Kubernetes says of it.

use jetwright_e2e::{Operator, control_plane};
use jetwright_testing::{Namespace, NatsServer, await_until};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace as KubernetesNamespace, Pod as KubernetesPod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    chart::Chart,
    cluster::{await_declared, service_url},
    pod::Pod,
    shop::{SOON, values},
};

const WORKLOADS: [&str; 2] = ["user-directory", "order-fulfilment"];

async fn deployment(namespace: &Namespace<'_>, name: &str) -> Deployment {
    let deployments: Api<Deployment> = namespace.api();
    deployments.get(name).await.unwrap()
}

/// The pods of a Deployment as Kubernetes takes or refuses them; none is kept.
async fn try_pod(namespace: &Namespace<'_>, deployment: Deployment) -> Result<KubernetesPod, kube::Error> {
    let template = deployment.spec.unwrap().template;
    let metadata = ObjectMeta { name: deployment.metadata.name, ..template.metadata.unwrap_or_default() };
    let pod = KubernetesPod { metadata, spec: template.spec, status: None };
    let pods: Api<KubernetesPod> = namespace.api();
    pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await
}

#[test]
fn the_images_are_those_of_one_registry_and_tag() {
    let images = |values: Value| {
        let manifests = Chart::shop().render("shop", &values).unwrap();
        let images = manifests.lines().filter_map(|line| line.trim().strip_prefix("image: "));
        let mut images: Vec<_> = images.map(ToOwned::to_owned).collect();
        images.sort();
        images
    };
    let of = |registry: &str, tag: &str| {
        ["order-service", "payment-simulator", "user-service"]
            .map(|program| format!("{registry}jetwright/{program}:{tag}"))
    };
    assert_eq!(images(json!({})), of("", env!("CARGO_PKG_VERSION")));
    let image = json!({"registry": "registry.example.org:5000", "tag": "dev"});
    assert_eq!(images(json!({"image": image})), of("registry.example.org:5000/", "dev"));
}

#[test]
fn the_order_service_is_autoscaled_where_the_values_say_how() {
    let declared = |values: Value| {
        let manifests = Chart::shop().render("shop", &values).unwrap();
        manifests.lines().find_map(|line| line.trim().strip_prefix("autoscaling: ").map(ToOwned::to_owned))
    };
    assert_eq!(declared(json!({})), None);
    let autoscaling = json!({"maxReplicas": 8, "minReplicas": 1});
    let found = declared(json!({"orders": {"autoscaling": autoscaling}})).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), autoscaling);
}

#[test]
fn a_wrong_value_is_refused_with_its_path() {
    for (wrong, path) in [
        (json!({"catalogue": "mug=1250"}), "/catalogue"),
        (json!({"orders": {"replicas": "two"}}), "/orders/replicas"),
        (json!({"payments": {"url": "https://pay.example.org"}}), "/payments/url"),
        (json!({"credentials": {"users": "No Secret"}}), "/credentials/users"),
        (json!({"replicas": 2}), "'replicas'"),
    ] {
        let told = Chart::shop().render("shop", &wrong).unwrap_err();
        assert!(told.contains(path), "{told}");
    }
}

#[tokio::test]
async fn all_pods_may_run_where_pod_security_is_restricted() {
    let (control_plane, nats) = tokio::join!(control_plane(), NatsServer::start());
    let namespace = control_plane.namespace("restricted").await;
    let namespaces: Api<KubernetesNamespace> = Api::all(namespace.client());
    let enforce = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    namespaces.patch(namespace.name(), &PatchParams::default(), &Patch::Merge(enforce)).await.unwrap();
    let _operator = Operator::start(control_plane, &nats, namespace.name());
    Chart::shop().apply(&namespace, json!({})).await;
    await_declared(&namespace).await;
    for name in WORKLOADS.into_iter().chain(["payment-simulator"]) {
        try_pod(&namespace, deployment(&namespace, name).await).await.unwrap();
    }
    let mut careless = deployment(&namespace, "payment-simulator").await;
    careless.spec.as_mut().unwrap().template.spec.as_mut().unwrap().security_context = None;
    let refused = try_pod(&namespace, careless).await.unwrap_err();
    assert!(refused.to_string().contains("violates PodSecurity"), "{refused}");
}

#[tokio::test]
async fn another_catalogue_rolls_out_the_order_services_pods_alone() {
    let (control_plane, nats) = tokio::join!(control_plane(), NatsServer::start());
    let namespace = control_plane.namespace("catalogue").await;
    let _operator = Operator::start(control_plane, &nats, namespace.name());
    let with = |catalogue: &str| {
        let mut values = values("http://pay.example.org");
        values["catalogue"] = json!(catalogue);
        values
    };
    let template = async |name: &str| deployment(&namespace, name).await.spec.unwrap().template;
    Chart::shop().apply(&namespace, with("mug=1250:10")).await;
    await_declared(&namespace).await;
    let [users, orders] = [template("user-directory").await, template("order-fulfilment").await];
    Chart::shop().apply(&namespace, with("mug=1350:10")).await;
    await_until("the order service has another template", SOON, async || {
        let now = template("order-fulfilment").await;
        if now == orders { Err("it is the same") } else { Ok(()) }
    })
    .await;
    await_declared(&namespace).await;
    assert_eq!(template("user-directory").await, users);
}

#[tokio::test]
async fn the_payment_simulator_of_the_chart_does_as_its_values_say() {
    let namespace = control_plane().await.namespace("payments").await;
    for (simulator, status) in
        [(json!({}), 201), (json!({"failureRate": 1}), 503), (json!({"lostAnswerRate": 1}), 500)]
    {
        Chart::shop().apply(&namespace, json!({"payments": {"simulator": simulator}})).await;
        let pod = Pod::start(&namespace, "payment-simulator", 0).await;
        let url = service_url(&namespace, "payment-simulator", &pod).await;
        let request = reqwest::Client::new().post(format!("{url}/authorizations"));
        let request =
            request.header("idempotency-key", "one").json(&json!({"amount": 2599, "currency": "EUR"}));
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{simulator}");
        pod.stop().await;
    }
}
