//! Finds the streams that JetStream does not answer for, although NATS is connected: their server is away, or too few of their replicas are
//! there to elect a leader.
//!
//! One stream of each server that leads any is asked for at an interval. Where two requests in a row are not answered, the streams of that
//! server are read by list, and those that the list does not have are away: a stream without replicas at once, a replicated one only if no
//! other leader was elected meanwhile and it does not answer for itself. A list alone proves nothing: for a while it misses replicated
//! streams that are well. What is answered also says which servers the leaders hear from.

use std::{collections::HashSet, time::Duration};

use futures::{StreamExt, future, stream};
use jetwright_nats::{Api, Connection};
use parking_lot::Mutex;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    asset::Stream,
    cache::{Cache, Cached as _},
    info::{Standing, StreamInfo},
    outage::Outage,
    outages::Led,
    pages::PAGE,
    servers::Heard,
};
use crate::metrics::Metrics;

const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// The interval while something is away, which is to be ready soon after it is back.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(2);
/// Servers answer within milliseconds: one that is slower is asked again, and only then doubted.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// A cluster waits 4 s for servers that do not answer before it answers to a list.
const LIST_TIMEOUT: Duration = Duration::from_millis(4500);
/// How long a replicated stream has to elect a leader. Its servers miss the old one after 4 to 9 s, a part of which went by before the
/// first request that was not answered.
const ELECTION_TIME: Duration = Duration::from_secs(6);
/// Streams that are asked for at once where many are away: most requests wait for their timeout.
const MAX_CONCURRENT_PROBES: usize = 512;
/// Streams that are read at once when their server answers again.
const MAX_CONCURRENT_READS: usize = 64;

/// What a request for a stream shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// The server that is asked about leads it, and answered.
    Led,
    /// Another server leads it, or it does not exist: nothing is known of the server.
    Elsewhere,
    /// A server answered that nobody leads it.
    Leaderless,
    Silence,
}

/// What is doubted of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Suspicion {
    server: String,
    led: Led,
    /// The stream that was not answered for; None where the server answers, and only its replicated streams are doubted.
    silent: Option<String>,
}

/// Asks the servers of one connection.
pub struct Prober<'a> {
    cache: &'a Cache,
    nats: &'a Connection,
    metrics: &'a Metrics,
    /// Requests that wait shortly, and count as probes.
    probes: Api,
    lists: Api,
    /// What was answered since it was taken over last.
    heard: Mutex<Heard>,
}

impl<'a> Prober<'a> {
    #[must_use]
    pub fn new(cache: &'a Cache, nats: &'a Connection, metrics: &'a Metrics) -> Self {
        let api = |timeout| {
            let metrics = metrics.clone();
            cache.api().with_timeout(timeout, move |_, error| metrics.probed(error))
        };
        let (probes, lists) = (api(PROBE_TIMEOUT), api(LIST_TIMEOUT));
        Self { cache, nats, metrics, probes, lists, heard: Mutex::default() }
    }

    /// Asks at the interval for ever, and at once where a stream is said to have lost its leader.
    pub async fn run(&self) {
        loop {
            let outage = self.cache.any_outage();
            self.metrics.jetstream_outage(outage);
            tokio::select! {
                () = sleep(if outage { RECOVERY_INTERVAL } else { PROBE_INTERVAL }) => {}
                () = self.cache.doubts().notified() => {}
            }
            // Not within the next line: what is borrowed is locked.
            let connected = self.nats.state().borrow().connected;
            if connected {
                self.round().await;
            }
        }
    }

    async fn round(&self) {
        let started = Instant::now();
        let servers = self.cache.led();
        let servers_asked = servers.len();
        let first = servers.into_iter().map(|(server, led)| self.first_probe(server, led));
        let suspicions: Vec<_> = future::join_all(first).await.into_iter().flatten().collect();
        self.take_over_heard();
        let doubtful = self.cache.doubtful();
        if suspicions.is_empty() && doubtful.is_empty() {
            return;
        }
        let second = future::join_all(suspicions.into_iter().map(|suspicion| self.second_probe(suspicion)));
        let (suspicions, listed) = tokio::join!(second, self.list());
        self.take_over_heard();
        let missed = |name: &String| !listed.contains(name);
        let suspicions: Vec<_> = suspicions.into_iter().flatten().collect();
        let silent: Vec<_> = suspicions.iter().filter(|suspicion| suspicion.silent.is_some()).collect();
        let all = silent.len() == servers_asked && listed.is_empty();
        let single = silent.into_iter().flat_map(|suspicion| {
            let outage = if all { Outage::All } else { Outage::Server(suspicion.server.clone()) };
            suspicion.led.single.iter().map(move |name| (name.clone(), outage.clone()))
        });
        self.cache.mark_away(single.filter(|(name, _)| missed(name)).collect());
        let replicated = suspicions.into_iter().flat_map(|suspicion| suspicion.led.replicated);
        let replicated: HashSet<_> = replicated.filter(missed).chain(doubtful).collect();
        if !replicated.is_empty() {
            sleep_until(started + ELECTION_TIME).await;
            self.mark_leaderless(replicated, started).await;
        }
    }

    fn take_over_heard(&self) {
        let heard = std::mem::take(&mut *self.heard.lock());
        self.cache.heard(heard);
    }

    /// Asks for one stream of a server, preferably a replicated one: its answer says of both kinds that they are well.
    async fn first_probe(&self, server: String, mut led: Led) -> Option<Suspicion> {
        self.recover(&server, std::mem::take(&mut led.away)).await;
        led.replicated.shuffle(&mut rand::rng());
        led.single.shuffle(&mut rand::rng());
        // Of streams that moved without a word, some may be tried in vain.
        for name in led.replicated.iter().take(2).chain(led.single.iter().take(1)) {
            let silent = match self.probe(&server, name).await {
                Probe::Led => return None,
                Probe::Elsewhere => continue,
                Probe::Leaderless => None,
                Probe::Silence => Some(name.clone()),
            };
            return Some(Suspicion { server, led, silent });
        }
        None
    }

    /// Asks for another stream of a server that did not answer.
    async fn second_probe(&self, suspicion: Suspicion) -> Option<Suspicion> {
        let Some(silent) = &suspicion.silent else { return Some(suspicion) };
        let Led { single, replicated, .. } = &suspicion.led;
        // Of a replicated one, the answer might be another server's.
        let rest = if single.is_empty() { replicated } else { single };
        let other = rest.iter().find(|name| *name != silent).unwrap_or(silent);
        match self.probe(&suspicion.server, other).await {
            Probe::Silence => {
                self.metrics.jetstream_outage(true);
                Some(suspicion)
            }
            // The server is there, so that what it did not answer for is led by nobody, unless it is one stream alone.
            _ if replicated.contains(silent) => Some(Suspicion { silent: None, ..suspicion }),
            _ => None,
        }
    }

    async fn probe(&self, server: &str, stream: &str) -> Probe {
        match self.probes.stream_info::<StreamInfo>(stream).await {
            Ok(None) => {
                self.cache.forget_doubt(stream);
                Probe::Elsewhere
            }
            Ok(Some(info)) => {
                self.heard.lock().add(&info);
                let standing = info.standing();
                self.cache.note(stream, &standing);
                match standing {
                    Standing { is_led: false, .. } => Probe::Leaderless,
                    Standing { leader, .. } if leader.as_deref() == Some(server) => Probe::Led,
                    Standing { .. } => Probe::Elsewhere,
                }
            }
            Err(error) if error.is_unavailable() => Probe::Silence,
            // Somebody answered, or nobody may ask.
            Err(_) => Probe::Led,
        }
    }

    /// The streams that a list has, with a leader.
    async fn list(&self) -> HashSet<String> {
        let mut count = 0;
        Stream::entries(self.cache).for_each_facts(|_, _| count += 1);
        let pages = (0..=count / PAGE).map(|page| self.led_on(page * PAGE));
        future::join_all(pages).await.into_iter().flatten().collect()
    }

    /// The streams that one page of a list has, with a leader.
    async fn led_on(&self, offset: usize) -> Vec<String> {
        let Ok(page) = self.lists.list_streams::<StreamInfo>(offset).await else { return Vec::new() };
        let led = page.items.into_iter().filter_map(|info| {
            self.heard.lock().add(&info);
            let (name, standing) = (info.name()?.to_owned(), info.standing());
            self.cache.note(&name, &standing);
            standing.is_led.then_some(name)
        });
        led.collect()
    }

    /// Marks those of some replicated streams that still have no leader.
    async fn mark_leaderless(&self, streams: HashSet<String>, since: Instant) {
        let streams = streams.into_iter().filter(|name| self.cache.is_leaderless_since(name, since));
        let probes = stream::iter(streams).map(|name| async move {
            let probe = self.probe("", &name).await;
            matches!(probe, Probe::Leaderless | Probe::Silence).then_some((name, Outage::Leaderless))
        });
        let away: Vec<_> = probes.buffer_unordered(MAX_CONCURRENT_PROBES).collect().await;
        self.cache.mark_away(away.into_iter().flatten().collect());
    }

    /// Asks for one of the streams that are away, and where it is answered for, for all of them; reads those that are answered for.
    async fn recover(&self, server: &str, away: Vec<String>) {
        let Some(one) = away.choose(&mut rand::rng()) else { return };
        if !self.is_back(server, one).await {
            return;
        }
        let probes = stream::iter(away).map(|name| async move {
            let is_back = self.is_back(server, &name).await;
            is_back.then_some(name)
        });
        let back = probes.buffer_unordered(MAX_CONCURRENT_PROBES).filter_map(future::ready);
        let reads = back.map(|name| async move { self.cache.refresh::<Stream>(&name).await });
        // What is not answered after all is still away.
        reads.buffer_unordered(MAX_CONCURRENT_READS).for_each(|_| future::ready(())).await;
    }

    async fn is_back(&self, server: &str, stream: &str) -> bool {
        matches!(self.probe(server, stream).await, Probe::Led | Probe::Elsewhere)
    }
}
