//! Order per key on three real servers, under load, with the real operator and Kubernetes' own controllers: pods come and go, their processes
//! are killed and frozen, and so are the leading operator and NATS servers. `make soak-order` does the same for longer.

mod operators;
pub mod worker;
mod workload;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jetwright_crds::EventStream;
use jetwright_e2e::{
    objects::declare,
    order::{
        check::Report,
        holders::ensure_shared,
        load::{Load, Pace},
    },
    path,
    workers::SETTLED,
};
use jetwright_testing::{ControlPlane, Namespace, NatsCluster, await_until};
use serde_json::json;

use self::{operators::Operators, workload::Workload};

const PARTITIONS: u32 = 8;
const KEYS: u32 = 1_000;
/// How many pods there are, one step after another.
const STEPS: [usize; 5] = [1, 8, 3, 0, 5];
/// As many events wait at most, so that there is always work, and an end.
const BACKLOG: u64 = 10_000;

/// How often the steps are gone through; once where nothing is said.
fn rounds() -> usize {
    std::env::var("JETWRIGHT_SOAK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1)
}

/// After this no further round begins.
fn limit() -> Duration {
    let minutes = std::env::var("JETWRIGHT_SOAK_MINUTES").ok().and_then(|minutes| minutes.parse().ok());
    minutes.map_or(Duration::MAX, Duration::from_mins)
}

struct Soak {
    nats: NatsCluster,
    load: Load,
    operators: Operators,
    workload: Workload,
    scale_downs: usize,
    servers_killed: usize,
}

impl Soak {
    async fn start(namespace: &Namespace<'_>, nats: NatsCluster, load: Load) -> Self {
        let operators = Operators::start(namespace, &nats).await;
        let partitions = json!({"count": PARTITIONS, "keyTokens": [2]});
        let stream = json!({
            "subjects": ["orders.*.*"], "partitions": partitions, "replicas": 3,
            // Many more than wait at once: a server that starts again reads all that there is.
            "limits": {"maxMessages": 200_000},
        });
        declare(&namespace.api::<EventStream>(), "orders", &stream).await;
        let workload = Workload::start(namespace).await;
        workload.declare_consumer().await;
        await_until("the consumers", SETTLED, async || load.consumers().await).await;
        Self { nats, load, operators, workload, scale_downs: 0, servers_killed: 0 }
    }

    /// Waits until there are so many pods, which hold all partitions and handle events of each, although meanwhile another operator leads.
    async fn scale(&mut self, to: usize, from: usize, round: usize) {
        self.workload.ask_the_sentinels().await;
        let pods = self.workload.scale(to).await;
        self.scale_downs += usize::from(to < from);
        match to {
            1 if round.is_multiple_of(4) => self.operators.kill_leader().await,
            1 if round % 4 == 2 => self.operators.freeze_leader().await,
            _ => {}
        }
        self.await_progress(&pods).await;
    }

    /// Waits until these pods hold all partitions, each as many as another within one.
    async fn await_owned(&self, pods: &BTreeSet<String>) {
        let jetstream = self.nats.jetstream().await;
        await_until("the pods to hold all partitions", SETTLED, async || {
            ensure_shared(&jetstream, PARTITIONS, pods).await
        })
        .await;
    }

    /// Waits until these pods hold all partitions, and have settled events of each since.
    async fn await_progress(&self, pods: &BTreeSet<String>) {
        if pods.is_empty() {
            return;
        }
        self.await_owned(pods).await;
        self.load.await_progress(SETTLED).await;
    }

    /// Kills the server that leads the stream, and starts it again.
    async fn kill_a_server(&mut self) {
        self.servers_killed += 1;
        let server = &self.nats.servers()[self.nats.stream_leader("orders").await];
        server.kill();
        server.start_again().await;
    }

    /// Freezes a process until its partitions are with others, and wakes it.
    async fn freeze_one(&mut self, pods: &BTreeSet<String>) {
        let frozen = self.workload.freeze_one().await;
        let mut others = pods.clone();
        others.remove(self.workload.uid(frozen));
        self.await_progress(&others).await;
        self.workload.wake(frozen);
    }

    /// What goes wrong at a step of a round. It is over, and all partitions make progress again.
    async fn disturb(&mut self, round: usize, pods: usize) {
        match pods {
            8 => self.workload.kill_one().await,
            3 if round.is_multiple_of(2) => self.kill_a_server().await,
            // Of its death hears who leads next.
            3 if round % 8 == 5 => {
                self.workload.kill_one().await;
                self.operators.kill_leader().await;
            }
            5 if round % 6 == 1 => {
                let uids = self.workload.scale(pods).await;
                self.freeze_one(&uids).await;
            }
            _ => return,
        }
        let uids = self.workload.scale(pods).await;
        self.await_progress(&uids).await;
    }

    fn report(&mut self, load: &Load) -> Report {
        let report = self.workload.assert_in_order(load);
        let sentinels = self.workload.sentinels();
        assert!(sentinels.checked > 0 && sentinels.violations == 0, "{sentinels:?}");
        println!(
            "{report:?}; {sentinels:?}; {} processes, {} of them interrupted, {} scale-downs, {} servers and {} operators interrupted",
            self.workload.processes(),
            self.workload.interrupted(),
            self.scale_downs,
            self.servers_killed,
            self.operators.interrupted,
        );
        report
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_a_key_stay_in_order_while_processes_servers_and_operators_come_and_go() {
    let cluster = async {
        let nats = NatsCluster::start(3).await;
        // Nobody serves a partition before its bucket is older than any lease, so the sooner the better.
        let load = Load::new(nats.jetstream().await, 3, PARTITIONS, KEYS);
        load.create_bucket().await;
        (nats, load)
    };
    let (control_plane, (nats, load)) = tokio::join!(ControlPlane::start(), cluster);
    control_plane.apply(path("../crds/manifests")).await;
    let namespace = control_plane.namespace("soak").await;
    let mut soak = Soak::start(&namespace, nats, load).await;
    let publishing = soak.load.clone().publish_all_the_time(Pace::Within(BACKLOG));
    let mut before = 0;
    let first = Instant::now();
    for round in (0..rounds()).take_while(|_| first.elapsed() < limit()) {
        for pods in STEPS {
            soak.scale(pods, before, round).await;
            soak.disturb(round, pods).await;
            before = pods;
        }
        println!("{} rounds after {:.0?}", round + 1, first.elapsed());
    }
    let load = publishing.stop().await;
    load.await_drained(SETTLED).await;
    soak.scale(0, before, 0).await;
    let report = soak.report(&load);
    assert!(report.repeated > 0, "no process had begun an event when it was interrupted: {report:?}");
}
