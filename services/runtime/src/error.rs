//! How a request to JetStream fails.

use std::fmt;

use jetwright_nats::{Disposition, RequestError};

/// A request to JetStream that failed: what was asked of which subject, stream or key, and why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {kind}: {reason}")]
pub struct Error {
    kind: ErrorKind,
    object: String,
    reason: String,
}

/// What a caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Something was written since what the caller saw (JetStream's error 10071): read again and decide again.
    ///
    /// It may be the caller's own write: where a stream's answer is lost, the write is repeated, and a stream of one
    /// replica compares the expected sequence before it looks at the message id. Who reads again finds it there.
    Conflict,
    /// NATS cannot be reached, or has nobody who takes it now. Whether a write was taken is unknown; to repeat it with
    /// the same message id is safe.
    Unavailable,
    /// JetStream understood and said no: too large, a full stream, no permission, a malformed subject.
    Refused,
}

impl ErrorKind {
    /// Its name in metrics and traces.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, object: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { kind, object: object.into(), reason: reason.to_string() }
    }

    /// The error of a request that failed.
    pub(crate) fn of_request(object: impl Into<String>, error: &RequestError) -> Self {
        let kind = match error.disposition() {
            Disposition::Conflict => ErrorKind::Conflict,
            Disposition::Unavailable | Disposition::Retry => ErrorKind::Unavailable,
            Disposition::Refused => ErrorKind::Refused,
        };
        Self::new(kind, object, error)
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The subject, stream or key that was asked for.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }
}
