//! Status messages with which the server ends a pull request (NATS ADR-13, and `sendErr` in server/consumer.go of nats-server). Pure.

use async_nats::StatusCode;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestEnd {
    /// Normally; another one may be sent at once.
    Expired,
    /// The next event is larger than the request allows.
    TooFewBytes,
    /// The consumer has its maximum of requests.
    TooManyRequests,
    /// The consumer does not exist, refuses the request, or does not respond, and why that is assumed.
    Unavailable(String),
}

/// Reads a status. The description begins with the server's message; limits follow some.
pub(super) fn request_end(status: StatusCode, description: &str) -> RequestEnd {
    match (status, description) {
        // A consumer that moves or a server that stops: another one serves the next request.
        (StatusCode::TIMEOUT | StatusCode::NOT_FOUND, _)
        | (_, "Leadership Change" | "Batch Completed" | "Server Shutdown") => RequestEnd::Expired,
        (_, "Message Size Exceeds MaxBytes") => RequestEnd::TooFewBytes,
        (_, "Exceeded MaxWaiting") => RequestEnd::TooManyRequests,
        (StatusCode::NO_RESPONDERS, _) => {
            RequestEnd::Unavailable("no server responds for the consumer".to_owned())
        }
        (status, description) => RequestEnd::Unavailable(format!("{status} {description}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transient_end_differs_from_a_lasting_one() {
        let end = |code: u16, description| request_end(StatusCode::from_u16(code).unwrap(), description);
        for (code, description) in [
            (404, "No Messages"),
            (408, "Request Timeout"),
            (408, "Interest Expired"),
            (409, "Leadership Change"),
            (409, "Batch Completed"),
            (409, "Server Shutdown"),
        ] {
            assert_eq!(end(code, description), RequestEnd::Expired, "{description}");
        }
        assert_eq!(end(409, "Message Size Exceeds MaxBytes"), RequestEnd::TooFewBytes);
        assert_eq!(end(409, "Exceeded MaxWaiting"), RequestEnd::TooManyRequests);
        for (code, description, why) in [
            (503, "", "no server responds for the consumer"),
            (409, "Consumer Deleted", "409 Consumer Deleted"),
            (409, "Exceeded MaxRequestBatch of 5", "409 Exceeded MaxRequestBatch of 5"),
        ] {
            assert_eq!(end(code, description), RequestEnd::Unavailable(why.to_owned()), "{description}");
        }
    }
}
