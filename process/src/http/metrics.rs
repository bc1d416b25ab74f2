//! How long requests take and how they end, by OpenTelemetry's names for HTTP servers.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::metrics::catalogue::{name_of, words};

crate::catalogue! {
    /// The one that OpenTelemetry names.
    DURATION: Histogram "http_server_request_duration_seconds" [
        words("http_request_method", &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "_OTHER"]),
        name_of("http_route", "a route of the program"),
        name_of("http_response_status_code", "a status")
    ] "Time from the headers of a request to its response";
}

/// Buckets that OpenTelemetry's conventions advise, in seconds.
const DURATION_BUCKETS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Metrics of an HTTP interface. Clones share them.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    durations: Family<Request, Histogram, fn() -> Histogram>,
}

/// Every label has few values: methods that HTTP does not know are `_OTHER`, and paths are those of the routes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
#[expect(clippy::struct_field_names, reason = "the fields are the labels, which OpenTelemetry names so")]
pub(super) struct Request {
    pub(super) http_request_method: String,
    pub(super) http_route: String,
    pub(super) http_response_status_code: u16,
}

impl HttpMetrics {
    /// Adds `http_server_request_duration_seconds` to the registry.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let durations =
            Family::new_with_constructor((|| Histogram::new(DURATION_BUCKETS)) as fn() -> Histogram);
        DURATION.register(registry, durations.clone());
        Self { durations }
    }

    pub(super) fn record_response(&self, request: &Request, after: Duration) {
        self.durations.get_or_create(request).observe(after.as_secs_f64());
    }
}
