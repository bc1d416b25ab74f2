//! The pods of an EventConsumer as processes: Kubernetes' own controllers make them, and a node runs, ends and starts them again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use jetwright_crds::EventConsumer;
use jetwright_e2e::{
    node::{Node, Settings, Started},
    order::{
        history::{History, Interruption},
        load::monotonic,
    },
};
use jetwright_testing::{Folder, Namespace, Process, Program, await_until, binary, free_port};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Pod};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::SETTLED;

const NAME: &str = "fulfilment";
const IMAGE: &str = "jetwright/soak-worker";
/// A process writes it at its start. The processes of a pod share a log.
const STARTS: &str = "# starts\n";

/// What the sentinel of a process counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sentinel {
    pub checked: u64,
    pub violations: u64,
    pub recoveries: u64,
}

pub struct Workload<'n> {
    namespace: &'n Namespace<'n>,
    _controllers: Process,
    _logs: Arc<Folder>,
    started: UnboundedReceiver<Started>,
    /// All that were started, in their order: the processes of the history.
    processes: Vec<Started>,
    sentinels: BTreeMap<usize, Sentinel>,
    interruptions: Vec<(usize, Duration, Interruption)>,
}

impl<'n> Workload<'n> {
    /// Starts the controllers and the node, and declares the consumer without a pod.
    pub async fn start(namespace: &'n Namespace<'n>) -> Self {
        let control_plane = namespace.control_plane();
        let controllers = Process::builder(Program::KubeControllerManager.path())
            .arg("--kubeconfig")
            .arg(control_plane.kubeconfig())
            .args(["--leader-elect=false", "--secure-port=0"])
            .arg("--controllers=deployment-controller,replicaset-controller")
            .start();
        let logs = Folder::new("soak-logs");
        let (sender, started) = unbounded_channel();
        let settings = Settings {
            programs: [(IMAGE.to_owned(), binary("jetwright-soak-worker"))].into(),
            logs: logs.path().to_owned(),
            // Not that of the demo, and rarely that of another test program of this machine.
            network: u8::try_from(1 + std::process::id() % 254).unwrap(),
            started: Some(sender),
        };
        let node = Node::new(control_plane.client().await, settings);
        node.register(free_port()).await.unwrap();
        tokio::spawn(node.run());
        Self {
            namespace,
            _controllers: controllers,
            _logs: logs,
            started,
            processes: Vec::new(),
            sentinels: BTreeMap::new(),
            interruptions: Vec::new(),
        }
    }

    pub async fn declare_consumer(&self) {
        let container = json!({
            "name": "app", "image": format!("{IMAGE}:1"),
            // One that is frozen is not started again, so that it wakes.
            "livenessProbe": {"httpGet": {"path": "/livez", "port": 9090}, "failureThreshold": 1000},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 1},
        });
        let spec = json!({
            "streamRef": {"name": "orders"}, "ordering": "PerKey",
            "workload": {"replicas": 0, "template": {"spec": {"containers": [container]}}},
        });
        declare::<EventConsumer>(self.namespace, NAME, &spec).await;
    }

    /// As `kubectl scale` does, and waits until there are so many pods, all ready, and none that ends.
    pub async fn scale(&mut self, pods: usize) -> BTreeSet<String> {
        let consumers: Api<EventConsumer> = self.namespace.api();
        let patch = Patch::Merge(json!({"spec": {"replicas": pods}}));
        await_until("the scale to be written", SETTLED, async || {
            consumers.patch_scale(NAME, &PatchParams::default(), &patch).await
        })
        .await;
        self.await_pods(pods).await
    }

    async fn await_pods(&mut self, count: usize) -> BTreeSet<String> {
        let api: Api<Pod> = self.namespace.api();
        let uids = await_until(&format!("{count} pods that are ready"), SETTLED, async || {
            let pods = api.list(&ListParams::default()).await?.items;
            let states: Vec<_> = pods.iter().map(|pod| (pod.name_any(), is_well(pod))).collect();
            anyhow::ensure!(pods.len() == count && states.iter().all(|(_, well)| *well), "{states:?}");
            anyhow::Ok(pods.iter().filter_map(Pod::uid).collect())
        })
        .await;
        self.take_note();
        uids
    }

    fn take_note(&mut self) {
        while let Ok(started) = self.started.try_recv() {
            self.processes.push(started);
        }
    }

    /// Those that run.
    fn running(&mut self) -> Vec<usize> {
        self.take_note();
        let runs = |index: &usize| self.processes[*index].process.exited().is_none();
        (0..self.processes.len()).filter(runs).collect()
    }

    pub fn uid(&self, index: usize) -> &str {
        &self.processes[index].uid
    }

    /// Asks each process what its sentinel has counted so far.
    pub async fn ask_the_sentinels(&mut self) {
        for index in self.running() {
            let url = format!("http://{}:9090/metrics", self.processes[index].address);
            let metrics = reqwest::get(url).await.unwrap().text().await.unwrap();
            let sum = |name: &str| {
                let values = metrics.lines().filter(|line| line.starts_with(name));
                values.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>()
            };
            let sentinel = Sentinel {
                checked: sum("jetwright_order_checked_total"),
                violations: sum("jetwright_order_violations_total"),
                recoveries: sum("jetwright_order_recoveries_total"),
            };
            self.sentinels.insert(index, sentinel);
        }
    }

    /// What the sentinels of all processes counted, as far as they were asked.
    pub fn sentinels(&self) -> Sentinel {
        self.sentinels.values().fold(Sentinel::default(), |sum, one| Sentinel {
            checked: sum.checked + one.checked,
            violations: sum.violations + one.violations,
            recoveries: sum.recoveries + one.recoveries,
        })
    }

    /// Stops one with work under way (SIGSTOP): the last that it wrote is that it begins an event.
    async fn stop_one(&mut self) -> usize {
        let running = self.running();
        let processes = &self.processes;
        await_until("a process to begin an event", SETTLED, async || {
            let stops = |index: &usize| {
                let process = &processes[*index].process;
                process.signal("STOP");
                let begins = process.log().lines().last().is_some_and(|line| line.contains(" begin "));
                if !begins {
                    process.signal("CONT");
                }
                begins
            };
            running.iter().copied().find(stops).ok_or("none does")
        })
        .await
    }

    /// Kills one with work under way (SIGKILL). The node starts it again.
    pub async fn kill_one(&mut self) {
        let index = self.stop_one().await;
        self.take_note();
        self.processes[index].process.kill();
        self.interruptions.push((index, monotonic(), Interruption::Killed));
        await_until("the process to be started again", SETTLED, async || {
            if self.started.is_empty() { Err("not yet") } else { Ok(()) }
        })
        .await;
    }

    /// Freezes one with work under way.
    pub async fn freeze_one(&mut self) -> usize {
        let index = self.stop_one().await;
        self.interruptions.push((index, monotonic(), Interruption::Frozen(Duration::MAX)));
        index
    }

    /// Wakes it.
    pub fn wake(&mut self, frozen: usize) {
        self.processes[frozen].process.signal("CONT");
        for (index, _, how) in &mut self.interruptions {
            if *index == frozen && *how == Interruption::Frozen(Duration::MAX) {
                *how = Interruption::Frozen(monotonic());
            }
        }
    }

    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    pub fn interrupted(&self) -> usize {
        self.interruptions.len()
    }

    /// Everything that was written. Whoever was not killed has ended in order.
    pub fn history(&mut self) -> History {
        self.take_note();
        let is_killed = |index| {
            self.interruptions.iter().any(|(of, _, how)| *of == index && *how == Interruption::Killed)
        };
        for (index, Started { process, .. }) in self.processes.iter().enumerate() {
            let is_well = is_killed(index) || process.exited().is_none_or(|status| status.success());
            assert!(is_well, "{:?}: {}", process.exited(), process.last_lines());
        }
        let mut of_pod: BTreeMap<&str, usize> = BTreeMap::new();
        let logs: Vec<_> = self
            .processes
            .iter()
            .map(|Started { uid, process, .. }| {
                let number = of_pod.entry(uid).or_default();
                *number += 1;
                process.log().split(STARTS).nth(*number).unwrap_or_default().to_owned()
            })
            .collect();
        History::read(logs.iter().map(String::as_str), self.interruptions.clone()).unwrap()
    }
}

fn is_well(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let is_ready =
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && pod.metadata.deletion_timestamp.is_none()
}

/// Creates an object.
pub async fn declare<K>(namespace: &Namespace<'_>, name: &str, spec: &Value)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let object = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
    });
    let object = serde_json::from_value(object).unwrap();
    namespace.api::<K>().create(&PostParams::default(), &object).await.unwrap();
}
