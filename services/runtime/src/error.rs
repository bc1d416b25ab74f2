//! How a request to JetStream fails.

use std::fmt;

use async_nats::jetstream;

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
    /// Somebody else wrote since what the caller saw (JetStream's error 10071): read again and decide again.
    Conflict,
    /// NATS cannot be reached, or has nobody who takes it now. Whether a write was taken is unknown; to repeat it with
    /// the same message id is safe.
    Unavailable,
    /// JetStream understood and said no: too large, a full stream, no permission, a malformed subject.
    Refused,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
        })
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, object: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { kind, object: object.into(), reason: reason.to_string() }
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

/// What an error answer of JetStream means for who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stands.
    Final(ErrorKind),
    /// The same request may be taken a moment later.
    AskAgain,
}

/// Judges an error answer of JetStream.
pub(crate) fn judge(error: &jetstream::Error) -> Verdict {
    match error.error_code() {
        jetstream::ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Verdict::Final(ErrorKind::Conflict),
        // 10164, of a replicated stream: another write to these subjects is in flight, and nothing is decided yet.
        jetstream::ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Verdict::AskAgain,
        // The operator makes it when it can; who writes to it meanwhile comes too early.
        jetstream::ErrorCode::STREAM_NOT_FOUND => Verdict::Final(ErrorKind::Unavailable),
        // JetStream's 503s are of the moment: no leader, no resources, shutting down.
        _ if error.code() == 503 => Verdict::AskAgain,
        _ => Verdict::Final(ErrorKind::Refused),
    }
}
