//! What every reconcile needs: the clients, the mirror, the settings, and a little memory.

use std::time::Duration;

use jetwright_crds::conditions::Reason;
use jetwright_nats::{Connection, ConnectionState};
use kube::{
    Client,
    runtime::{controller::Action, events::Recorder},
};
use rand::RngExt as _;
use tokio_util::task::TaskTracker;

use crate::{
    jetstream::Mirror,
    kubernetes::status::Wrote,
    memory::{Applied, Deletions, Failures, Key, Remade, Repairs, Written},
    metrics::Metrics,
    outcome::{Told, Waiting},
    plan::Plan,
    workload::Pods,
};

/// How long NATS is away before the objects say so.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(10);

/// Namespaces, by name or all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    /// All of them.
    All,
    /// These.
    Only(Vec<String>),
}

impl Namespaces {
    /// Whether a namespace is among them.
    #[must_use]
    pub fn serves(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| name == namespace),
        }
    }
}

/// How the controllers behave.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces that the operator's own connection serves.
    pub default_connection: Namespaces,
    /// Addresses of NATS as pods reach it.
    pub workload_nats_url: String,
    /// Where pods send their traces, if anywhere.
    pub workload_otlp_endpoint: Option<String>,
    /// How often everything is looked at again, although nothing seemed to change.
    pub resync: Duration,
    /// Least time between two writes of a status in which only figures changed.
    pub figures_every: Duration,
    /// How long a deletion is tried before the object is let go.
    pub deletion_timeout: Duration,
}

/// What every reconcile needs.
pub struct Context {
    /// Kubernetes.
    pub client: Client,
    /// Writes Kubernetes events.
    pub recorder: Recorder,
    /// What JetStream has.
    pub mirror: Mirror,
    /// The connection to NATS.
    pub nats: Connection,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Name of this Kubernetes cluster, part of every identity.
    pub cluster_name: String,
    /// How the controllers behave.
    pub settings: Settings,
    /// Failures in a row.
    pub failures: Failures,
    /// When statuses were written.
    pub written: Written,
    /// When deletions were first tried.
    pub deletions: Deletions,
    /// How often things were put right.
    pub repairs: Repairs,
    /// What was told to have been made again.
    pub remade: Remade,
    /// What was applied last as the objects of workloads.
    pub applied: Applied,
    /// The pods of workloads.
    pub pods: Pods,
    /// The reconciles that run.
    pub running: TaskTracker,
}

impl Context {
    /// Why nothing of a namespace can be done in JetStream now; None where NATS is there for it.
    #[must_use]
    pub fn no_connection(&self, namespace: &str) -> Option<Waiting> {
        if self.settings.default_connection.serves(namespace) {
            return self.disconnected();
        }
        Some(Waiting {
            reason: Reason::NoConnection,
            message: format!(
                "no NATS connection serves namespace {namespace}: add it to the operator's --default-connection-namespaces (the chart's value defaultConnectionNamespaces)"
            ),
            stalled: true,
            again: None,
        })
    }

    fn disconnected(&self) -> Option<Waiting> {
        let state: ConnectionState = self.nats.state().borrow().clone();
        state.disconnected_for()?;
        let servers = self.nats.servers();
        let message = match (&state.last_error, state.was_connected) {
            (Some(why), true) => {
                format!("NATS at {servers}: {why}; everything is looked at again when it is back")
            }
            (Some(why), false) => format!("NATS at {servers} was not reached yet: {why}"),
            (None, true) => {
                format!("NATS at {servers} cannot be reached; everything is looked at again when it is back")
            }
            (None, false) => format!("NATS at {servers} was not reached yet"),
        };
        Some(Waiting { reason: Reason::Disconnected, message, stalled: false, again: None })
    }

    /// How long a status that is to change has to wait for its write: one that says Disconnected, until NATS has been away for a while
    /// and there is a turn; one in which only figures change, until the last write is old enough.
    #[must_use]
    pub fn status_waits(&self, key: Key, disconnected: bool, only_figures: bool) -> Option<Duration> {
        if disconnected && !(self.tells_disconnected() && self.written.take_turn()) {
            return Some(DISCONNECTED_AFTER);
        }
        let wait = self.written.figures_wait(key, self.settings.figures_every);
        wait.filter(|_| only_figures)
    }

    /// Whether NATS has been away for so long that the objects are to say so.
    fn tells_disconnected(&self) -> bool {
        self.nats.state().borrow().disconnected_for().is_some_and(|time| time >= DISCONNECTED_AFTER)
    }

    /// When to look at an object again: rarely where nothing is known to change, since changes are told; soon where its status could
    /// not be brought up to date yet, or where the workload asks for it.
    #[must_use]
    pub fn next_look<I>(&self, told: &Told<I>, status: Wrote, workload: Option<Duration>) -> Action {
        let waiting = match told {
            Told::Waiting(waiting) => waiting.again,
            Told::Applied(_) | Told::Invalid(_) => None,
        };
        let later = match status {
            Wrote::Later(pause) => Some(pause),
            Wrote::Now | Wrote::Nothing => None,
        };
        let pause =
            [waiting, later, workload].into_iter().flatten().fold(self.settings.resync, Duration::min);
        Action::requeue(pause.mul_f64(rand::rng().random_range(1.0..1.2)))
    }

    /// Why something of an object is not put right now although somebody changed it: it was, too often.
    #[must_use]
    pub fn contested(&self, key: Key, plan: &Plan) -> Option<Waiting> {
        if !matches!(plan, Plan::Update { drift: true, .. }) {
            return None;
        }
        let again = self.repairs.wait(key)?;
        let message = "somebody else keeps changing it as fast as it is put right: is another operator or tool at work on it?";
        Some(Waiting {
            reason: Reason::Contested,
            message: message.to_owned(),
            stalled: false,
            again: Some(again),
        })
    }

    /// Forgets what is remembered of objects that are gone.
    pub fn forget_old(&self) {
        self.failures.forget_old();
        self.written.forget_old();
        self.deletions.forget_old();
        self.repairs.forget_old();
        self.remade.forget_old();
        self.applied.forget_old();
    }
}
