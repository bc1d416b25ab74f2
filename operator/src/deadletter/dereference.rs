//! In: the object. Out: the EventStream that it names, and what there is under the name of the one for its dead letters. Reads from
//! Kubernetes.

use jetwright_crds::{EventConsumer, EventStream};
use kube::{Api, ResourceExt};

use super::names::object_name;
use crate::{context::Context, outcome::Category};

/// Why an EventStream could not be read.
#[derive(Debug, thiserror::Error)]
#[error("EventStream {name}")]
pub struct Error {
    /// The EventStream.
    name: String,
    /// What Kubernetes said.
    source: kube::Error,
}

impl Error {
    pub(super) fn category(&self) -> Category {
        Category::of_kubernetes(&self.source)
    }
}

/// What a consumer's dead letters depend on.
#[derive(Clone, Debug, Default)]
pub struct Dereferenced {
    /// The EventStream that it consumes from.
    pub source: Option<EventStream>,
    /// The EventStream under the name of the one for its dead letters.
    pub found: Option<EventStream>,
}

/// Reads both.
pub async fn dereference(object: &EventConsumer, context: &Context) -> Result<Dereferenced, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &namespace);
    let read = async |name: String| api.get_opt(&name).await.map_err(|source| Error { name, source });
    let reference = &object.spec.stream_ref.name;
    Ok(Dereferenced { source: read(reference.clone()).await?, found: read(object_name(reference)).await? })
}
