//! Order per key on a cluster: under load a workload is scaled, its pods are deleted without grace and killed, and the operator's pods are deleted.
//! `make soak-cluster` does the same for longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::{
    cluster::{Cluster, LATER, Nats, OPERATOR, OwnNamespace, Record, Records, SOON},
    metrics::sum,
    order::{
        check::{Report, check},
        history::{History, Interruption},
        load::{Load, Pace, monotonic},
    },
    workers::{Sentinel, is_ready},
};
use jetwright_testing::await_until;
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::ListParams};

use crate::trouble::leader;

const PARTITIONS: u32 = 8;
const KEYS: u32 = 300;
/// How many pods there are, one step after another.
const STEPS: [usize; 5] = [1, 4, 2, 0, 3];
/// How long each handler takes, in milliseconds: longer than it takes to publish the next event of all keys, so that every pod is at work.
const HANDLING: u32 = 200;
/// As many events wait at most, so that there is always work, and an end.
const BACKLOG: u64 = 2_000;
/// A pod that dies without a word is found after 32 s, and its successor waits for ackWait. Nodes and programs share a few cores.
const SETTLED: Duration = Duration::from_mins(2);

/// How often the steps are gone through; twice where nothing is said.
fn rounds() -> usize {
    std::env::var("JETWRIGHT_SOAK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

/// A workload in a namespace of its own.
struct Fleet<'c> {
    cluster: &'c Cluster,
    namespace: OwnNamespace,
    records: Records,
    load: Load,
    _nats: Nats,
    /// Pods that were interrupted, and when.
    interrupted: Vec<(String, Duration)>,
    /// What the sentinel of each pod counted.
    sentinels: BTreeMap<String, Sentinel>,
}

impl<'c> Fleet<'c> {
    async fn start(cluster: &'c Cluster) -> Self {
        let image = cluster.load_program("jetwright-soak-worker");
        let namespace = cluster.namespace("order").await;
        let at = namespace.name();
        let credentials = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nats"}, "stringData": cluster.secret(OPERATOR, "nats-tester").await,
        });
        cluster.apply(at, &credentials.to_string()).await;
        let records = cluster.keep_records(at).await;
        cluster.apply(at, &manifests(at, &image)).await;
        cluster.await_condition::<EventStream>((at, at), ("Ready", "True"), SOON).await;
        cluster.await_condition::<EventConsumer>((at, "fulfilment"), ("Ready", "True"), SOON).await;
        let nats = cluster.nats(0).await;
        let load = Load::new(nats.jetstream.clone(), 1, PARTITIONS, KEYS).of_stream(at);
        let (interrupted, sentinels) = (Vec::new(), BTreeMap::new());
        Self { cluster, namespace, records, load, _nats: nats, interrupted, sentinels }
    }

    fn at(&self) -> &str {
        self.namespace.name()
    }

    /// Scales as a person does, by the scale subresource or by the spec, and waits until there are just so many pods, and they settle events.
    async fn scale(&mut self, pods: usize, by_patch: bool) {
        self.ask_the_sentinels().await;
        let at = self.at();
        let command = if by_patch {
            let patch = format!(r#"{{"spec":{{"workload":{{"replicas":{pods}}}}}}}"#);
            format!("patch eventconsumer fulfilment --namespace {at} --type=merge --patch {patch}")
        } else {
            format!("scale eventconsumer fulfilment --namespace {at} --replicas={pods}")
        };
        self.cluster.kubectl(&command).await;
        self.await_pods(pods).await;
        if pods > 0 {
            self.load.await_progress(SETTLED).await;
        }
    }

    async fn pods(&self) -> Vec<Pod> {
        self.cluster.api::<Pod>(self.at()).list(&ListParams::default()).await.unwrap().items
    }

    async fn await_pods(&self, count: usize) {
        await_until(&format!("{count} pods, all of them ready"), LATER, async || {
            let pods = self.pods().await;
            let there: Vec<_> = pods.iter().map(|pod| (pod.name_any(), is_ready(pod))).collect();
            if there.len() == count && there.iter().all(|(_, ready)| *ready) {
                Ok(())
            } else {
                Err(format!("{there:?}"))
            }
        })
        .await;
    }

    /// What each pod saw of the order. One whose container was started again counts anew, and one that ends may not answer.
    async fn ask_the_sentinels(&mut self) {
        for pod in self.pods().await.into_iter().filter(is_ready) {
            let name = pod.name_any();
            let Ok(metrics) = self.cluster.metrics(&format!("{}/{name}:9090", self.at())).await else {
                continue;
            };
            let found = Sentinel::read(&metrics);
            let seen = self.sentinels.entry(name).or_default();
            seen.checked = seen.checked.max(found.checked);
            seen.violations = seen.violations.max(found.violations);
        }
    }

    /// One that handles events now: what is interrupted has something under way.
    async fn busy_pod(&mut self) -> String {
        self.ask_the_sentinels().await;
        await_until("a pod that handles events", LATER, async || {
            for pod in self.pods().await.iter().filter(|pod| is_ready(pod)) {
                let name = pod.name_any();
                let metrics = self.cluster.metrics(&format!("{}/{name}:9090", self.at())).await;
                if metrics.is_ok_and(|metrics| sum(&metrics, "jetwright_handlers_in_flight") > 0) {
                    return Ok(name);
                }
            }
            Err("none")
        })
        .await
    }

    /// Deletes a pod at once: another takes its place while the kubelet still ends it.
    async fn delete_a_pod(&mut self) {
        let pod = self.busy_pod().await;
        self.interrupted.push((pod.clone(), monotonic()));
        let delete = format!("delete pod {pod} --namespace {} --grace-period=0 --force", self.at());
        self.cluster.kubectl(&delete).await;
    }

    /// Kills the program of a pod, which the kubelet starts again.
    async fn kill_a_container(&mut self) {
        let pod = self.busy_pod().await;
        self.interrupted.push((pod.clone(), monotonic()));
        self.cluster.kill(self.at(), &pod).await;
    }

    async fn delete_the_operator(&self, is_forced: bool) {
        let leader = leader(self.cluster, "").await;
        let how = if is_forced { "--grace-period=0 --force" } else { "--wait=false" };
        self.cluster.kubectl(&format!("delete pod {leader} --namespace {OPERATOR} {how}")).await;
    }

    /// Everything that happened is in order, as the pods wrote it, and as their sentinels saw it.
    async fn report(&self, load: &Load) -> Report {
        let records = self.records.read().await;
        let interruptions = interruptions(&records, &self.interrupted);
        assert_eq!(interruptions.len(), self.interrupted.len(), "{:?}", self.interrupted);
        let logs = records.iter().map(|record| record.log.as_str());
        let report = check(&History::read(logs, interruptions).unwrap(), &load.published).unwrap();
        assert_eq!(report.handled, load.published.values().sum::<u64>(), "{report:?}");
        let all = self.sentinels.values().fold(Sentinel::default(), |all, one| all + *one);
        let Sentinel { checked, violations, .. } = all;
        assert!(checked > 0 && violations == 0, "{:?}", self.sentinels);
        println!(
            "{report:?}; {} programs in {} pods, {} interrupted, {checked} attempts checked by sentinels, {violations} violations",
            records.len(),
            records.iter().map(|record| &record.pod).collect::<BTreeSet<_>>().len(),
            self.interrupted.len(),
        );
        report
    }
}

/// The program that ran in each of these pods at that time. It has a moment to end by itself, so what it wrote last says when it ended.
fn interruptions(
    records: &[Record],
    interrupted: &[(String, Duration)],
) -> Vec<(usize, Duration, Interruption)> {
    let times = |record: &Record| {
        let first_words = record.log.lines().filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
        first_words.map(Duration::from_nanos).collect::<Vec<_>>()
    };
    let ended = |(pod, at): &(String, Duration)| {
        let of_it = records.iter().enumerate().filter(|(_, record)| record.pod == *pod);
        let began_before =
            of_it.filter(|(_, record)| times(record).into_iter().min().is_some_and(|first| first <= *at));
        let (index, record) = began_before.max_by_key(|(_, record)| record.restart)?;
        let last = times(record).into_iter().max()?;
        Some((index, last + Duration::from_nanos(1), Interruption::Killed))
    };
    interrupted.iter().filter_map(ended).collect()
}

fn manifests(at: &str, image: &str) -> String {
    format!(
        "apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {{name: {at}}}
spec: {{profile: Standard, subjects: [\"{at}.*.*\"], partitions: {{count: {PARTITIONS}, keyTokens: [2]}}, deletionPolicy: Delete}}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {{name: fulfilment}}
spec:
  streamRef: {{name: {at}}}
  ordering: PerKey
  deadLetter: {{policy: Drop}}
  workload:
    replicas: 0
    credentials: {{secretRef: {{name: nats}}}}
    template:
      spec:
        securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
        containers:
          - name: app
            image: \"{image}\"
            imagePullPolicy: Never
            command: [/jetwright-soak-worker]
            env: [{{name: SOAK_HANDLING_MILLISECONDS, value: \"{HANDLING}\"}}]
"
    )
}

#[tokio::test]
async fn events_of_a_key_stay_in_order_while_pods_and_operators_come_and_go_and_are_deleted_without_a_word() {
    let cluster = Cluster::connect().await;
    let mut fleet = Fleet::start(&cluster).await;
    let publishing = fleet.load.clone().publish_all_the_time(Pace::Within(BACKLOG));
    for round in 0..rounds() {
        let begun = monotonic();
        for (step, pods) in STEPS.into_iter().enumerate() {
            fleet.scale(pods, (round + step) % 2 == 1).await;
            match step {
                1 => fleet.delete_a_pod().await,
                2 => fleet.delete_the_operator(round % 2 == 1).await,
                4 => fleet.kill_a_container().await,
                _ => {}
            }
        }
        println!("round {round} took {:.0?}", monotonic().saturating_sub(begun));
    }
    let load = publishing.stop().await;
    load.await_drained(SETTLED).await;
    fleet.scale(0, false).await;
    let report = fleet.report(&load).await;
    assert!(report.repeated > 0, "no program had begun an event when it was interrupted: {report:?}");
    let at = fleet.at();
    cluster.kubectl(&format!("delete eventconsumer,eventstream --all --namespace {at} --timeout=60s")).await;
}
