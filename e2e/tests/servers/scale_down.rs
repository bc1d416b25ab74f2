//! Scale-downs under load, with Kubernetes' own controllers and pods as processes: what is handled stays in order, and nothing is handled twice.
//! `make soak-scale-down` does the same a hundred times.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt as _;
use jetwright_crds::{EventConsumer, labels::WORKLOAD};
use jetwright_e2e::{
    order::{
        check::Report,
        holders::ensure_shared,
        load::{Load, Pace},
    },
    workers::{CONSUMER, SETTLED, World},
};
use jetwright_testing::await_until;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, events::v1::Event};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::json;
use tokio::task::JoinSet;

const PARTITIONS: u32 = 8;
const KEYS: u32 = 200;
const PACE: Pace = Pace::Every(Duration::from_millis(400));
/// Pods before and after each scale-down.
const STEPS: [(i32, i32); 5] = [(4, 2), (5, 1), (3, 2), (6, 3), (4, 0)];
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn scale_downs() -> usize {
    let wanted = std::env::var("JETWRIGHT_SCALE_DOWNS").ok().and_then(|wanted| wanted.parse().ok());
    wanted.unwrap_or(STEPS.len())
}

/// What was seen of pods that were told to stop: whether each had the hint by then.
type Stopped = Arc<Mutex<BTreeMap<String, bool>>>;

/// Everything but the load.
struct Cluster {
    world: World,
    stopped: Stopped,
    /// The watch, which ends with it.
    _watch: JoinSet<()>,
}

impl Cluster {
    async fn start() -> Self {
        let (world, stopped) = (World::start().await, Stopped::default());
        let mut watching = JoinSet::new();
        watching.spawn(watch(world.workers.api(), Arc::clone(&stopped)));
        world.declare_stream(PARTITIONS).await;
        world.declare_consumer(json!({"replicas": 1}), &[]).await;
        Self { world, stopped, _watch: watching }
    }

    async fn scale(&self, replicas: i32) {
        self.world.workers.scale(usize::try_from(replicas).unwrap()).await;
    }

    /// Those that were not told to stop.
    async fn pods(&self) -> Vec<Pod> {
        let pods = self.world.workers.pods().await.unwrap();
        pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Waits until there are so many pods and no others, and they have all partitions.
    async fn await_settled(&self, replicas: i32) {
        let expected = if replicas == 0 { "NotNeeded" } else { "Owned" };
        await_until("pods and partitions to be as wanted", SETTLED, async || {
            let deployment = self.world.workers.api::<Deployment>().get(CONSUMER).await?;
            let wanted = deployment.spec.and_then(|spec| spec.replicas);
            anyhow::ensure!(wanted == Some(replicas), "the Deployment has to have {wanted:?} pods");
            let pods = self.world.workers.pods().await?;
            let ready = deployment.status.and_then(|status| status.ready_replicas).unwrap_or_default();
            let there = i32::try_from(pods.len())?;
            anyhow::ensure!((ready, there) == (replicas, replicas), "{there} pods, {ready} of them ready");
            let consumer = self.world.workers.api::<EventConsumer>().get(CONSUMER).await?;
            let conditions = consumer.status.map(|status| status.conditions).unwrap_or_default();
            let owned = conditions.into_iter().find(|condition| condition.type_ == "PartitionsOwned");
            let is_settled = owned.as_ref().is_some_and(|owned| owned.reason == expected);
            anyhow::ensure!(is_settled, "{owned:?}");
            if replicas > 0 {
                let uids: BTreeSet<_> = pods.into_iter().filter_map(|pod| pod.uid()).collect();
                ensure_shared(&self.world.nats.jetstream().await, PARTITIONS, &uids).await?;
            }
            Ok(())
        })
        .await;
    }

    /// The pods that were told to stop since this was asked last, at least so many: whether each had the hint.
    async fn take_stopped(&self, count: i32) -> BTreeMap<String, bool> {
        await_until("pods to be told to stop", SETTLED, async || {
            let mut stopped = self.stopped.lock().unwrap();
            let is_complete = i32::try_from(stopped.len()).unwrap() >= count;
            if is_complete { Ok(mem::take(&mut *stopped)) } else { Err(format!("{stopped:?}")) }
        })
        .await
    }

    /// Deletes a pod that is not emptied while others are.
    async fn delete_one_that_stays(&self) {
        let pod = await_until("some pods to be emptied", SETTLED, async || {
            let (emptied, staying): (Vec<_>, Vec<_>) =
                self.pods().await.into_iter().partition(|pod| pod.annotations().contains_key(COST));
            match staying.first() {
                Some(pod) if !emptied.is_empty() => Ok(pod.name_any()),
                _ => Err(format!("{} of {} pods are emptied", emptied.len(), emptied.len() + staying.len())),
            }
        })
        .await;
        self.world.workers.api::<Pod>().delete(&pod, &DeleteParams::default()).await.unwrap();
    }

    /// What all pods wrote, checked: nothing is out of order, and nothing is repeated, since nothing was interrupted.
    fn report(&mut self, load: &Load) -> Report {
        let history = self.world.workers.history(Vec::new());
        self.world.workers.assert_in_order(&history, load)
    }

    /// Deliveries beyond the first of each event: those that had not begun and were given back at a hand-over.
    async fn given_back(&self, load: &Load) -> u64 {
        let infos = load.consumers().await.unwrap();
        let delivered: u64 = infos.iter().map(|info| info.delivered.consumer_sequence).sum();
        delivered - load.published.values().sum::<u64>()
    }

    async fn events(&self, reason: &str) -> Vec<String> {
        let events = self.world.workers.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        let of_reason = events.into_iter().filter(|event| event.reason.as_deref() == Some(reason));
        of_reason.filter_map(|event| event.note).collect()
    }
}

async fn watch(pods: Api<Pod>, stopped: Stopped) {
    let config = watcher::Config::default().labels(WORKLOAD);
    let mut pods = std::pin::pin!(watcher(pods, config).default_backoff().applied_objects());
    while let Some(pod) = pods.next().await {
        if let Ok(pod) = pod
            && pod.metadata.deletion_timestamp.is_some()
        {
            let has_hint = pod.annotations().contains_key(COST);
            stopped.lock().unwrap().entry(pod.name_any()).or_insert(has_hint);
        }
    }
}

#[tokio::test]
async fn scale_downs_under_load_repeat_nothing_and_keep_the_order_also_where_the_wrong_pod_is_deleted() {
    let mut cluster = Cluster::start().await;
    cluster.await_settled(1).await;
    let load = Load::new(cluster.world.nats.jetstream().await, 1, PARTITIONS, KEYS);
    let publishing = load.clone().publish_all_the_time(PACE);
    let mut ended = 0;
    for (round, (before, after)) in STEPS.into_iter().cycle().take(scale_downs()).enumerate() {
        cluster.scale(before).await;
        cluster.await_settled(before).await;
        load.await_progress(SETTLED).await;
        cluster.scale(after).await;
        let deletes_another = round % STEPS.len() == 3;
        if deletes_another {
            cluster.delete_one_that_stays().await;
        }
        cluster.await_settled(after).await;
        let stopped = cluster.take_stopped(before - after).await;
        ended += stopped.len();
        let is_expected = deletes_another || after == 0 || stopped.values().all(|has_hint| *has_hint);
        assert!(is_expected, "a pod was removed that was not emptied, from {before} to {after}: {stopped:?}");
    }
    cluster.scale(3).await;
    cluster.await_settled(3).await;
    let load = publishing.stop().await;
    load.await_drained(SETTLED).await;
    let report = cluster.report(&load);
    let given_back = cluster.given_back(&load).await;
    println!(
        "{} scale-downs, {ended} pods ended: {report:?}, {given_back} events given back that had not begun",
        scale_downs(),
    );
    assert_eq!(report.repeated, 0, "{report:?}");
    let overdue = cluster.events("NotEmptied").await;
    assert!(overdue.is_empty(), "{overdue:?}");
}
