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

/// What nats-server (server/filestore.go, 2.15) says of a write that met a stream which is being closed.
const CLOSING: &str = "store is closed";

/// Judges an error answer of JetStream.
pub(crate) fn judge(error: &jetstream::Error) -> Verdict {
    match error.error_code() {
        jetstream::ErrorCode::STREAM_WRONG_LAST_SEQUENCE => Verdict::Final(ErrorKind::Conflict),
        // 10164, of a replicated stream: another write to these subjects is in flight, and nothing is decided yet.
        // 10158: so is another write with the same message id, which is this one where it was repeated.
        jetstream::ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        | jetstream::ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => Verdict::AskAgain,
        // 10077 comes as a 503 whatever the store has against the message: a limit, its size, or that it ends just now.
        jetstream::ErrorCode::STREAM_STORE_FAILED if !error.to_string().contains(CLOSING) => {
            Verdict::Final(ErrorKind::Refused)
        }
        // The operator makes it when it can; who writes to it meanwhile comes too early.
        jetstream::ErrorCode::STREAM_NOT_FOUND => Verdict::Final(ErrorKind::Unavailable),
        // JetStream's 503s are of the moment: no leader, no resources, shutting down.
        _ if error.code() == 503 => Verdict::AskAgain,
        _ => Verdict::Final(ErrorKind::Refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(code: usize, err_code: u64, description: &str) -> Verdict {
        let answer = serde_json::json!({"code": code, "err_code": err_code, "description": description});
        judge(&serde_json::from_value(answer).unwrap())
    }

    #[test]
    fn what_is_in_flight_or_of_the_moment_is_asked_again() {
        for (code, err_code, description) in [
            (400, 10164, "wrong last sequence"),
            (409, 10158, "duplicate message id is in process"),
            (503, 10008, "JetStream system temporarily unavailable"),
            (503, 10077, "store is closed"),
        ] {
            assert_eq!(judged(code, err_code, description), Verdict::AskAgain, "{description}");
        }
    }

    #[test]
    fn what_stands_is_told_at_once() {
        for (code, err_code, description, kind) in [
            (400, 10071, "wrong last sequence: 7", ErrorKind::Conflict),
            (404, 10059, "stream not found", ErrorKind::Unavailable),
            (503, 10077, "maximum messages exceeded", ErrorKind::Refused),
            (503, 10077, "message too large", ErrorKind::Refused),
            (400, 10054, "message size exceeds maximum allowed", ErrorKind::Refused),
        ] {
            assert_eq!(judged(code, err_code, description), Verdict::Final(kind), "{description}");
        }
    }
}
