//! The custom resources of every scope that the operator manages: a namespace, or all of them.

use std::{collections::HashMap, sync::Arc};

use jetwright_crds::{EventConsumer, EventStream};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::watch;

use super::stores::{IndexKey, Objects};
use crate::namespaces::Namespaces;

/// The custom resources of one scope.
pub struct Scope {
    /// None for all namespaces.
    pub namespace: Option<String>,
    pub event_streams: Objects<EventStream>,
    pub event_consumers: Objects<EventConsumer>,
    /// Where it is told that all that exists in it was listed once.
    pub listed: watch::Sender<bool>,
}

impl Scope {
    #[must_use]
    pub fn new(namespace: Option<String>) -> Self {
        Self {
            namespace,
            event_streams: Objects::new(keys_of_stream),
            event_consumers: Objects::new(keys_of_consumer),
            listed: watch::Sender::default(),
        }
    }

    /// The EventStream that an object consumes from; None where it is not known.
    #[must_use]
    pub fn event_stream_of(&self, consumer: &EventConsumer) -> Option<Arc<EventStream>> {
        let namespace = consumer.namespace().unwrap_or_default();
        self.event_streams.get(&namespace, &consumer.spec.stream_ref.name)?.valid().cloned()
    }

    /// The API of a kind within the scope.
    pub fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType: Default>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

fn keys_of_stream(object: &EventStream) -> Vec<IndexKey> {
    vec![IndexKey::JetStream(object.stream_name())]
}

fn keys_of_consumer(object: &EventConsumer) -> Vec<IndexKey> {
    let namespace = object.namespace().unwrap_or_default();
    let stream = IndexKey::Stream((namespace.clone(), object.spec.stream_ref.name.clone()));
    let workload = object.spec.workload_ref.as_ref();
    let workload = workload.map(|reference| IndexKey::Workload((namespace, reference.name.clone())));
    let own = object.spec.workload.as_ref();
    let autoscaled = own.filter(|own| own.autoscaling.is_some()).map(|_| IndexKey::Autoscaled);
    let per_key = object.spec.is_per_key().then_some(IndexKey::PerKey);
    let keys = [IndexKey::JetStream(object.consumer_name()), stream];
    keys.into_iter().chain(workload).chain(autoscaled).chain(per_key).collect()
}

/// Every scope.
pub struct Scopes(HashMap<Option<String>, Arc<Scope>>);

impl Scopes {
    #[must_use]
    pub fn new(namespaces: &Namespaces) -> Self {
        let scopes = namespaces.scopes().into_iter();
        Self(scopes.map(|namespace| (namespace.clone(), Arc::new(Scope::new(namespace)))).collect())
    }

    /// The scope that a namespace is in; None where the operator does not manage it.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Option<&Arc<Scope>> {
        self.0.get(&Some(namespace.to_owned())).or_else(|| self.0.get(&None))
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Scope>> {
        self.0.values()
    }
}
