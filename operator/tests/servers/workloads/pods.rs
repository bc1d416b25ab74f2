//! Why pods do not start. Nothing runs them here: their statuses and events are written as a kubelet, a scheduler and a Deployment's
//! controller write them.

use futures::StreamExt;
use jetwright_crds::EventConsumer;
use jetwright_testing::await_until;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{SPEC, await_deployment, run_pods, with_orders};
use crate::world::{SOON, World};

pub const POD: &str = "fulfilment-5d4-abcde";
const NEWER: &str = "fulfilment-7f9-abcde";

/// A world whose Deployment's controller has made a pod that is not ready.
async fn with_pod() -> World {
    let world = with_orders().await;
    world.consumer("fulfilment", SPEC).await;
    await_deployment(&world, "the deployment", |_| true).await;
    roll_out(&world, json!([])).await;
    make_pod(&world, POD, "5d4").await;
    world
}

/// What a Deployment's controller says while no pod is ready.
pub async fn roll_out(world: &World, conditions: Value) {
    let api: Api<Deployment> = world.namespace.api();
    let generation = api.get("fulfilment").await.unwrap().metadata.generation;
    let status = json!({"status": {
        "observedGeneration": generation, "replicas": 2, "updatedReplicas": 2, "unavailableReplicas": 2,
        "availableReplicas": null, "readyReplicas": null, "conditions": conditions,
    }});
    api.patch_status("fulfilment", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

pub async fn make_pod(world: &World, name: &str, revision: &str) {
    let api: Api<Pod> = world.namespace.api();
    let labels = json!({"jetwright.dev/workload": "fulfilment", "pod-template-hash": revision});
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "app", "image": "shop/order:1"}]},
    });
    api.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
}

/// Writes the status of a pod.
async fn tell(world: &World, name: &str, status: Value) {
    let api: Api<Pod> = world.namespace.api();
    let status = json!({"status": status});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

/// The status of a pod on a node whose one container is so.
fn container(state: &Value) -> Value {
    let mut container = json!({
        "name": "app", "image": "shop/order:1", "imageID": "", "ready": false, "restartCount": 0,
    });
    for (field, value) in state.as_object().unwrap() {
        container[field] = value.clone();
    }
    json!({
        "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "PodReadyToStartContainers", "status": "True"},
        ],
        "containerStatuses": [container],
    })
}

fn waiting(reason: &str, message: &str) -> Value {
    container(&json!({"state": {"waiting": {"reason": reason, "message": message}}}))
}

pub async fn await_reason(world: &World, reason: &str) -> String {
    world.await_condition::<EventConsumer>("fulfilment", "WorkloadReady", "False", reason).await
}

const MISSING: &str =
    "MountVolume.SetUp failed for volume \"jetwright-credentials\" : secret \"shop-nats\" not found";

/// What a kubelet says of [`POD`] while it waits for the Secret with the credentials.
pub async fn tell_of_missing_secret(world: &World) {
    let creating = json!({
        "conditions": [
            {"type": "PodScheduled", "status": "True"}, {"type": "PodReadyToStartContainers", "status": "False"},
        ],
        "containerStatuses": [{
            "name": "app", "image": "shop/order:1", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ContainerCreating"}},
        }],
    });
    tell(world, POD, creating).await;
    let pods: Api<Pod> = world.namespace.api();
    let pod = pods.get(POD).await.unwrap();
    // Another pod's event is none of this one's.
    for (name, uid, words) in
        [("other", "another-uid", "something else"), (POD, &pod.uid().unwrap(), MISSING)]
    {
        let event = json!({
            "metadata": {"name": format!("{name}.1"), "namespace": world.namespace.name()},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": world.namespace.name(), "name": name, "uid": uid,
            },
            "type": "Warning", "reason": "FailedMount", "message": words,
        });
        let api: Api<Event> = world.namespace.api();
        api.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn why_a_container_does_not_start_is_told_as_it_happens_until_it_runs() {
    let world = with_pod().await;
    await_reason(&world, "RollingOut").await;

    let full = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available."});
    tell(&world, POD, json!({"conditions": [full]})).await;
    let told = await_reason(&world, "Unschedulable").await;
    assert!(told.contains(&format!("pod {POD} fits on no node: 0/3 nodes are available.")), "{told}");

    tell(&world, POD, waiting("ErrImagePull", "no such image")).await;
    let told = await_reason(&world, "ImagePull").await;
    let words = format!(
        "0 of 2 pods are ready, 2 of them new: pod {POD}, container app: image shop/order:1 cannot be pulled: no such image. Correct it"
    );
    assert!(told.starts_with(&words), "{told}");

    tell(&world, POD, waiting("CreateContainerConfigError", "couldn't find key url in Secret shop/payments"))
        .await;
    let told = await_reason(&world, "ContainerConfig").await;
    assert!(
        told.contains("cannot be started: couldn't find key url in Secret shop/payments. Make what"),
        "{told}"
    );

    let last = json!({"exitCode": 78, "reason": "Error", "message": "ORDERS_PAYMENTS_URL: not set"});
    let crashed = json!({
        "restartCount": 3, "lastState": {"terminated": last}, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    });
    tell(&world, POD, container(&crashed)).await;
    let told = await_reason(&world, "CrashLoop").await;
    assert!(
        told.contains("last with exit code 78 (Error): ORDERS_PAYMENTS_URL: not set. See kubectl logs"),
        "{told}"
    );
    // `Ready` tells it too, which is what kubectl get shows.
    let ready = world.await_condition::<EventConsumer>("fulfilment", "Ready", "False", "CrashLoop").await;
    assert_eq!(ready, told);

    tell(&world, POD, container(&json!({"ready": true, "state": {"running": {}}, "lastState": {}}))).await;
    await_reason(&world, "RollingOut").await;
    run_pods(&world).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
}

#[tokio::test]
async fn a_missing_credentials_secret_is_told_although_only_an_event_names_it() {
    let world = with_pod().await;
    tell_of_missing_secret(&world).await;
    let told = await_reason(&world, "VolumeMount").await;
    assert!(
        told.contains(&format!("pod {POD}: a volume cannot be mounted: {MISSING}. Make what is missing")),
        "{told}"
    );
    tell(&world, POD, waiting("ContainerCreating", "")).await;
    await_reason(&world, "RollingOut").await;
}

#[tokio::test]
async fn pods_that_kubernetes_does_not_take_are_told_in_its_words() {
    let world = with_pod().await;
    let refused = json!({
        "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "pods \"x\" is forbidden: exceeded quota: q",
    });
    roll_out(&world, json!([refused])).await;
    let told = await_reason(&world, "PodsRefused").await;
    assert!(
        told.contains("exceeded quota: q. Correct spec.workload.template, or change the quota"),
        "{told}"
    );
}

#[tokio::test]
async fn pods_of_an_older_template_are_not_what_is_told_of() {
    let world = with_pod().await;
    tell(&world, POD, waiting("ErrImagePull", "no such image")).await;
    await_reason(&world, "ImagePull").await;
    let (pods, now): (Api<Pod>, _) = (world.namespace.api(), DeleteParams::default().grace_period(0));
    let before = pods.get(POD).await.unwrap().creation_timestamp();
    await_until("a second, since times of creation are whole ones", SOON, || async {
        make_pod(&world, NEWER, "7f9").await;
        if pods.get(NEWER).await.unwrap().creation_timestamp() > before {
            return Ok(());
        }
        pods.delete(NEWER, &now).await.unwrap();
        Err("both pods are equally old")
    })
    .await;
    await_reason(&world, "RollingOut").await;
    pods.delete(NEWER, &now).await.unwrap();
    await_reason(&world, "ImagePull").await;
}

#[tokio::test]
async fn a_crash_loop_writes_few_statuses() {
    let world = with_pod().await;
    await_reason(&world, "RollingOut").await;
    let stop = CancellationToken::new();
    let changes = watcher(world.consumers(), watcher::Config::default()).applied_objects();
    let counting = tokio::spawn(changes.take_until(stop.clone().cancelled_owned()).count());
    for restarts in 1..=400 {
        let last = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "no database"}});
        let course = [
            json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "no database"}}),
            json!({"waiting": {"reason": "CrashLoopBackOff", "message": format!("back-off {restarts}s")}}),
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}),
        ];
        for state in course {
            let status = json!({"restartCount": restarts, "state": state, "lastState": last});
            let mut replaced = container(&status);
            replaced["containerStatuses"][0]["state"]["$patch"] = "replace".into();
            tell(&world, POD, replaced).await;
        }
    }
    await_reason(&world, "CrashLoop").await;
    stop.cancel();
    let seen = counting.await.unwrap();
    assert!(seen <= 5, "{seen} changes of the object");
}
