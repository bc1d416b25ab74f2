//! The state of the connection: [`Link`] for callers that subscribe and send, [`ConnectionState`] for readiness and messages. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::Violation;

/// The connection as subscriptions and requests see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Connected now.
    pub connected: bool,
    /// Counts connections, so that a loss and a new connection between two reads of the link are noticed.
    pub epoch: u64,
    /// Counts clients that were built after the first. A subscription ends with its client: when this changes, subscribe again.
    /// Read it before [`Connection::client`](crate::Connection::client), which then returns a client of this generation or of a later
    /// one.
    pub generation: u64,
}

/// Whether NATS takes requests, since when, and why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Connected now, and replies can arrive.
    pub connected: bool,
    /// Connected at some time.
    pub was_connected: bool,
    /// Time of the last change of `connected`.
    pub since: Instant,
    /// Why it is not connected, if known.
    pub last_error: Option<Arc<str>>,
}

impl ConnectionState {
    pub(crate) fn new() -> Self {
        Self { connected: false, was_connected: false, since: Instant::now(), last_error: None }
    }

    /// How long it has not been connected; `None` if it is.
    #[must_use]
    pub fn disconnected_for(&self) -> Option<Duration> {
        (!self.connected).then(|| self.since.elapsed())
    }

    /// Sets whether it is connected; returns whether that is a change. Without a new error, the last one stays until it is connected.
    pub(crate) fn update(&mut self, connected: bool, error: Option<Arc<str>>) -> bool {
        let before = (self.connected, self.last_error.clone());
        if connected != self.connected {
            (self.connected, self.since) = (connected, Instant::now());
            self.was_connected |= connected;
        }
        if connected || error.is_some() {
            self.last_error = error;
        }
        before != (self.connected, self.last_error.clone())
    }
}

/// The error of a connection whose inbox is denied.
pub(crate) fn no_reply_can_arrive(violation: &Violation) -> Arc<str> {
    format!("no reply can arrive: {violation}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_reason_for_a_loss_stays_until_it_is_over() {
        let mut state = ConnectionState::new();
        let start = Instant::now();
        assert!(state.update(true, None) && !state.update(true, None));
        assert_eq!(state.disconnected_for(), None);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(state.update(false, None) && state.update(false, Some("refused".into())));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(!state.update(false, None));
        assert_eq!(state.disconnected_for(), Some(Duration::from_secs(3)));
        let (since, last_error) = (start + Duration::from_secs(2), Some("refused".into()));
        let expected = ConnectionState { connected: false, was_connected: true, since, last_error };
        assert_eq!(state, expected);
        assert!(state.update(true, None));
        assert_eq!(state.last_error, None);
    }
}
