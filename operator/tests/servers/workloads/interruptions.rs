//! What an operator that is killed leaves, and what one that finds nothing to do writes.

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{ControlPlane, NatsServer, await_until, free_port};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{SPEC, await_object, with_orders};
use crate::world::{Kind, SOON, World, apply, arguments, operator};

/// Waits until all that belongs to a workload is there, and the consumer's.
async fn await_whole(world: &World, name: &str) {
    let uid = world.consumers().get(name).await.unwrap().uid().unwrap();
    let owned = |object: &serde_json::Value| object["metadata"]["ownerReferences"][0]["uid"] == uid.as_str();
    await_object::<ConfigMap>(world, &format!("{name}-bindings"), owned).await;
    await_object::<ServiceAccount>(world, name, owned).await;
    await_object::<Service>(world, name, owned).await;
    await_object::<PodDisruptionBudget>(world, name, owned).await;
    await_object::<Deployment>(world, name, owned).await;
}

#[tokio::test]
async fn an_operator_killed_while_it_makes_workloads_leaves_nothing_undone() {
    let world = with_orders().await;
    let names: Vec<_> = (0..30).map(|number| format!("w{number}")).collect();
    let declared = stream::iter(&names).for_each_concurrent(8, |name| async {
        world.consumer(name, SPEC).await;
    });
    let deployments: Api<Deployment> = world.namespace.api();
    let there = async || deployments.list(&ListParams::default()).await.unwrap().items.len();
    let killed = async {
        await_until("some deployments are there", SOON, || async {
            match there().await {
                0..3 => Err("too few"),
                _ => Ok(()),
            }
        })
        .await;
        world.operator.kill();
    };
    tokio::join!(declared, killed);
    let count = there().await;
    assert!(count < 30, "it was killed too late to show anything");
    let _next = world.another_operator(&[]);
    for name in &names {
        await_whole(&world, name).await;
    }
}

#[tokio::test]
async fn an_operator_killed_between_any_two_objects_makes_the_rest_when_it_is_back() {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_whole(&world, "fulfilment").await;
    world.operator.kill();
    // As if it had been killed after each of its writes: what it makes later is not there yet.
    for made in 0..5 {
        if made < 1 {
            delete::<ConfigMap>(&world, "fulfilment-bindings").await;
        }
        if made < 2 {
            delete::<ServiceAccount>(&world, "fulfilment").await;
        }
        if made < 3 {
            delete::<Service>(&world, "fulfilment").await;
        }
        if made < 4 {
            delete::<PodDisruptionBudget>(&world, "fulfilment").await;
        }
        delete::<Deployment>(&world, "fulfilment").await;
        let next = world.another_operator(&[]);
        await_whole(&world, "fulfilment").await;
        next.kill();
    }
}

async fn delete<K>(world: &World, name: &str)
where
    K: Kind,
{
    world.namespace.api::<K>().delete(name, &DeleteParams::background()).await.unwrap();
}

#[tokio::test]
async fn a_workload_that_is_as_declared_is_written_no_more() {
    // Its own, whose requests are counted.
    let own = ControlPlane::start().await;
    own.apply(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/manifests")).await;
    let (nats, namespace, admin) = (NatsServer::start().await, own.namespace("quiet").await, free_port());
    let _operator = operator(&own, &arguments(nats.url(), namespace.name(), admin));
    apply(&namespace.api::<EventStream>(), "orders", "subjects: [orders.*.*]").await;
    apply(&namespace.api::<EventConsumer>(), "fulfilment", SPEC).await;
    let deployments: Api<Deployment> = namespace.api();
    await_until("the deployment", SOON, || deployments.get("fulfilment")).await;
    let streams: Api<EventStream> = namespace.api();
    await_until("the stream of dead letters", SOON, || streams.get("orders-dlq")).await;
    let reconciles = async || -> f64 {
        let text =
            reqwest::get(format!("http://127.0.0.1:{admin}/metrics")).await.unwrap().text().await.unwrap();
        let line = "jetwright_operator_reconciles_total{controller=\"consumer\",outcome=\"ok\"} ";
        text.lines().find_map(|found| found.strip_prefix(line)?.parse().ok()).unwrap_or_default()
    };
    let touch = async |number: usize| {
        let before = reconciles().await;
        let note = json!({"metadata": {"annotations": {"others/note": number.to_string()}}});
        deployments.patch("fulfilment", &PatchParams::default(), &Patch::Merge(note)).await.unwrap();
        await_until("a reconcile", SOON, || async {
            if reconciles().await > before { Ok(()) } else { Err("none yet") }
        })
        .await;
    };
    touch(0).await;
    let before = applies(&own);
    assert!(before >= 6, "{before} were counted, though a workload and its dead letters are six objects");
    for number in 1..=10 {
        touch(number).await;
    }
    assert_eq!(applies(&own), before);
    // What is no more as declared is.
    let other = json!({"spec": {"replicas": 5}});
    deployments.patch("fulfilment", &PatchParams::default(), &Patch::Merge(other)).await.unwrap();
    await_until("one more write", SOON, || async {
        let count = applies(&own);
        if count > before { Ok(()) } else { Err(count) }
    })
    .await;
}

/// How many server-side applies of objects of workloads, and of EventStreams, an API server has served.
fn applies(control_plane: &ControlPlane) -> u64 {
    let text = control_plane.kubectl(["get", "--raw", "/metrics"]).unwrap();
    let kinds =
        ["deployments", "services", "serviceaccounts", "configmaps", "poddisruptionbudgets", "eventstreams"];
    let counts = text.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("verb=\"APPLY\"")
            && line.contains("subresource=\"\"")
            && kinds.iter().any(|kind| line.contains(&format!("resource=\"{kind}\"")))
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
