//! What the servers do not permit: they say so apart from the request, which is simply not answered.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::ServerError;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

/// Violations that may wait to be read by whoever watches.
const WAITING: usize = 128;
/// Violations that are remembered as logged already.
const LOGGED: usize = 32;

/// A connection on which answers cannot be heard is to be made anew after this time: the permissions may be others then.
const DEAF: Duration = Duration::from_secs(10);

/// Something that the servers do not permit to this program's user.
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
    /// Reads the server's words (sendErr in server/client.go of nats-server); None where they are about something else.
    #[must_use]
    pub fn read(error: &ServerError) -> Option<Self> {
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

    /// What violations have in common that need be logged only once: every delivery is acknowledged on a subject of its own,
    /// and every connection has an inbox of its own.
    fn kind(&self) -> String {
        let (what, subject) = match self {
            Self::Publish(subject) if subject.starts_with("$JS.ACK.") => ("publish", "$JS.ACK"),
            Self::Publish(subject) => ("publish", subject.as_str()),
            Self::Subscribe(subject) => ("subscribe", subject.split('.').next().unwrap_or_default()),
        };
        format!("{what} {subject}")
    }
}

/// The violations of one connection, whichever clients it had, for whoever waits for an answer that will not come. Clones share them.
#[derive(Clone, Debug)]
pub struct Violations {
    sender: broadcast::Sender<Violation>,
    /// What keeps answers from being heard, and since when.
    deaf: watch::Sender<Option<(Violation, Instant)>>,
    logged: Arc<Mutex<VecDeque<String>>>,
}

/// Hears of violations from the moment on at which it was made.
#[derive(Debug)]
pub struct Watch(broadcast::Receiver<Violation>);

impl Default for Violations {
    fn default() -> Self {
        Self::new()
    }
}

impl Violations {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { sender: broadcast::channel(WAITING).0, deaf: watch::Sender::default(), logged: Arc::default() }
    }

    /// Begins to listen. What is to be heard of has to be sent after this.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.sender.subscribe())
    }

    /// What keeps answers from being heard on this connection, if something does.
    #[must_use]
    pub fn deaf(&self) -> Option<Violation> {
        self.deaf.borrow().as_ref().map(|(violation, _)| violation.clone())
    }

    /// Returns when answers cannot be heard.
    pub async fn deafness(&self) -> Violation {
        let mut deaf = self.deaf.subscribe();
        let known = deaf.wait_for(Option::is_some).await.ok().and_then(|deaf| deaf.clone());
        match known {
            Some((violation, _)) => violation,
            // Not while this is there to be asked.
            None => std::future::pending().await,
        }
    }

    /// Whether answers could not be heard for ten seconds, so that the connection is to be made anew; once for each ten.
    #[must_use]
    pub fn stays_deaf(&self) -> bool {
        let mut stays = false;
        self.deaf.send_if_modified(|deaf| {
            if let Some((_, since)) = deaf.as_mut().filter(|(_, since)| since.elapsed() >= DEAF) {
                (stays, *since) = (true, Instant::now());
            }
            false
        });
        stays
    }

    /// Answers cannot be heard on this connection.
    pub(super) fn deafen(&self, violation: &Violation) {
        self.deaf.send_if_modified(|deaf| {
            let news = deaf.is_none();
            deaf.get_or_insert_with(|| (violation.clone(), Instant::now()));
            news
        });
    }

    /// Tells who watches, and logs what was not logged lately.
    pub(super) fn tell(&self, violation: &Violation) {
        let kind = violation.kind();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if !logged.contains(&kind) {
            tracing::warn!("{violation}");
            logged.truncate(LOGGED - 1);
            logged.push_front(kind);
        }
        // Nobody may be waiting.
        let _ = self.sender.send(violation.clone());
    }

    /// Another connection: what it may not do is news again.
    pub(super) fn forget(&self) {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.deaf.send_replace(None);
    }
}

impl Watch {
    /// Forgets what was told until now.
    pub fn forget(&mut self) {
        self.0 = self.0.resubscribe();
    }

    /// Returns when the servers did not permit a publish to this subject. May be dropped and called again.
    pub async fn publish_to(&mut self, subject: &str) -> Violation {
        self.any(|violation| matches!(violation, Violation::Publish(of) if of == subject)).await
    }

    /// Returns with the next violation that is wanted. May be dropped and called again.
    pub async fn any(&mut self, wanted: impl Fn(&Violation) -> bool) -> Violation {
        loop {
            match self.0.recv().await {
                Ok(violation) if wanted(&violation) => return violation,
                // Too many came at once; the next request meets its own again.
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
    fn the_servers_words_are_understood() {
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
    async fn who_watches_hears_of_its_own_subject_alone() {
        let violations = Violations::new();
        violations.tell(&Violation::Publish("a".into()));
        let mut watch = violations.watch();
        for subject in ["b", "a", "c"] {
            violations.tell(&Violation::Publish(subject.into()));
        }
        assert_eq!(watch.publish_to("c").await, Violation::Publish("c".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_deaf_is_made_anew_every_ten_seconds() {
        let violations = Violations::new();
        let inbox = Violation::Subscribe("_INBOX.a.*".into());
        assert_eq!((violations.deaf(), violations.stays_deaf()), (None, false));
        violations.deafen(&inbox);
        assert_eq!((violations.deafness().await, violations.stays_deaf()), (inbox, false));
        for _ in 0..2 {
            tokio::time::advance(DEAF).await;
            assert_eq!([violations.stays_deaf(), violations.stays_deaf()], [true, false]);
        }
        violations.forget();
        tokio::time::advance(DEAF).await;
        assert_eq!((violations.deaf(), violations.stays_deaf()), (None, false));
    }

    #[test]
    fn acknowledgements_of_many_deliveries_are_one_kind() {
        let violations = Violations::new();
        for number in 0..1000 {
            violations.tell(&Violation::Publish(format!("$JS.ACK.s.c.1.{number}.1.1.0")));
            violations.tell(&Violation::Publish(format!("orders.{number}")));
        }
        let logged = violations.logged.lock().unwrap();
        assert_eq!(logged.len(), LOGGED);
        drop(logged);
        violations.forget();
        assert!(violations.logged.lock().unwrap().is_empty());
    }
}
