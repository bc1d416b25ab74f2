//! In: the object. Out: the stream that it names, what JetStream has under its own name, held, and what its status remembers.
//! Reads from Kubernetes, and from JetStream where the mirror knows nothing.

use jetwright_crds::{EventConsumer, EventStream, conditions::Reason};
use kube::{Api, ResourceExt};

use super::{consumer_name, validate::StreamFacts};
use crate::{
    context::Context,
    identity::{Claim, Identity},
    jetstream::{ApiError, ConsumerInfo, mirror::Held},
    outcome::{Category, Remembered, Waiting},
    stream,
};

/// Why the consumer could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// JetStream did not say what it has.
    #[error("consumer {name} of stream {stream}")]
    JetStream {
        /// The stream.
        stream: String,
        /// The consumer.
        name: String,
        /// What it said instead.
        source: ApiError,
    },
    /// The EventStream could not be read.
    #[error("EventStream {name}")]
    Stream {
        /// The EventStream.
        name: String,
        /// What Kubernetes said.
        source: kube::Error,
    },
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::JetStream { source, .. } => Category::of_jetstream(source),
            Self::Stream { source, .. } => Category::of_kubernetes(source),
        }
    }
}

/// What the object is about.
pub enum Found {
    /// It cannot be looked at yet.
    Waiting(Waiting),
    /// What JetStream has.
    Consumer(Dereferenced),
}

/// What JetStream has under the object's name.
pub struct Dereferenced {
    /// The stream that it consumes from.
    pub stream: StreamFacts,
    /// Durable name.
    pub name: String,
    /// The mirror's entry, held until the reconcile ends.
    pub held: Held<ConsumerInfo>,
    /// What the object's status says of the consumer.
    pub remembered: Remembered,
}

impl Dereferenced {
    /// Asks JetStream again.
    pub async fn look_again(&mut self, context: &Context) -> Result<(), Error> {
        let look = context.mirror.look_at_consumer(&self.stream.name, &self.name, &mut self.held).await;
        look.map_err(|source| Error::JetStream {
            stream: self.stream.name.clone(),
            name: self.name.clone(),
            source,
        })
    }
}

/// Looks at the stream, and at what JetStream has.
pub async fn dereference(object: &EventConsumer, context: &Context) -> Result<Found, Error> {
    let namespace = object.namespace().unwrap_or_default();
    let reference = &object.spec.stream_ref.name;
    let api: Api<EventStream> = Api::namespaced(context.client.clone(), &namespace);
    let event_stream =
        api.get_opt(reference).await.map_err(|source| Error::Stream { name: reference.clone(), source })?;
    let Some(event_stream) = event_stream else {
        return Ok(Found::Waiting(Waiting {
            reason: Reason::NotFound,
            message: format!(
                "spec.streamRef: there is no EventStream {reference} in namespace {namespace}: make it"
            ),
            stalled: true,
            again: None,
        }));
    };
    if let Some(waiting) = context.no_connection(&namespace) {
        return Ok(Found::Waiting(waiting));
    }
    let facts = StreamFacts::of(&event_stream);
    if !is_there(&event_stream, &facts, context).await? {
        return Ok(Found::Waiting(Waiting {
            reason: Reason::StreamNotReady,
            message: format!("EventStream {reference} has no stream of its own yet; its conditions say why"),
            stalled: false,
            again: None,
        }));
    }
    let name = consumer_name(object);
    let failed = |source| Error::JetStream { stream: facts.name.clone(), name: name.clone(), source };
    let held = context.mirror.hold_consumer(&facts.name, &name).await.map_err(failed)?;
    Ok(Found::Consumer(Dereferenced { stream: facts, name, held, remembered: remembered(object) }))
}

/// What the object's status says of the consumer.
pub fn remembered(object: &EventConsumer) -> Remembered {
    let known = object.status.as_ref().and_then(|status| status.consumer.as_ref());
    let created = known.and_then(|known| known.created.as_ref()).map(|time| time.0.as_second());
    Remembered { created, ..Remembered::default() }
}

/// Whether the EventStream's stream is there and its own: a consumer on a stream that the EventStream merely names would
/// read what belongs to others.
async fn is_there(event_stream: &EventStream, facts: &StreamFacts, context: &Context) -> Result<bool, Error> {
    if event_stream.metadata.deletion_timestamp.is_some() {
        return Ok(false);
    }
    let failed = |source| Error::JetStream { stream: facts.name.clone(), name: String::new(), source };
    let held = context.mirror.hold_stream(&facts.name).await.map_err(failed)?;
    let Some(info) = held.present() else { return Ok(false) };
    let made_by_us = stream::remembered(event_stream).is_of(&info.created);
    let identity = Identity::of(&context.cluster_name, event_stream);
    Ok(matches!(identity.claim(&info.config, made_by_us), Claim::Own(_)))
}
