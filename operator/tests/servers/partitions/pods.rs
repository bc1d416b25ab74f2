//! Partitions among the pods of a workload: rollouts, containers that end, programs of other namespaces.

use std::time::Duration;

use jetwright_testing::await_until;
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Member, SOON, await_owned, await_shares, bucket, start};
use crate::{workloads::pods::make_pod, world::World};

const WITH_PODS: &str = "{streamRef: {name: orders}, ordering: PerKey, workload: {replicas: 2, template: {spec: \
    {containers: [{name: app, image: 'shop/order:1'}]}}}}";

async fn pod(world: &World, name: &str, revision: &str) -> String {
    make_pod(world, name, revision).await;
    let api: Api<Pod> = world.namespace.api();
    api.get(name).await.unwrap().uid().unwrap()
}

async fn join(world: &World, name: &str, uid: &str) -> Member {
    Member::join(world, world.namespace.name(), Some((name, uid))).await
}

/// Kubernetes says that the container of a pod ended now, and runs again.
async fn end_container(world: &World, name: &str) {
    let api: Api<Pod> = world.namespace.api();
    let now = Timestamp::now().as_second();
    let finished = Timestamp::from_second(now).unwrap().to_string();
    let status = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "app", "image": "shop/order:1", "imageID": "", "ready": true, "restartCount": 1, "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 137, "startedAt": finished, "finishedAt": finished}},
    }]}});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

#[tokio::test]
async fn of_a_workload_only_its_pods_get_partitions_and_no_program_that_names_one_from_another_namespace() {
    let world = start(WITH_PODS, &[]).await;
    let store = bucket(&world).await;
    let uid = pod(&world, "a", "r1").await;
    let stranger = Member::join(&world, world.namespace.name(), Some(("x", "no-such-uid"))).await;
    let forger = Member::join(&world, "bank", Some(("a", &uid))).await;
    let own = join(&world, "a", &uid).await;
    await_shares(&store, &[(&own, 4), (&stranger, 0), (&forger, 0)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn in_a_rollout_partitions_move_to_the_pods_of_the_new_template() {
    let world = start(WITH_PODS, &[]).await;
    let store = bucket(&world).await;
    let (a, b) = (pod(&world, "a", "r1").await, pod(&world, "b", "r1").await);
    let (a, b) = (join(&world, "a", &a).await, join(&world, "b", &b).await);
    await_shares(&store, &[(&a, 2), (&b, 2)], SOON).await;
    let c = pod(&world, "c", "r2").await;
    let c = join(&world, "c", &c).await;
    await_shares(&store, &[(&c, 1)], SOON).await;
    let api: Api<Pod> = world.namespace.api();
    // One that is told to stop gives up what it has, before its program hears of it.
    let grace = DeleteParams { grace_period_seconds: Some(60), ..DeleteParams::default() };
    api.delete("a", &grace).await.unwrap();
    await_shares(&store, &[(&a, 0)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn in_a_rollout_that_is_scaled_a_new_pod_of_the_earlier_template_gives_way() {
    let world = start(WITH_PODS, &[]).await;
    let store = bucket(&world).await;
    let deployments: Api<Deployment> = world.namespace.api();
    super::await_value("the workload", async || deployments.get_opt("fulfilment").await.unwrap()).await;
    let progressing = json!({"status": {"conditions": [{"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
        "message": "ReplicaSet \"fulfilment-r2\" is progressing."}]}});
    deployments
        .patch_status("fulfilment", &PatchParams::default(), &Patch::Strategic(progressing))
        .await
        .unwrap();
    let b = pod(&world, "b", "r2").await;
    // Times of creation are whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let c = pod(&world, "c", "r1").await;
    let c = join(&world, "c", &c).await;
    // Somebody has to do the work.
    await_shares(&store, &[(&c, 4)], SOON).await;
    let b = join(&world, "b", &b).await;
    await_shares(&store, &[(&b, 2), (&c, 2)], SOON).await;
    await_owned(&world, "True", "Owned").await;
}

#[tokio::test]
async fn where_a_workload_has_no_pods_a_program_of_its_namespace_gets_partitions_until_it_has_some() {
    let at_rest = WITH_PODS.replace("replicas: 2", "replicas: 0");
    let world = start(&at_rest, &[]).await;
    let store = bucket(&world).await;
    await_owned(&world, "True", "NotNeeded").await;
    let stranger = Member::join(&world, "bank", None).await;
    let program = Member::join(&world, world.namespace.name(), None).await;
    await_shares(&store, &[(&program, 4), (&stranger, 0)], SOON).await;
    await_owned(&world, "True", "Owned").await;
    let uid = pod(&world, "a", "r1").await;
    let own = join(&world, "a", &uid).await;
    await_shares(&store, &[(&own, 4), (&program, 0)], SOON).await;
    await_until("the program hands over", SOON, || async {
        if own.held().len() == 4 && program.held().is_empty() { Ok(()) } else { Err("not yet") }
    })
    .await;
}

#[tokio::test]
async fn a_container_that_ended_is_dead_at_once_and_the_next_one_in_its_pod_is_not() {
    let world = start(WITH_PODS, &[]).await;
    let store = bucket(&world).await;
    let (a_uid, b_uid) = (pod(&world, "a", "r1").await, pod(&world, "b", "r1").await);
    let (a, b) = (join(&world, "a", &a_uid).await, join(&world, "b", &b_uid).await);
    await_shares(&store, &[(&a, 2), (&b, 2)], SOON).await;
    await_owned(&world, "True", "Owned").await;
    let id = a.id.clone();
    drop(a);
    // Times in a pod's status are whole seconds.
    let second = Timestamp::now().as_second();
    await_until("another second", SOON, async || {
        if Timestamp::now().as_second() > second { Ok(()) } else { Err(String::new()) }
    })
    .await;
    // The next container starts before its end is told.
    let next = join(&world, "a", &a_uid).await;
    end_container(&world, "a").await;
    await_shares(&store, &[(&next, 2), (&b, 2)], SOON).await;
    await_owned(&world, "True", "Owned").await;
    let record = super::value(&store, &format!("member.{id}")).await.unwrap();
    assert_eq!(record["dead"]["reason"], "ContainerEnded", "{record}");
    let alive = super::value(&store, &format!("member.{}", next.id)).await.unwrap();
    assert!(alive.get("dead").is_none(), "{alive}");
    let deaths = world.metric("jetwright_partitions_member_deaths_total{reason=\"ContainerEnded\"}").await;
    assert_eq!(deaths, Some(1.0));
}
