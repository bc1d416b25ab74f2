//! The connections to NATS, each with what JetStream has over it, and which namespaces each serves. Today there is one, of the operator's
//! flags; a kind that declares others is a new source of connections and nothing else.

use std::time::Duration;

use jetwright_crds::conditions::Reason;
use tokio_util::sync::CancellationToken;

use super::{
    advisories::{self, Advisories, Declarations, Intervals},
    cache::Cache,
    outage::Outage,
};
use crate::{
    metrics::Metrics,
    namespaces::Namespaces,
    outcome::{Outcome, Pending},
};

/// How long NATS is away before the objects say so.
const DISCONNECT_GRACE: Duration = Duration::from_secs(10);

/// A connection to NATS.
pub struct Connection {
    pub nats: jetwright_nats::Connection,
    /// What JetStream has over it.
    pub cache: Cache,
    /// Namespaces that may use it.
    pub serves: Namespaces,
}

impl Connection {
    /// Keeps the cache true until `stop`.
    pub async fn run(
        &self,
        metrics: &Metrics,
        intervals: Intervals,
        declarations: &impl Declarations,
        stop: &CancellationToken,
    ) {
        let work = async {
            let advisories = Advisories::subscribe(&self.nats).await;
            advisories::run(advisories, (&self.cache, &self.nats), metrics, intervals, declarations).await;
        };
        stop.run_until_cancelled(work).await;
    }

    /// Works with a stream or its consumers for as long as JetStream answers for it: what waits for an answer that does not come, holds up
    /// other objects.
    ///
    /// # Errors
    ///
    /// Those of the work.
    pub async fn while_available<I, E>(
        &self,
        stream: &str,
        work: impl Future<Output = Result<Outcome<I>, E>> + Send,
    ) -> Result<Outcome<I>, E> {
        tokio::select! {
            biased;
            outage = self.cache.await_outage(stream) => Ok(Outcome::Pending(unavailable(stream, &outage))),
            result = work => result,
        }
    }

    /// How long it is until an object says that NATS is away, since the connection may come back at once; None where it says so now.
    #[must_use]
    pub fn report_disconnect_after(&self) -> Option<Duration> {
        let away = self.nats.state().borrow().disconnected_for().unwrap_or_default();
        DISCONNECT_GRACE.checked_sub(away).filter(|left| !left.is_zero())
    }

    fn disconnected(&self) -> Option<Pending> {
        let state = self.nats.state().borrow().clone();
        state.disconnected_for()?;
        let servers = self.nats.servers();
        let message = match (&state.last_error, state.was_connected) {
            (Some(why), true) => format!(
                "disconnected from NATS at {servers}: {why}. All resources are re-checked after reconnecting"
            ),
            (Some(why), false) => format!("not connected to NATS at {servers} yet: {why}"),
            (None, true) => {
                format!(
                    "disconnected from NATS at {servers}. All resources are re-checked after reconnecting"
                )
            }
            (None, false) => format!("not connected to NATS at {servers} yet"),
        };
        Some(Pending { reason: Reason::Disconnected, message, stalled: false, requeue_after: None })
    }
}

fn unavailable(stream: &str, outage: &Outage) -> Pending {
    let message = format!(
        "JetStream does not answer for stream {stream}: {outage}. Everything of it is re-checked when it answers"
    );
    Pending { reason: Reason::JetStreamUnavailable, message, stalled: false, requeue_after: None }
}

/// Every connection.
pub struct Connections {
    default: Connection,
}

impl Connections {
    /// The one connection of the operator's flags.
    #[must_use]
    pub fn of(default: Connection) -> Self {
        Self { default }
    }

    /// The connection that serves a namespace, whether NATS answers or not.
    ///
    /// # Errors
    ///
    /// That none does.
    pub fn serving(&self, namespace: &str) -> Result<&Connection, Pending> {
        if self.default.serves.contains(namespace) {
            return Ok(&self.default);
        }
        Err(Pending {
            reason: Reason::NoConnection,
            message: format!(
                "no NATS connection serves namespace {namespace}: add it to the operator's --default-connection-namespaces (the \
                 chart's value defaultConnectionNamespaces)"
            ),
            stalled: true,
            requeue_after: None,
        })
    }

    /// The connection that a namespace uses.
    ///
    /// # Errors
    ///
    /// Why nothing of the namespace can be done in JetStream now.
    pub fn for_namespace(&self, namespace: &str) -> Result<&Connection, Pending> {
        let connection = self.serving(namespace)?;
        connection.disconnected().map_or(Ok(connection), Err)
    }

    /// How long it is until an object of a namespace says that NATS is away.
    #[must_use]
    pub fn report_disconnect_after(&self, namespace: &str) -> Option<Duration> {
        self.default.serves.contains(namespace).then(|| self.default.report_disconnect_after()).flatten()
    }

    /// Ends when every cache was filled by lists, as far as JetStream answered.
    pub async fn filled(&self) {
        for connection in self.all() {
            // The cache lives as long as its connection.
            let _ = connection.cache.filled().subscribe().wait_for(|filled| *filled).await;
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Connection> {
        std::iter::once(&self.default)
    }
}
