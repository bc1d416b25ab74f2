//! What to do about errors of JetStream that come from what an object declares. Pure.

use jetwright_nats::{
    ApiError,
    jetstream_error::{REPLICAS_NEED_CLUSTER, SUBJECTS_OVERLAP, TOO_MANY_CONSUMERS},
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
        // Each partition counts (JSDefaultMaxConsumersPerStream in server/jetstream_api.go of nats-server).
        Some(TOO_MANY_CONSUMERS) => {
            ": with ordering PerKey there is a consumer for each partition. Raise the limit of consumers per stream of the servers \
             (jetstream.limits.default_max_consumers, 1000 from nats-server 2.15) or of the account, delete consumers of the stream, or make \
             an EventStream with fewer partitions"
        }
        _ => "",
    }
}
