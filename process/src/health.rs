//! Whether a program can take work (readiness) and whether only a restart would mend it (liveness).
//!
//! Readiness is the sum of named gates: each part of the program that needs something holds one, open while it has it.
//! Liveness is apart from it, and fails only for what a restart repairs: a task that ended although it never should. A
//! server that is away is no such thing (a restart would not bring it back, and would lose what is in flight), so it
//! closes a gate and never fails liveness.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The health of one program. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Gate to the reason why it is closed; `None` where it is open.
    gates: BTreeMap<String, Option<String>>,
    stopping: Option<String>,
    failures: BTreeMap<String, String>,
}

/// One thing that a program needs to be ready. It keeps its last state when dropped. Clones are the same gate.
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

    /// Adds a gate that is closed for this reason until it is opened. Under a name that there is already, it is that gate,
    /// closed.
    #[must_use]
    pub fn gate(&self, name: &str, reason: &str) -> Gate {
        let gate = Gate { name: name.to_owned(), health: self.clone() };
        gate.close(reason);
        gate
    }

    /// Ends readiness for good, whatever the gates say: no new work is to come while the program finishes what it has.
    pub fn stop(&self, reason: &str) {
        self.state().stopping = Some(reason.to_owned());
    }

    /// Ends liveness for good: this part cannot go on, and a restart is what repairs it.
    pub fn fail(&self, part: &str, reason: &str) {
        tracing::error!(part, reason, "asks to be restarted");
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
        let closed = state.gates.iter().filter_map(|(name, reason)| Some((name.clone(), reason.clone()?)));
        none(stopping.chain(closed).collect())
    }

    /// Whether the program works at all.
    ///
    /// # Errors
    ///
    /// Every part that asked to be restarted, and why.
    pub fn live(&self) -> Result<(), Reasons> {
        none(self.state().failures.clone().into_iter().collect())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that hold the lock: a panic elsewhere leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    /// What this gate stands for is there.
    pub fn open(&self) {
        self.set(None);
    }

    /// What this gate stands for is not there, and why.
    pub fn close(&self, reason: &str) {
        self.set(Some(reason.to_owned()));
    }

    fn set(&self, reason: Option<String>) {
        self.health.state().gates.insert(self.name.clone(), reason);
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
}
