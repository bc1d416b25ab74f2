//! Errors of JetStream, and what each means for its request: one table of the server's error codes (server/errors.json
//! of nats-server 2.15). In: an error. Out: its disposition. Pure.

use serde::Deserialize;

/// An error from JetStream.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description} (code {code}, error code {err_code})")]
pub struct JetStreamError {
    /// As in HTTP.
    pub code: u64,
    /// The server's error code.
    #[serde(default)]
    pub err_code: u64,
    /// The server's description.
    #[serde(default)]
    pub description: String,
}

/// What an error means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The same request may succeed a moment later: repeat it until the caller's deadline.
    Retry,
    /// Another write came first. Repeating the request changes nothing.
    Conflict,
    /// Nobody takes the request now, and repeating it at once changes nothing.
    Unavailable,
    /// JetStream refuses the request. Repeating it changes nothing.
    Refused,
}

use Disposition::{Conflict, Refused, Retry, Unavailable};

/// The stream does not exist.
pub const STREAM_NOT_FOUND: u64 = 10059;
/// The consumer does not exist.
pub const CONSUMER_NOT_FOUND: u64 = 10014;
/// The cluster has no leader that could answer.
pub const CLUSTER_NOT_AVAILABLE: u64 = 10008;
/// The servers of the stream are down.
pub const STREAM_OFFLINE: u64 = 10118;
/// The servers of the consumer are down.
pub const CONSUMER_OFFLINE: u64 = 10119;
/// A stream of this name exists with another configuration.
pub const STREAM_NAME_IN_USE: u64 = 10058;
/// More than one replica needs clustered servers.
pub const REPLICAS_NEED_CLUSTER: u64 = 10074;
/// The cluster has no suitable servers; the description says why.
pub const NO_SUITABLE_PEERS: u64 = 10005;
/// Another stream of the account has subjects in common.
pub const SUBJECTS_OVERLAP: u64 = 10065;
/// The stream is being moved or scaled.
pub const RECONFIGURING: u64 = 10226;
/// The stream is being moved; servers before 2.15 also say so while it is scaled.
pub const MOVING: u64 = 10124;
/// A consumer may not have so many unacknowledged messages; the description ends with the limit.
pub const MAX_ACK_PENDING_EXCEEDED: u64 = 10121;
/// A stream may not have so many consumers.
pub const TOO_MANY_CONSUMERS: u64 = 10026;
/// What the account may use is used up.
pub const ACCOUNT_RESOURCES_EXCEEDED: u64 = 10002;
/// The servers lack resources.
pub const INSUFFICIENT_RESOURCES: u64 = 10023;
/// The servers lack memory.
pub const MEMORY_EXCEEDED: u64 = 10028;
/// The servers lack storage.
pub const STORAGE_EXCEEDED: u64 = 10047;
/// No message exists under this sequence or subject.
pub const NO_MESSAGE_FOUND: u64 = 10037;
/// There is a newer message than the writer saw.
pub const WRONG_LAST_SEQUENCE: u64 = 10071;
/// Another write that expects a sequence of the subject is under way.
pub const WRITE_UNDER_WAY: u64 = 10164;
/// The stream that took the publish is not the expected one.
pub(crate) const STREAM_NOT_MATCH: u64 = 10060;

/// Errors whose disposition differs from that of their status (see [`by_status`]), with the reason.
const EXCEPTIONS: &[(u64, Disposition)] = &[
    // JSClusterNotAssigned, JSClusterNotLeader: the request met a server while leadership moved.
    (10007, Retry),
    (10009, Retry),
    // JSClusterRequired, JSClusterUnSupportFeature: 503s that depend on how the servers are set up.
    (10010, Refused),
    (10036, Refused),
    // JSConsumerNotFound, JSStreamNotFound: the request came before the operator created them.
    (CONSUMER_NOT_FOUND, Unavailable),
    (STREAM_NOT_FOUND, Unavailable),
    // JSStreamWrongLastMsgID, JSStreamWrongLastSequence: there is a newer message than the writer saw.
    (10070, Conflict),
    (WRONG_LAST_SEQUENCE, Conflict),
    // JSStreamOffline, JSConsumerOffline, and both with a reason: its servers are down, or too old for it.
    (STREAM_OFFLINE, Unavailable),
    (CONSUMER_OFFLINE, Unavailable),
    (10194, Unavailable),
    (10195, Unavailable),
    // JSStreamDuplicateMessageConflict: a write with this message id is in flight, which is this one if it is repeated.
    (10158, Retry),
    // JSStreamWrongLastSequenceConstant, of a replicated stream: another write to these subjects is in flight, and undecided.
    (WRITE_UNDER_WAY, Retry),
    // JSStreamMinLastSeq: the replica that answers is behind.
    (10180, Retry),
];

/// JSStreamStoreFailed: a 503 for every refusal of the store, such as a limit or the message's size.
const STORE_FAILED: u64 = 10077;
/// The only such description that is transient: the stream is being closed (server/filestore.go).
const STORE_CLOSED: &str = "store is closed";

impl JetStreamError {
    /// Looks it up in the table.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        if self.err_code == STORE_FAILED {
            return if self.description.contains(STORE_CLOSED) { Retry } else { Refused };
        }
        let exception = EXCEPTIONS.iter().find(|(exception, _)| *exception == self.err_code);
        exception.map_or_else(|| by_status(self.code), |(_, disposition)| *disposition)
    }
}

/// Errors of later servers, and most of today's: 429 is a full queue, 503 is a lack of a leader or of resources, both transient.
fn by_status(status: u64) -> Disposition {
    match status {
        429 | 503 => Retry,
        _ => Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disposition(code: u64, err_code: u64, description: &str) -> Disposition {
        JetStreamError { code, err_code, description: description.to_owned() }.disposition()
    }

    /// Every error with which the server answers a publish (stream.go, jetstream_batching.go, jetstream_cluster.go), a MSG.GET or a
    /// CONSUMER.INFO (jetstream_api.go), with its status and text there.
    #[rustfmt::skip]
    const ANSWERS: &[(u64, u64, &str, Disposition)] = &[
        // Any request.
        (503, 10008, "JetStream system temporarily unavailable", Retry),
        (500, 10009, "JetStream cluster can not handle request", Retry),
        (500, 10007, "JetStream cluster not assigned to this server", Retry),
        (503, 10004, "incomplete results", Retry),
        (503, 10010, "JetStream clustering support required", Refused),
        (503, 10036, "not currently supported in clustered mode", Refused),
        (503, 10023, "insufficient resources", Retry),
        (400, 10002, "resource limits exceeded for account", Refused),
        (503, 10035, "account not found", Retry),
        (503, 10039, "JetStream not enabled for account", Retry),
        (503, 10076, "JetStream not enabled", Retry),
        (404, 10059, "stream not found", Unavailable),
        (500, 10118, "stream is offline", Unavailable),
        (500, 10194, "stream is offline: unsupported", Unavailable),
        (500, 10051, "deleted", Refused),
        (412, 10185, "JetStream minimum api level required", Refused),
        (400, 10003, "bad request", Refused),
        (400, 10025, "invalid JSON: x", Refused),
        // A publish.
        (429, 10167, "too many requests", Retry),
        (400, 10060, "expected stream does not match", Refused),
        (400, 10071, "wrong last sequence: 7", Conflict),
        (400, 10164, "wrong last sequence", Retry),
        (400, 10070, "wrong last msg ID: x", Conflict),
        (400, 10193, "missing sequence for expected last sequence per subject", Refused),
        (503, 10163, "expected last sequence per subject temporarily unavailable", Retry),
        (503, 10063, "expected stream sequence does not match", Retry),
        (409, 10158, "duplicate message id is in process", Retry),
        (503, 10077, "store is closed", Retry),
        (503, 10077, "maximum messages exceeded", Refused),
        (503, 10077, "maximum bytes exceeded", Refused),
        (503, 10077, "message too large", Refused),
        (400, 10054, "message size exceeds maximum allowed", Refused),
        (400, 10097, "header size exceeds maximum allowed of 64k", Refused),
        (400, 10109, "invalid operation on sealed stream", Refused),
        (500, 10111, "rollup not permitted", Refused),
        (400, 10165, "invalid per-message TTL", Refused),
        (400, 10166, "per-message TTL is disabled", Refused),
        (400, 10168, "message counters is disabled", Refused),
        (400, 10169, "message counter increment is missing", Refused),
        (400, 10170, "message counter has payload", Refused),
        (400, 10171, "message counter increment is invalid", Refused),
        (400, 10172, "message counter is broken", Refused),
        (400, 10174, "atomic publish is disabled", Refused),
        (400, 10175, "atomic publish sequence is missing", Refused),
        (400, 10176, "atomic publish batch is incomplete", Refused),
        (400, 10177, "atomic publish unsupported header used: x", Refused),
        (400, 10179, "atomic publish batch ID is invalid", Refused),
        (400, 10188, "message schedules is disabled", Refused),
        (400, 10189, "message schedules pattern is invalid", Refused),
        (400, 10190, "message schedules target is invalid", Refused),
        (400, 10191, "message schedules invalid per-message TTL", Refused),
        (400, 10192, "message schedules invalid rollup", Refused),
        (400, 10199, "atomic publish batch is too large: 1", Refused),
        (400, 10200, "atomic publish batch commit is invalid", Refused),
        (400, 10201, "atomic publish batch contains duplicate message id", Refused),
        (400, 10203, "message schedules source is invalid", Refused),
        (400, 10205, "batch publish is disabled", Refused),
        (400, 10206, "batch publish pattern is invalid", Refused),
        (400, 10207, "batch publish ID is invalid", Refused),
        (400, 10208, "batch publish ID unknown", Refused),
        (429, 10210, "atomic publish too many inflight", Retry),
        (429, 10211, "batch publish too many inflight", Retry),
        (400, 10212, "message schedules invalid scheduler", Refused),
        (400, 10223, "message schedules time zone is invalid", Refused),
        (400, 10227, "message stream source header is not allowed", Refused),
        // A read.
        (404, 10037, "no message found", Refused),
        (412, 10180, "min last sequence", Retry),
        // A request about a consumer.
        (404, 10014, "consumer not found", Unavailable),
        (500, 10119, "consumer is offline", Unavailable),
        (500, 10195, "consumer is offline: unsupported", Unavailable),
        (400, 10038, "expected an empty request payload", Refused),
        (400, 10160, "Provided priority group does not exist for this consumer", Refused),
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
            [(429, Retry), (503, Retry), (400, Refused), (404, Refused), (409, Refused), (500, Refused)]
        {
            assert_eq!(disposition(status, 19_999, "of a later server"), expected, "{status}");
        }
    }
}
