//! In: the object. Out: the EventConsumers and EventStreams that its pods consume, or the object that has its pods. Reads from
//! Kubernetes.

use std::fmt::Debug;

use jetwright_crds::{EventConsumer, EventStream};
use kube::{Api, Resource, ResourceExt, api::ListParams, core::DeserializeGuard};
use serde::de::DeserializeOwned;

use crate::{context::Context, outcome::Category};

/// Objects that one request asks for.
const PAGE: u32 = 500;

/// Why what the workload depends on could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{kind}s of namespace {namespace}")]
pub struct Error {
    kind: &'static str,
    namespace: String,
    source: kube::Error,
}

impl Error {
    pub(super) fn category(&self) -> Category {
        Category::of_kubernetes(&self.source)
    }
}

/// Where the pods of an EventConsumer are declared.
pub enum Found {
    /// Nowhere.
    None,
    /// At another EventConsumer; None where that does not exist.
    Elsewhere(Option<Box<EventConsumer>>),
    /// Here.
    Own(Dereferenced),
}

/// What the pods consume.
pub struct Dereferenced {
    /// The EventConsumers that refer to these pods.
    pub others: Vec<EventConsumer>,
    /// Every EventStream of the namespace.
    pub streams: Vec<EventStream>,
}

/// Reads what the workload depends on.
pub async fn dereference(object: &EventConsumer, context: &Context) -> Result<Found, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let failed = |kind: &'static str, namespace: &str| {
        let namespace = namespace.to_owned();
        move |source| Error { kind, namespace, source }
    };
    if let Some(reference) = &object.spec.workload_ref {
        let api: Api<EventConsumer> = Api::namespaced(context.client.clone(), &namespace);
        let elsewhere = api.get_opt(&reference.name).await.map_err(failed("EventConsumer", &namespace))?;
        return Ok(Found::Elsewhere(elsewhere.map(Box::new)));
    }
    if object.spec.workload.is_none() {
        return Ok(Found::None);
    }
    let others: Vec<EventConsumer> =
        all(context, &namespace).await.map_err(failed("EventConsumer", &namespace))?;
    let name = object.name_any();
    let refers = |other: &EventConsumer| {
        let deleted = other.metadata.deletion_timestamp.is_some();
        !deleted && other.spec.workload_ref.as_ref().is_some_and(|reference| reference.name == name)
    };
    let others = others.into_iter().filter(refers).collect();
    let streams = all(context, &namespace).await.map_err(failed("EventStream", &namespace))?;
    Ok(Found::Own(Dereferenced { others, streams }))
}

/// Every object of a kind in a namespace; one that cannot be read is passed over, its own reconcile says why.
async fn all<K>(context: &Context, namespace: &str) -> Result<Vec<K>, kube::Error>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api: Api<DeserializeGuard<K>> = Api::namespaced(context.client.clone(), namespace);
    let mut objects = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let list = api.list(&page).await?;
        objects.extend(list.items.into_iter().filter_map(|guard| guard.0.ok()));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
