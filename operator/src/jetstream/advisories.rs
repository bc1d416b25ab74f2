//! Keeps the cache true: listens to JetStream's advisories, and refreshes everything at each connect and at an interval.
//!
//! Streams and consumers announce their creation, changes and end by advisories of their own, except for changes of consumers, which only
//! the audit of the API reports. Advisories are plain messages that can be lost, hence the resync.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use jetwright_nats::{Connection, api_request};
use parking_lot::Mutex;
use rand::RngExt as _;
use serde::{Deserialize, de::IgnoredAny};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    asset::{Consumer, ConsumerKey, Stream},
    cache::{Cache, Change},
};

/// Advisories of streams and consumers, and the audit of the API.
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
/// Requests to JetStream at once.
const MAX_CONCURRENT_REQUESTS: usize = 16;
/// Targets that may wait for their request; a resync finds what is beyond that.
const MAX_PENDING_TARGETS: usize = 8192;
/// Delay before a resync that failed is tried again.
const RESYNC_RETRY_DELAY: Duration = Duration::from_secs(15);
/// Least time between two resyncs because advisories were lost.
const RESYNC_DELAY_AFTER_LOSS: Duration = Duration::from_secs(30);

/// How often everything is refreshed, and what that means for what no object declares.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// Time between two resyncs; up to a fifth is added, so that several operators do not ask together.
    pub resync: Duration,
    /// Time after which an entry that no reconcile locked is dropped.
    pub idle: Duration,
}

/// What an advisory is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Stream(String),
    Consumer(ConsumerKey),
}

impl Target {
    fn consumer(stream: &str, name: &str) -> Self {
        Self::Consumer(ConsumerKey { stream: stream.to_owned(), name: name.to_owned() })
    }
}

/// JetStream's advisories.
pub struct Advisories {
    messages: stream::SelectAll<async_nats::Subscriber>,
    /// Of the client that subscribed, or of an earlier one.
    generation: u64,
}

impl Advisories {
    /// Advisories from now on. Subscribe before anything is cached, so that no change falls between the two; after a lost connection the
    /// client subscribes again before it asks for anything else.
    pub async fn subscribe(nats: &Connection) -> Self {
        let generation = nats.link().borrow().generation;
        let (client, mut all) = (nats.client(), Vec::new());
        for subject in SUBJECTS {
            match client.subscribe(subject).await {
                Ok(messages) => all.push(messages),
                Err(error) => {
                    tracing::error!(subject, %error, "failed to subscribe; a resync alone finds changes");
                }
            }
        }
        Self { messages: stream::select_all(all), generation }
    }
}

/// Runs until `stop`: follows advisories, and refreshes everything at each connect and at the interval.
pub async fn run(
    advisories: Advisories,
    cache: &Cache,
    nats: &Connection,
    intervals: Intervals,
    stop: &CancellationToken,
) {
    let (targets, queue) = mpsc::channel(MAX_PENDING_TARGETS);
    let pending = PendingSet::default();
    let listener = Listener { cache, nats, pending: &pending, targets };
    let work = async {
        tokio::join!(
            listener.follow(advisories),
            refresh(cache, &pending, queue),
            resync(cache, nats, intervals),
        )
    };
    stop.run_until_cancelled(work).await;
}

/// Targets that wait for their request, so that ten advisories of one stream make one request.
#[derive(Clone, Default)]
struct PendingSet(Arc<Mutex<HashSet<Target>>>);

struct Listener<'a> {
    cache: &'a Cache,
    nats: &'a Connection,
    pending: &'a PendingSet,
    targets: mpsc::Sender<Target>,
}

impl Listener<'_> {
    /// Listens for as long as there is a client, and again with each that takes its place: subscriptions end with their client.
    async fn follow(self, mut advisories: Advisories) {
        loop {
            self.listen(&mut advisories).await;
            let ended = advisories.generation;
            if self.nats.link().wait_for(|link| link.generation != ended).await.is_err() {
                return;
            }
            advisories = Advisories::subscribe(self.nats).await;
            // What changed in between was not announced.
            self.cache.invalidate_all().await;
            self.cache.notify(Change::Everything);
        }
    }

    async fn listen(&self, advisories: &mut Advisories) {
        while let Some(message) = advisories.messages.next().await {
            let Some(target) = target(&message.subject, &message.payload, self.nats.name()) else { continue };
            let known = match &target {
                Target::Stream(name) => self.cache.knows::<Stream>(name),
                Target::Consumer(key) => self.cache.knows::<Consumer>(key),
            };
            if known
                && self.pending.0.lock().insert(target.clone())
                && self.targets.try_send(target.clone()).is_err()
            {
                self.pending.0.lock().remove(&target);
                self.nats.slow_consumer().notify_one();
            }
        }
    }
}

async fn refresh(cache: &Cache, pending: &PendingSet, queue: mpsc::Receiver<Target>) {
    let queue = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
    let refresh_one = |target: Target| async move {
        pending.0.lock().remove(&target);
        let refreshed = match &target {
            Target::Stream(name) => cache.refresh::<Stream>(name).await,
            Target::Consumer(key) => cache.refresh::<Consumer>(key).await,
        };
        if let Err(error) = refreshed {
            tracing::debug!(?target, %error, "failed to refresh; its object asks again");
            cache.notify(match target {
                Target::Stream(name) => Change::Stream(name),
                Target::Consumer(key) => Change::Consumer(key),
            });
        }
    };
    queue.for_each_concurrent(MAX_CONCURRENT_REQUESTS, refresh_one).await;
}

async fn resync(cache: &Cache, nats: &Connection, intervals: Intervals) {
    let mut state = nats.state();
    loop {
        cache.evict_idle(intervals.idle);
        // Not within the next line: what is borrowed is locked, and the connection could not report changes meanwhile.
        let connected = state.borrow_and_update().connected;
        let pause = if resync_once(cache, connected).await {
            intervals.resync.mul_f64(rand::rng().random_range(1.0..1.2))
        } else {
            RESYNC_RETRY_DELAY
        };
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                cache.invalidate_all().await;
                cache.notify(Change::Everything);
            }
            () = lost_advisories(nats) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether everything could be refreshed, or there is no server to ask.
async fn resync_once(cache: &Cache, connected: bool) -> bool {
    if !connected {
        return true;
    }
    let refreshed = cache.refresh_all().await;
    if let Err(error) = &refreshed {
        tracing::warn!(%error, "failed to compare with JetStream; trying again");
    }
    refreshed.is_ok()
}

/// Ends when advisories were lost, but not so often that a flood of them would ask for ever more.
async fn lost_advisories(nats: &Connection) {
    nats.slow_consumer().notified().await;
    tracing::warn!("lost advisories, which came faster than they were read; comparing everything");
    tokio::time::sleep(RESYNC_DELAY_AFTER_LOSS).await;
}

#[derive(Deserialize)]
struct Advisory {
    stream: Option<String>,
    consumer: Option<String>,
    /// Subject of the API request, in an audit.
    subject: Option<String>,
    /// What JetStream answered to it, as JSON.
    response: Option<String>,
    client: Option<Client>,
}

impl Advisory {
    /// Whether JetStream refused the request.
    fn is_refused(&self) -> bool {
        #[derive(Deserialize)]
        struct Response {
            error: Option<IgnoredAny>,
        }
        let response = self.response.as_deref().map(serde_json::from_str::<Response>);
        response.is_some_and(|response| response.is_ok_and(|response| response.error.is_some()))
    }
}

#[derive(Deserialize)]
struct Client {
    name: Option<String>,
}

/// What to ask JetStream about, or None for what changes nothing or was our own doing.
fn target(subject: &str, payload: &[u8], own_name: &str) -> Option<Target> {
    let advisory: Advisory = serde_json::from_slice(payload).ok()?;
    let kind = subject.strip_prefix("$JS.EVENT.ADVISORY.")?;
    if kind == "API" {
        let own = advisory.client.as_ref().is_some_and(|client| client.name.as_deref() == Some(own_name));
        // What was refused changed nothing.
        if own || advisory.is_refused() {
            return None;
        }
        return target_of_api_audit(&advisory.subject?);
    }
    match (kind.split('.').next()?, kind.split('.').nth(1)?) {
        ("STREAM", "CREATED" | "UPDATED" | "DELETED" | "RESTORE_COMPLETE") => {
            Some(Target::Stream(advisory.stream?))
        }
        ("CONSUMER", "CREATED" | "DELETED" | "PAUSE") => {
            Some(Target::consumer(&advisory.stream?, &advisory.consumer?))
        }
        _ => None,
    }
}

/// What a request to the API changed: consumers have no advisory of their changes.
fn target_of_api_audit(subject: &str) -> Option<Target> {
    let tokens: Vec<_> = api_request(subject)?.split('.').collect();
    match tokens[..] {
        ["CONSUMER", "CREATE" | "RESET", stream, name, ..]
        | ["CONSUMER", "DURABLE", "CREATE", stream, name] => Some(Target::consumer(stream, name)),
        ["STREAM", "CREATE" | "UPDATE" | "DELETE" | "PURGE", name] => Some(Target::Stream(name.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> Target {
        Target::Stream(name.to_owned())
    }

    fn consumer(stream: &str, name: &str) -> Target {
        Target::consumer(stream, name)
    }

    #[test]
    fn advisories_name_the_stream_or_consumer_to_refresh() {
        let payload = br#"{"stream":"orders","consumer":"billing","action":"delete"}"#;
        let of = |subject: &str| target(subject, payload, "me");
        assert_eq!(of("$JS.EVENT.ADVISORY.STREAM.UPDATED.orders"), Some(stream("orders")));
        assert_eq!(
            of("$JS.EVENT.ADVISORY.CONSUMER.DELETED.orders.billing"),
            Some(consumer("orders", "billing"))
        );
        assert_eq!(of("$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.orders"), None);
        assert_eq!(of("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.orders.billing"), None);
    }

    #[test]
    fn the_audit_of_the_api_names_what_others_changed() {
        let of = |request: &str, by: &str| {
            let payload = serde_json::json!({"subject": request, "client": {"name": by}}).to_string();
            target("$JS.EVENT.ADVISORY.API", payload.as_bytes(), "me")
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
    fn a_request_of_others_that_was_refused_is_no_news() {
        let of = |response: &str| {
            let payload =
                serde_json::json!({"subject": "$JS.API.STREAM.CREATE.orders", "response": response});
            target("$JS.EVENT.ADVISORY.API", payload.to_string().as_bytes(), "me")
        };
        assert_eq!(of(r#"{"type": "x", "error": {"code": 400, "err_code": 10065}}"#), None);
        for answered in [r#"{"type": "x", "config": {"error": 1}}"#, "{", ""] {
            assert_eq!(of(answered), Some(stream("orders")), "{answered}");
        }
    }

    #[test]
    fn what_is_no_advisory_is_skipped() {
        assert_eq!(target("$JS.EVENT.ADVISORY.API", b"{", "me"), None);
        assert_eq!(target("$JS.EVENT.ADVISORY.STREAM.UPDATED.x", b"{}", "me"), None);
    }
}
