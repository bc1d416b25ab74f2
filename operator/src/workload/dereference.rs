//! In: the object. Out: the EventConsumers and EventStreams that its pods consume, or the object that has its pods. Reads from
//! Kubernetes.

use jetwright_crds::{EventConsumer, EventStream};
use kube::{Api, ResourceExt};

use crate::{context::Context, kubernetes::list, outcome::Category};

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
        list::readable(&context.client, &namespace).await.map_err(failed("EventConsumer", &namespace))?;
    let name = object.name_any();
    let refers = |other: &EventConsumer| {
        let deleted = other.metadata.deletion_timestamp.is_some();
        !deleted && other.spec.workload_ref.as_ref().is_some_and(|reference| reference.name == name)
    };
    let others = others.into_iter().filter(refers).collect();
    let streams =
        list::readable(&context.client, &namespace).await.map_err(failed("EventStream", &namespace))?;
    Ok(Found::Own(Dereferenced { others, streams }))
}
