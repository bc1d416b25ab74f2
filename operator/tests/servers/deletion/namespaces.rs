//! A namespace that is deleted, with the controllers of Kubernetes: it is never stuck.

use std::time::{Duration, Instant};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{ControlPlane, NatsServer, Process, Program, await_until, binary, free_port};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;

use crate::world::{Kind, SOON, apply, arguments, conditions};

const TIMEOUT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(6);
/// What controllers and retries may be late.
const LATE: Duration = Duration::from_secs(15);
const SPEC: &str = "
    streamRef: {name: orders}
    workload: {template: {spec: {containers: [{name: app, image: 'shop/order:1'}]}}}
";

async fn declare<K: Kind>(client: &Client, name: &str, spec: &str) {
    apply(&Api::<K>::namespaced(client.clone(), "shop"), name, spec).await;
}

#[tokio::test]
async fn a_namespace_ends_with_nats_stopped_within_the_grace_period_of_its_pods_and_two_timeouts() {
    let control_plane = ControlPlane::start().await;
    let manifests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests");
    control_plane.apply(manifests).await;
    let _controllers = Process::builder(Program::KubeControllerManager.path())
        .arg("--kubeconfig")
        .arg(control_plane.kubeconfig())
        .args(["--leader-elect=false", "--secure-port=0"])
        .arg("--controllers=namespace-controller,garbage-collector-controller")
        .start();
    let client = control_plane.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let shop = json!({"metadata": {"name": "shop"}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(shop).unwrap()).await.unwrap();
    let (nats, admin) = (NatsServer::start().await, free_port());
    let operator = Process::builder(binary("jetwright-operator"))
        .env("KUBECONFIG", control_plane.kubeconfig())
        .args(arguments(nats.url(), "shop", admin))
        .arg(format!("--deletion-timeout={}s", TIMEOUT.as_secs()))
        .start();
    declare::<EventStream>(&client, "orders", "{subjects: [orders.*], deletionPolicy: Delete}").await;
    declare::<EventConsumer>(&client, "fulfilment", SPEC).await;
    let consumers: Api<EventConsumer> = Api::namespaced(client.clone(), "shop");
    await_until("the consumer is there", SOON, || async {
        let found = conditions(&consumers.get("fulfilment").await.map_err(|error| error.to_string())?);
        let ready = found.iter().any(|found| found.type_ == "ConsumerReady" && found.status == "True");
        if ready { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // On a node that is gone: it is told to stop, and never has.
    let pod = json!({
        "metadata": {"name": "fulfilment-5d4-abcde", "labels": {"jetwright.dev/workload": "fulfilment"}},
        "spec": {
            "nodeName": "n1", "terminationGracePeriodSeconds": GRACE.as_secs(),
            "containers": [{"name": "app", "image": "shop/order:1"}],
        },
    });
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();

    nats.stop().await;
    let begun = Instant::now();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    // With pods that do not stop Kubernetes deletes nothing else for their sake, so that the objects go by the user's hand.
    let streams: Api<EventStream> = Api::namespaced(client, "shop");
    streams.delete("orders", &DeleteParams::default()).await.unwrap();
    consumers.delete("fulfilment", &DeleteParams::default()).await.unwrap();
    let gone = async || {
        let left = (consumers.get_opt("fulfilment").await.unwrap(), streams.get_opt("orders").await.unwrap());
        match left {
            (None, None) => Ok(()),
            left => Err(format!("{left:?}")),
        }
    };
    await_until("nothing holds the namespace", GRACE + 2 * TIMEOUT + LATE, gone).await;
    assert!(begun.elapsed() >= GRACE + TIMEOUT, "{:?}", begun.elapsed());
    pods.delete("fulfilment-5d4-abcde", &DeleteParams::default().grace_period(0)).await.unwrap();
    await_until("the namespace is gone", SOON, || async {
        match namespaces.get_opt("shop").await.map_err(|error| error.to_string())? {
            Some(left) => Err(format!("{:?}", left.status)),
            None => Ok(()),
        }
    })
    .await;
    // No event can be made there.
    let text = reqwest::get(format!("http://127.0.0.1:{admin}/metrics")).await.unwrap().text().await.unwrap();
    for kind in ["pods", "consumer", "stream"] {
        let line = format!("jetwright_operator_orphaned_total{{kind=\"{kind}\"}} 1");
        assert!(text.contains(&line), "{line}: {text}");
    }
    let log = operator.log();
    for left in ["consumer fulfilment of stream orders", "stream orders", "fulfilment-5d4-abcde"] {
        let told = log.lines().any(|line| line.contains("left something behind") && line.contains(left));
        assert!(told, "{left}: {log}");
    }
}
