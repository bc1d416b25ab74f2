//! The operator's own connection to NATS: it never gives up, and tells whether it is there.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectOptions, Event, connection::State};
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

/// Where NATS is, and who the operator is there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Comma-separated addresses.
    pub servers: String,
    /// File with a user's credentials (a JWT and its key), if the servers ask for one.
    pub credentials_file: Option<PathBuf>,
    /// File with the certificates of authorities that the servers' certificates come from, if not the system's.
    pub ca_file: Option<PathBuf>,
}

/// Whether the connection is there.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Connected now.
    pub connected: bool,
    /// Connected at some time.
    pub was_connected: bool,
    /// Since when it is as it is.
    pub since: Instant,
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
    /// The credentials file cannot be used.
    #[error("--nats-credentials-file {}: it cannot be used", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file of authorities cannot be used.
    #[error("--nats-ca-file {}: {why}", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
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
        let start = Link { connected: false, was_connected: false, since: Instant::now() };
        let (sender, link) = watch::channel(start);
        let sender = Arc::new(sender);
        let lost = Arc::new(Notify::new());
        let told = (sender.clone(), lost.clone(), metrics.clone());
        let mut options = ConnectOptions::new()
            .name(&name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(delay)
            .event_callback(move |event| {
                follow(&told.0, &told.1, &told.2, &event);
                std::future::ready(())
            });
        if let Some(path) = &settings.credentials_file {
            let unusable = |source| Error::Credentials { path: path.clone(), source };
            options = options.credentials_file(path).await.map_err(unusable)?;
        }
        if let Some(path) = &settings.ca_file {
            has_certificates(path).await?;
            options = options.add_root_certificates(path.clone()).require_tls(true);
        }
        let servers: Vec<_> = settings.servers.split(',').map(str::trim).collect();
        let client = options
            .connect(servers)
            .await
            .map_err(|source| Error::Setup { servers: without_user(&settings.servers), source })?;
        tokio::spawn(verify(client.clone(), sender, metrics.clone()));
        Ok(Self { client, link, lost, name, servers: without_user(&settings.servers) })
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

/// The client itself would only say that TLS failed, at every try.
async fn has_certificates(path: &PathBuf) -> Result<(), Error> {
    let failed = |why: String| Error::Authorities { path: path.clone(), why };
    let text = tokio::fs::read_to_string(path).await.map_err(|error| failed(error.to_string()))?;
    if text.contains("-----BEGIN CERTIFICATE-----") {
        Ok(())
    } else {
        Err(failed("it has no certificate in PEM".to_owned()))
    }
}

/// Doubling from 50 ms, jittered so that a thousand clients of a restarted server do not come at once.
fn delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    let longest = Duration::from_millis(50).saturating_mul(1 << exponent).min(MAX_DELAY);
    longest.mul_f64(rand::rng().random_range(0.5..1.0))
}

/// Events may be dropped by the client when many come at once, so its own state is looked at as well.
async fn verify(client: async_nats::Client, link: Arc<watch::Sender<Link>>, metrics: Metrics) {
    let mut second = tokio::time::interval(VERIFY_EVERY);
    while !link.is_closed() {
        second.tick().await;
        set(&link, &metrics, client.connection_state() == State::Connected);
    }
}

fn follow(link: &watch::Sender<Link>, lost: &Notify, metrics: &Metrics, event: &Event) {
    match event {
        Event::Connected => set(link, metrics, true),
        Event::Disconnected => set(link, metrics, false),
        // One for every message that was dropped.
        Event::SlowConsumer(_) => lost.notify_one(),
        event => tracing::warn!(%event, "NATS"),
    }
}

fn set(link: &watch::Sender<Link>, metrics: &Metrics, connected: bool) {
    metrics.nats_connected(connected);
    link.send_if_modified(|link| {
        let changed = link.connected != connected;
        if changed {
            tracing::info!(connected, "the connection to NATS changed");
            let was_connected = link.was_connected || connected;
            *link = Link { connected, was_connected, since: Instant::now() };
        }
        changed
    });
}

/// Addresses without the users and passwords in them, for messages and for pods.
#[must_use]
pub fn without_user(servers: &str) -> String {
    let server = |server: &str| {
        let (scheme, rest) = server.split_once("://").map_or(("", server), |(scheme, rest)| (scheme, rest));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
    };
    servers.split(',').map(str::trim).map(server).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_passwords_are_taken_out_of_addresses() {
        assert_eq!(without_user("nats://op:p@ss@a:4222, b:4222"), "nats://a:4222,b:4222");
        assert_eq!(without_user("tls://token@[::1]:4222"), "tls://[::1]:4222");
    }

    #[test]
    fn delays_grow_to_a_bound() {
        assert!(delay(1) <= Duration::from_millis(50));
        assert!((0..1000).all(|attempts| delay(attempts) <= MAX_DELAY));
    }
}
