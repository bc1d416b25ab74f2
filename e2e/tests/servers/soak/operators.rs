//! Two operators, of which one leads. What ends is started again, as their Deployment would.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jetwright_testing::{Namespace, NatsCluster, Process, ProcessBuilder, await_until, binary, free_port};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use tokio::{task::JoinSet, time::interval};

/// The Lease of one that is killed ends after 15 s, and the next one asks for it every 2 s.
const ELECTED: Duration = Duration::from_mins(1);
const SUPERVISION_INTERVAL: Duration = Duration::from_millis(200);

pub struct Operators {
    leases: Api<Lease>,
    running: Arc<Running>,
    _supervision: JoinSet<()>,
    /// How often the leader was killed or frozen.
    pub interrupted: usize,
}

struct Running {
    builder: ProcessBuilder,
    /// By who it is in the Lease.
    processes: Mutex<Vec<(String, Arc<Process>)>>,
}

impl Running {
    fn processes(&self) -> MutexGuard<'_, Vec<(String, Arc<Process>)>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the one of this number, counted from the first that there was.
    fn start(&self, number: usize) -> (String, Arc<Process>) {
        let identity = format!("operator-{number}");
        let process = self
            .builder
            .clone()
            .name(&identity)
            .arg(format!("--leader-elect-identity={identity}"))
            .arg(format!("--admin-address=127.0.0.1:{}", free_port()))
            .start();
        (identity, Arc::new(process))
    }

    /// Starts others for those that ended, for as long as it is polled.
    async fn supervise(self: Arc<Self>) {
        let mut looks = interval(SUPERVISION_INTERVAL);
        let mut number = self.processes().len();
        loop {
            looks.tick().await;
            for running in self.processes().iter_mut().filter(|(_, process)| process.exited().is_some()) {
                *running = self.start(number);
                number += 1;
            }
        }
    }
}

impl Operators {
    pub async fn start(namespace: &Namespace<'_>, nats: &NatsCluster) -> Self {
        let builder = Process::builder(binary("jetwright-operator"))
            .env("KUBECONFIG", namespace.control_plane().kubeconfig())
            .args(["--nats-url", nats.url(), "--cluster-name=soak"])
            .arg(format!("--namespaces={}", namespace.name()))
            .arg(format!("--leader-elect-namespace={}", namespace.name()));
        let running = Arc::new(Running { builder, processes: Mutex::default() });
        running.processes().extend([0, 1].map(|number| running.start(number)));
        let mut supervision = JoinSet::new();
        supervision.spawn(Arc::clone(&running).supervise());
        let leases = namespace.api();
        let operators = Self { leases, running, _supervision: supervision, interrupted: 0 };
        operators.leader_but("").await;
        operators
    }

    /// The one that leads, once one does that is another than this.
    async fn leader_but(&self, last: &str) -> (String, Arc<Process>) {
        await_until("an operator to lead", ELECTED, async || {
            let lease = self.leases.get("jetwright-operator").await?;
            let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
            let running = self.running.processes();
            let leader = running.iter().find(|(identity, _)| *identity == holder && identity != last);
            leader.cloned().ok_or_else(|| anyhow::anyhow!("{holder:?} has the Lease"))
        })
        .await
    }

    /// Kills the one that leads (SIGKILL). Another leads after a while.
    pub async fn kill_leader(&mut self) {
        let (_, process) = self.leader_but("").await;
        process.kill();
        self.interrupted += 1;
    }

    /// Freezes the one that leads (SIGSTOP) until another does, and wakes it: it ends.
    pub async fn freeze_leader(&mut self) {
        let (identity, process) = self.leader_but("").await;
        process.signal("STOP");
        self.leader_but(&identity).await;
        process.signal("CONT");
        process.wait_exit(ELECTED).await;
        self.interrupted += 1;
    }
}
