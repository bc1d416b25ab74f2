//! What the errors of a reconcile mean for its next try, and how they read. Pure.

use std::error::Error as StdError;

use jetwright_nats::{
    ApiError,
    jetstream_error::{
        Disposition, JetStreamError, MOVING, NO_SUITABLE_PEERS, RECONFIGURING, REPLICAS_NEED_CLUSTER,
        STREAM_NAME_IN_USE,
    },
};
use strum::IntoStaticStr;

use crate::remedy::remedy;

/// The API server's words for server-side apply with a field that the kind does not have (typed.AsTyped in structured-merge-diff).
const UNKNOWN_FIELD: &str = "failed to create typed patch object";

/// Refusals that mean something else for what is declared than their status, or their disposition for a message (server/errors.json of
/// nats-server 2.15).
const REFUSALS: &[(u64, ErrorClass)] = &[
    // JSStreamNameExist, JSConsumerNameExist, JSConsumerAlreadyExists: another writer created it since it was read.
    (STREAM_NAME_IN_USE, ErrorClass::Conflict),
    (10013, ErrorClass::Conflict),
    (10148, ErrorClass::Conflict),
    // JSConsumerDoesNotExist, JSConsumerStreamIdentityMismatch: another writer deleted it or its stream since it was read.
    (10149, ErrorClass::Conflict),
    (10225, ErrorClass::Conflict),
    // JSClusterNoPeers, JSStreamMoveInProgress, JSStreamReconfigureInProgress: a cluster may get its servers back, or finish, at any moment.
    (NO_SUITABLE_PEERS, ErrorClass::Transient),
    (MOVING, ErrorClass::Transient),
    (RECONFIGURING, ErrorClass::Transient),
    // JSConsumerCreate, JSStreamInvalidConfig, JSStreamReplicasNotSupported: 500s that mean a configuration that cannot be.
    (10012, ErrorClass::Terminal),
    (10052, ErrorClass::Terminal),
    (REPLICAS_NEED_CLUSTER, ErrorClass::Terminal),
];

/// What an error means for the next try; as text it is a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum ErrorClass {
    /// Another writer was faster: try again soon.
    Conflict,
    /// It may pass by itself: try again, ever more slowly.
    Transient,
    /// The server does not take it: only a change helps, so try rarely.
    Terminal,
}

impl ErrorClass {
    #[must_use]
    pub fn of_jetstream(error: &ApiError) -> Self {
        match error {
            ApiError::Refused { error, .. } => Self::of_refusal(error),
            // Only a user, or an administrator of NATS, changes that.
            ApiError::InvalidName { .. } | ApiError::NotPermitted { .. } => Self::Terminal,
            ApiError::Unanswered { .. } | ApiError::Malformed { .. } => Self::Transient,
        }
    }

    /// What a request to JetStream's API is refused with means for what is declared: the server's word for every request, but for these.
    fn of_refusal(error: &JetStreamError) -> Self {
        if let Some((_, class)) = REFUSALS.iter().find(|(code, _)| *code == error.err_code) {
            return *class;
        }
        match error.disposition() {
            Disposition::Retry | Disposition::Unavailable => Self::Transient,
            Disposition::Conflict => Self::Conflict,
            // From 500 on it is the server that failed.
            Disposition::Refused if error.code >= 500 => Self::Transient,
            Disposition::Refused => Self::Terminal,
        }
    }

    #[must_use]
    pub fn of_kubernetes(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Self::Terminal,
            // An applied field that its kind does not have comes as 500.
            kube::Error::Api(status) if status.message.contains(UNKNOWN_FIELD) => Self::Terminal,
            _ => Self::Transient,
        }
    }
}

/// An error that ended a reconcile.
pub trait ReconcileError: StdError + Send + Sync + 'static {
    /// What it means for the next try.
    fn class(&self) -> ErrorClass;

    /// Whether JetStream did not answer, so that nobody knows what it has.
    fn is_unavailable(&self) -> bool {
        false
    }
}

/// An error with all its sources, in one line.
#[must_use]
pub fn error_chain(error: &(dyn StdError + 'static)) -> String {
    let mut parts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // What the API server says is in the message; the rest of a Status is for programs.
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            parts.push(status.message.clone());
            break;
        }
        let text = format!("{error}{}", error.downcast_ref().map(remedy).unwrap_or_default());
        // A transparent error repeats its source.
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}

#[cfg(test)]
mod tests {
    use jetwright_nats::Violation;

    use super::*;

    use ErrorClass::{Conflict, Terminal, Transient};

    /// What the server answers to creations, updates, deletions, INFO and LIST of streams and consumers, with its status and text.
    #[rustfmt::skip]
    const ANSWERS: &[(u64, u64, &str, ErrorClass)] = &[
        // It passes.
        (503, 10008, "JetStream system temporarily unavailable", Transient),
        (500, 10009, "JetStream cluster can not handle request", Transient),
        (503, 10004, "incomplete results", Transient),
        (503, 10023, "insufficient resources", Transient),
        (503, 10039, "JetStream not enabled for account", Transient),
        (429, 10167, "too many requests", Transient),
        (500, 10118, "stream is offline", Transient),
        (500, 10119, "consumer is offline", Transient),
        (500, 10047, "insufficient storage resources available", Transient),
        (500, 10028, "insufficient memory resources available", Transient),
        (500, 10049, "stream create failed", Transient),
        (500, 10050, "stream delete failed", Transient),
        // The stream, or the consumer, is not there yet, or not any more.
        (404, 10059, "stream not found", Transient),
        (404, 10014, "consumer not found", Transient),
        (400, 10005, "no suitable peers for placement", Transient),
        (400, 10124, "stream move already in progress", Transient),
        (400, 10226, "stream reconfiguration already in progress", Transient),
        // Another writer was faster.
        (400, 10058, "stream name already in use with a different configuration", Conflict),
        (400, 10013, "consumer name already in use", Conflict),
        (400, 10148, "consumer already exists", Conflict),
        (400, 10149, "consumer does not exist", Conflict),
        (400, 10225, "consumer's stream identity does not match: x", Conflict),
        // What is declared cannot be.
        (400, 10002, "resource limits exceeded for account", Terminal),
        (400, 10026, "maximum consumers limit reached", Terminal),
        (400, 10027, "maximum number of streams reached", Terminal),
        (400, 10065, "subjects overlap with an existing stream", Terminal),
        (400, 10100, "filtered consumer not unique on workqueue stream", Terminal),
        (400, 10109, "invalid operation on sealed stream", Terminal),
        (400, 10113, "account requires a stream config to have max bytes set", Terminal),
        (400, 10121, "consumer max ack pending exceeds system limit of 500", Terminal),
        (412, 10185, "JetStream minimum api level required", Terminal),
        (500, 10012, "deliver policy can not be updated", Terminal),
        (500, 10052, "duplicates window can not be larger then max age", Terminal),
        (500, 10074, "replicas > 1 not supported in non-clustered mode", Terminal),
        // Of later servers.
        (400, 19999, "new", Terminal),
        (500, 19999, "new", Transient),
        (503, 19999, "new", Transient),
    ];

    #[test]
    fn each_refusal_of_jetstream_passes_or_is_a_conflict_or_takes_a_change() {
        for (code, err_code, description, expected) in ANSWERS {
            let refused = ApiError::Refused {
                subject: String::new(),
                error: JetStreamError {
                    code: *code,
                    err_code: *err_code,
                    description: (*description).to_owned(),
                },
            };
            assert_eq!(ErrorClass::of_jetstream(&refused), *expected, "{err_code} {description}");
        }
        for (code, _) in REFUSALS {
            assert!(ANSWERS.iter().any(|(_, answer, ..)| answer == code), "{code}");
        }
    }

    #[test]
    fn what_is_not_permitted_takes_a_change_and_silence_passes() {
        let violation = Violation::Publish("$JS.API.STREAM.CREATE.orders".into());
        assert_eq!(ErrorClass::of_jetstream(&ApiError::NotPermitted { violation }), Terminal);
        let unanswered = ApiError::Unanswered { subject: String::new(), why: String::new() };
        assert_eq!(ErrorClass::of_jetstream(&unanswered), Transient);
    }
}
