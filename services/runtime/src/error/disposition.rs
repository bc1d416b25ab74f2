//! What an error of JetStream means for the request that it answers: one table of the server's error codes (server/errors.json of
//! nats-server 2.15). In: an error. Out: its disposition. Pure.

use async_nats::jetstream;

use super::ErrorKind;

/// What an error means for the request that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposition {
    /// The same request may succeed a moment later: it is repeated within the bound of its caller.
    Retry,
    /// Repeating it changes nothing now.
    Final(ErrorKind),
}

use Disposition::{Final, Retry};

const CONFLICT: Disposition = Final(ErrorKind::Conflict);
const UNAVAILABLE: Disposition = Final(ErrorKind::Unavailable);
const REFUSED: Disposition = Final(ErrorKind::Refused);

/// Errors whose disposition is not the one of their status (see [`by_status`]), with the reason.
const EXCEPTIONS: &[(u64, Disposition)] = &[
    // JSClusterNotAssigned, JSClusterNotLeader: the request met a server while leadership moved.
    (10007, Retry),
    (10009, Retry),
    // JSClusterRequired, JSClusterUnSupportFeature: 503s that depend on how the servers are set up.
    (10010, REFUSED),
    (10036, REFUSED),
    // JSConsumerNotFound, JSStreamNotFound: the operator makes them when it can; the request came before that.
    (10014, UNAVAILABLE),
    (10059, UNAVAILABLE),
    // JSStreamWrongLastMsgID, JSStreamWrongLastSequence: there is a newer message than the writer saw.
    (10070, CONFLICT),
    (10071, CONFLICT),
    // JSStreamOffline, JSConsumerOffline, and both with a reason: its servers are gone, or are too old for it.
    (10118, UNAVAILABLE),
    (10119, UNAVAILABLE),
    (10194, UNAVAILABLE),
    (10195, UNAVAILABLE),
    // JSStreamDuplicateMessageConflict: a write with this message id is in flight, which is this one where it is repeated.
    (10158, Retry),
    // JSStreamWrongLastSequenceConstant, of a replicated stream: another write to these subjects is in flight, and undecided.
    (10164, Retry),
    // JSStreamMinLastSeq: the replica that answers is behind.
    (10180, Retry),
];

/// JSStreamStoreFailed: a 503 for everything that the store has against a message, such as a limit or its size.
const STORE_FAILED: u64 = 10077;
/// The only such text that passes: the stream is being closed (server/filestore.go).
const STORE_CLOSED: &str = "store is closed";

/// Looks an error up in the table.
pub(crate) fn classify(error: &jetstream::Error) -> Disposition {
    let jetstream::ErrorCode(code) = error.error_code();
    if code == STORE_FAILED {
        return if error.to_string().contains(STORE_CLOSED) { Retry } else { REFUSED };
    }
    let exception = EXCEPTIONS.iter().find(|(exception, _)| *exception == code);
    exception.map_or_else(|| by_status(error.code()), |(_, disposition)| *disposition)
}

/// Errors of later servers, and most of today's: 429 is a full queue, 503 is a lack of a leader or of resources, both for now.
fn by_status(status: usize) -> Disposition {
    match status {
        429 | 503 => Retry,
        _ => REFUSED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disposition(status: usize, code: u64, description: &str) -> Disposition {
        let answer = serde_json::json!({"code": status, "err_code": code, "description": description});
        classify(&serde_json::from_value(answer).unwrap())
    }

    /// Every error with which the server answers a publish (stream.go, jetstream_batching.go, jetstream_cluster.go), a MSG.GET or a
    /// CONSUMER.INFO (jetstream_api.go), with its status and text there.
    #[rustfmt::skip]
    const ANSWERS: &[(usize, u64, &str, Disposition)] = &[
        // Any request.
        (503, 10008, "JetStream system temporarily unavailable", Retry),
        (500, 10009, "JetStream cluster can not handle request", Retry),
        (500, 10007, "JetStream cluster not assigned to this server", Retry),
        (503, 10004, "incomplete results", Retry),
        (503, 10010, "JetStream clustering support required", REFUSED),
        (503, 10036, "not currently supported in clustered mode", REFUSED),
        (503, 10023, "insufficient resources", Retry),
        (400, 10002, "resource limits exceeded for account", REFUSED),
        (503, 10035, "account not found", Retry),
        (503, 10039, "JetStream not enabled for account", Retry),
        (503, 10076, "JetStream not enabled", Retry),
        (404, 10059, "stream not found", UNAVAILABLE),
        (500, 10118, "stream is offline", UNAVAILABLE),
        (500, 10194, "stream is offline: unsupported", UNAVAILABLE),
        (500, 10051, "deleted", REFUSED),
        (412, 10185, "JetStream minimum api level required", REFUSED),
        (400, 10003, "bad request", REFUSED),
        (400, 10025, "invalid JSON: x", REFUSED),
        // A publish.
        (429, 10167, "too many requests", Retry),
        (400, 10060, "expected stream does not match", REFUSED),
        (400, 10071, "wrong last sequence: 7", CONFLICT),
        (400, 10164, "wrong last sequence", Retry),
        (400, 10070, "wrong last msg ID: x", CONFLICT),
        (400, 10193, "missing sequence for expected last sequence per subject", REFUSED),
        (503, 10163, "expected last sequence per subject temporarily unavailable", Retry),
        (503, 10063, "expected stream sequence does not match", Retry),
        (409, 10158, "duplicate message id is in process", Retry),
        (503, 10077, "store is closed", Retry),
        (503, 10077, "maximum messages exceeded", REFUSED),
        (503, 10077, "maximum bytes exceeded", REFUSED),
        (503, 10077, "message too large", REFUSED),
        (400, 10054, "message size exceeds maximum allowed", REFUSED),
        (400, 10097, "header size exceeds maximum allowed of 64k", REFUSED),
        (400, 10109, "invalid operation on sealed stream", REFUSED),
        (500, 10111, "rollup not permitted", REFUSED),
        (400, 10165, "invalid per-message TTL", REFUSED),
        (400, 10166, "per-message TTL is disabled", REFUSED),
        (400, 10168, "message counters is disabled", REFUSED),
        (400, 10169, "message counter increment is missing", REFUSED),
        (400, 10170, "message counter has payload", REFUSED),
        (400, 10171, "message counter increment is invalid", REFUSED),
        (400, 10172, "message counter is broken", REFUSED),
        (400, 10174, "atomic publish is disabled", REFUSED),
        (400, 10175, "atomic publish sequence is missing", REFUSED),
        (400, 10176, "atomic publish batch is incomplete", REFUSED),
        (400, 10177, "atomic publish unsupported header used: x", REFUSED),
        (400, 10179, "atomic publish batch ID is invalid", REFUSED),
        (400, 10188, "message schedules is disabled", REFUSED),
        (400, 10189, "message schedules pattern is invalid", REFUSED),
        (400, 10190, "message schedules target is invalid", REFUSED),
        (400, 10191, "message schedules invalid per-message TTL", REFUSED),
        (400, 10192, "message schedules invalid rollup", REFUSED),
        (400, 10199, "atomic publish batch is too large: 1", REFUSED),
        (400, 10200, "atomic publish batch commit is invalid", REFUSED),
        (400, 10201, "atomic publish batch contains duplicate message id", REFUSED),
        (400, 10203, "message schedules source is invalid", REFUSED),
        (400, 10205, "batch publish is disabled", REFUSED),
        (400, 10206, "batch publish pattern is invalid", REFUSED),
        (400, 10207, "batch publish ID is invalid", REFUSED),
        (400, 10208, "batch publish ID unknown", REFUSED),
        (429, 10210, "atomic publish too many inflight", Retry),
        (429, 10211, "batch publish too many inflight", Retry),
        (400, 10212, "message schedules invalid scheduler", REFUSED),
        (400, 10223, "message schedules time zone is invalid", REFUSED),
        (400, 10227, "message stream source header is not allowed", REFUSED),
        // A read.
        (404, 10037, "no message found", REFUSED),
        (412, 10180, "min last sequence", Retry),
        // A request about a consumer.
        (404, 10014, "consumer not found", UNAVAILABLE),
        (500, 10119, "consumer is offline", UNAVAILABLE),
        (500, 10195, "consumer is offline: unsupported", UNAVAILABLE),
        (400, 10038, "expected an empty request payload", REFUSED),
        (400, 10160, "Provided priority group does not exist for this consumer", REFUSED),
    ];

    #[test]
    fn each_error_of_the_server_passes_or_is_a_conflict_or_final() {
        for (status, code, description, expected) in ANSWERS {
            assert_eq!(disposition(*status, *code, description), *expected, "{code} {description}");
        }
    }

    #[test]
    fn each_exception_differs_from_its_status_and_is_answered_to_some_request() {
        for (code, exception) in EXCEPTIONS {
            let (status, ..) = ANSWERS.iter().find(|(_, answer, ..)| answer == code).unwrap();
            assert_ne!(by_status(*status), *exception, "{code}");
        }
    }

    #[test]
    fn an_unknown_error_is_judged_by_its_status() {
        for (status, expected) in
            [(429, Retry), (503, Retry), (400, REFUSED), (404, REFUSED), (409, REFUSED), (500, REFUSED)]
        {
            assert_eq!(disposition(status, 19_999, "of a later server"), expected, "{status}");
        }
    }
}
