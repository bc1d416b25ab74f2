//! The span of a request to JetStream's API, within the work that sends it. In: the request, and how it ended. Decides nothing.

use jetwright_process::telemetry::WorkSpan;
use opentelemetry::{
    KeyValue,
    trace::{SpanBuilder, SpanKind},
};

use crate::ApiError;

/// Begins the span; None where the trace is not recorded, and where the request is not part of a traced work. The span's name has no stream name
/// in it, so that there are few.
pub(crate) fn start(verb: &'static str, subject: &str) -> Option<WorkSpan> {
    WorkSpan::of_request(|| {
        let attributes = vec![
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.name", "request"),
            KeyValue::new("messaging.operation.type", "send"),
            KeyValue::new("subject", subject.to_owned()),
        ];
        SpanBuilder::from_name(format!("request {verb}"))
            .with_kind(SpanKind::Client)
            .with_attributes(attributes)
    })
}

/// Says how the request ended. That something does not exist is an answer, and no failure.
pub(crate) fn end(span: &WorkSpan, error: Option<&ApiError>) {
    let outcome = ApiError::outcome(error);
    span.set_attribute(KeyValue::new("outcome", outcome));
    if let Some(error) = error.filter(|error| !error.is_absence()) {
        span.fail(outcome, error);
    }
}
