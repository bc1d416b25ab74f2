//! What the custom resources declare over one connection, so that lists fill the cache with it. In: what the watches brought. Out: entries of
//! the cache. No I/O.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use jetwright_crds::EventConsumer;
use kube::ResourceExt as _;
use tokio::time::timeout;

use crate::{
    context::Context,
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
            if is_served(object.namespace())
                && let Some(key) = consumer_key(&object, scope)
            {
                cache.expect::<Consumer>(key);
            }
        }
    }
}

/// What an object's consumer is called in JetStream; None where its EventStream is not known.
#[must_use]
pub fn consumer_key(object: &EventConsumer, scope: &Scope) -> Option<ConsumerKey> {
    Some(ConsumerKey { stream: scope.stream_name_of(object)?, name: object.consumer_name() })
}

async fn listed(scope: &Scope) {
    // The scope lives as long as its context.
    let _ = scope.listed.subscribe().wait_for(|listed| *listed).await;
}
