//! What is asked for where nothing, or only a figure, changes.

use std::{fmt::Debug, time::Duration};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::await_until;
use k8s_openapi::{NamespaceResourceScope, api::apps::v1::Deployment};
use kube::{
    Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{
    objects::{event_consumer, stream_name, workload},
    world::{BOUND, World},
};

/// Workloads beside which messages are published, and the streams that they consume.
const WORKLOADS: usize = 300;
const STREAMS: usize = 20;
/// Statuses hold what was published by then: a resync and an interval between two writes of one.
const UNTIL_TOLD: Duration = Duration::from_secs(130);

/// Changes what means nothing to the operator and wakes it all the same.
async fn touch<K>(world: &World, name: &str)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api = world.api::<K>();
    let mut finalizers = api.get(name).await.unwrap().finalizers().to_vec();
    finalizers.push("figures/nothing".into());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    api.patch(name, &PatchParams::default(), &patch).await.unwrap();
}

pub async fn of_reconciles_that_change_nothing() {
    let world = World::start().await;
    world.create_streams(1).await;
    let guest: EventConsumer = serde_json::from_value(json!({
        "apiVersion": "jetwright.dev/v1alpha1", "kind": "EventConsumer", "metadata": {"name": "guest"},
        "spec": {"streamRef": {"name": "s0"}, "workloadRef": {"name": "workload"}},
    }))
    .unwrap();
    world
        .create_consumers([event_consumer("plain", "s0"), workload("workload", "s0"), guest].into_iter())
        .await;
    world.await_workloads(1).await;
    world.quiet().await;
    for (kind, name) in [
        ("EventStream", "s0"),
        ("EventConsumer", "plain"),
        ("EventConsumer with pods", "workload"),
        ("EventConsumer in the pods of another", "guest"),
    ] {
        let before = world.quiet().await;
        match kind {
            "EventStream" => touch::<EventStream>(&world, name).await,
            _ => touch::<EventConsumer>(&world, name).await,
        }
        await_until("it is reconciled", BOUND, async || {
            let now = world.counts().await.reconciles;
            if now > before.reconciles { Ok(()) } else { Err(now) }
        })
        .await;
        let spent = world.quiet().await.since(&before);
        println!(
            "{kind}, {} reconciles that change nothing: {} requests to Kubernetes, {} to NATS",
            spent.reconciles,
            spent.kubernetes(),
            spent.jetstream
        );
        assert_eq!((spent.kubernetes(), spent.jetstream), (0, 0), "{kind}");
    }
}

impl World {
    /// Waits until so many Deployments are there.
    pub async fn await_workloads(&self, count: usize) {
        let deployments = self.api::<Deployment>();
        await_until("all Deployments are there", BOUND, async || {
            let found = deployments.list_metadata(&ListParams::default()).await.unwrap().items.len();
            if found == count { Ok(()) } else { Err(found) }
        })
        .await;
    }
}

pub async fn of_messages_beside_workloads() {
    let world = World::start().await;
    world.create_streams(STREAMS).await;
    let workloads =
        (0..WORKLOADS).map(|number| workload(&format!("w{number}"), &stream_name(number % STREAMS)));
    world.create_consumers(workloads).await;
    world.await_workloads(WORKLOADS).await;
    // What was written of a status a moment ago waits for its interval.
    tokio::time::sleep(UNTIL_TOLD).await;
    let before = world.quiet().await;
    for number in 0..STREAMS {
        let subject = format!("{}.event", stream_name(number));
        world.jetstream.publish(subject, "x".into()).await.unwrap().await.unwrap();
    }
    tokio::time::sleep(UNTIL_TOLD).await;
    let spent = world.quiet().await.since(&before);
    println!(
        "one message to each of {STREAMS} streams beside {WORKLOADS} workloads: {} reads of Kubernetes, {} writes, {} requests to NATS, {} \
         reconciles, {:.2} CPU seconds in {UNTIL_TOLD:?}",
        spent.reads,
        spent.creates + spent.patches + spent.others,
        spent.jetstream,
        spent.reconciles,
        spent.seconds
    );
    assert_eq!(spent.reads, 0);
    let statuses = u64::try_from(STREAMS + WORKLOADS).unwrap();
    let writes = spent.creates + spent.patches + spent.others;
    assert!(writes <= statuses, "{writes} writes of {statuses} statuses");
}
