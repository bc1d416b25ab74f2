//! What breaks at night: processes and machines that end without a word.

use std::{cell::Cell, time::Duration};

use jetwright_crds::EventStream;
use jetwright_e2e::cluster::{Cluster, LATER, OPERATOR, SHOP, stream};
use jetwright_testing::await_until;
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{Api, api::ListParams};

use crate::orders::{each_is_confirmed_once, place_around, place_many, unique};

/// How long a lease lasts, until another operator may act, and then some.
const TAKEN_OVER: Duration = Duration::from_secs(45);

/// The pod that leads, by the Lease; another one than this.
pub async fn leader(cluster: &Cluster, other_than: &str) -> String {
    await_until("an operator leads", TAKEN_OVER, async || {
        let lease = cluster
            .api::<Lease>(OPERATOR)
            .get("jetwright-operator")
            .await
            .map_err(|error| error.to_string())?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let pods = cluster.api::<Pod>(OPERATOR).list(&ListParams::default()).await;
        let pods = pods.map_err(|error| error.to_string())?;
        let names = pods.items.into_iter().filter_map(|pod| pod.metadata.name);
        names.into_iter().find(|name| holder.starts_with(name) && name != other_than).ok_or(holder)
    })
    .await
}

#[tokio::test]
async fn when_the_leading_operator_is_killed_the_other_goes_on() {
    let cluster = Cluster::connect().await;
    let namespace = cluster.namespace("leader").await;
    let before = leader(&cluster, "").await;
    // Killed, it gives no Lease back; deleted, it does not come back by itself.
    cluster.kill(OPERATOR, &before).await;
    cluster.kubectl(&format!("delete pod {before} --namespace {OPERATOR} --grace-period=0 --force")).await;
    cluster
        .apply(namespace.name(), &stream(namespace.name(), "profile: Ephemeral, deletionPolicy: Delete"))
        .await;
    cluster
        .await_condition::<EventStream>((namespace.name(), namespace.name()), ("Ready", "True"), TAKEN_OVER)
        .await;
    leader(&cluster, &before).await;
    cluster.kubectl(&format!("delete eventstream {0} --namespace {0} --timeout=60s", namespace.name())).await;
    cluster
        .kubectl("rollout status deployment jetwright-operator --namespace jetwright --timeout=120s")
        .await;
}

#[tokio::test]
async fn a_nats_server_of_three_that_is_killed_under_orders_loses_and_repeats_none() {
    let cluster = Cluster::connect().await;
    let shop = cluster.shop();
    let user = shop.register(&format!("{}@example.org", unique("ann"))).await;
    // The leader of the stream of orders, whose loss is felt most.
    let leader = {
        let nats = cluster.nats(0).await;
        let info = nats.stream("orders").await.cached_info().clone();
        info.cluster.and_then(|cluster| cluster.leader).unwrap()
    };
    let killed = Cell::new(false);
    let kill = async {
        cluster.kill(OPERATOR, &leader).await;
        killed.set(true);
    };
    let (ids, ()) = tokio::join!(place_around(&shop, &user, &killed), kill);
    cluster.kubectl("rollout status statefulset jetwright-nats --namespace jetwright --timeout=180s").await;
    each_is_confirmed_once(&shop, &cluster.nats(0).await, &ids).await;
    cluster.await_all_ready(SHOP, LATER).await;
}

#[tokio::test]
async fn a_node_that_goes_down_and_comes_back_loses_no_order() {
    let cluster = Cluster::connect().await;
    let shop = cluster.shop();
    let user = shop.register(&format!("{}@example.org", unique("ann"))).await;
    let mut ids = place_many(&shop, &user, 5).await;

    let node = node_of_a_nats_server(&cluster).await;
    cluster.docker(&format!("stop --time 0 {node}")).await;
    let back = StartAgain(&node);
    await_node(&cluster, &node, "Unknown").await;
    // The pods that are left take orders, as soon as the others' addresses are gone from the Services.
    ids.extend(place_many(&shop, &user, 20).await);
    drop(back);
    await_node(&cluster, &node, "True").await;
    cluster.kubectl("rollout status statefulset jetwright-nats --namespace jetwright --timeout=180s").await;
    cluster
        .kubectl("rollout status deployment jetwright-operator --namespace jetwright --timeout=180s")
        .await;
    ids.extend(place_many(&shop, &user, 5).await);
    each_is_confirmed_once(&shop, &cluster.nats(0).await, &ids).await;
    cluster.await_all_ready(SHOP, LATER).await;
}

/// Starts a stopped node again, also where the test fails before.
struct StartAgain<'a>(&'a str);

impl Drop for StartAgain<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker").args(["start", self.0]).output();
    }
}

/// A worker with one of the NATS servers on it, and if it can be with none of the shop's programs that run once.
async fn node_of_a_nats_server(cluster: &Cluster) -> String {
    let once = ["user-directory", "payment-simulator"];
    let pods = cluster.api::<Pod>(SHOP).list(&ListParams::default()).await.unwrap();
    let taken: Vec<_> = pods
        .items
        .into_iter()
        .filter(|pod| {
            once.iter().any(|name| pod.metadata.name.as_deref().is_some_and(|pod| pod.starts_with(name)))
        })
        .filter_map(|pod| pod.spec?.node_name)
        .collect();
    let servers = cluster.api::<Pod>(OPERATOR).list(&ListParams::default()).await.unwrap();
    let mut nodes: Vec<_> = servers
        .items
        .into_iter()
        .filter(|pod| pod.metadata.name.as_deref().is_some_and(|name| name.starts_with("jetwright-nats-")))
        .filter_map(|pod| pod.spec?.node_name)
        .collect();
    nodes.sort_by_key(|node| taken.contains(node));
    nodes.remove(0)
}

async fn await_node(cluster: &Cluster, name: &str, ready: &str) {
    let nodes: Api<Node> = Api::all(cluster.client());
    await_until(&format!("node {name} has Ready={ready}"), LATER, async || {
        let node = nodes.get(name).await.map_err(|error| error.to_string())?;
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let found = conditions
            .into_iter()
            .find(|condition| condition.type_ == "Ready")
            .map(|condition| condition.status);
        if found.as_deref() == Some(ready) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}
