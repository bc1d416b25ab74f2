//! A scale-down empties pods before it removes them. The test plays Kubernetes' controllers, and programs that give up what they have when it says
//! so.

use std::collections::BTreeSet;

use async_nats::jetstream::kv;
use jetwright_crds::EventConsumer;
use jetwright_partitions::lease::RENEWAL_INTERVAL;
use jetwright_testing::{NatsServer, Process, await_until, binary};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinSet;

use super::{ORDERS, SOON, await_owned, bucket, targets, value};
use crate::{
    verify::with_rights,
    workloads::{permissions::documented, pods::make_pod},
    world::{World, arguments, condition},
};

const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const PODS: [&str; 3] = ["a", "b", "c"];

fn spec(more: &str) -> String {
    format!(
        "{{streamRef: {{name: orders}}, ordering: PerKey, {more} workload: {{replicas: 3, template: {{spec: {{containers: [{{name: app, image: \
         'shop/order:1'}}]}}}}}}}}"
    )
}

/// A workload of three pods that have all four partitions, as their programs write.
struct Workload {
    world: World,
    store: kv::Store,
    /// They renew their memberships.
    _programs: JoinSet<()>,
}

impl Workload {
    async fn start(more: &str) -> Self {
        Self::of(World::start().await, more).await
    }

    async fn of(world: World, more: &str) -> Self {
        world.stream("orders", ORDERS).await;
        world.consumer("fulfilment", &spec(more)).await;
        world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
        let (store, mut programs) = (bucket(&world).await, JoinSet::new());
        for pod in PODS {
            make_pod(&world, pod, "r1").await;
            let uid = world.namespace.api::<Pod>().get(pod).await.unwrap().uid();
            let record = json!({"pod": pod, "uid": uid, "consumers": {"orders.fulfilment": {}}});
            let key = format!("member.{}", member(&world, pod));
            store.put(&key, record.to_string().into()).await.unwrap();
            programs.spawn(renew(store.clone(), key, record.to_string()));
        }
        let workload = Self { world, store, _programs: programs };
        await_until("the map has all of them", SOON, async || {
            let targets = targets(&workload.store).await;
            let distinct = targets.iter().collect::<BTreeSet<_>>();
            if (targets.len(), distinct.len()) == (4, 3) { Ok(()) } else { Err(format!("{targets:?}")) }
        })
        .await;
        workload.follow_the_map().await;
        await_owned(&workload.world, "True", "Owned").await;
        workload
    }

    async fn take(&self, partition: u32, member: &str) {
        let record = json!({"member": member, "state": "held"});
        let key = format!("held.orders.fulfilment.{partition}");
        self.store.put(&key, record.to_string().into()).await.unwrap();
    }

    async fn scale(&self, replicas: i32) {
        let scale = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.world.consumers().patch_scale("fulfilment", &PatchParams::default(), &scale).await.unwrap();
    }

    async fn deployment(&self) -> Deployment {
        self.world.namespace.api().get("fulfilment").await.unwrap()
    }

    async fn replicas(&self) -> Option<i32> {
        self.deployment().await.spec.unwrap().replicas
    }

    async fn await_replicas(&self, replicas: i32) {
        await_until("the Deployment has its number", SOON, async || {
            let found = self.replicas().await;
            if found == Some(replicas) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Names of the pods that have the hint.
    async fn marked(&self) -> Vec<String> {
        let api: Api<Pod> = self.world.namespace.api();
        let mut marked = Vec::new();
        for name in PODS {
            let Ok(pod) = api.get(name).await else { continue };
            marked.extend(pod.annotations().contains_key(COST).then(|| name.to_owned()));
        }
        marked
    }

    /// The pod that a scale-down to two empties, once no partition is meant for it any more and the status says so.
    async fn await_emptying(&self) -> String {
        let pod = await_until("a pod is emptied", SOON, async || {
            let status = self.world.consumers().get("fulfilment").await.unwrap().status.unwrap();
            let emptying = status.partitions.unwrap().emptying;
            let [pod] = emptying.as_slice() else { return Err(format!("{emptying:?}")) };
            Ok(pod.pod.clone())
        })
        .await;
        let member = member(&self.world, &pod);
        await_until("the map is without it", SOON, async || {
            let targets = targets(&self.store).await;
            if targets.len() == 4 && !targets.contains(&member) {
                Ok(())
            } else {
                Err(format!("{targets:?}"))
            }
        })
        .await;
        pod
    }

    /// All give up and take what the map says.
    async fn follow_the_map(&self) {
        for (partition, target) in (0..).zip(targets(&self.store).await) {
            self.take(partition, &target).await;
        }
    }
}

async fn renew(store: kv::Store, key: String, record: String) {
    loop {
        tokio::time::sleep(RENEWAL_INTERVAL).await;
        let _ = store.put(&key, record.clone().into()).await;
    }
}

fn member(world: &World, pod: &str) -> String {
    format!("{}.{pod}", world.namespace.name())
}

#[tokio::test]
async fn a_pod_hands_over_all_that_it_has_before_the_deployment_gets_fewer_and_has_the_hint_by_then() {
    let workload = Workload::start("").await;
    workload.scale(2).await;
    let pod = workload.await_emptying().await;
    assert_eq!(workload.replicas().await, Some(3));
    assert_eq!(workload.marked().await, std::slice::from_ref(&pod));
    let world = &workload.world;
    let said = await_until("the status says whom it waits for", SOON, async || {
        let found = condition(&world.consumers().get("fulfilment").await.unwrap(), "WorkloadReady").unwrap();
        let expected = format!("emptying pod {pod}: ");
        if found.message.contains(&expected) { Ok(found.message) } else { Err(found.message) }
    });
    assert!(said.await.ends_with(" left"));
    let owned = await_owned(world, "False", "HandingOver").await;
    assert!(owned.contains(&format!("emptying pod {pod}: ")), "{owned}");

    workload.follow_the_map().await;
    workload.await_replicas(2).await;
    assert!(world.events("fulfilment", "NotEmptied").await.is_empty());
    // Until it is gone it gets nothing, and nobody else is chosen.
    await_owned(world, "True", "Owned").await;
    assert_eq!(workload.marked().await, std::slice::from_ref(&pod));
    let pods: Api<Pod> = world.namespace.api();
    pods.delete(&pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    await_owned(world, "True", "Owned").await;
    assert_eq!((workload.replicas().await, workload.marked().await), (Some(2), vec![]));
}

#[tokio::test]
async fn pods_that_stay_after_all_get_their_partitions_back_and_lose_the_hint() {
    let workload = Workload::start("").await;
    let generation = workload.deployment().await.metadata.generation;
    workload.scale(2).await;
    let pod = workload.await_emptying().await;
    workload.scale(3).await;
    await_until("no pod has the hint", SOON, async || {
        let marked = workload.marked().await;
        if marked.is_empty() { Ok(()) } else { Err(format!("{marked:?}")) }
    })
    .await;
    let member = member(&workload.world, &pod);
    await_until("it is in the map again", SOON, async || {
        let targets = targets(&workload.store).await;
        if targets.contains(&member) { Ok(()) } else { Err(format!("{targets:?}")) }
    })
    .await;
    assert_eq!(workload.deployment().await.metadata.generation, generation, "it was not changed");
}

#[tokio::test]
async fn an_operator_that_is_killed_in_the_middle_goes_on_where_it_was() {
    let mut workload = Workload::start("").await;
    workload.scale(2).await;
    let pod = workload.await_emptying().await;
    workload.world.operator.kill();
    workload.world.start_again(&[]);
    assert_eq!(workload.await_emptying().await, pod);
    assert_eq!((workload.replicas().await, workload.marked().await), (Some(3), vec![pod.clone()]));
    workload.follow_the_map().await;
    workload.await_replicas(2).await;
    assert_eq!(workload.marked().await, [pod]);
}

#[tokio::test]
async fn a_pod_that_keeps_what_it_has_goes_after_its_time_which_an_event_says() {
    let workload = Workload::start("handlerDeadline: 1s,").await;
    workload.scale(2).await;
    let pod = workload.await_emptying().await;
    assert_eq!(workload.replicas().await, Some(3));
    workload.await_replicas(2).await;
    let events = await_until("the event", SOON, async || {
        let events = workload.world.events("fulfilment", "NotEmptied").await;
        if events.is_empty() { Err("no event") } else { Ok(events) }
    })
    .await;
    let begins = format!("pod {pod} is removed with ");
    assert!(events.len() == 1 && events[0].starts_with(&begins), "{events:?}");
}

#[tokio::test]
async fn to_zero_nobody_is_waited_for_and_no_owner_is_needed() {
    let workload = Workload::start("").await;
    workload.scale(0).await;
    workload.await_replicas(0).await;
    assert_eq!(workload.marked().await, [""; 0]);
    for partition in 0..4 {
        let key = format!("held.orders.fulfilment.{partition}");
        let mut record = value(&workload.store, &key).await.unwrap();
        record["state"] = "free".into();
        workload.store.put(&key, record.to_string().into()).await.unwrap();
    }
    await_owned(&workload.world, "True", "NotNeeded").await;
}

#[tokio::test]
async fn without_the_right_to_patch_pods_it_does_without_the_hint_and_says_so_once() {
    let world = World::with(NatsServer::start().await, &[]).await;
    world.operator.kill();
    let mut rules = documented();
    for rule in rules.as_array_mut().unwrap() {
        if rule["resources"] == json!(["pods"]) {
            rule["verbs"].as_array_mut().unwrap().retain(|verb| *verb != "patch");
        }
    }
    let kubeconfig = with_rights(&world, rules).await;
    let operator = Process::builder(binary("jetwright-operator"))
        .env("KUBECONFIG", kubeconfig)
        .args(arguments(world.nats.url(), world.namespace.name(), world.admin))
        .start();
    let workload = Workload::of(world, "").await;
    for replicas in [2, 1] {
        workload.scale(replicas).await;
        workload.await_emptying().await;
        assert_eq!(workload.replicas().await, Some(replicas + 1));
        workload.follow_the_map().await;
        workload.await_replicas(replicas).await;
        assert_eq!(workload.marked().await, [""; 0]);
        // As if Kubernetes removed the pod: the next scale-down chooses another.
        let targets = targets(&workload.store).await;
        let pods: Api<Pod> = workload.world.namespace.api();
        for name in PODS {
            if !targets.contains(&member(&workload.world, name)) && pods.get(name).await.is_ok() {
                pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
            }
        }
        await_until("no pod is emptied any more", SOON, async || {
            let status = workload.world.consumers().get("fulfilment").await.unwrap().status.unwrap();
            let emptying = status.partitions.unwrap().emptying;
            if emptying.is_empty() { Ok(()) } else { Err(format!("{emptying:?}")) }
        })
        .await;
    }
    let said = "the operator may not patch pods";
    assert_eq!(operator.log().matches(said).count(), 1, "{}", operator.log());
}

#[tokio::test]
async fn a_guest_that_has_no_partitions_holds_up_no_scale_down() {
    let workload = Workload::start("").await;
    let guest = "{streamRef: {name: missing}, ordering: PerKey, workloadRef: {name: fulfilment}}";
    workload.world.consumer("guest", guest).await;
    workload.world.await_condition::<EventConsumer>("guest", "ConsumerReady", "False", "NotFound").await;
    workload.scale(2).await;
    workload.await_emptying().await;
    workload.follow_the_map().await;
    workload.await_replicas(2).await;
    assert!(workload.world.events("fulfilment", "NotEmptied").await.is_empty());
}
