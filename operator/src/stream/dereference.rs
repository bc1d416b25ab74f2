//! In: the object. Out: what JetStream has under its name, held, and what the object's status remembers of it. Reads from
//! JetStream where the mirror knows nothing.

use std::time::Duration;

use jetwright_crds::EventStream;
use jiff::Timestamp;
use kube::ResourceExt;

use super::stream_name;
use crate::{
    context::Context,
    jetstream::{ApiError, StreamInfo, mirror::Held},
    outcome::{Category, Remembered, Waiting},
};

/// Why JetStream could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// JetStream did not say what it has.
    #[error("stream {name}")]
    JetStream {
        /// The stream.
        name: String,
        /// What it said instead.
        source: ApiError,
    },
}

impl Error {
    pub(super) fn category(&self) -> Category {
        match self {
            Self::JetStream { source, .. } => Category::of_jetstream(source),
        }
    }
}

/// What the object is about.
pub enum Found {
    /// It cannot be looked at yet.
    Waiting(Waiting),
    /// What JetStream has.
    Stream(Dereferenced),
}

/// What JetStream has under the object's name.
pub struct Dereferenced {
    /// Name of the stream.
    pub name: String,
    /// The mirror's entry, held until the reconcile ends.
    pub held: Held<StreamInfo>,
    /// What the object's status says of the stream, and how far the mirror saw its sequences go.
    pub remembered: Remembered,
    /// How long the object has been there.
    pub waited: Duration,
}

impl Dereferenced {
    /// Asks JetStream again.
    pub async fn look_again(&mut self, context: &Context) -> Result<(), Error> {
        let look = context.mirror.look_at_stream(&self.name, &mut self.held).await;
        look.map_err(|source| Error::JetStream { name: self.name.clone(), source })
    }
}

/// Looks at what JetStream has.
pub async fn dereference(object: &EventStream, context: &Context) -> Result<Found, Error> {
    let namespace = object.namespace().unwrap_or_default();
    if let Some(waiting) = context.no_connection(&namespace) {
        return Ok(Found::Waiting(waiting));
    }
    let name = stream_name(object);
    let held = context
        .mirror
        .hold_stream(&name)
        .await
        .map_err(|source| Error::JetStream { name: name.clone(), source })?;
    let mut remembered = remembered(object);
    let seen = context.mirror.sequences().highest(&name, object.uid().as_deref().unwrap_or_default());
    remembered.highest_sequence = remembered.highest_sequence.max(seen);
    let since = object.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0);
    let waited = Timestamp::now().duration_since(since).unsigned_abs();
    Ok(Found::Stream(Dereferenced { name, held, remembered, waited }))
}

/// What the object's status says of the stream.
pub fn remembered(object: &EventStream) -> Remembered {
    let status = object.status.as_ref();
    let known = status.and_then(|status| status.stream.as_ref());
    Remembered {
        created: known.and_then(|known| known.created.as_ref()).map(|time| time.0.as_second()),
        replicas: known.map(|known| known.replicas),
        // A status of before this field was kept has the last sequence alone.
        highest_sequence: status
            .and_then(|status| status.highest_sequence)
            .max(known.map(|known| known.last_sequence)),
    }
}
