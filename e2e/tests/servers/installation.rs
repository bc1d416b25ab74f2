//! What the chart makes of its values, and what Kubernetes says of it.

use jetwright_crds::{EventConsumer, EventStream};
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
    chart::{Chart, helm},
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
fn a_new_shop_whose_orders_are_per_key_is_autoscaled_within_bounds_that_its_values_may_change() {
    let declared = |orders: Value| {
        let manifests = Chart::shop().render("shop", &json!({"orders": orders})).unwrap();
        let found = manifests.lines().find_map(|line| line.trim().strip_prefix("autoscaling: "));
        found.map_or(Value::Null, |found| serde_json::from_str(found).unwrap())
    };
    let bounds = |min: u32, max: u32| json!({"minReplicas": min, "maxReplicas": max});
    for (orders, expected) in [
        (json!({}), bounds(2, 8)),
        (json!({"partitions": 4}), bounds(2, 4)),
        (json!({"partitions": 32, "replicas": 3}), bounds(3, 8)),
        (json!({"replicas": 12}), bounds(12, 12)),
        (json!({"autoscaling": {"maxReplicas": 1}}), bounds(1, 1)),
        (
            json!({"autoscaling": {"minReplicas": 0, "mode": "Observe"}}),
            json!({"minReplicas": 0, "maxReplicas": 8, "mode": "Observe"}),
        ),
        (json!({"ordering": "Unordered", "autoscaling": {"enabled": true, "maxReplicas": 4}}), bounds(2, 4)),
        (json!({"partitions": 0}), Value::Null),
        (json!({"ordering": "Unordered"}), Value::Null),
        (json!({"replicas": 0}), Value::Null),
        (json!({"autoscaling": {"enabled": false, "maxReplicas": 4}}), Value::Null),
    ] {
        assert_eq!(declared(orders.clone()), expected, "{orders}");
    }
}

#[test]
fn a_new_shop_has_partitions_of_the_orders_unless_its_values_say_otherwise() {
    let declared = |orders: Value| {
        let manifests = Chart::shop().render("shop", &json!({"orders": orders})).unwrap();
        manifests.lines().find_map(|line| line.trim().strip_prefix("partitions: ").map(ToOwned::to_owned))
    };
    assert_eq!(declared(json!({})).as_deref(), Some("{count: 8, keyTokens: [2]}"));
    assert_eq!(declared(json!({"partitions": 16})).as_deref(), Some("{count: 16, keyTokens: [2]}"));
    assert_eq!(declared(json!({"partitions": 0})), None);
}

/// Installs the shop by Helm, with an operator on the same namespace.
async fn helm_upgrade(namespace: &Namespace<'_>, values: &str) {
    let (control_plane, name) = (control_plane().await, namespace.name().to_owned());
    let values = format!("credentials.users=,credentials.orders=,{values}");
    let installed = tokio::task::spawn_blocking(move || {
        let args = ["upgrade", "--install", "shop", "../charts/shop", "--namespace", &name, "--set", &values];
        helm(Some(control_plane), &args)
    });
    installed.await.unwrap().unwrap();
    await_declared(namespace).await;
}

#[tokio::test]
async fn an_upgrade_of_a_shop_keeps_its_orders_as_they_are_and_a_new_one_has_partitions_and_autoscaling() {
    let (control_plane, nats) = tokio::join!(control_plane(), NatsServer::start());
    let namespace = control_plane.namespace("partitions").await;
    let _operator = Operator::start(control_plane, &nats, namespace.name());
    let jetstream = nats.jetstream().await;
    let stored = async |order: &str| {
        let stored = jetstream.publish(format!("orders.{order}.placed"), "x".into()).await.unwrap();
        let sequence = stored.await.unwrap().sequence;
        let stream = jetstream.get_stream("orders").await.unwrap();
        let subject = stream.get_raw_message(sequence).await.unwrap().subject;
        subject.split('.').count()
    };
    let consumers: Api<EventConsumer> = namespace.api();
    let bounds = async || {
        let workload = consumers.get("order-fulfilment").await.unwrap().spec.workload.unwrap();
        workload.autoscaling.map(|autoscaling| (autoscaling.min_replicas, autoscaling.max_replicas))
    };
    // As of a chart that knows no partitions.
    helm_upgrade(&namespace, "orders.partitions=0").await;
    assert_eq!((stored("1").await, bounds().await), (3, None));
    helm_upgrade(&namespace, "orders.partitions=auto").await;
    assert_eq!((stored("2").await, bounds().await), (3, None));

    let name = namespace.name();
    control_plane.kubectl(["delete", "eventconsumers,eventstreams", "--all", "-n", name]).unwrap();
    jetstream.delete_stream("orders").await.unwrap();
    helm_upgrade(&namespace, "orders.partitions=16").await;
    assert_eq!((stored("3").await, bounds().await), (4, Some((Some(2), 8))));
    let more = r#"--patch={"spec":{"workload":{"autoscaling":{"maxReplicas":5}}}}"#;
    let patch = ["patch", "eventconsumer", "order-fulfilment", "-n", name, "--type=merge", more];
    control_plane.kubectl(patch).unwrap();
    // What is there counts, and not what a new shop has.
    helm_upgrade(&namespace, "orders.partitions=auto").await;
    let streams: Api<EventStream> = namespace.api();
    let partitions = streams.get("orders").await.unwrap().spec.partitions.unwrap();
    assert_eq!((partitions.count, partitions.key_tokens), (Some(16), vec![2]));
    assert_eq!(bounds().await, Some((Some(2), 5)));
}

#[test]
fn a_wrong_value_is_refused_with_its_path() {
    for (wrong, path) in [
        (json!({"catalogue": "mug=1250"}), "/catalogue"),
        (json!({"orders": {"replicas": "two"}}), "/orders/replicas"),
        (json!({"orders": {"partitions": "many"}}), "/orders/partitions"),
        (json!({"orders": {"autoscaling": {"enabled": "maybe"}}}), "/orders/autoscaling/enabled"),
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
