//! The connection to NATS: it comes up when NATS does, reconnects by itself, and replaces a client that has ended.
//! All requests to JetStream go through here, each with a timeout.

use std::{borrow::Cow, sync::Arc, time::Duration};

use async_nats::{Client, ConnectError, ServerAddr, Subject, message::OutboundMessage};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    api_subjects::ApiSubjects,
    backoff::pause,
    mux::{NoReply, PendingReply, RequestMux, Submitted},
    observer::Observer,
    permits::{Permits, stream_of},
    reply::{Reply, RequestError, interpret},
    state::{ConnectionState, Link},
    supervisor::{ConnectionConfig, CurrentClient, Supervisor},
    violation::{ViolationReceiver, Violations},
};

/// How long one request waits for its reply before it is repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    config: Arc<ConnectionConfig>,
    api_subjects: Arc<ApiSubjects>,
    client: CurrentClient,
    link: watch::Receiver<Link>,
    state: watch::Receiver<ConnectionState>,
    violations: Violations,
    permits: Arc<Permits>,
    mux: Arc<RequestMux>,
    observer: Arc<Observer>,
    _tasks: Arc<Tasks>,
}

/// What runs for a connection, until its last clone is dropped. That is no loss to warn of.
#[derive(Debug)]
struct Tasks {
    observer: Arc<Observer>,
    _handles: [AbortOnDropHandle<()>; 2],
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.observer.ending();
    }
}

/// One request to JetStream.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where it goes.
    pub subject: String,
    /// Its body.
    pub payload: Bytes,
    /// Deadline of the last repetition.
    pub deadline: Instant,
}

/// Timeouts of one request.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    /// For the connection, and altogether.
    deadline: Instant,
    /// For the reply, once there is a connection.
    reply: Duration,
}

impl Timeouts {
    fn reply_deadline(self) -> Instant {
        self.deadline.min(Instant::now() + self.reply)
    }
}

impl Connection {
    /// Begins to connect, and never stops. [`state`](Self::state) says whether NATS is connected.
    ///
    /// # Errors
    ///
    /// The options are refused before any attempt, as when a certificate cannot be read.
    pub async fn open(config: ConnectionConfig) -> Result<Self, ConnectError> {
        let (observer, violations) = (Arc::new(Observer::new()), Violations::new());
        let config = Arc::new(config);
        let api_subjects = Arc::new(ApiSubjects::new(config.domain.as_deref()));
        let supervisor = Supervisor::new(Arc::clone(&config), Arc::clone(&observer), violations.clone());
        let (client, supervising) = supervisor.start().await?;
        let mux = Arc::clone(observer.mux());
        let expiring = Arc::clone(&mux);
        let tasks = [tokio::spawn(supervising), tokio::spawn(async move { expiring.expire().await })];
        let handles = tasks.map(AbortOnDropHandle::new);
        let tasks = Arc::new(Tasks { observer: Arc::clone(&observer), _handles: handles });
        let (link, state, permits) = (observer.link(), observer.state(), Arc::new(Permits::new()));
        Ok(Self {
            config,
            api_subjects,
            client,
            link,
            state,
            violations,
            permits,
            mux,
            observer,
            _tasks: tasks,
        })
    }

    /// Another connection of the program, to the same servers, for what may cut one and is read again then: its loss is no warning.
    pub(crate) async fn another(&self, purpose: &str) -> Result<Self, ConnectError> {
        let name = format!("{} {purpose}", self.config.name);
        let other = Self::open(ConnectionConfig { name, ..(*self.config).clone() }).await?;
        other.ending();
        Ok(other)
    }

    /// From now on a loss of the connection is no warning; clones may still exist.
    pub fn ending(&self) {
        self.observer.ending();
    }

    /// The current client. It may end, and another one replaces it: [`Link::generation`] says when. Take it for each use.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.get()
    }

    /// The link, to wait for changes of.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// The state, to wait for changes of.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// The permissions violations from now on.
    #[must_use]
    pub fn violations(&self) -> ViolationReceiver {
        self.violations.subscribe()
    }

    /// Notified when messages arrived faster than they were read, and the client dropped some.
    #[must_use]
    pub fn slow_consumer(&self) -> &Notify {
        self.observer.slow_consumer()
    }

    /// The name under which the servers know this connection.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The servers' addresses, for messages.
    #[must_use]
    pub fn servers(&self) -> String {
        let servers: Vec<_> = self.config.servers.iter().map(ServerAddr::as_url_str).collect();
        servers.join(", ")
    }

    /// The subjects of JetStream's API.
    #[must_use]
    pub fn api_subjects(&self) -> &ApiSubjects {
        &self.api_subjects
    }

    /// Sends a request until there is a final response or its deadline has passed. It may arrive more than once.
    ///
    /// # Errors
    ///
    /// JetStream or the servers refuse it, or there was no final response in time.
    pub async fn request<T: DeserializeOwned>(&self, request: Request) -> Result<T, RequestError> {
        let Request { subject, payload, deadline } = request;
        let subject = Subject::from(subject);
        let message = || OutboundMessage {
            subject: subject.clone(),
            reply: None,
            payload: payload.clone(),
            headers: None,
        };
        self.request_until(deadline, &subject, None, &message).await
    }

    /// Publishes a message to this subject in the same way, built again for each attempt. `stream` is the stream that it is for, if
    /// known.
    ///
    /// # Errors
    ///
    /// JetStream or the servers refuse it, or there was no final response in time.
    pub async fn request_until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        subject: &str,
        stream: Option<&str>,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        self.repeat(deadline, stream.unwrap_or_else(|| stream_of(subject)), message).await
    }

    /// Sends a request once, and waits for its reply for at most this long.
    ///
    /// # Errors
    ///
    /// Why there is no reply.
    pub async fn request_once(
        &self,
        subject: impl Into<Subject>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, NoReply> {
        let message = OutboundMessage { subject: subject.into(), reply: None, payload, headers: None };
        self.send_once(message, timeout).await
    }

    /// The same for a message that may have headers; its reply subject is replaced.
    pub(crate) async fn send_once(
        &self,
        message: OutboundMessage,
        timeout: Duration,
    ) -> Result<Bytes, NoReply> {
        self.send(message, Timeouts { deadline: Instant::now() + timeout, reply: timeout }).await
    }

    /// Thousands of these may be in flight, and most only wait: rare parts are boxed, and so are short ones.
    async fn repeat<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        stream: &str,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        let permit = match self.permits.try_acquire(stream) {
            Some(permit) => permit,
            None => match Box::pin(self.permits.acquire(stream, deadline)).await {
                Some(permit) => permit,
                None => {
                    return Err(RequestError::Unavailable("too many requests are waiting already".into()));
                }
            },
        };
        let timeouts = Timeouts { deadline, reply: REQUEST_TIMEOUT };
        let reply = interpret(self.send(message(), timeouts).await);
        drop(permit);
        match reply {
            Reply::Final(result) => result,
            Reply::Retry(why) => Box::pin(self.retry(timeouts, stream, why, message)).await,
        }
    }

    /// Repeats a request that failed the first time.
    async fn retry<T: DeserializeOwned>(
        &self,
        timeouts: Timeouts,
        stream: &str,
        mut why: Cow<'static, str>,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        let deadline = timeouts.deadline;
        for attempt in 1.. {
            let next = Instant::now() + pause(attempt, rand::random());
            if next >= deadline {
                break;
            }
            // Others use its permit meanwhile.
            sleep_until(next).await;
            let Some(_permit) = self.permits.acquire(stream, deadline).await else { break };
            why = match interpret(self.send(message(), timeouts).await) {
                Reply::Final(result) => return result,
                Reply::Retry(why) => why,
            };
        }
        Err(RequestError::Unavailable(why))
    }

    /// Sends once, when NATS is connected. It ends as soon as that connection is lost, or the servers do not permit it.
    async fn send(&self, message: OutboundMessage, timeouts: Timeouts) -> Result<Bytes, NoReply> {
        let mut pending = match self.mux.submit(message, timeouts.reply_deadline()) {
            Submitted::Pending(pending) => pending,
            Submitted::NotConnected(message) => Box::pin(self.submit_later(message, timeouts)).await?,
            Submitted::InboxDenied(violation) => return Err(NoReply::Forbidden(violation)),
        };
        pending.reply().await
    }

    /// Submits a message when NATS is connected.
    async fn submit_later(
        &self,
        mut message: OutboundMessage,
        timeouts: Timeouts,
    ) -> Result<PendingReply<'_>, NoReply> {
        let mut link = self.link.clone();
        loop {
            let Ok(Ok(_)) = timeout_at(timeouts.deadline, link.wait_for(|link| link.connected)).await else {
                return Err(NoReply::NotConnected);
            };
            message = match self.mux.submit(message, timeouts.reply_deadline()) {
                Submitted::Pending(pending) => return Ok(pending),
                Submitted::NotConnected(message) => message,
                Submitted::InboxDenied(violation) => return Err(NoReply::Forbidden(violation)),
            };
            // The connection was lost in between.
            let Ok(Ok(())) = timeout_at(timeouts.deadline, link.changed()).await else {
                return Err(NoReply::NotConnected);
            };
        }
    }
}
