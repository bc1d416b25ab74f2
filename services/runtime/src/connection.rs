//! The connection to NATS: it comes up when NATS does, comes back by itself, and says how it is. All requests to
//! JetStream go through here, each bounded in time.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, HeaderMap, PublishErrorKind, Subject, connection::State,
    jetstream, message::OutboundMessage,
};
use bytes::Bytes;
use jetwright_crds::environment::NATS_CREDENTIALS;
use jetwright_process::{
    health::Gate,
    nats::{self, Happening, Violation, Violations},
};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, ErrorKind,
    environment::Environment,
    error::{Disposition, classify},
    metrics::Metrics,
    requests::{Begun, Requests, Ticket, Unanswered},
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
    requests: Arc<Requests>,
    observer: Arc<Observer>,
    /// End with the last clone.
    _tasks: Arc<[AbortOnDropHandle<()>; 4]>,
}

/// Tells everybody how the connection is.
#[derive(Debug)]
struct Observer {
    requests: Arc<Requests>,
    link: watch::Sender<Link>,
    gate: Gate,
    metrics: Metrics,
    /// The program ends, and with it the connection.
    ending: AtomicBool,
    /// Held while the table and the link are told, so that both are told the same last.
    telling: Mutex<()>,
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
            Self::Refused(error) => match classify(&error) {
                Disposition::Final(kind) => Error::new(kind, object, error),
                Disposition::Retry => Error::new(ErrorKind::Unavailable, object, error),
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
    ) -> Result<Self, ConnectError> {
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
        let requests = Arc::clone(&observer.requests);
        let answers = requests.subscribe(&client).await;
        let answers = answers.map_err(|error| ConnectError::with_source(ConnectErrorKind::Io, error))?;
        let [sending, hearing, expiring] = [(); 3].map(|()| Arc::clone(&requests));
        let (sender, watch) = (client.clone(), violations.watch());
        let tasks = [
            tokio::spawn(async move { sending.send(&sender).await }),
            tokio::spawn(async move { hearing.hear(answers, watch).await }),
            tokio::spawn(async move { expiring.expire().await }),
            tokio::spawn(look(client.clone(), violations.clone(), Arc::clone(&observer))),
        ];
        let tasks = Arc::new(tasks.map(AbortOnDropHandle::new));
        let (link, in_flight) = (observer.link.subscribe(), Arc::new(Semaphore::new(IN_FLIGHT)));
        Ok(Self { client, link, violations, in_flight, requests, observer, _tasks: tasks })
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
        let Ask { subject, headers, payload, object, deadline } = ask;
        let subject = Subject::from(subject);
        let request = || OutboundMessage {
            subject: subject.clone(),
            reply: None,
            payload: payload.clone(),
            headers: headers.clone(),
        };
        self.ask_until(deadline, &object, &request).await
    }

    /// The same with a request that is made anew for each time that it is sent. `object` is what it is about, for the error.
    ///
    /// Thousands of these may be under way, most of which only wait: what is seldom needed is boxed, and so is what is over soon.
    pub(crate) async fn ask_until<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        object: &str,
        request: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, NotDone> {
        let turn = match self.in_flight.try_acquire() {
            Ok(turn) => turn,
            Err(_) => match Box::pin(self.turn(deadline)).await {
                Some(turn) => turn,
                None => return Err(unavailable(object, "too many requests wait already")),
            },
        };
        let heard = judged(self.request(request(), deadline).await, object);
        drop(turn);
        match heard {
            Heard::Done(done) => done,
            Heard::Again(why) => Box::pin(self.ask_again(deadline, object, why, request)).await,
        }
    }

    /// Room among the requests in flight, when there is some before the deadline.
    async fn turn(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        timeout_at(deadline, self.in_flight.acquire()).await.ok()?.ok()
    }

    /// Asks again after a first time in vain.
    async fn ask_again<T: DeserializeOwned>(
        &self,
        deadline: Instant,
        object: &str,
        mut why: Cow<'static, str>,
        request: &(impl Fn() -> OutboundMessage + Sync),
    ) -> Result<T, NotDone> {
        for attempt in 1.. {
            let next = Instant::now() + pause(attempt, rand::random());
            if next >= deadline {
                break;
            }
            // Others have its room meanwhile.
            sleep_until(next).await;
            let Some(_turn) = self.turn(deadline).await else { break };
            why = match judged(self.request(request(), deadline).await, object) {
                Heard::Done(done) => return done,
                Heard::Again(why) => why,
            };
        }
        Err(unavailable(object, &why))
    }

    /// One request, sent when NATS is connected; it ends as soon as that connection is lost, or the servers do not permit it.
    async fn request(&self, message: OutboundMessage, deadline: Instant) -> Result<Bytes, Unanswered> {
        let mut ticket = match self.requests.begin(message, deadline.min(Instant::now() + ANSWER)) {
            Begun::UnderWay(ticket) => ticket,
            Begun::NotYet(message) => Box::pin(self.begin_later(message, deadline)).await?,
            Begun::Deaf(violation) => return Err(Unanswered::Forbidden(violation)),
        };
        ticket.heard().await
    }

    /// Has a request sent when NATS is connected.
    async fn begin_later(
        &self,
        mut message: OutboundMessage,
        deadline: Instant,
    ) -> Result<Ticket<'_>, Unanswered> {
        let mut link = self.link.clone();
        loop {
            let Ok(Ok(_)) = timeout_at(deadline, link.wait_for(|link| link.connected)).await else {
                return Err(Unanswered::NotConnected);
            };
            message = match self.requests.begin(message, deadline.min(Instant::now() + ANSWER)) {
                Begun::UnderWay(ticket) => return Ok(ticket),
                Begun::NotYet(message) => message,
                Begun::Deaf(violation) => return Err(Unanswered::Forbidden(violation)),
            };
            // It was lost since, or closed for good, of which nobody tells.
            let Ok(Ok(())) = timeout_at(deadline, link.changed()).await else {
                return Err(Unanswered::NotConnected);
            };
        }
    }
}

/// What came of one request.
enum Heard<T> {
    /// It is decided.
    Done(Result<T, NotDone>),
    /// It is worth asking again, after this.
    Again(Cow<'static, str>),
}

fn judged<T: DeserializeOwned>(heard: Result<Bytes, Unanswered>, object: &str) -> Heard<T> {
    match heard.map(|answer| read(&answer)) {
        Ok(Ok(Ok(answer))) => Heard::Done(Ok(answer)),
        Ok(Ok(Err(error))) if classify(&error) == Disposition::Retry => {
            Heard::Again(error.to_string().into())
        }
        Ok(Ok(Err(error))) => Heard::Done(Err(NotDone::Refused(error))),
        Ok(Err(error)) => Heard::Again(format!("JetStream's answer cannot be read: {error}").into()),
        Err(unanswered) => match passing(unanswered, object) {
            Ok(why) => Heard::Again(why),
            Err(error) => Heard::Done(Err(NotDone::Other(error))),
        },
    }
}

fn unavailable(object: &str, why: &str) -> NotDone {
    NotDone::Other(Error::new(ErrorKind::Unavailable, object, why))
}

/// The refusal in an answer of JetStream, where it is one.
#[derive(Deserialize)]
struct Refusal {
    error: Option<jetstream::Error>,
}

/// Reads an answer of JetStream. The refusal of a write has the fields of an answer too, so that is looked for first, where there may
/// be one.
fn read<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<Result<T, jetstream::Error>> {
    const ERROR: &[u8] = b"\"error\"";
    if json.windows(ERROR.len()).any(|part| part == ERROR)
        && let Refusal { error: Some(error) } = serde_json::from_slice(json)?
    {
        return Ok(Err(error));
    }
    serde_json::from_slice(json).map(Ok)
}

/// Why a request is worth asking again; what is not is an error at once.
fn passing(unanswered: Unanswered, object: &str) -> Result<Cow<'static, str>, Error> {
    Ok(match unanswered {
        Unanswered::NotConnected => "NATS is not connected".into(),
        Unanswered::Lost => "the connection to NATS was lost".into(),
        Unanswered::Silence => "NATS does not answer".into(),
        Unanswered::NoResponders => "no stream takes it".into(),
        Unanswered::NotSent(error) if error.kind() == PublishErrorKind::Send => error.to_string().into(),
        Unanswered::NotSent(error) => return Err(Error::new(ErrorKind::Refused, object, error)),
        Unanswered::Forbidden(violation) => {
            // What was asked for may have been done where only its answer could not be heard.
            let kind = match violation {
                Violation::Publish(_) => ErrorKind::Refused,
                Violation::Subscribe(_) => ErrorKind::Unavailable,
            };
            return Err(Error::new(kind, object, violation));
        }
    })
}

impl Observer {
    fn new(gate: Gate, metrics: Metrics) -> Self {
        let (link, ending) = (watch::Sender::default(), AtomicBool::new(false));
        Self { requests: Arc::default(), link, gate, metrics, ending, telling: Mutex::default() }
    }

    fn observe(&self, happening: Happening<'_>) {
        match happening {
            Happening::Connected => self.connected(),
            Happening::Disconnected => self.disconnected(),
            Happening::Failed(why) => self.gate.close(&format!("not connected to NATS: {why}")),
            Happening::Deaf(violation) => {
                self.requests.deaf(violation);
                self.gate.close(&format!("the answers of NATS cannot be heard: {violation}"));
            }
            Happening::Dropped => tracing::debug!("messages of NATS were dropped"),
        }
    }

    fn connected(&self) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        // Who sees the link finds a table that takes requests.
        self.requests.connected();
        self.link.send_modify(|link| *link = Link { connected: true, epoch: link.epoch + 1 });
        self.metrics.connected(true);
        self.gate.open();
        tracing::info!("connected to NATS");
    }

    fn disconnected(&self) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.link.send_modify(|link| link.connected = false);
        self.requests.disconnected();
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
