//! The pods of an EventConsumer as processes of this machine: Kubernetes' own controllers make the pods, and a node runs, ends and starts again
//! what is in them. Their program writes what it handles, so that their logs are a history of it.

mod pods;
mod sentinel;
mod world;

use std::{
    collections::BTreeMap,
    fmt, fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jetwright_testing::{ControlPlane, Folder, Process, Program, binary, free_port};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::JoinSet,
};

pub use self::{pods::is_ready, sentinel::Sentinel, world::World};
use crate::{
    node::{Node, Settings, Started},
    order::{
        check::{Report, check},
        history::{History, Interruption},
        load::Load,
    },
};

/// The EventConsumer whose pods they are.
pub const CONSUMER: &str = "fulfilment";
/// How long pods may take to come and go where nobody has the cores. Even on an idle machine, a process that dies without a word is found after
/// 32 s, and its successor waits for ackWait.
pub const SETTLED: Duration = Duration::from_mins(3);

const IMAGE: &str = "jetwright/soak-worker";
const PROGRAM: &str = "jetwright-soak-worker";
/// A process writes it at its start. The processes of a pod share a log.
const STARTS: &str = "# starts\n";
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,garbage-collector-controller,pod-garbage-collector-controller";

/// The pods of a namespace, with the node and the controllers.
pub struct Workers {
    client: Client,
    namespace: String,
    started: UnboundedReceiver<Started>,
    /// All that were started, in their order.
    processes: Vec<Started>,
    _logs: Arc<Folder>,
    _controllers: Process,
    /// The node, which ends with it.
    _node: JoinSet<()>,
}

impl fmt::Debug for Workers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Workers").field("processes", &self.processes).finish_non_exhaustive()
    }
}

/// A network of its own for each node of this process: two that look for a free address at once would find the same, and the second program could
/// not listen there. It is not that of the demo, and rarely that of another test program of this machine.
fn network() -> u8 {
    static NODES: AtomicU32 = AtomicU32::new(0);
    let node = NODES.fetch_add(1, Ordering::Relaxed);
    u8::try_from(1 + std::process::id().wrapping_add(node) % 254).unwrap_or(1)
}

impl Workers {
    /// Starts the controllers and the node.
    pub async fn start(control_plane: &ControlPlane, namespace: &str) -> Self {
        let controllers = Process::builder(Program::KubeControllerManager.path())
            .arg("--kubeconfig")
            .arg(control_plane.kubeconfig())
            .args(["--leader-elect=false", "--secure-port=0", &format!("--controllers={CONTROLLERS}")])
            .start();
        let (client, logs) = (control_plane.client().await, Folder::new("worker-logs"));
        let (sender, started) = unbounded_channel();
        let settings = Settings {
            programs: [(IMAGE.to_owned(), binary(PROGRAM))].into(),
            logs: logs.path().to_owned(),
            network: network(),
            started: Some(sender),
        };
        let node = Node::new(client.clone(), settings);
        let registered = node.register(free_port()).await;
        registered.unwrap_or_else(|error| panic!("the node: {error:#}"));
        let mut tasks = JoinSet::new();
        tasks.spawn(node.run());
        Self {
            client,
            namespace: namespace.to_owned(),
            started,
            processes: Vec::new(),
            _logs: logs,
            _controllers: controllers,
            _node: tasks,
        }
    }

    /// The objects of a kind beside them.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Their container, as an EventConsumer has it.
    #[must_use]
    pub fn container() -> Value {
        json!({"name": "app", "image": format!("{IMAGE}:1")})
    }

    /// All processes that were started, in their order.
    pub fn processes(&mut self) -> &[Started] {
        while let Ok(started) = self.started.try_recv() {
            self.processes.push(started);
        }
        &self.processes
    }

    /// Whether another was started since they were asked for last.
    #[must_use]
    pub fn has_started_another(&self) -> bool {
        !self.started.is_empty()
    }

    /// Those that run, by their place among all.
    pub fn running(&mut self) -> Vec<usize> {
        let processes = self.processes().iter().enumerate();
        processes.filter(|(_, one)| one.process.exited().is_none()).map(|(index, _)| index).collect()
    }

    /// Everything that they wrote, some of which were interrupted so.
    ///
    /// # Panics
    ///
    /// When a line cannot be read.
    pub fn history(&mut self, interruptions: Vec<(usize, Duration, Interruption)>) -> History {
        let logs = self.logs();
        let history = History::read(logs.iter().map(String::as_str), interruptions);
        history.unwrap_or_else(|error| panic!("the logs of the processes: {error}"))
    }

    /// Makes sure that everything was handled, in order. If it was not, the logs of the processes that the violations are about are kept.
    ///
    /// # Panics
    ///
    /// When a history is not in order.
    pub fn assert_in_order(&mut self, history: &History, load: &Load) -> Report {
        let report = check(history, &load.published).unwrap_or_else(|violations| {
            let (folder, logs) = (Folder::new("out-of-order"), self.logs());
            for process in violations.processes() {
                let log = folder.path().join(format!("process-{process}.log"));
                fs::write(&log, &logs[process]).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
            }
            panic!("{violations}")
        });
        assert_eq!(report.handled, load.published.values().sum::<u64>(), "{report:?}");
        report
    }

    /// What each process wrote.
    fn logs(&mut self) -> Vec<String> {
        let mut of_pod: BTreeMap<&str, usize> = BTreeMap::new();
        let logs = self.processes().iter().map(|Started { uid, process, .. }| {
            let number = of_pod.entry(uid).or_default();
            *number += 1;
            process.log().split(STARTS).nth(*number).unwrap_or_default().to_owned()
        });
        logs.collect()
    }
}
