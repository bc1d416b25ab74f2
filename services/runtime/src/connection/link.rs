//! The state of the connection: link, readiness gate, metrics, request mux. In: the events of the client, and its own state.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use async_nats::connection::State;
use jetwright_nats::ConnectionEvent;
use jetwright_process::health::Gate;
use tokio::sync::watch;

use crate::{metrics::Metrics, requests::RequestMux};

/// Whether NATS is connected now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) connected: bool,
    /// Counts connections, so that a loss and a new connection between two reads of the link are noticed.
    pub(crate) epoch: u64,
    /// Counts clients that were built after the first. A subscription ends with its client: when this has changed, subscribe again.
    /// Read it before [`Connection::client`](super::Connection::client), which then returns a client of this generation or of a
    /// later one.
    pub(crate) generation: u64,
}

/// Keeps the link, the gate, the metrics and the mux in the state that the events say.
#[derive(Debug)]
pub(super) struct Observer {
    mux: Arc<RequestMux>,
    link: watch::Sender<Link>,
    gate: Gate,
    metrics: Metrics,
    /// The program ends, and the connection with it.
    ending: AtomicBool,
    /// The lock is held while an event is applied, so that mux and link end in the same state.
    current: Mutex<Current>,
}

/// The client whose events count. The last events of an ended client may come after its successor was built.
#[derive(Debug)]
struct Current {
    generation: u64,
    /// [`Connection::client`](super::Connection::client) returns it. Nobody may see its connection before that.
    installed: bool,
    /// It was connected before that.
    connected: bool,
}

impl Observer {
    pub(super) fn new(gate: Gate, metrics: Metrics) -> Self {
        let (link, ending) = (watch::Sender::default(), AtomicBool::new(false));
        let current = Mutex::new(Current { generation: 0, installed: true, connected: false });
        Self { mux: Arc::default(), link, gate, metrics, ending, current }
    }

    pub(super) fn mux(&self) -> &Arc<RequestMux> {
        &self.mux
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// From now on a loss of the connection is no warning.
    pub(super) fn ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Applies an event of the client of this generation.
    pub(super) fn observe(&self, generation: u64, event: ConnectionEvent<'_>) {
        let Some(mut current) = self.lock(generation) else { return };
        match event {
            ConnectionEvent::Connected if current.installed => self.connected(),
            ConnectionEvent::Disconnected if current.installed => self.disconnected(),
            ConnectionEvent::Connected => current.connected = true,
            ConnectionEvent::Disconnected => current.connected = false,
            ConnectionEvent::Failed(why) => self.gate.close(&format!("not connected to NATS: {why}")),
            ConnectionEvent::InboxDenied(violation) => {
                self.mux.deny_inbox(violation);
                self.gate.close(&format!("the answers of NATS cannot be heard: {violation}"));
            }
            ConnectionEvent::SlowConsumer => {
                tracing::debug!("client dropped messages of a slow subscription");
            }
        }
    }

    /// Corrects the link where the client dropped an event, as it does when many come at once (128 in async-nats 0.51). `differed` is
    /// what this returned at the last call: an event may still be on its way, so only the second difference in a row counts.
    pub(super) fn compare(&self, generation: u64, state: &State, differed: bool) -> bool {
        let Some(_current) = self.lock(generation) else { return false };
        let connected = *state == State::Connected;
        let differs = self.link.borrow().connected != connected;
        match (differs && differed, connected) {
            (true, true) => self.connected(),
            (true, false) => self.disconnected(),
            (false, _) => {}
        }
        differs
    }

    /// The client of this generation has ended. Requests in flight are lost, and what the client still says no longer counts.
    pub(super) fn client_ended(&self, generation: u64, reason: &str) {
        let Some(mut current) = self.lock(generation) else { return };
        *current = Current { generation: generation + 1, installed: false, connected: false };
        // No event tells of it where the client's task panicked.
        if self.link.borrow().connected {
            self.disconnected();
        }
        self.gate.close(&format!("not connected to NATS: {reason}"));
    }

    /// [`Connection::client`](super::Connection::client) returns the client of this generation from now on.
    pub(super) fn client_installed(&self, generation: u64) {
        let Some(mut current) = self.lock(generation) else { return };
        current.installed = true;
        self.link.send_modify(|link| link.generation = generation);
        if current.connected {
            self.connected();
        }
    }

    /// No client can be built now.
    pub(super) fn not_built(&self, reason: &str) {
        self.gate.close(&format!("not connected to NATS: {reason}"));
    }

    /// `None` where the events of this generation do not count any more.
    fn lock(&self, generation: u64) -> Option<MutexGuard<'_, Current>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        (current.generation == generation).then_some(current)
    }

    fn connected(&self) {
        // The mux first: who sees the link submits requests.
        self.mux.connected();
        self.link.send_modify(|link| *link = Link { connected: true, epoch: link.epoch + 1, ..*link });
        self.metrics.connected(true);
        self.gate.open();
        tracing::info!("connected to NATS");
    }

    fn disconnected(&self) {
        self.link.send_modify(|link| link.connected = false);
        self.mux.disconnected();
        self.metrics.connected(false);
        self.gate.close("not connected to NATS: the connection was lost");
        if self.ending.load(Ordering::Relaxed) {
            tracing::debug!("disconnected from NATS");
        } else {
            tracing::warn!("disconnected from NATS");
        }
    }
}

#[cfg(test)]
mod tests {
    use jetwright_process::health::Health;
    use prometheus_client::registry::Registry;

    use super::*;

    fn observer(health: &Health) -> Observer {
        Observer::new(health.gate("nats", "not yet"), Metrics::register(&mut Registry::default()))
    }

    #[test]
    fn a_dropped_event_is_made_up_for_at_the_second_comparison() {
        let health = Health::new();
        let observer = observer(&health);
        let compare = |state, differed| {
            let differs = observer.compare(0, &state, differed);
            (differs, observer.link.borrow().connected, health.ready().is_ok())
        };
        assert_eq!(compare(State::Pending, false), (false, false, false));
        assert_eq!(compare(State::Connected, false), (true, false, false));
        assert_eq!(compare(State::Connected, true), (true, true, true));
        assert_eq!(compare(State::Disconnected, false), (true, true, true));
        // Its event came after all.
        assert_eq!(compare(State::Connected, true), (false, true, true));
        assert_eq!(compare(State::Disconnected, true), (true, false, false));
    }

    #[test]
    fn an_ended_client_counts_no_more_and_its_successor_does() {
        let health = Health::new();
        let observer = observer(&health);
        observer.observe(0, ConnectionEvent::Connected);
        observer.client_ended(0, "it ended");
        let link = || *observer.link.borrow();
        assert_eq!(link(), Link { connected: false, epoch: 1, generation: 0 });
        assert!(format!("{:?}", health.ready()).contains("it ended"));
        // A late event, and the state in which the ended client stays.
        observer.observe(0, ConnectionEvent::Connected);
        for _ in 0..2 {
            assert!(!observer.compare(0, &State::Connected, true));
        }
        assert!(!link().connected && health.ready().is_err());
        // It connects before anybody can have it.
        observer.observe(1, ConnectionEvent::Connected);
        assert_eq!(link(), Link { connected: false, epoch: 1, generation: 0 });
        observer.client_installed(1);
        observer.observe(0, ConnectionEvent::Disconnected);
        observer.client_ended(0, "it ended again");
        assert_eq!(link(), Link { connected: true, epoch: 2, generation: 1 });
        assert!(health.ready().is_ok());
    }
}
