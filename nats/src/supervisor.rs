//! Builds the client, runs the tasks around it, and builds another one when it has ended. Does I/O.
//!
//! A client of async-nats reconnects for ever by itself, but its task can end: it panics at a header value with a lone carriage return
//! (0.51). Such a client still claims to be connected, and only its subscriptions and commands show that it is not.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, ConnectError, ConnectErrorKind, ServerAddr, Subscriber};
use parking_lot::RwLock;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    backoff::pause, credentials::Credentials, events::options, observer::Observer, violation::Violations,
};

/// A server that leaves two of these unanswered is considered dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How often the client's own state is compared with its events.
const STATE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// A client that ends sooner than this lengthens the pause before the next one.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// How long an ended client may take to close its remaining parts.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Where NATS is, and who the program is there.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Name of the connection in NATS' own reports.
    pub name: String,
    /// Addresses of the servers; at least one.
    pub servers: Vec<ServerAddr>,
    /// Absent if the servers require none.
    pub credentials: Option<Credentials>,
    /// The flag or variable that names the credentials, for messages.
    pub credentials_setting: &'static str,
    /// JetStream's domain, if not the servers' own.
    pub domain: Option<String>,
}

/// The client that is used now.
#[derive(Clone, Debug)]
pub(crate) struct CurrentClient(Arc<RwLock<Client>>);

impl CurrentClient {
    pub(crate) fn get(&self) -> Client {
        self.0.read().clone()
    }

    fn set(&self, client: Client) {
        *self.0.write() = client;
    }
}

/// Builds clients, all with the same options.
#[derive(Debug)]
pub(crate) struct Supervisor {
    config: Arc<ConnectionConfig>,
    violations: Violations,
    observer: Arc<Observer>,
}

/// One client and its subscription to replies.
#[derive(Debug)]
struct Session {
    generation: u64,
    client: Client,
    replies: Subscriber,
}

impl Supervisor {
    pub(crate) fn new(
        config: Arc<ConnectionConfig>,
        observer: Arc<Observer>,
        violations: Violations,
    ) -> Self {
        Self { config, violations, observer }
    }

    /// Builds the first client. The future never returns, and keeps a client running for as long as it is polled.
    pub(crate) async fn start(self) -> Result<(CurrentClient, impl Future<Output = ()>), ConnectError> {
        let first = self.build(0).await?;
        let current = CurrentClient(Arc::new(RwLock::new(first.client.clone())));
        let using = current.clone();
        Ok((current, async move { self.supervise(first, &using).await }))
    }

    async fn supervise(&self, mut session: Session, current: &CurrentClient) {
        let mut short_lived = 0;
        loop {
            let (built, generation) = (Instant::now(), session.generation);
            let client = session.client.clone();
            let reason = self.run(session).await;
            self.observer.client_ended(generation, reason);
            short_lived = count_short_lived(short_lived, built.elapsed());
            tracing::warn!(reason, generation, "rebuilding NATS client");
            // It may have ended only in part: end the rest too.
            let _ = timeout(CLOSE_TIMEOUT, client.drain()).await;
            session = self.rebuild(generation + 1, short_lived).await;
            current.set(session.client.clone());
            self.observer.client_installed(session.generation);
        }
    }

    /// Runs the tasks around a client, and returns why that client has ended.
    async fn run(&self, session: Session) -> &'static str {
        let Session { client, replies, generation } = session;
        let (mux, observer) = (Arc::clone(self.observer.mux()), Arc::clone(&self.observer));
        let (dispatching, receiver) = (Arc::clone(&mux), self.violations.subscribe());
        let (sender, violations) = (client.clone(), self.violations.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            mux.send(&sender).await;
            "the client takes no more requests"
        });
        tasks.spawn(async move {
            dispatching.dispatch_replies(replies, receiver).await;
            "the client ended its subscriptions"
        });
        tasks.spawn(async move {
            poll_state(&client, generation, &violations, &observer).await;
            "the client takes no more commands"
        });
        let ended = tasks.join_next().await;
        // Before the next tasks begin: only one may send at a time.
        tasks.shutdown().await;
        ended.and_then(Result::ok).unwrap_or("a task of the connection panicked")
    }

    async fn rebuild(&self, generation: u64, short_lived: usize) -> Session {
        let mut attempt = short_lived;
        loop {
            sleep(pause(attempt, rand::random())).await;
            match self.build(generation).await {
                Ok(session) => return session,
                Err(error) => {
                    let reason = format!("failed to build a client: {error}");
                    tracing::warn!(reason, "not connected to NATS, will retry");
                    self.observer.failed(&reason);
                }
            }
            attempt = attempt.saturating_add(1);
        }
    }

    /// Builds a client, which connects when NATS is there.
    async fn build(&self, generation: u64) -> Result<Session, ConnectError> {
        let observer = Arc::clone(&self.observer);
        let ConnectionConfig { name, servers, credentials, credentials_setting, .. } = &*self.config;
        let options = options(&self.violations, credentials.as_ref(), credentials_setting, move |event| {
            observer.observe(generation, event);
        });
        let client = options
            .name(name)
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(|attempt| pause(attempt, rand::random()))
            .connect(servers.as_slice())
            .await?;
        let replies = self.observer.mux().subscribe(&client).await;
        let replies = replies.map_err(|error| ConnectError::with_source(ConnectErrorKind::Io, error))?;
        Ok(Session { generation, client, replies })
    }
}

/// How many clients in a row ended too soon, including one that lasted so long.
fn count_short_lived(before: usize, lasted: Duration) -> usize {
    if lasted < STABLE_AFTER { before.saturating_add(1) } else { 0 }
}

/// Returns when the client does not take a command.
async fn poll_state(client: &Client, generation: u64, violations: &Violations, observer: &Observer) {
    loop {
        sleep(STATE_POLL_INTERVAL).await;
        observer.poll(generation, &client.connection_state(), violations.inbox_denied().as_ref());
        if violations.must_reconnect() && client.force_reconnect().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_end_again_and_again_are_built_ever_less_often_until_one_lasts() {
        let mut short_lived = 0;
        let pauses = [0, 1, 2, 29, 30, 0].map(|seconds| {
            short_lived = count_short_lived(short_lived, Duration::from_secs(seconds));
            pause(short_lived, 1.0).as_millis()
        });
        assert_eq!(pauses, [20, 100, 200, 400, 20, 20]);
    }
}
