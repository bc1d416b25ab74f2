//! What the custom resources declare over one connection, so that lists fill the cache with it. In: what the watches brought. Out: entries of
//! the cache. No I/O.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use jetwright_crds::{EventConsumer, EventStream};
use kube::ResourceExt as _;
use tokio::time::timeout;

use crate::{
    context::Context,
    hash::hash_of,
    jetstream::{
        advisories::Declarations,
        asset::{Consumer, ConsumerKey, Stream},
        cache::Cache,
        connections::Connection,
    },
    kubernetes::scopes::Scope,
};

/// How long one scope is waited for that cannot be listed, once another one is.
const OTHER_SCOPES: Duration = Duration::from_secs(5);

/// The custom resources that use a connection.
pub struct Declared<'a> {
    pub context: &'a Context,
    pub connection: &'a Connection,
}

impl Declarations for Declared<'_> {
    async fn listed(&self) {
        let mut scopes: FuturesUnordered<_> = self.context.scopes.all().map(|scope| listed(scope)).collect();
        scopes.next().await;
        // The objects of a scope that cannot be listed ask for themselves when it can.
        let _ = timeout(OTHER_SCOPES, scopes.collect::<()>()).await;
    }

    fn expect(&self, cache: &Cache) {
        for scope in self.context.scopes.all() {
            self.expect_of(scope, cache);
        }
    }
}

impl Declared<'_> {
    fn expect_of(&self, scope: &Scope, cache: &Cache) {
        let is_served =
            |namespace: Option<String>| self.connection.serves.contains(&namespace.unwrap_or_default());
        for object in scope.event_streams.all() {
            if is_served(object.namespace()) {
                cache.expect::<Stream>(object.stream_name());
            }
        }
        for object in scope.event_consumers.all() {
            if is_served(object.namespace()) {
                for key in consumer_keys(&object, scope) {
                    cache.expect::<Consumer>(key);
                }
            }
        }
    }
}

/// What an object's consumers are called on the stream of its EventStream.
#[must_use]
pub fn keys_on(object: &EventConsumer, stream: &EventStream) -> Vec<ConsumerKey> {
    let (stream, names) = (stream.stream_name(), object.jetstream_names(stream));
    names.into_iter().map(|name| ConsumerKey { stream: stream.clone(), name }).collect()
}

/// What an object's consumers are called in JetStream; none where its EventStream is not known.
#[must_use]
pub fn consumer_keys(object: &EventConsumer, scope: &Scope) -> Vec<ConsumerKey> {
    let stream = scope.event_stream_of(object);
    stream.map(|stream| keys_on(object, &stream)).unwrap_or_default()
}

/// Tells what JetStream said last of an object's consumers from anything else; None where it said nothing yet.
#[must_use]
pub fn seen(object: &EventConsumer, scope: &Scope, cache: &Cache) -> Option<u64> {
    let seen: Vec<_> = consumer_keys(object, scope).iter().map(|key| cache.seen::<Consumer>(key)).collect();
    match seen.as_slice() {
        [one] => *one,
        several => several.iter().any(Option::is_some).then(|| hash_of(&several)),
    }
}

async fn listed(scope: &Scope) {
    // The scope lives as long as its context.
    let _ = scope.listed.subscribe().wait_for(|listed| *listed).await;
}
