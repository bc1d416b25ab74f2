//! The trace that an event is part of: into and out of headers (W3C Trace Context), and the spans of publishing and
//! handling with OpenTelemetry's attributes for messaging.

use std::sync::LazyLock;

use async_nats::HeaderMap;
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::Metadata;

/// `traceparent` and `tracestate`.
static W3C: LazyLock<TraceContextPropagator> = LazyLock::new(TraceContextPropagator::new);

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty `tracestate` says nothing, and some readers refuse it.
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}

/// Writes the span's context into a message's headers; nothing where there is no trace.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    W3C.inject_context(&span.context(), &mut HeadersMut(headers));
}

/// The span of publishing one event.
pub(crate) fn publish_span(subject: &str, event_type: &str) -> Span {
    tracing::info_span!(
        "publish",
        otel.name = format!("publish {event_type}"),
        otel.kind = "producer",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = subject,
    )
}

/// The span of one attempt at an event, within the trace that the event's headers name.
pub(crate) fn attempt_span(binding: &str, metadata: &Metadata, headers: Option<&HeaderMap>) -> Span {
    let span = tracing::info_span!(
        "handle",
        otel.name = format!("process {binding}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = metadata.subject,
        messaging.destination.subscription.name = metadata.consumer,
        messaging.message.id = format!("{}/{}", metadata.stream, metadata.sequence),
        stream = metadata.stream,
        sequence = metadata.sequence,
        attempt = metadata.attempt,
    );
    if let Some(headers) = headers {
        let context = W3C.extract_with_context(&Context::new(), &Headers(headers));
        // Refused only where nothing that knows of traces is installed, and then there is nothing to continue.
        let _ = span.set_parent(context);
    }
    span
}

/// Marks the span as failed.
pub(crate) fn failed(span: &Span, error: &dyn std::fmt::Display) {
    span.record("otel.status_code", "error");
    span.record("otel.status_description", tracing::field::display(error));
}
