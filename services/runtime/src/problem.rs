//! The HTTP response to a caller whose request to JetStream failed.

use jetwright_process::http::Problem;

use crate::{Error, ErrorKind};

/// The cause is logged here, and not part of the response.
impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Conflict => Self::conflict("it was changed meanwhile: read it and decide again"),
            ErrorKind::Unavailable => {
                tracing::warn!(%error, "request failed: unavailable");
                Self::unavailable("events cannot be stored or read now: try again")
            }
            ErrorKind::Refused => {
                tracing::error!(%error, "request failed: internal error");
                Self::internal()
            }
        }
    }
}
