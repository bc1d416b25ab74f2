//! What the errors of a reconcile mean for its next try, and how they read. Pure.

use std::error::Error as StdError;

use jetwright_nats::{
    ApiError,
    jetstream_error::{MOVING, NO_SUITABLE_PEERS, RECONFIGURING, REPLICAS_NEED_CLUSTER, STREAM_NAME_IN_USE},
};
use strum::IntoStaticStr;

use crate::jetstream::remedy::remedy;

/// The API server's words for server-side apply with a field that the kind does not have (typed.AsTyped in structured-merge-diff).
const UNKNOWN_FIELD: &str = "failed to create typed patch object";

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
            ApiError::Refused { err_code, .. } if *err_code == STREAM_NAME_IN_USE => Self::Conflict,
            // A cluster may get its servers back, or finish a scaling, at any moment.
            ApiError::Refused { err_code, .. }
                if [NO_SUITABLE_PEERS, RECONFIGURING, MOVING].contains(err_code) =>
            {
                Self::Transient
            }
            // These come as 500, but mean a configuration that cannot be.
            ApiError::Refused { err_code: 10012 | 10052, .. } => Self::Terminal,
            ApiError::Refused { err_code, .. } if *err_code == REPLICAS_NEED_CLUSTER => Self::Terminal,
            ApiError::Refused { code: 400..500, .. } => Self::Terminal,
            ApiError::Refused { .. } | ApiError::Unanswered { .. } | ApiError::Malformed { .. } => {
                Self::Transient
            }
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
