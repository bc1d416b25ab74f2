//! Whether a program can take work (readiness) and whether only a restart would fix it (liveness).
//!
//! Readiness is the sum of named gates: each part of the program that needs something has a gate, open while the need is met.
//! Liveness is separate, and fails only for what a restart fixes: a task that ended although it never should. A server that is
//! unreachable is no such thing (a restart would not bring it back, and would lose what is in flight), so it closes a gate and
//! never fails liveness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The health of one program. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    gates: BTreeMap<String, GateState>,
    stopping: Option<String>,
    failures: BTreeMap<String, String>,
}

/// Whether a gate is open, evaluated when readiness is read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum GateState {
    Open,
    /// Closed from this moment on, for this reason.
    ClosedFrom(Instant, String),
}

impl GateState {
    /// Why it is closed; `None` if it is open.
    fn reason(&self, now: Instant) -> Option<&str> {
        match self {
            Self::ClosedFrom(from, reason) if now >= *from => Some(reason),
            Self::ClosedFrom(..) | Self::Open => None,
        }
    }

    /// The state after a close at `from`: a gate that closes earlier keeps its time, with the newer reason.
    fn closing(self, from: Instant, reason: &str) -> Self {
        let from = match self {
            Self::ClosedFrom(earlier, _) => earlier.min(from),
            Self::Open => from,
        };
        Self::ClosedFrom(from, reason.to_owned())
    }
}

/// One thing that a program needs to be ready. The gate keeps its last state when dropped. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    name: String,
    health: Health,
}

/// What is wrong, by the name of the gate or the part, and why.
pub type Reasons = Vec<(String, String)>;

impl Health {
    /// Ready and live, without any gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gate that is closed for this reason until it is opened. If the name exists already, closes that gate and returns it.
    #[must_use]
    pub fn gate(&self, name: &str, reason: &str) -> Gate {
        let gate = Gate { name: name.to_owned(), health: self.clone() };
        gate.close(reason);
        gate
    }

    /// Ends readiness for good, whatever the gates say: no new work arrives while the program finishes what it has.
    pub fn stop(&self, reason: &str) {
        self.state().stopping = Some(reason.to_owned());
    }

    /// Ends liveness for good: this part cannot continue, and only a restart fixes it.
    pub fn fail(&self, part: &str, reason: &str) {
        tracing::error!(part, reason, "failed liveness; only a restart fixes this part");
        self.state().failures.insert(part.to_owned(), reason.to_owned());
    }

    /// Whether the program can take work.
    ///
    /// # Errors
    ///
    /// Every closed gate, in the order of their names, and why; while stopping, that too, under the name `stopping`.
    pub fn ready(&self) -> Result<(), Reasons> {
        let state = self.state();
        let stopping = state.stopping.iter().map(|reason| ("stopping".to_owned(), reason.clone()));
        let now = Instant::now();
        let closed =
            state.gates.iter().filter_map(|(name, gate)| Some((name.clone(), gate.reason(now)?.to_owned())));
        none(stopping.chain(closed).collect())
    }

    /// Whether the program works at all.
    ///
    /// # Errors
    ///
    /// Every part that failed, and why.
    pub fn live(&self) -> Result<(), Reasons> {
        none(self.state().failures.clone().into_iter().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl Gate {
    /// The need of this gate is met.
    pub fn open(&self) {
        self.health.state().gates.insert(self.name.clone(), GateState::Open);
    }

    /// The need of this gate is not met, and why.
    pub fn close(&self, reason: &str) {
        self.close_after(Duration::ZERO, reason);
    }

    /// The need of this gate is not met, which matters only if it lasts: closes the gate unless it is opened within `grace`. Until
    /// then an open gate stays open, and a closed gate stays closed, now for this reason. Another call does not postpone the
    /// moment.
    pub fn close_after(&self, grace: Duration, reason: &str) {
        // A grace without end never closes the gate.
        let Some(from) = Instant::now().checked_add(grace) else { return };
        let mut state = self.health.state();
        let gate = state.gates.entry(self.name.clone()).or_insert(GateState::Open);
        *gate = std::mem::replace(gate, GateState::Open).closing(from, reason);
    }
}

fn none(reasons: Reasons) -> Result<(), Reasons> {
    if reasons.is_empty() { Ok(()) } else { Err(reasons) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(pairs: &[(&str, &str)]) -> Result<(), Reasons> {
        Err(pairs.iter().map(|(name, reason)| ((*name).to_owned(), (*reason).to_owned())).collect())
    }

    #[test]
    fn a_program_without_gates_is_ready() {
        assert_eq!(Health::new().ready(), Ok(()));
    }

    #[test]
    fn it_is_ready_while_every_gate_is_open() {
        let health = Health::new();
        let nats = health.gate("nats", "not connected yet");
        let consumer = health.gate("consumer", "not found yet");
        assert_eq!(health.ready(), reasons(&[("consumer", "not found yet"), ("nats", "not connected yet")]));
        consumer.open();
        assert_eq!(health.ready(), reasons(&[("nats", "not connected yet")]));
        nats.open();
        assert_eq!(health.ready(), Ok(()));
        nats.clone().close("disconnected");
        assert_eq!(health.ready(), reasons(&[("nats", "disconnected")]));
    }

    #[test]
    fn a_stopping_program_is_not_ready_whatever_its_gates_say_and_stays_live() {
        let health = Health::new();
        health.gate("nats", "not connected yet").open();
        health.stop("shutting down");
        assert_eq!(health.ready(), reasons(&[("stopping", "shutting down")]));
        assert_eq!(health.live(), Ok(()));
    }

    #[test]
    fn only_a_failed_part_ends_liveness() {
        let health = Health::new();
        health.gate("nats", "away").close("away for an hour");
        assert_eq!(health.live(), Ok(()));
        health.fail("consumer loop", "it panicked");
        assert_eq!(health.live(), reasons(&[("consumer loop", "it panicked")]));
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_within_its_grace_never_ended_readiness() {
        let health = Health::new();
        let consumer = health.gate("consumer", "not found yet");
        let grace = Duration::from_secs(20);
        consumer.open();
        consumer.close_after(grace, "silent");
        tokio::time::advance(Duration::from_millis(19_999)).await;
        assert_eq!(health.ready(), Ok(()));
        consumer.open();
        tokio::time::advance(grace).await;
        assert_eq!(health.ready(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_stays_away_ends_readiness_when_its_grace_is_over_however_often_it_was_reported() {
        let health = Health::new();
        let consumer = health.gate("consumer", "not found yet");
        let grace = Duration::from_secs(20);
        consumer.open();
        for second in 0..20 {
            consumer.close_after(grace, &format!("silent for {second} s"));
            assert_eq!(health.ready(), Ok(()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(health.ready(), reasons(&[("consumer", "silent for 19 s")]));
        consumer.open();
        assert_eq!(health.ready(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_grace_opens_no_gate_and_ends_when_something_worse_comes() {
        let health = Health::new();
        let consumer = health.gate("consumer", "not found yet");
        consumer.close_after(Duration::from_secs(20), "silent");
        assert_eq!(health.ready(), reasons(&[("consumer", "silent")]));
        consumer.open();
        consumer.close_after(Duration::from_secs(20), "silent");
        consumer.close("deleted");
        assert_eq!(health.ready(), reasons(&[("consumer", "deleted")]));
    }

    #[test]
    fn what_asks_for_a_restart_asks_for_good() {
        let health = Health::new();
        let gate = health.gate("consumer", "not found yet");
        health.fail("watchdog", "no handler returned for 60 s");
        gate.open();
        assert_eq!(health.clone().live(), reasons(&[("watchdog", "no handler returned for 60 s")]));
    }
}
