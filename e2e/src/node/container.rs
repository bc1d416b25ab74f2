//! One container of a pod: a process that is started, probed, and started again.

use std::{
    os::unix::{fs::symlink, process::ExitStatusExt},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use jetwright_testing::Process;
use k8s_openapi::{api::core::v1::Container as Spec, jiff::Timestamp};
use kube::ResourceExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Node, environment,
    pod::{Place, log_link},
    probe::Probe,
};

/// How long it takes until something that was missing is looked for again.
const RETRY: Duration = Duration::from_secs(2);
/// The first delay before a container that ends again and again is started, and the longest (kubelet's).
const BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));
/// A container that ran for so long has no failures behind it (kubelet's).
const STEADY: Duration = Duration::from_mins(10);
/// How long a container may take to end after its liveness probe failed.
const GRACE: Duration = Duration::from_secs(30);
/// Lines of a log that stand for a termination message.
const LAST_LINES: usize = 5;

/// Why a container cannot be started: a reason as kubelet writes it, and what is missing.
#[derive(Debug, PartialEq, Eq)]
pub struct Unstartable {
    pub reason: &'static str,
    pub message: String,
}

pub struct Container {
    spec: Spec,
    state: State,
    restarts: u32,
    /// Ends since it last ran steadily.
    failures: u32,
    last: Option<Value>,
    process: Option<Arc<Process>>,
}

enum State {
    Waiting { reason: &'static str, message: String, until: Instant },
    Running(Box<Running>),
    Ended(Value),
}

struct Running {
    since: Timestamp,
    begun: Instant,
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
    /// When a process is killed that was told to end because a probe failed.
    killed_at: Option<Instant>,
}

impl Running {
    /// Asks what is due, and ends a process that does not come up, or does not live any more.
    async fn probe(&mut self, process: &Process) {
        if let Some(end) = self.killed_at {
            if Instant::now() >= end {
                process.kill();
            }
            return;
        }
        // The others wait until it has come up.
        if let Some(startup) = self.startup.as_mut().filter(|startup| !startup.holds()) {
            startup.ask().await;
            if startup.has_failed() {
                self.stop(process);
            }
            return;
        }
        if let Some(readiness) = &mut self.readiness {
            readiness.ask().await;
        }
        if let Some(liveness) = &mut self.liveness {
            liveness.ask().await;
            if liveness.has_failed() {
                self.stop(process);
            }
        }
    }

    fn stop(&mut self, process: &Process) {
        process.signal("TERM");
        self.killed_at = Some(Instant::now() + GRACE);
    }
}

impl Container {
    pub fn new(spec: Spec) -> Self {
        let state =
            State::Waiting { reason: "ContainerCreating", message: String::new(), until: Instant::now() };
        Self { spec, state, restarts: 0, failures: 0, last: None, process: None }
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.exited().is_none())
    }

    pub fn is_ready(&self) -> bool {
        match &self.state {
            State::Running(running) => running.readiness.as_ref().is_none_or(Probe::holds),
            _ => false,
        }
    }

    /// How long it goes on before it is told to end.
    pub fn pre_stop(&self) -> Duration {
        let hook = self.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let seconds = hook.and_then(|hook| hook.sleep.as_ref()).map_or(0, |sleep| sleep.seconds);
        Duration::from_secs(seconds.try_into().unwrap_or_default())
    }

    pub fn signal(&self, signal: &str) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    /// Does what is due: starts it, probes it, or takes note of its end.
    pub async fn step(&mut self, node: &Node, place: &Place) {
        match &mut self.state {
            State::Waiting { until, .. } if Instant::now() >= *until => self.start(node, place).await,
            State::Waiting { .. } | State::Ended(_) => {}
            State::Running(running) => {
                let Some(process) = &self.process else { return };
                if let Some(status) = process.exited() {
                    self.ended(status, place.restart_policy());
                    return;
                }
                running.probe(process).await;
            }
        }
    }

    async fn start(&mut self, node: &Node, place: &Place) {
        match self.try_start(node, place).await {
            Ok(running) => self.state = State::Running(Box::new(running)),
            Err(Unstartable { reason, message }) => {
                self.state = State::Waiting { reason, message, until: Instant::now() + RETRY };
            }
        }
    }

    async fn try_start(&mut self, node: &Node, place: &Place) -> Result<Running, Unstartable> {
        let program = environment::program(node, &self.spec)?;
        let environment = environment::resolve(node, place, &self.spec).await?;
        let failed =
            |error: anyhow::Error| Unstartable { reason: "RunContainerError", message: format!("{error:#}") };
        let probe = |probe: &Option<_>| {
            probe.as_ref().map(|probe| Probe::new(probe, &self.spec, place.address)).transpose()
        };
        let [startup, readiness] = [&self.spec.startup_probe, &self.spec.readiness_probe].map(probe);
        let running = Running {
            since: Timestamp::now(),
            begun: Instant::now(),
            startup: startup?.map(Probe::that_has_to_succeed),
            readiness: readiness?.map(Probe::that_has_to_succeed),
            liveness: probe(&self.spec.liveness_probe)?,
            killed_at: None,
        };
        let process = Process::builder(program)
            .name(&self.spec.name)
            .folder(&place.folder)
            .args(environment.args)
            .envs(environment.variables)
            .try_start()
            .map_err(failed)?;
        let link = log_link(node, &place.pod, &self.spec.name);
        if !link.is_symlink() {
            symlink(place.folder.path().join(format!("{}.log", self.spec.name)), &link)
                .map_err(|error| failed(error.into()))?;
        }
        let process = Arc::new(process);
        node.report_started(place.pod.uid().unwrap_or_default(), place.address, &process);
        self.process = Some(process);
        Ok(running)
    }

    fn ended(&mut self, status: ExitStatus, policy: &str) {
        let ended = self.terminated(status);
        if policy == "Never" || policy == "OnFailure" && status.success() {
            self.state = State::Ended(ended);
            return;
        }
        let steady = match &self.state {
            State::Running(running) => running.begun.elapsed() >= STEADY,
            _ => false,
        };
        self.failures = if steady { 0 } else { self.failures };
        let delay = delay(self.failures);
        self.failures += 1;
        self.restarts += 1;
        self.last = Some(ended);
        let message = format!("back-off {}s restarting container {}", delay.as_secs(), self.spec.name);
        self.state = State::Waiting { reason: "CrashLoopBackOff", message, until: Instant::now() + delay };
    }

    /// Ends it for good.
    pub fn end(&mut self) {
        let Some(process) = &self.process else { return };
        process.kill();
        if let (State::Running(_), Some(status)) = (&self.state, process.exited()) {
            self.state = State::Ended(self.terminated(status));
        }
    }

    fn terminated(&self, status: ExitStatus) -> Value {
        let since = match &self.state {
            State::Running(running) => running.since,
            _ => Timestamp::now(),
        };
        // As a container runtime has it for a signal.
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
        let to_tell =
            code != 0 && self.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        json!({
            "exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" },
            "startedAt": seconds(since), "finishedAt": seconds(Timestamp::now()),
            "message": to_tell.then(|| self.last_lines()),
        })
    }

    fn last_lines(&self) -> String {
        let log = self.process.as_ref().map(|process| process.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// What a pod's status says of it.
    pub fn status(&self) -> Value {
        let state = match &self.state {
            State::Waiting { reason, message, .. } => {
                json!({"waiting": {"reason": reason, "message": message}})
            }
            State::Running(running) => json!({"running": {"startedAt": seconds(running.since)}}),
            State::Ended(ended) => json!({"terminated": ended}),
        };
        let last = self.last.as_ref().map_or(json!({}), |ended| json!({"terminated": ended}));
        json!({
            "name": self.spec.name, "image": self.spec.image, "imageID": "", "restartCount": self.restarts,
            "ready": self.is_ready(), "started": matches!(self.state, State::Running(_)),
            "state": state, "lastState": last,
        })
    }

    pub fn has_ended(&self) -> Option<i64> {
        match &self.state {
            State::Ended(ended) => ended["exitCode"].as_i64(),
            _ => None,
        }
    }
}

/// How long a container waits that has failed so often before: the first time not at all.
fn delay(failures: u32) -> Duration {
    let (first, longest) = BACKOFF;
    failures.checked_sub(1).map_or(Duration::ZERO, |doublings| {
        first.saturating_mul(2_u32.saturating_pow(doublings)).min(longest)
    })
}

fn seconds(time: Timestamp) -> String {
    format!("{time:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_ends_again_and_again_waits_longer_each_time() {
        let delays: Vec<_> = (0..8).map(|failures| delay(failures).as_secs()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }
}
