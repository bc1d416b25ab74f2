//! Keeps link, state and request mux in step with the client. In: the events of the client, and the client's own state.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_nats::connection::State;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::{
    events::ConnectionEvent,
    mux::RequestMux,
    state::{ConnectionState, Link, no_reply_can_arrive},
    violation::Violation,
};

#[derive(Debug)]
pub(crate) struct Observer {
    mux: Arc<RequestMux>,
    link: watch::Sender<Link>,
    state: watch::Sender<ConnectionState>,
    slow_consumer: Notify,
    /// The program ends, and the connection with it.
    ending: AtomicBool,
    /// The lock is taken while an event is applied, so that mux, link and state agree.
    current: Mutex<Current>,
}

/// The client whose events count. The last events of an ended client may come after its successor was built.
#[derive(Debug)]
struct Current {
    generation: u64,
    installation: Installation,
    /// The last poll of the client's state differed from the link.
    differed: bool,
    /// No reply could arrive on the last connection. Whether replies can arrive on this one shows within moments of the connect, so
    /// only a poll reports it as connected.
    inbox_was_denied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installation {
    /// Nobody can have the client yet, so nobody may see its connection.
    Pending { connected: bool },
    /// [`Connection::client`](crate::Connection::client) returns it.
    Done,
}

impl Current {
    fn new(generation: u64, installation: Installation) -> Self {
        Self { generation, installation, differed: false, inbox_was_denied: false }
    }
}

impl Observer {
    pub(crate) fn new() -> Self {
        let current = Current::new(0, Installation::Done);
        Self {
            mux: Arc::default(),
            link: watch::Sender::default(),
            state: watch::Sender::new(ConnectionState::new()),
            slow_consumer: Notify::new(),
            ending: AtomicBool::new(false),
            current: Mutex::new(current),
        }
    }

    pub(crate) fn mux(&self) -> &Arc<RequestMux> {
        &self.mux
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    /// Notified when the client dropped messages of a slow subscription.
    pub(crate) fn slow_consumer(&self) -> &Notify {
        &self.slow_consumer
    }

    /// From now on the end of the connection is no warning.
    pub(crate) fn ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Applies an event of the client of this generation.
    pub(crate) fn observe(&self, generation: u64, event: ConnectionEvent<'_>) {
        let Some(mut current) = self.lock(generation) else { return };
        match (event, &mut current.installation) {
            (ConnectionEvent::Connected, Installation::Pending { connected }) => *connected = true,
            (ConnectionEvent::Disconnected, Installation::Pending { connected }) => *connected = false,
            (event, _) => self.apply(event, &mut current),
        }
    }

    fn apply(&self, event: ConnectionEvent<'_>, current: &mut Current) {
        match event {
            ConnectionEvent::Connected => self.connected(current),
            ConnectionEvent::Disconnected => self.disconnected(),
            ConnectionEvent::Failed(reason) => self.failed(reason),
            ConnectionEvent::InboxDenied(violation) => {
                current.inbox_was_denied = true;
                self.mux.deny_inbox(violation);
                self.update(false, Some(no_reply_can_arrive(violation)));
            }
            ConnectionEvent::SlowConsumer => {
                tracing::debug!("client dropped messages of a slow subscription");
                self.slow_consumer.notify_one();
            }
        }
    }

    /// Corrects link and state if the client dropped an event, as it does when many come at once (128 in async-nats 0.51). An event
    /// may still be on its way, so only the second difference in a row counts. `denied` is what denies the inbox on this connection.
    pub(crate) fn poll(&self, generation: u64, state: &State, denied: Option<&Violation>) {
        let Some(mut current) = self.lock(generation) else { return };
        let connected = *state == State::Connected;
        let differs = self.link.borrow().connected != connected;
        let is_wrong = differs && current.differed;
        match (is_wrong, connected) {
            (true, true) => self.connected(&mut current),
            (true, false) => self.disconnected(),
            (false, true) if !differs => self.update(denied.is_none(), denied.map(no_reply_can_arrive)),
            (false, _) => {}
        }
        current.differed = differs && !is_wrong;
    }

    /// The client of this generation has ended. Requests in flight are lost, and the client's own state no longer counts.
    pub(crate) fn client_ended(&self, generation: u64, reason: &str) {
        let Some(mut current) = self.lock(generation) else { return };
        *current = Current::new(generation + 1, Installation::Pending { connected: false });
        // No event reports it if the client's task panicked.
        if self.link.borrow().connected {
            self.disconnected();
        }
        self.failed(reason);
    }

    /// [`Connection::client`](crate::Connection::client) returns the client of this generation from now on.
    pub(crate) fn client_installed(&self, generation: u64) {
        let Some(mut current) = self.lock(generation) else { return };
        let before = std::mem::replace(&mut current.installation, Installation::Done);
        self.link.send_modify(|link| link.generation = generation);
        if before == (Installation::Pending { connected: true }) {
            self.connected(&mut current);
        }
    }

    /// There is no connection, for this reason.
    pub(crate) fn failed(&self, reason: &str) {
        self.update(false, Some(reason.into()));
    }

    /// `None` if the events of this generation no longer count.
    fn lock(&self, generation: u64) -> Option<MutexGuard<'_, Current>> {
        let current = self.current.lock();
        (current.generation == generation).then_some(current)
    }

    fn connected(&self, current: &mut Current) {
        // The mux first: a caller that sees the link submits requests.
        self.mux.connected();
        self.link.send_modify(|link| *link = Link { connected: true, epoch: link.epoch + 1, ..*link });
        if !std::mem::take(&mut current.inbox_was_denied) {
            self.update(true, None);
        }
        tracing::info!("connected to NATS");
    }

    fn disconnected(&self) {
        self.link.send_modify(|link| link.connected = false);
        self.mux.disconnected();
        self.update(false, None);
        if self.ending.load(Ordering::Relaxed) {
            tracing::debug!("disconnected from NATS");
        } else {
            tracing::warn!("disconnected from NATS");
        }
    }

    fn update(&self, connected: bool, error: Option<Arc<str>>) {
        self.state.send_if_modified(|state| state.update(connected, error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_event_is_made_up_for_at_the_second_difference() {
        let observer = Observer::new();
        let poll = |state| {
            observer.poll(0, &state, None);
            (observer.link.borrow().connected, observer.state.borrow().connected)
        };
        let (connected, disconnected) = ((true, true), (false, false));
        assert_eq!(poll(State::Pending), disconnected);
        assert_eq!([State::Connected, State::Connected].map(poll), [disconnected, connected]);
        // Its event came after all.
        assert_eq!([State::Disconnected, State::Connected].map(poll), [connected; 2]);
        assert_eq!([State::Disconnected, State::Disconnected].map(poll), [connected, disconnected]);
    }

    #[test]
    fn an_ended_client_counts_no_more_and_its_successor_does() {
        let observer = Observer::new();
        observer.observe(0, ConnectionEvent::Connected);
        observer.client_ended(0, "it ended");
        let link = || *observer.link.borrow();
        let last_error = || observer.state.borrow().last_error.clone();
        assert_eq!(link(), Link { connected: false, epoch: 1, generation: 0 });
        assert_eq!(last_error().as_deref(), Some("it ended"));
        // A late event, and the state in which the ended client stays.
        observer.observe(0, ConnectionEvent::Connected);
        for _ in 0..3 {
            observer.poll(0, &State::Connected, None);
        }
        assert!(!link().connected && !observer.state.borrow().connected);
        // It connects before anybody can have it.
        observer.observe(1, ConnectionEvent::Connected);
        assert_eq!(link(), Link { connected: false, epoch: 1, generation: 0 });
        observer.client_installed(1);
        observer.observe(0, ConnectionEvent::Disconnected);
        observer.client_ended(0, "it ended again");
        assert_eq!(link(), Link { connected: true, epoch: 2, generation: 1 });
        assert!(observer.state.borrow().connected && last_error().is_none());
    }

    #[test]
    fn after_a_denied_inbox_only_a_connection_that_lasts_without_a_denial_counts() {
        let observer = Observer::new();
        let violation = Violation::Subscribe("_INBOX.a.*".to_owned());
        let connected = || (observer.link.borrow().connected, observer.state.borrow().connected);
        observer.observe(0, ConnectionEvent::Connected);
        assert_eq!(connected(), (true, true));
        observer.observe(0, ConnectionEvent::InboxDenied(&violation));
        assert_eq!(connected(), (true, false));
        let last_error = observer.state.borrow().last_error.clone();
        assert!(last_error.is_some_and(|error| error.contains("_INBOX.a.*")));
        observer.poll(0, &State::Connected, Some(&violation));
        assert_eq!(connected(), (true, false));
        for event in [ConnectionEvent::Disconnected, ConnectionEvent::Connected] {
            observer.observe(0, event);
        }
        assert_eq!(connected(), (true, false));
        observer.poll(0, &State::Connected, None);
        assert_eq!(connected(), (true, true));
    }
}
