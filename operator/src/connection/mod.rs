//! The operator's own connection to NATS: it never gives up, and tells whether it is there and why not.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{ServerAddr, connection::State};
use jetwright_nats::{ConnectionEvent, Credentials, Violation, Violations, options};
use jetwright_process::configuration::Problems;
use rand::RngExt as _;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::metrics::Metrics;

/// Longest delay between two attempts to reconnect.
const MAX_DELAY: Duration = Duration::from_secs(5);
/// Time between two looks at the client's own state.
const VERIFY_EVERY: Duration = Duration::from_secs(1);
/// The flag that names the folder of credentials.
const CREDENTIALS_FLAG: &str = "--nats-credentials-folder";

/// Where NATS is, and who the operator is there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Comma-separated addresses, without users and passwords.
    pub servers: String,
    /// Folder with what identifies the operator, if the servers ask for something.
    pub credentials: Option<PathBuf>,
}

/// Whether the connection is there.
#[derive(Clone, Debug)]
pub struct Link {
    /// Connected now, and answers can be heard.
    pub connected: bool,
    /// Connected at some time.
    pub was_connected: bool,
    /// Since when it is as it is.
    pub since: Instant,
    /// Why it is not there, as far as that is known.
    pub why: Option<Arc<str>>,
}

impl Link {
    /// How long the connection has been away; None where it is there.
    #[must_use]
    pub fn away(&self) -> Option<Duration> {
        (!self.connected).then(|| self.since.elapsed())
    }
}

/// Why the connection could not be set up; servers that are away are no reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address has a user, password or token in it.
    #[error(
        "{flag}: an address has a user, password or token, which belong into the files of {CREDENTIALS_FLAG}"
    )]
    UserInAddress {
        /// The flag that sets it.
        flag: &'static str,
    },
    /// The folder of credentials cannot be used.
    #[error("the credentials cannot be used")]
    Credentials(#[from] Problems),
    /// The addresses or the certificates cannot be used.
    #[error("--nats-url {servers}: the connection cannot be set up")]
    Setup {
        /// The addresses.
        servers: String,
        /// Why.
        source: async_nats::ConnectError,
    },
}

/// The connection. Clones share it.
#[derive(Clone)]
pub struct Nats {
    client: async_nats::Client,
    link: watch::Receiver<Link>,
    lost: Arc<Notify>,
    violations: Violations,
    name: String,
    servers: String,
}

impl Nats {
    /// Sets the connection up and returns at once: the servers are connected to, for ever, in the background.
    ///
    /// # Errors
    ///
    /// When what the settings name cannot be used.
    pub async fn connect(settings: &Settings, metrics: &Metrics) -> Result<Self, Error> {
        // Unique, so that the audit of the API tells this process's own changes from those of others.
        let name = format!("jetwright-operator-{}", uuid::Uuid::new_v4());
        let lost = Arc::new(Notify::new());
        let observer = Arc::new(Observer::new(lost.clone(), metrics.clone()));
        let credentials = settings.credentials.as_ref();
        let credentials =
            credentials.map(|folder| Credentials::open(CREDENTIALS_FLAG, folder)).transpose()?;
        let observing = observer.clone();
        let violations = Violations::new();
        let options = options(&violations, credentials.as_ref(), CREDENTIALS_FLAG, move |happening| {
            observing.observe(happening);
        });
        let servers: Vec<_> = settings.servers.split(',').map(str::trim).collect();
        let client = options
            .name(&name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(delay)
            .connect(servers)
            .await
            .map_err(|source| Error::Setup { servers: settings.servers.clone(), source })?;
        let link = observer.link.subscribe();
        tokio::spawn(verify(client.clone(), violations.clone(), observer));
        Ok(Self { client, link, lost, violations, name, servers: settings.servers.clone() })
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// The connection's state, to wait for changes of.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Notified when the client had to drop messages because they came faster than they were read.
    #[must_use]
    pub fn lost(&self) -> &Notify {
        &self.lost
    }

    /// What the servers do not permit to the operator's user.
    #[must_use]
    pub fn violations(&self) -> &Violations {
        &self.violations
    }

    /// The name under which the servers know this process.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it connects to, for messages.
    #[must_use]
    pub fn servers(&self) -> &str {
        &self.servers
    }
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats")
            .field("servers", &self.servers)
            .field("link", &*self.link.borrow())
            .finish_non_exhaustive()
    }
}

/// Doubling from 50 ms, jittered so that a thousand clients of a restarted server do not come at once.
fn delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let longest = Duration::from_millis(50).saturating_mul(1 << exponent).min(MAX_DELAY);
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Keeps the link as the connection is.
struct Observer {
    link: watch::Sender<Link>,
    lost: Arc<Notify>,
    metrics: Metrics,
    /// Whether answers could not be heard on the last connection.
    was_deaf: AtomicBool,
}

impl Observer {
    fn new(lost: Arc<Notify>, metrics: Metrics) -> Self {
        let start = Link { connected: false, was_connected: false, since: Instant::now(), why: None };
        Self { link: watch::Sender::new(start), lost, metrics, was_deaf: AtomicBool::new(false) }
    }

    fn observe(&self, happening: ConnectionEvent<'_>) {
        match happening {
            // Where answers could not be heard before, that shows within moments, and is looked at every second.
            ConnectionEvent::Connected if self.was_deaf.swap(false, Ordering::Relaxed) => {}
            ConnectionEvent::Connected => self.set(true, None),
            ConnectionEvent::Disconnected => self.set(false, None),
            ConnectionEvent::Failed(why) => self.set(false, Some(why.into())),
            ConnectionEvent::InboxDenied(violation) => {
                self.was_deaf.store(true, Ordering::Relaxed);
                self.set(false, Some(deaf(violation)));
            }
            ConnectionEvent::SlowConsumer => self.lost.notify_one(),
        }
    }

    fn set(&self, connected: bool, why: Option<Arc<str>>) {
        self.metrics.nats_connected(connected);
        self.link.send_if_modified(|link| {
            let changed = link.connected != connected;
            if changed {
                tracing::info!(connected, "the connection to NATS changed");
                link.was_connected |= connected;
                (link.connected, link.since) = (connected, Instant::now());
            }
            let told = !connected && why.is_some() && link.why != why;
            if connected || why.is_some() {
                link.why = why;
            }
            changed || told
        });
    }
}

/// What a connection is worth on which answers cannot be heard.
fn deaf(violation: &Violation) -> Arc<str> {
    format!("its answers cannot be heard: {violation}").into()
}

/// Events may be dropped by the client when many come at once, so its own state is looked at as well.
async fn verify(client: async_nats::Client, violations: Violations, observer: Arc<Observer>) {
    let mut second = tokio::time::interval(VERIFY_EVERY);
    while !observer.link.is_closed() {
        second.tick().await;
        let connected = client.connection_state() == State::Connected;
        let deaf = violations.inbox_denied().filter(|_| connected).map(|violation| deaf(&violation));
        observer.set(connected && deaf.is_none(), deaf);
        if violations.must_reconnect() && client.force_reconnect().await.is_err() {
            return;
        }
    }
}

/// Refuses addresses that have a user, password or token in them: the client would not use them (async-nats 0.51), and flags
/// and environments are no place for them.
///
/// # Errors
///
/// There is one.
pub fn without_users(flag: &'static str, servers: &str) -> Result<(), Error> {
    let has_user =
        |server: &str| server.trim().parse::<ServerAddr>().is_ok_and(|server| server.has_user_pass());
    if servers.split(',').any(has_user) { Err(Error::UserInAddress { flag }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_tokens_in_addresses_are_refused_and_not_repeated() {
        for servers in ["nats://b:4222, nats://op:hunter2@a:4222", "tls://hunter2@[::1]:4222"] {
            let told = without_users("--nats-url", servers).unwrap_err().to_string();
            assert!(told.starts_with("--nats-url: ") && !told.contains("hunter2"), "{told}");
        }
        assert!(without_users("--nats-url", "nats://a:4222, tls://b").is_ok());
    }

    #[test]
    fn delays_grow_to_a_bound() {
        assert!(delay(1) <= Duration::from_millis(50));
        assert!((0..1000).all(|attempts| delay(attempts) <= MAX_DELAY));
    }
}
