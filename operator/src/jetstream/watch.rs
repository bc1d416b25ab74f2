//! Keeps the mirror true: listens to JetStream's advisories, and compares everything now and then.
//!
//! Streams and consumers tell of their making, changing and end by advisories of their own, except for changes of consumers,
//! which only the audit of the API tells. Advisories are plain messages that can be lost, hence the comparison at every
//! connect and at an interval.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use jetwright_nats::{Connection, api_request};
use rand::RngExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::mirror::{Change, ConsumerKey, Mirror};

/// Advisories that tell of streams and consumers, and the audit of the API.
const SUBJECTS: [&str; 8] = [
    "$JS.EVENT.ADVISORY.STREAM.CREATED.*",
    "$JS.EVENT.ADVISORY.STREAM.UPDATED.*",
    "$JS.EVENT.ADVISORY.STREAM.DELETED.*",
    "$JS.EVENT.ADVISORY.STREAM.RESTORE_COMPLETE.*",
    "$JS.EVENT.ADVISORY.CONSUMER.CREATED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.DELETED.*.*",
    "$JS.EVENT.ADVISORY.CONSUMER.PAUSE.*.*",
    "$JS.EVENT.ADVISORY.API",
];
/// Questions to JetStream at once.
const AT_ONCE: usize = 16;
/// Names that may wait for their question; more than that are caught by a comparison.
const QUEUE: usize = 8192;
/// Delay before a comparison that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(15);
/// Least time between two comparisons because advisories were lost.
const AFTER_LOSS: Duration = Duration::from_secs(30);

/// How often everything is compared, and what that means for what nobody asks for.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Time between two comparisons; up to a fifth is added, so that several operators do not ask together.
    pub compare: Duration,
    /// Time after which an entry that no reconcile held is forgotten.
    pub forget: Duration,
}

/// What an advisory is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Stream(String),
    Consumer(ConsumerKey),
}

/// Advisories from now on. They are to be listened to before anything is remembered, so that no change falls between the two;
/// after a lost connection the client listens again before it asks for anything else.
pub async fn advisories(nats: &Connection) -> Advisories {
    let generation = nats.link().borrow().generation;
    let (client, mut all) = (nats.client(), Vec::new());
    for subject in SUBJECTS {
        match client.subscribe(subject).await {
            Ok(messages) => all.push(messages),
            Err(error) => {
                tracing::error!(subject, %error, "cannot listen; changes are found by comparison only");
            }
        }
    }
    Advisories { messages: stream::select_all(all), generation }
}

/// JetStream's advisories.
pub struct Advisories {
    messages: stream::SelectAll<async_nats::Subscriber>,
    /// Of the client, or an earlier one.
    generation: u64,
}

/// Runs until `stop`: follows advisories, and compares everything at each connect and at the interval.
pub async fn run(
    advisories: Advisories,
    mirror: Mirror,
    nats: Connection,
    compare_every: Interval,
    stop: CancellationToken,
) {
    let (names, queue) = mpsc::channel(QUEUE);
    let waiting = Waiting::default();
    let work = async {
        tokio::join!(
            follow(advisories, &nats, &mirror, &waiting, names),
            refresh(&mirror, &waiting, queue),
            compare(&mirror, &nats, compare_every),
        )
    };
    stop.run_until_cancelled(work).await;
}

/// Names that wait for their question, so that ten advisories of one stream make one question.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashSet<About>>>);

impl Waiting {
    fn names(&self) -> MutexGuard<'_, HashSet<About>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens for as long as there is a client, and again with each that takes its place: advisories end with their client.
async fn follow(
    mut advisories: Advisories,
    nats: &Connection,
    mirror: &Mirror,
    waiting: &Waiting,
    names: mpsc::Sender<About>,
) {
    loop {
        listen(&mut advisories, nats, mirror, waiting, &names).await;
        let ended = advisories.generation;
        if nats.link().wait_for(|link| link.generation != ended).await.is_err() {
            return;
        }
        advisories = self::advisories(nats).await;
        // What changed in between told nobody.
        mirror.doubt_everything().await;
        mirror.announce(Change::Everything);
    }
}

async fn listen(
    advisories: &mut Advisories,
    nats: &Connection,
    mirror: &Mirror,
    waiting: &Waiting,
    names: &mpsc::Sender<About>,
) {
    while let Some(message) = advisories.messages.next().await {
        let Some(about) = about(&message.subject, &message.payload, nats.name()) else { continue };
        let known = match &about {
            About::Stream(name) => mirror.knows_stream(name),
            About::Consumer(key) => mirror.knows_consumer(key),
        };
        if known && waiting.names().insert(about.clone()) && names.try_send(about.clone()).is_err() {
            waiting.names().remove(&about);
            nats.slow_consumer().notify_one();
        }
    }
}

async fn refresh(mirror: &Mirror, waiting: &Waiting, queue: mpsc::Receiver<About>) {
    let queue = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let refresh_one = |about: About| async move {
        waiting.names().remove(&about);
        let done = match &about {
            About::Stream(name) => mirror.refresh_stream(name).await,
            About::Consumer(key) => mirror.refresh_consumer(key).await,
        };
        if let Err(error) = done {
            tracing::debug!(?about, %error, "will be compared later");
            mirror.announce(match about {
                About::Stream(name) => Change::Stream(name),
                About::Consumer((_, name)) => Change::Consumer(name),
            });
        }
    };
    queue.for_each_concurrent(AT_ONCE, refresh_one).await;
}

async fn compare(mirror: &Mirror, nats: &Connection, interval: Interval) {
    let mut state = nats.state();
    loop {
        mirror.forget_unused(interval.forget);
        // Not within the next line: what is borrowed is locked, and the connection could not be told of while it is compared.
        let connected = state.borrow_and_update().connected;
        let compared = compare_once(mirror, connected).await;
        let pause =
            if compared { interval.compare.mul_f64(rand::rng().random_range(1.0..1.2)) } else { TRY_AGAIN };
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                mirror.doubt_everything().await;
                mirror.announce(Change::Everything);
            }
            () = lost_advisories(nats) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether everything could be compared, or there is nobody to compare with.
async fn compare_once(mirror: &Mirror, connected: bool) -> bool {
    if !connected {
        return true;
    }
    let compared = mirror.refresh_everything().await;
    if let Err(error) = &compared {
        tracing::warn!(%error, "JetStream could not be compared; trying again");
    }
    compared.is_ok()
}

/// Ends when advisories were lost, but not so often that a flood of them would ask for ever more.
async fn lost_advisories(nats: &Connection) {
    nats.slow_consumer().notified().await;
    tracing::warn!("advisories came faster than they were read; comparing everything");
    tokio::time::sleep(AFTER_LOSS).await;
}

#[derive(Deserialize)]
struct Advisory {
    stream: Option<String>,
    consumer: Option<String>,
    /// Subject of the API request, in an audit.
    subject: Option<String>,
    client: Option<Client>,
}

#[derive(Deserialize)]
struct Client {
    name: Option<String>,
}

/// What to ask JetStream about, or None for what changes nothing or was our own doing.
fn about(subject: &str, payload: &[u8], own_name: &str) -> Option<About> {
    let advisory: Advisory = serde_json::from_slice(payload).ok()?;
    let kind = subject.strip_prefix("$JS.EVENT.ADVISORY.")?;
    if kind == "API" {
        let own = advisory.client.and_then(|client| client.name).is_some_and(|name| name == own_name);
        return if own { None } else { audited(&advisory.subject?) };
    }
    match (kind.split('.').next()?, kind.split('.').nth(1)?) {
        ("STREAM", "CREATED" | "UPDATED" | "DELETED" | "RESTORE_COMPLETE") => {
            Some(About::Stream(advisory.stream?))
        }
        ("CONSUMER", "CREATED" | "DELETED" | "PAUSE") => {
            Some(About::Consumer((advisory.stream?, advisory.consumer?)))
        }
        _ => None,
    }
}

/// What a request to the API changed: consumers have no advisory of their changes.
fn audited(subject: &str) -> Option<About> {
    let tokens: Vec<_> = api_request(subject)?.split('.').collect();
    match tokens[..] {
        ["CONSUMER", "CREATE" | "RESET", stream, name, ..]
        | ["CONSUMER", "DURABLE", "CREATE", stream, name] => {
            Some(About::Consumer((stream.to_owned(), name.to_owned())))
        }
        ["STREAM", "CREATE" | "UPDATE" | "DELETE" | "PURGE", name] => Some(About::Stream(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> About {
        About::Stream(name.to_owned())
    }

    fn consumer(stream: &str, name: &str) -> About {
        About::Consumer((stream.to_owned(), name.to_owned()))
    }

    #[test]
    fn advisories_tell_which_stream_or_consumer_to_look_at() {
        let payload = br#"{"stream":"orders","consumer":"billing","action":"delete"}"#;
        let of = |subject: &str| about(subject, payload, "me");
        assert_eq!(of("$JS.EVENT.ADVISORY.STREAM.UPDATED.orders"), Some(stream("orders")));
        assert_eq!(
            of("$JS.EVENT.ADVISORY.CONSUMER.DELETED.orders.billing"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(of("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.orders"), None);
        assert_eq!(of("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.orders.billing"), None);
    }

    #[test]
    fn the_audit_of_the_api_tells_what_others_changed() {
        let of = |request: &str, by: &str| {
            let payload = serde_json::json!({"subject": request, "client": {"name": by}}).to_string();
            about("$JS.EVENT.ADVISORY.API", payload.as_bytes(), "me")
        };
        assert_eq!(
            of("$JS.API.CONSUMER.CREATE.orders.billing.orders.*.placed", "nats"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(
            of("$JS.hub.API.CONSUMER.DURABLE.CREATE.orders.billing", "nats"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(of("$JS.API.STREAM.PURGE.orders", "nats"), Some(stream("orders")));
        assert_eq!(of("$JS.API.STREAM.UPDATE.orders", "me"), None);
        assert_eq!(of("$JS.API.STREAM.INFO.orders", "nats"), None);
    }

    #[test]
    fn what_is_no_advisory_is_passed_over() {
        assert_eq!(about("$JS.EVENT.ADVISORY.API", b"{", "me"), None);
        assert_eq!(about("$JS.EVENT.ADVISORY.STREAM.UPDATED.x", b"{}", "me"), None);
    }
}
