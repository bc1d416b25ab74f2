//! What to do about errors of JetStream that come from what an object declares. Pure.

use jetwright_nats::{
    ApiError,
    jetstream_error::{REPLICAS_NEED_CLUSTER, SUBJECTS_OVERLAP},
};

/// Follows the error's text; empty where there is nothing to add.
#[must_use]
pub fn remedy(error: &ApiError) -> &'static str {
    match error.err_code() {
        Some(SUBJECTS_OVERLAP) => {
            ": choose other subjects in spec.subjects, or find the other stream with `nats stream ls --subject`"
        }
        Some(REPLICAS_NEED_CLUSTER) => {
            ": set spec.replicas to 1, or a profile, which settles for the servers that there are"
        }
        _ => "",
    }
}
