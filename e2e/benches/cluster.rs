//! Figures of the cluster of `make demo-cluster`: how long until a stream and the whole shop are ready, and what the programs hold when idle.
//!
//! `make bench-cluster`, with that cluster up. Nothing else should run on the machine.

use std::time::{Duration, Instant};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::cluster::{Cluster, HasConditions, LATER, OPERATOR, SHOP, checkout, stream};
use jetwright_testing::await_until;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};

/// Streams that are applied one after the other.
const STREAMS: usize = 20;
/// Time without work before memory is read.
const IDLE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let cluster = Cluster::connect().await;
    until_a_stream_is_ready(&cluster).await;
    until_the_shop_is_ready(&cluster).await;
    memory(&cluster).await;
}

/// From the start of `kubectl apply` until the status says Ready, as a client sees it that asks every ten milliseconds or so.
async fn until_a_stream_is_ready(cluster: &Cluster) {
    let (mut whole, mut kubectl) = (Vec::new(), Vec::new());
    for number in 0..STREAMS {
        let name = format!("bench-{number}");
        let manifest = stream(&name, "profile: Standard, deletionPolicy: Delete");
        let begun = Instant::now();
        cluster.apply(SHOP, &manifest).await;
        kubectl.push(begun.elapsed());
        await_until(&format!("{name} is Ready"), LATER, async || {
            let stream =
                cluster.api::<EventStream>(SHOP).get(&name).await.map_err(|error| error.to_string())?;
            if is_ready(&stream) { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        whole.push(begun.elapsed());
        cluster.kubectl(&format!("delete eventstream {name} --namespace {SHOP}")).await;
    }
    tell("kubectl apply of an EventStream (three replicas) until Ready", &mut whole);
    tell("  of which kubectl apply itself", &mut kubectl);
}

/// From the start of `helm install` until every EventStream and EventConsumer is Ready.
async fn until_the_shop_is_ready(cluster: &Cluster) {
    let deployment = cluster.api::<k8s_openapi::api::apps::v1::Deployment>(SHOP).get("user-directory").await;
    let image = deployment.ok().and_then(|found| found.spec?.template.spec?.containers.remove(0).image);
    let tag = image.as_deref().and_then(|image| image.rsplit(':').next()).unwrap_or_default().to_owned();
    // Else the next installation finds them in NATS.
    let streams =
        format!("get eventstreams --namespace {SHOP} --selector !jetwright.dev/dead-letters-of -o name");
    for stream in cluster.kubectl(&streams).await.lines() {
        let delete = r#"{"spec":{"deletionPolicy":"Delete"}}"#;
        cluster.kubectl(&format!("patch {stream} --namespace {SHOP} --type merge --patch {delete}")).await;
    }
    cluster.helm(&format!("uninstall shop --namespace {SHOP} --wait --timeout 3m")).await;
    await_until("no pod of the shop is left", LATER, async || {
        let pods = cluster.kubectl(&format!("get pods --namespace {SHOP} -o name")).await;
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    })
    .await;
    let begun = Instant::now();
    let (chart, values) = (checkout("charts/shop"), checkout("e2e/demo/shop.yaml"));
    cluster
        .helm(&format!(
            "install shop {chart} --namespace {SHOP} --values {values} --set-string image.tag={tag}"
        ))
        .await;
    cluster.await_all_ready(SHOP, LATER).await;
    let simulator = "wait deployment/payment-simulator --for condition=Available --timeout 60s";
    cluster.kubectl(&format!("{simulator} --namespace {SHOP}")).await;
    println!("helm install of the shop until all of it is Ready: {:.1} s", begun.elapsed().as_secs_f64());
    let consumers = cluster.api::<EventConsumer>(SHOP).list(&ListParams::default()).await;
    println!("  with {} EventConsumers", consumers.map(|list| list.items.len()).unwrap_or_default());
}

/// What each program of ours holds (resident set), by its own metric.
async fn memory(cluster: &Cluster) {
    tokio::time::sleep(IDLE).await;
    for (namespace, selector, port) in [
        (OPERATOR, "app.kubernetes.io/name=jetwright", 8080),
        (SHOP, "app.kubernetes.io/managed-by=jetwright", 9090),
        (SHOP, "app.kubernetes.io/name=payment-simulator", 9090),
    ] {
        let pods = cluster.api::<Pod>(namespace).list(&ListParams::default().labels(selector)).await;
        for pod in pods.map(|list| list.items).unwrap_or_default() {
            let name = pod.name_any();
            let bytes =
                cluster.metric(&format!("{namespace}/{name}:{port}"), "process_resident_memory_bytes").await;
            if let Ok(bytes) = bytes {
                println!("{name}, idle: {:.1} MiB", bytes / 1024.0 / 1024.0);
            }
        }
    }
}

fn is_ready(object: &impl HasConditions) -> bool {
    object.conditions().iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn tell(what: &str, times: &mut [Duration]) {
    times.sort();
    let milliseconds = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!(
        "{what}: median {:.0} ms, longest {:.0} ms, of {}",
        milliseconds(times.get(times.len() / 2)),
        milliseconds(times.last()),
        times.len()
    );
}
