//! Permissions violations: the servers report them separately from the request, which gets no reply.

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use async_nats::ServerError;
use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use crate::api_subjects::ACK_PREFIX;

/// Violations that may wait in one receiver.
const CHANNEL_CAPACITY: usize = 128;
/// Kinds of violations that are known to be logged already.
const MAX_LOGGED_KINDS: usize = 32;
/// A connection whose inbox is denied is renewed after this time, since the permissions may have changed by then.
const INBOX_DENIED_RECONNECT: Duration = Duration::from_secs(10);

/// What the servers do not permit to this program's user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// To publish to this subject.
    Publish(String),
    /// To subscribe to this subject.
    Subscribe(String),
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, subject) = match self {
            Self::Publish(subject) => ("publish", subject),
            Self::Subscribe(subject) => ("subscribe", subject),
        };
        write!(formatter, "NATS does not permit this program's user to {what} to {subject}")
    }
}

impl Violation {
    /// Reads an error of the server (sendErr in server/client.go of nats-server); `None` if it is about something else.
    pub(crate) fn read(error: &ServerError) -> Option<Self> {
        let ServerError::Other(text) = error else { return None };
        let lower = text.to_ascii_lowercase();
        let subject = || text.split('"').nth(1).map(str::to_owned);
        if lower.starts_with("permissions violation for publish to ") {
            subject().map(Self::Publish)
        } else if lower.starts_with("permissions violation for subscription to ") {
            subject().map(Self::Subscribe)
        } else {
            None
        }
    }

    /// Violations of one kind are logged once: every delivery has its own acknowledgement subject, and every connection its own
    /// inbox.
    fn kind(&self) -> String {
        let (what, subject) = match self {
            Self::Publish(subject) if subject.starts_with(ACK_PREFIX) => ("publish", ACK_PREFIX),
            Self::Publish(subject) => ("publish", subject.as_str()),
            Self::Subscribe(subject) => ("subscribe", subject.split('.').next().unwrap_or_default()),
        };
        format!("{what} {subject}")
    }
}

/// The violations of one connection, across its clients, for callers whose reply will not come. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Violations {
    sender: broadcast::Sender<Violation>,
    /// Why no reply can arrive, and since when.
    inbox_denied: watch::Sender<Option<(Violation, Instant)>>,
    logged: Arc<Mutex<VecDeque<String>>>,
}

/// Receives the violations that are reported after its creation.
#[derive(Debug)]
pub struct ViolationReceiver(broadcast::Receiver<Violation>);

impl Default for Violations {
    fn default() -> Self {
        Self::new()
    }
}

impl Violations {
    /// Without any violation yet.
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::channel(CHANNEL_CAPACITY).0,
            inbox_denied: watch::Sender::default(),
            logged: Arc::default(),
        }
    }

    /// Subscribes. Call it before sending what may be denied.
    pub(crate) fn subscribe(&self) -> ViolationReceiver {
        ViolationReceiver(self.sender.subscribe())
    }

    /// Why no reply can arrive on this connection, if none can.
    pub(crate) fn inbox_denied(&self) -> Option<Violation> {
        self.inbox_denied.borrow().as_ref().map(|(violation, _)| violation.clone())
    }

    /// Whether the inbox has been denied for ten seconds, so that the connection must be renewed; true once in each ten seconds.
    pub(crate) fn must_reconnect(&self) -> bool {
        let mut is_due = false;
        self.inbox_denied.send_if_modified(|denied| {
            let denied = denied.as_mut().filter(|(_, since)| since.elapsed() >= INBOX_DENIED_RECONNECT);
            if let Some((_, since)) = denied {
                (is_due, *since) = (true, Instant::now());
            }
            false
        });
        is_due
    }

    /// No reply can arrive on this connection.
    pub(crate) fn deny_inbox(&self, violation: &Violation) {
        self.inbox_denied.send_if_modified(|denied| {
            let is_new = denied.is_none();
            denied.get_or_insert_with(|| (violation.clone(), Instant::now()));
            is_new
        });
    }

    /// Sends a violation to the receivers, and logs it unless its kind was logged lately.
    pub(crate) fn report(&self, violation: &Violation) {
        let kind = violation.kind();
        let mut logged = self.logged.lock();
        if !logged.contains(&kind) {
            tracing::warn!("{violation}");
            logged.truncate(MAX_LOGGED_KINDS - 1);
            logged.push_front(kind);
        }
        // There may be no receiver.
        let _ = self.sender.send(violation.clone());
    }

    /// A new connection: its violations are logged again.
    pub(crate) fn reset(&self) {
        self.logged.lock().clear();
        self.inbox_denied.send_replace(None);
    }
}

impl ViolationReceiver {
    /// Drops what was reported until now.
    pub fn clear(&mut self) {
        self.0 = self.0.resubscribe();
    }

    /// The next violation that matches. Cancel safe.
    pub async fn next_matching(&mut self, matches: impl Fn(&Violation) -> bool) -> Violation {
        loop {
            match self.0.recv().await {
                Ok(violation) if matches(&violation) => return violation,
                // Too many came at once; the next request gets its own again.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Violation> {
        Violation::read(&ServerError::Other(text.to_owned()))
    }

    #[test]
    fn the_servers_errors_are_read() {
        let publish = Violation::Publish("$JS.API.STREAM.INFO.a".into());
        assert_eq!(read("Permissions Violation for Publish to \"$JS.API.STREAM.INFO.a\""), Some(publish));
        let subscribe = Some(Violation::Subscribe("_INBOX.a.*".into()));
        assert_eq!(read("Permissions Violation for Subscription to \"_INBOX.a.*\""), subscribe);
        let queue = "Permissions Violation for Subscription to \"_INBOX.a.*\" using queue \"q\" (sid \"1\")";
        assert_eq!(read(queue), subscribe);
        assert_eq!(read("Stale Connection"), None);
        assert_eq!(Violation::read(&ServerError::AuthorizationViolation), None);
    }

    #[tokio::test]
    async fn a_receiver_gets_what_matches_and_was_reported_after_it_was_made() {
        let violations = Violations::new();
        violations.report(&Violation::Publish("a".into()));
        let mut receiver = violations.subscribe();
        for subject in ["b", "c"] {
            violations.report(&Violation::Publish(subject.into()));
        }
        let wanted = |violation: &Violation| *violation != Violation::Publish("b".into());
        assert_eq!(receiver.next_matching(wanted).await, Violation::Publish("c".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_inbox_stays_denied_is_renewed_every_ten_seconds() {
        let violations = Violations::new();
        let inbox = Violation::Subscribe("_INBOX.a.*".into());
        assert_eq!((violations.inbox_denied(), violations.must_reconnect()), (None, false));
        violations.deny_inbox(&inbox);
        assert_eq!((violations.inbox_denied(), violations.must_reconnect()), (Some(inbox), false));
        for _ in 0..2 {
            tokio::time::advance(INBOX_DENIED_RECONNECT).await;
            assert_eq!([violations.must_reconnect(), violations.must_reconnect()], [true, false]);
        }
        violations.reset();
        tokio::time::advance(INBOX_DENIED_RECONNECT).await;
        assert_eq!((violations.inbox_denied(), violations.must_reconnect()), (None, false));
    }

    #[test]
    fn acknowledgements_of_many_deliveries_are_one_kind() {
        let violations = Violations::new();
        for number in 0..1000 {
            violations.report(&Violation::Publish(format!("$JS.ACK.s.c.1.{number}.1.1.0")));
            violations.report(&Violation::Publish(format!("orders.{number}")));
        }
        let logged = violations.logged.lock();
        assert_eq!(logged.len(), MAX_LOGGED_KINDS);
        drop(logged);
        violations.reset();
        assert!(violations.logged.lock().is_empty());
    }
}
