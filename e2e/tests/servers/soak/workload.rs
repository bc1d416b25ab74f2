//! The pods of an EventConsumer: what interrupts their processes, and what those wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jetwright_crds::EventConsumer;
use jetwright_e2e::{
    node::Started,
    objects::declare,
    order::{
        check::Report,
        history::Interruption,
        load::{Load, monotonic},
    },
    workers::{CONSUMER, SETTLED, Sentinel, Workers},
};
use jetwright_testing::{Namespace, await_until};
use serde_json::json;

pub struct Workload {
    workers: Workers,
    sentinels: BTreeMap<usize, Sentinel>,
    interruptions: Vec<(usize, Duration, Interruption)>,
}

impl Workload {
    pub async fn start(namespace: &Namespace<'_>) -> Self {
        let workers = Workers::start(namespace.control_plane(), namespace.name()).await;
        Self { workers, sentinels: BTreeMap::new(), interruptions: Vec::new() }
    }

    /// Declares the consumer without a pod.
    pub async fn declare_consumer(&self) {
        let mut container = Workers::container();
        // One that is frozen is not started again, so that it wakes.
        container["livenessProbe"] =
            json!({"httpGet": {"path": "/livez", "port": 9090}, "failureThreshold": 1000});
        container["readinessProbe"] =
            json!({"httpGet": {"path": "/readyz", "port": 9090}, "periodSeconds": 1});
        let spec = json!({
            "streamRef": {"name": "orders"}, "ordering": "PerKey",
            "workload": {"replicas": 0, "template": {"spec": {"containers": [container]}}},
        });
        declare(&self.workers.api::<EventConsumer>(), CONSUMER, &spec).await;
    }

    /// Waits until there are so many pods, all ready, and none that ends.
    pub async fn scale(&self, pods: usize) -> BTreeSet<String> {
        self.workers.scale(pods).await;
        self.workers.await_pods(pods).await
    }

    pub fn uid(&mut self, index: usize) -> &str {
        &self.workers.processes()[index].uid
    }

    /// Asks each process what its sentinel has counted so far.
    pub async fn ask_the_sentinels(&mut self) {
        self.sentinels.extend(self.workers.sentinels().await);
    }

    /// What the sentinels of all processes counted, as far as they were asked.
    pub fn sentinels(&self) -> Sentinel {
        self.sentinels.values().fold(Sentinel::default(), |all, one| all + *one)
    }

    /// Stops one with work under way (SIGSTOP): the last that it wrote is that it begins an event.
    async fn stop_one(&mut self) -> usize {
        let running = self.workers.running();
        let processes = self.workers.processes();
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
        self.workers.processes()[index].process.kill();
        self.interruptions.push((index, monotonic(), Interruption::Killed));
        await_until("the process to be started again", SETTLED, async || {
            if self.workers.has_started_another() { Ok(()) } else { Err("not yet") }
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
        // Read before: it may begin an event before the sender of the signal goes on.
        let woken = monotonic();
        self.workers.processes()[frozen].process.signal("CONT");
        for (index, _, how) in &mut self.interruptions {
            if *index == frozen && *how == Interruption::Frozen(Duration::MAX) {
                *how = Interruption::Frozen(woken);
            }
        }
    }

    pub fn processes(&mut self) -> usize {
        self.workers.processes().len()
    }

    pub fn interrupted(&self) -> usize {
        self.interruptions.len()
    }

    /// Everything was handled in order, and each process that was not killed ended successfully.
    pub fn assert_in_order(&mut self, load: &Load) -> Report {
        let is_killed = |index| {
            self.interruptions.iter().any(|(of, _, how)| *of == index && *how == Interruption::Killed)
        };
        for (index, Started { process, .. }) in self.workers.processes().iter().enumerate() {
            let is_well = is_killed(index) || process.exited().is_none_or(|status| status.success());
            // What it logged, and the others of its container, without their handlers' lines.
            let log = process.log();
            let said: Vec<_> =
                log.lines().filter(|line| line.starts_with(['{', '#']) || line.contains("rror")).collect();
            assert!(is_well, "{:?}:\n{}", process.exited(), said.join("\n"));
        }
        let history = self.workers.history(self.interruptions.clone());
        self.workers.assert_in_order(&history, load)
    }
}
