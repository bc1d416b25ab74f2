//! Follows the watches and the caches of a scope, and wakes what they touch. In: updates and changes. Out: names in the controllers' queues,
//! and whether the scope is ready.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    queue::Queue,
    triggers::{Object, Urgent, Wakeups},
};
use crate::{
    context::Context,
    jetstream::cache::{Cache, Change},
    kubernetes::{
        scopes::Scope,
        stores::{Name, Touched},
        updates::Update,
    },
    rate_limit::RateLimit,
};

/// How long a watch fails before its scope counts as not ready.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// Time after which a watch that has not failed again works; longer than the longest pause between two of its tries.
const WATCH_RECOVERED: Duration = Duration::from_mins(1);
/// How long the first reconciles wait for the caches to be filled.
const FILL_TIME: Duration = Duration::from_secs(20);
/// How often the scope's readiness is brought up to date.
const READINESS_INTERVAL: Duration = Duration::from_secs(5);

/// Where wake-ups go.
pub struct Queues {
    pub streams: Queue,
    pub consumers: Queue,
}

impl Queues {
    async fn send(&self, wakeups: Wakeups) {
        for name in wakeups.streams {
            self.streams.send(name).await;
        }
        for name in wakeups.consumers {
            self.consumers.send(name).await;
        }
    }

    /// Wakes as many as are permitted, the most urgent first.
    async fn send_urgent(&self, urgent: &mut Urgent, limit: &RateLimit) {
        while !urgent.is_empty() && limit.try_acquire() {
            match urgent.next() {
                Some(Object::Stream(name)) => self.streams.send(name).await,
                Some(Object::Consumer(name)) => self.consumers.send(name).await,
                None => return,
            }
        }
    }
}

/// How long to wait before more of the objects are woken that say that they are away.
const URGENT_INTERVAL: Duration = Duration::from_millis(20);

/// What a watch or a cache reports.
enum Signal<'a> {
    Stream(Update<Touched<EventStream>>),
    Consumer(Update<Touched<EventConsumer>>),
    /// EventConsumers whose own objects or pods changed.
    Owned(Update<Name>),
    Change(&'a Cache, Change),
    /// EventConsumers whose autoscaling decided something, whose partitions are shared out otherwise, or whose pods were emptied.
    FoundOut(Vec<Name>),
    Tick,
}

/// Which of the sources a signal comes from.
type Source = usize;

type Signals<'a> = stream::SelectAll<stream::BoxStream<'a, (Source, Signal<'a>)>>;

/// Follows everything in a scope for ever. No object is woken before all that exists was listed: a reconcile would take for missing what
/// its watch has not brought yet. Nor before lists said what JetStream has, which take fewer requests than a reconcile of each object.
pub async fn follow(scope: &Arc<Scope>, context: &Context, queues: Queues) {
    let (mut signals, watches) = signals(scope, context);
    let mut unsynced: HashSet<Source> = (0..watches).collect();
    let mut failures = Failures::default();
    let mut held = Wakeups::default();
    let mut urgent = Urgent::default();
    let mut filled = pin!(filled(scope, context));
    let mut is_filled = false;
    loop {
        let next = tokio::select! {
            next = signals.next() => next,
            () = &mut filled, if !is_filled => {
                is_filled = true;
                queues.send(std::mem::take(&mut held)).await;
                continue;
            }
            () = sleep(URGENT_INTERVAL), if is_filled && !urgent.is_empty() => {
                queues.send_urgent(&mut urgent, &context.availability_wakeups).await;
                continue;
            }
        };
        let Some((source, signal)) = next else { return };
        let (synced, failed) = match &signal {
            Signal::Stream(update) => (update.synced, update.failed),
            Signal::Consumer(update) => (update.synced, update.failed),
            Signal::Owned(update) => (update.synced, update.failed),
            Signal::Change(..) | Signal::FoundOut(_) | Signal::Tick => (false, false),
        };
        if synced {
            unsynced.remove(&source);
        }
        if failed {
            failures.add(source);
        }
        if let Signal::Change(_, Change::Availability(streams)) = &signal {
            urgent.add(streams, scope);
        }
        wake(&mut held, signal, scope, context);
        let ready = unsynced.is_empty() && !failures.persist();
        context.metrics.scope_ready(scope.namespace.as_deref().unwrap_or("*"), ready);
        if unsynced.is_empty() {
            scope.listed.send_if_modified(|listed| !std::mem::replace(listed, true));
        }
        if is_filled {
            queues.send(std::mem::take(&mut held)).await;
            queues.send_urgent(&mut urgent, &context.availability_wakeups).await;
        }
    }
}

/// Ends when all that exists in a scope was listed, and the caches were filled with it; where that takes long, its reconciles ask for
/// themselves.
async fn filled(scope: &Scope, context: &Context) {
    // The scope lives as long as who follows it.
    let _ = scope.listed.subscribe().wait_for(|listed| *listed).await;
    if timeout(FILL_TIME, context.connections.filled()).await.is_err() {
        tracing::warn!(
            "listing what JetStream has takes longer than {FILL_TIME:?}; each object asks for its own now"
        );
    }
}

/// When each watch began to fail, and when it failed last.
#[derive(Default)]
struct Failures(HashMap<Source, (Instant, Instant)>);

impl Failures {
    fn add(&mut self, source: Source) {
        let now = Instant::now();
        let (_, last) = self.0.entry(source).or_insert((now, now));
        *last = now;
    }

    /// Whether a watch has been failing for a while.
    fn persist(&mut self) -> bool {
        self.0.retain(|_, (_, last)| last.elapsed() < WATCH_RECOVERED);
        self.0.values().any(|(first, _)| first.elapsed() >= WATCH_GRACE)
    }
}

fn wake(wakeups: &mut Wakeups, signal: Signal<'_>, scope: &Scope, context: &Context) {
    match signal {
        Signal::Stream(update) => {
            update.touched.iter().for_each(|touched| wakeups.of_stream(touched, scope));
        }
        Signal::Consumer(update) => {
            update.touched.iter().for_each(|touched| wakeups.of_consumer(touched, scope));
        }
        Signal::Owned(update) => wakeups.consumers.extend(update.touched),
        Signal::FoundOut(names) => wakeups.consumers.extend(names),
        Signal::Change(cache, change) => wakeups.of_change(&change, scope, cache, &context.states),
        Signal::Tick => {}
    }
}

/// Everything that is followed, each numbered, and how many watches there are: what comes after them has no list to wait for.
fn signals<'a>(scope: &'a Arc<Scope>, context: &'a Context) -> (Signals<'a>, usize) {
    let (client, owned, pods) = (&context.client, &context.applying.owned, &context.pods);
    let namespace = || scope.namespace.clone();
    let watches: Vec<stream::BoxStream<'a, Signal<'a>>> = vec![
        scope.event_streams.watch(scope.api(client)).map(Signal::Stream).boxed(),
        scope.event_consumers.watch(scope.api(client)).map(Signal::Consumer).boxed(),
        pods.watch(scope.api(client), namespace()).map(Signal::Owned).boxed(),
        owned.watch_deployments::<EventConsumer>(scope.api(client), namespace()).map(Signal::Owned).boxed(),
        owned.watch::<EventConsumer, Service>(scope.api(client), namespace()).map(Signal::Owned).boxed(),
        owned
            .watch::<EventConsumer, ServiceAccount>(scope.api(client), namespace())
            .map(Signal::Owned)
            .boxed(),
        owned.watch::<EventConsumer, ConfigMap>(scope.api(client), namespace()).map(Signal::Owned).boxed(),
        owned
            .watch::<EventConsumer, PodDisruptionBudget>(scope.api(client), namespace())
            .map(Signal::Owned)
            .boxed(),
    ];
    let count = watches.len();
    let changes = context.connections.all().map(|connection| {
        let cache = &connection.cache;
        cache.changes().map(move |change| Signal::Change(cache, change)).boxed()
    });
    let is_here = |namespace: &str| scope.namespace.as_deref().is_none_or(|own| own == namespace);
    let found_out = [&context.autoscalers.changes, &context.partitions.changes, &context.scale_downs.changes];
    let found_out = found_out.map(|changes| changes.of(is_here).map(Signal::FoundOut).boxed());
    let ticks = stream::unfold((), |()| async {
        tokio::time::sleep(READINESS_INTERVAL).await;
        Some((Signal::Tick, ()))
    });
    let all = watches.into_iter().chain(changes).chain(found_out).chain([ticks.boxed()]).enumerate();
    let numbered = all.map(|(source, signals)| signals.map(move |signal| (source, signal)).boxed());
    (stream::select_all(numbered), count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_keeps_failing_makes_its_scope_unready_until_it_works() {
        let mut failures = Failures::default();
        failures.add(0);
        assert!(!failures.persist(), "one failure is none");
        tokio::time::advance(WATCH_GRACE).await;
        failures.add(0);
        failures.add(1);
        assert!(failures.persist());
        tokio::time::advance(WATCH_RECOVERED).await;
        assert!(!failures.persist());
    }
}
