//! The connection to NATS: it comes up when NATS does, comes back by itself, and says how it is. All requests to
//! JetStream go through here, each bounded in time.

use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, HeaderMap, Message, Request, RequestError, RequestErrorKind, connection::State,
    jetstream::response::Response,
};
use bytes::Bytes;
use jetwright_crds::environment::NATS_CREDENTIALS;
use jetwright_process::{
    health::Gate,
    nats::{self, Happening, Violation, Violations},
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, ErrorKind,
    environment::Environment,
    error::{Verdict, judge},
    metrics::Metrics,
};

/// A request that nobody answered in this time is asked again.
const ANSWER: Duration = Duration::from_secs(2);
/// A server that is silent for two of these is taken for dead.
const PING: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to connect, before jitter.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often the client is asked for its state: it drops events where many come at once (128 in async-nats 0.51).
const LOOK: Duration = Duration::from_secs(1);
/// Requests that wait for their answers at once; more wait for their turn.
const IN_FLIGHT: usize = 1024;

/// Whether NATS is connected now. `epoch` counts the connections, so that one that was lost and made again between two
/// looks is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) connected: bool,
    pub(crate) epoch: u64,
}

/// The connection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    client: Client,
    link: watch::Receiver<Link>,
    violations: Violations,
    in_flight: Arc<Semaphore>,
    observer: Arc<Observer>,
    /// Ends with the last clone.
    _look: Arc<AbortOnDropHandle<()>>,
}

/// Tells everybody how the connection is.
#[derive(Debug)]
struct Observer {
    link: watch::Sender<Link>,
    gate: Gate,
    metrics: Metrics,
    /// The program ends, and with it the connection.
    ending: AtomicBool,
}

/// One request to JetStream.
pub(crate) struct Ask {
    pub(crate) subject: String,
    pub(crate) headers: Option<HeaderMap>,
    pub(crate) payload: Bytes,
    /// What the request is about, for the error.
    pub(crate) object: String,
    /// When it is given up.
    pub(crate) deadline: Instant,
}

/// Why a request was not done.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// JetStream's answer is an error that stands.
    Refused(async_nats::jetstream::Error),
    /// Everything else.
    Other(Error),
}

impl NotDone {
    pub(crate) fn about(self, object: &str) -> Error {
        match self {
            Self::Refused(error) => match judge(&error) {
                Verdict::Final(kind) => Error::new(kind, object, error),
                Verdict::AskAgain => Error::new(ErrorKind::Unavailable, object, error),
            },
            Self::Other(error) => error,
        }
    }
}

impl Connection {
    /// Begins to connect, and goes on for ever. The gate is open while NATS is connected and answers can be heard.
    pub(crate) async fn open(
        environment: &Environment,
        gate: Gate,
        metrics: Metrics,
    ) -> Result<Self, async_nats::ConnectError> {
        gate.close("not connected to NATS yet");
        let observer = Arc::new(Observer::new(gate, metrics));
        let observing = Arc::clone(&observer);
        let (options, violations) =
            nats::options(environment.credentials.as_ref(), NATS_CREDENTIALS, move |happening| {
                observing.observe(happening);
            });
        let client = options
            .name(&environment.name)
            .retry_on_initial_connect()
            .ping_interval(PING)
            .reconnect_delay_callback(|attempt| pause(attempt, rand::random()))
            .connect(environment.servers.as_slice())
            .await?;
        let look = look(client.clone(), violations.clone(), Arc::clone(&observer));
        let look = AbortOnDropHandle::new(tokio::spawn(look));
        let (link, in_flight) = (observer.link.subscribe(), Arc::new(Semaphore::new(IN_FLIGHT)));
        Ok(Self { client, link, violations, in_flight, observer, _look: Arc::new(look) })
    }

    /// From now on the connection's end is nothing to warn of.
    pub(crate) fn ending(&self) {
        self.observer.ending.store(true, Ordering::Relaxed);
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// What the servers do not permit, from now on.
    pub(crate) fn violations(&self) -> nats::Watch {
        self.violations.watch()
    }

    /// Asks until there is an answer that stands or the time is over. The request may arrive more than once.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, ask: Ask) -> Result<T, NotDone> {
        let mut why = "NATS is not connected".to_owned();
        let unavailable = |why: &str| Error::new(ErrorKind::Unavailable, &ask.object, why);
        let Ok(Ok(_turn)) = timeout_at(ask.deadline, self.in_flight.acquire()).await else {
            return Err(NotDone::Other(unavailable("too many requests wait already")));
        };
        for attempt in 1.. {
            match timeout_at(ask.deadline, self.ask_once(&ask)).await {
                Err(_) => break,
                Ok(Ok(message)) => match serde_json::from_slice(&message.payload) {
                    Ok(Response::Ok(answer)) => return Ok(answer),
                    Ok(Response::Err { error }) if judge(&error) == Verdict::AskAgain => {
                        why = error.to_string();
                    }
                    Ok(Response::Err { error }) => return Err(NotDone::Refused(error)),
                    Err(error) => why = format!("JetStream's answer cannot be read: {error}"),
                },
                Ok(Err(error)) => match error.kind() {
                    _ if let Some(violation) = forbidden(&error) => {
                        // What was asked for may have been done where only its answer could not be heard.
                        let kind = match violation {
                            Violation::Publish(_) => ErrorKind::Refused,
                            Violation::Subscribe(_) => ErrorKind::Unavailable,
                        };
                        return Err(NotDone::Other(Error::new(kind, &ask.object, violation)));
                    }
                    RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                        return Err(NotDone::Other(Error::new(ErrorKind::Refused, &ask.object, error)));
                    }
                    RequestErrorKind::NoResponders => "no stream takes it".clone_into(&mut why),
                    _ => why = error.to_string(),
                },
            }
            let next = Instant::now() + pause(attempt, rand::random());
            if next >= ask.deadline {
                break;
            }
            sleep_until(next).await;
        }
        Err(NotDone::Other(unavailable(&why)))
    }

    /// Asks when NATS is connected, and waits for the answer while that connection lasts.
    async fn ask_once(&self, ask: &Ask) -> Result<Message, RequestError> {
        let mut request = Request::new().payload(ask.payload.clone()).timeout(Some(ANSWER));
        if let Some(headers) = &ask.headers {
            request = request.headers(headers.clone());
        }
        self.send(ask.subject.as_str(), request).await
    }

    /// One request, sent when NATS is connected; it fails as soon as that connection is lost, or the servers do not permit it.
    pub(crate) async fn send(&self, subject: &str, request: Request) -> Result<Message, RequestError> {
        let mut link = self.link.clone();
        let mut violations = self.violations.watch();
        let lost = || RequestError::with_source(RequestErrorKind::Other, "the connection to NATS was lost");
        let epoch = match link.wait_for(|link| link.connected).await {
            Ok(link) => link.epoch,
            Err(_) => return Err(lost()),
        };
        tokio::select! {
            answer = self.client.send_request(subject.to_owned(), request) => answer,
            _ = link.wait_for(|link| !link.connected || link.epoch != epoch) => Err(lost()),
            violation = violations.publish_to(subject) => Err(not_permitted(violation)),
            violation = self.violations.deafness() => Err(not_permitted(violation)),
        }
    }
}

fn not_permitted(violation: Violation) -> RequestError {
    RequestError::with_source(RequestErrorKind::Other, violation)
}

/// What the servers did not permit, where that is why a request failed.
pub(crate) fn forbidden(error: &RequestError) -> Option<&Violation> {
    error.source()?.downcast_ref()
}

impl Observer {
    fn new(gate: Gate, metrics: Metrics) -> Self {
        Self { link: watch::Sender::default(), gate, metrics, ending: AtomicBool::new(false) }
    }

    fn observe(&self, happening: Happening<'_>) {
        match happening {
            Happening::Connected => self.connected(),
            Happening::Disconnected => self.disconnected(),
            Happening::Failed(why) => self.gate.close(&format!("not connected to NATS: {why}")),
            Happening::Deaf(violation) => {
                self.gate.close(&format!("the answers of NATS cannot be heard: {violation}"));
            }
            Happening::Dropped => tracing::debug!("messages of NATS were dropped"),
        }
    }

    fn connected(&self) {
        self.link.send_modify(|link| *link = Link { connected: true, epoch: link.epoch + 1 });
        self.metrics.connected(true);
        self.gate.open();
        tracing::info!("connected to NATS");
    }

    fn disconnected(&self) {
        self.link.send_modify(|link| link.connected = false);
        self.metrics.connected(false);
        self.gate.close("not connected to NATS: the connection was lost");
        if self.ending.load(Ordering::Relaxed) {
            tracing::debug!("disconnected from NATS");
        } else {
            tracing::warn!("disconnected from NATS");
        }
    }

    /// Follows the client's own word where an event was missed. `differed` is what this said at the look before: an
    /// event that is merely on its way is waited for.
    fn compare(&self, state: &State, differed: bool) -> bool {
        let connected = *state == State::Connected;
        let differs = self.link.borrow().connected != connected;
        match (differs && differed, connected) {
            (true, true) => self.connected(),
            (true, false) => self.disconnected(),
            (false, _) => {}
        }
        differs
    }
}

async fn look(client: Client, violations: Violations, observer: Arc<Observer>) {
    let mut differed = false;
    loop {
        sleep(LOOK).await;
        differed = observer.compare(&client.connection_state(), differed);
        if violations.stays_deaf() && client.force_reconnect().await.is_err() {
            return;
        }
    }
}

/// The pause before this attempt: none before the first, then exponential with full jitter, so that all clients of a
/// server that came back do not come back together.
pub(crate) fn pause(attempt: usize, jitter: f64) -> Duration {
    if attempt <= 1 {
        return Duration::from_millis(20).mul_f64(jitter);
    }
    let exponent = u32::try_from(attempt.min(16)).unwrap_or(16);
    let whole = Duration::from_millis(25).saturating_mul(2_u32.saturating_pow(exponent)).min(LONGEST_PAUSE);
    whole.mul_f64(jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_was_missed_is_made_up_for_at_the_second_look() {
        let health = jetwright_process::health::Health::new();
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
        let observer = Observer::new(health.gate("nats", "not yet"), metrics);
        let look = |state, differed| {
            let differs = observer.compare(&state, differed);
            (differs, observer.link.borrow().connected, health.ready().is_ok())
        };
        assert_eq!(look(State::Pending, false), (false, false, false));
        assert_eq!(look(State::Connected, false), (true, false, false));
        assert_eq!(look(State::Connected, true), (true, true, true));
        assert_eq!(look(State::Disconnected, false), (true, true, true));
        // Its event came after all.
        assert_eq!(look(State::Connected, true), (false, true, true));
        assert_eq!(look(State::Disconnected, true), (true, false, false));
    }

    #[test]
    fn pauses_grow_to_a_bound_whatever_the_attempt() {
        let milliseconds = |attempt| pause(attempt, 1.0).as_millis();
        assert_eq!([1, 2, 3, 4].map(milliseconds), [20, 100, 200, 400]);
        assert_eq!([9, 100, usize::MAX].map(milliseconds), [5000, 5000, 5000]);
        assert_eq!(pause(9, 0.0), Duration::ZERO);
    }
}
