//! What callers over HTTP are told when a request to JetStream fails.

use jetwright_process::http::Problem;

use crate::{Error, ErrorKind};

/// The cause is logged here, and not told to the caller.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Conflict => Self::conflict("it was changed meanwhile: read it and decide again"),
            ErrorKind::Unavailable => {
                tracing::warn!(%error, "a caller is told to come again");
                Self::unavailable("events cannot be stored or read now: try again")
            }
            ErrorKind::Refused => {
                tracing::error!(%error, "a caller cannot be served");
                Self::internal()
            }
        }
    }
}
