//! How a request to JetStream fails.

use std::fmt;

use jetwright_nats::{Disposition, RequestError};

/// A failed request to JetStream: its subject, stream or key, and the reason.
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
    /// Another write came first (JetStream's error 10071): read again and decide again.
    ///
    /// It may be the caller's own write: if a stream's response is lost, the write is repeated, and a stream of one
    /// replica compares the expected sequence before it looks at the message id. A new read finds the write there.
    Conflict,
    /// NATS is unreachable, or nobody there takes the request now. A write may have been stored; repeating it with the same
    /// message id is safe.
    Unavailable,
    /// JetStream refuses the request: too large, a full stream, no permission, a malformed subject.
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

    /// The subject, stream or key of the request.
    #[must_use]
    pub fn object(&self) -> &str {
        &self.object
    }
}
