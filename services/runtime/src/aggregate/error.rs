//! How loading an aggregate fails, and what that means to a handler and to a caller over HTTP.

use jetwright_process::http::Problem;

use crate::{DecodeError, Error, ErrorKind, HandlerError, StoredEvent};

/// Why an aggregate is not loaded or not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregateError {
    /// The stream cannot be read or written, or the aggregate was changed meanwhile.
    #[error(transparent)]
    JetStream(#[from] Error),
    /// One of its events is unreadable, and so the state after it is unknown.
    #[error("failed to read the event {sequence} on {subject}")]
    Unreadable {
        /// Subject under which the event is stored.
        subject: String,
        /// Its sequence in the stream.
        sequence: u64,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
}

impl AggregateError {
    /// Whether the aggregate has newer events than the writer had seen.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::JetStream(error) if error.kind() == ErrorKind::Conflict)
    }
}

pub(super) fn unreadable(stored: &StoredEvent) -> impl FnOnce(DecodeError) -> AggregateError {
    let (subject, sequence) = (stored.subject.clone(), stored.sequence);
    move |source| AggregateError::Unreadable { subject, sequence, source }
}

/// A request may succeed later; an unreadable event stays unreadable.
impl From<AggregateError> for HandlerError {
    fn from(error: AggregateError) -> Self {
        match error {
            AggregateError::JetStream(error) => error.into(),
            AggregateError::Unreadable { ref source, .. } => {
                Self::permanent(format_args!("{error}: {source}"))
            }
        }
    }
}

/// The cause is logged here, and not part of the response.
impl From<AggregateError> for Problem {
    fn from(error: AggregateError) -> Self {
        match error {
            AggregateError::JetStream(error) => error.into(),
            AggregateError::Unreadable { ref source, .. } => {
                tracing::error!(%error, reason = %source, "request failed: internal error");
                Self::internal()
            }
        }
    }
}
