//! The connection to NATS: it comes up when NATS does, and comes back by itself, with another client where the one before has ended.
//! All requests to JetStream go through here, each bounded in time.

mod link;
mod permits;
mod reply;
mod supervisor;

use std::{borrow::Cow, sync::Arc, time::Duration};

use async_nats::{Client, ConnectError, HeaderMap, Subject, jetstream, message::OutboundMessage};
use bytes::Bytes;
use jetwright_nats::{ViolationReceiver, Violations};
use jetwright_process::health::Gate;
use serde::de::DeserializeOwned;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::link::Link;
use self::{
    link::Observer,
    permits::{Permits, stream_of},
    reply::{Reply, judge},
    supervisor::{CurrentClient, Supervisor},
};
use crate::{
    Error, ErrorKind,
    environment::Environment,
    error::{Disposition, classify},
    metrics::Metrics,
    requests::{NoReply, PendingReply, RequestMux, Submitted},
};

/// How long one request waits for its reply before it is repeated.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two attempts, before jitter.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: CurrentClient,
    link: watch::Receiver<Link>,
    violations: Violations,
    permits: Arc<Permits>,
    mux: Arc<RequestMux>,
    observer: Arc<Observer>,
    /// End with the last clone.
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

/// One request to JetStream.
pub(crate) struct Request {
    pub(crate) subject: String,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
    /// What the request is about, for the error.
    pub(crate) object: String,
    pub(crate) deadline: Instant,
}

/// Why a request failed.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// JetStream answered with an error that repeating does not change.
    Refused(jetstream::Error),
    /// Everything else.
    Other(Error),
}

impl RequestError {
    pub(crate) fn into_error(self, object: &str) -> Error {
        match self {
            Self::Refused(error) => match classify(&error) {
                Disposition::Final(kind) => Error::new(kind, object, error),
                Disposition::Retry => Error::new(ErrorKind::Unavailable, object, error),
            },
            Self::Other(error) => error,
        }
    }
}

impl Connection {
    /// Begins to connect, and goes on for ever. The gate is open while NATS is connected and replies can arrive.
    pub(crate) async fn open(
        environment: &Environment,
        gate: Gate,
        metrics: Metrics,
    ) -> Result<Self, ConnectError> {
        gate.close("not connected to NATS yet");
        let (observer, violations) = (Arc::new(Observer::new(gate, metrics)), Violations::new());
        let supervisor = Supervisor::new(environment, Arc::clone(&observer), violations.clone());
        let (client, supervising) = supervisor.start().await?;
        let mux = Arc::clone(observer.mux());
        let expiring = Arc::clone(&mux);
        let tasks = [tokio::spawn(supervising), tokio::spawn(async move { expiring.expire().await })];
        let tasks = Arc::new(tasks.map(AbortOnDropHandle::new));
        let (link, permits) = (observer.link(), Arc::new(Permits::new()));
        Ok(Self { client, link, violations, permits, mux, observer, _tasks: tasks })
    }

    /// From now on a loss of the connection is no warning.
    pub(crate) fn ending(&self) {
        self.observer.ending();
    }

    /// The client that is used now. It may end, and another one is used then: [`Link::generation`] says when. Take it for each use.
    pub(crate) fn client(&self) -> Client {
        self.client.get()
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// What the servers do not permit, from now on.
    pub(crate) fn violations(&self) -> ViolationReceiver {
        self.violations.subscribe()
    }

    /// Sends a request until there is a final answer or its deadline has passed. It may arrive more than once.
    pub(crate) async fn request<T: DeserializeOwned>(&self, request: Request) -> Result<T, RequestError> {
        let Request { subject, headers, payload, object, deadline } = request;
        let stream = stream_of(&subject).to_owned();
        let subject = Subject::from(subject);
        let message = || OutboundMessage {
            subject: subject.clone(),
            reply: None,
            payload: payload.clone(),
            headers: headers.clone(),
        };
        self.repeat(deadline, &object, &stream, &message).await
    }

    /// Sends a message to this subject in the same way, built again for each time. `stream` is the stream that it is for, if that is
    /// known.
    pub(crate) async fn request_until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        subject: &str,
        stream: Option<&str>,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        self.repeat(deadline, subject, stream.unwrap_or_else(|| stream_of(subject)), message).await
    }

    /// Thousands of these may be under way, most of which only wait: what is seldom needed is boxed, and so is what is over soon.
    async fn repeat<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        object: &str,
        stream: &str,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        let permit = match self.permits.try_acquire(stream) {
            Some(permit) => permit,
            None => match Box::pin(self.permits.acquire(stream, deadline)).await {
                Some(permit) => permit,
                None => return Err(unavailable(object, "too many requests wait already")),
            },
        };
        let reply = judge(self.send(message(), deadline).await, object);
        drop(permit);
        match reply {
            Reply::Final(result) => result,
            Reply::Retry(why) => Box::pin(self.retry(deadline, object, stream, why, message)).await,
        }
    }

    /// Repeats a request that failed the first time.
    async fn retry<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        object: &str,
        stream: &str,
        mut why: Cow<'static, str>,
        message: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, RequestError> {
        for attempt in 1.. {
            let next = Instant::now() + pause(attempt, rand::random());
            if next >= deadline {
                break;
            }
            // Others have its permit meanwhile.
            sleep_until(next).await;
            let Some(_permit) = self.permits.acquire(stream, deadline).await else { break };
            why = match judge(self.send(message(), deadline).await, object) {
                Reply::Final(result) => return result,
                Reply::Retry(why) => why,
            };
        }
        Err(unavailable(object, &why))
    }

    /// Sends once, when NATS is connected. It ends as soon as that connection is lost, or the servers do not permit it.
    async fn send(&self, message: OutboundMessage, deadline: Instant) -> Result<Bytes, NoReply> {
        let mut pending = match self.mux.submit(message, deadline.min(Instant::now() + REQUEST_TIMEOUT)) {
            Submitted::Pending(pending) => pending,
            Submitted::NotConnected(message) => Box::pin(self.submit_later(message, deadline)).await?,
            Submitted::InboxDenied(violation) => return Err(NoReply::Forbidden(violation)),
        };
        pending.reply().await
    }

    /// Submits a message when NATS is connected.
    async fn submit_later(
        &self,
        mut message: OutboundMessage,
        deadline: Instant,
    ) -> Result<PendingReply<'_>, NoReply> {
        let mut link = self.link.clone();
        loop {
            let Ok(Ok(_)) = timeout_at(deadline, link.wait_for(|link| link.connected)).await else {
                return Err(NoReply::NotConnected);
            };
            message = match self.mux.submit(message, deadline.min(Instant::now() + REQUEST_TIMEOUT)) {
                Submitted::Pending(pending) => return Ok(pending),
                Submitted::NotConnected(message) => message,
                Submitted::InboxDenied(violation) => return Err(NoReply::Forbidden(violation)),
            };
            // The connection was lost in between.
            let Ok(Ok(())) = timeout_at(deadline, link.changed()).await else {
                return Err(NoReply::NotConnected);
            };
        }
    }
}

fn unavailable(object: &str, why: &str) -> RequestError {
    RequestError::Other(Error::new(ErrorKind::Unavailable, object, why))
}

/// The pause before this attempt: almost none before the first, then exponential with full jitter, so that the clients of a server that
/// comes back do not all come back at once.
pub(crate) fn pause(attempt: usize, jitter: f64) -> Duration {
    if attempt <= 1 {
        return Duration::from_millis(20).mul_f64(jitter);
    }
    let exponent = u32::try_from(attempt.min(16)).unwrap_or(16);
    let whole = Duration::from_millis(25).saturating_mul(2_u32.saturating_pow(exponent)).min(MAX_PAUSE);
    whole.mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_whatever_the_attempt() {
        let milliseconds = |attempt| pause(attempt, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4].map(milliseconds), [20, 100, 200, 400]);
        assert_eq!([9, 100, usize::MAX].map(milliseconds), [5000, 5000, 5000]);
        assert_eq!(pause(9, 0.0), Duration::ZERO);
    }
}
