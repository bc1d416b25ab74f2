//! The trace that an event is part of: into and out of headers (W3C Trace Context), and the spans of publishing and
//! handling with OpenTelemetry's attributes for messaging.

use std::sync::{Arc, LazyLock};

use async_nats::HeaderMap;
use jetwright_process::telemetry::{records, unrecorded};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{FutureExt, SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument, Span, field::Empty};
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

/// The trace that an attempt is part of.
pub(crate) enum Trace {
    /// With a span of its own.
    Recorded(Span),
    /// Without one, since nobody would record it.
    Unrecorded(Context),
}

/// The trace of one attempt at an event: that which the event's headers name, or a new one.
pub(crate) fn of_attempt(binding: &str, metadata: &Arc<Metadata>, headers: Option<&HeaderMap>) -> Trace {
    let context = headers.map(|headers| W3C.extract_with_context(&Context::new(), &Headers(headers)));
    let parent = context.as_ref().map(|context| context.span().span_context().clone());
    match parent.filter(SpanContext::is_valid) {
        Some(parent) if !records() || !parent.is_sampled() => {
            Trace::Unrecorded(unrecorded(parent, Arc::clone(metadata) as _))
        }
        None if !records() => Trace::Unrecorded(unrecorded(new_trace(), Arc::clone(metadata) as _)),
        _ => {
            let span = attempt_span(binding, metadata);
            // Refused only where nothing that knows of traces is installed, and then there is nothing to continue.
            let _ = span.set_parent(context.unwrap_or_default());
            Trace::Recorded(span)
        }
    }
}

impl Trace {
    /// Does something as a part of the trace.
    pub(crate) async fn around<T>(self, work: impl Future<Output = T>) -> T {
        match self {
            Self::Recorded(span) => work.instrument(span).await,
            Self::Unrecorded(context) => work.with_context(context).await,
        }
    }
}

/// A trace that nobody records: it joins what is logged.
fn new_trace() -> SpanContext {
    let (trace, span) = (TraceId::from(rand::random::<u128>()), SpanId::from(rand::random::<u64>()));
    SpanContext::new(trace, span, TraceFlags::default(), false, TraceState::default())
}

/// Writes the context of what goes on into a message's headers; nothing where there is no trace.
pub(crate) fn inject_current(headers: &mut HeaderMap) {
    Context::map_current(|context| W3C.inject_context(context, &mut HeadersMut(headers)));
}

/// The span of publishing one event, and what is to be written into its headers; no span where nobody would record it.
pub(crate) fn of_publish(subject: &str, event_type: &str, headers: &mut HeaderMap) -> Span {
    let current = Context::map_current(|context| context.span().span_context().clone());
    if records() && (current.is_sampled() || !current.is_valid()) {
        let span = publish_span(subject, event_type);
        W3C.inject_context(&span.context(), &mut HeadersMut(headers));
        return span;
    }
    if current.is_valid() {
        inject_current(headers);
    } else {
        let context = Context::new().with_remote_span_context(new_trace());
        W3C.inject_context(&context, &mut HeadersMut(headers));
    }
    Span::none()
}

fn publish_span(subject: &str, event_type: &str) -> Span {
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

fn attempt_span(binding: &str, metadata: &Metadata) -> Span {
    let Metadata { subject, stream, consumer, sequence, attempt, .. } = metadata;
    tracing::info_span!(
        "handle",
        otel.name = format!("process {binding}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        otel.status_description = Empty,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = subject,
        messaging.destination.subscription.name = &**consumer,
        messaging.message.id = format!("{stream}/{sequence}"),
        stream = &**stream,
        sequence,
        attempt,
    )
}

/// Marks the span as failed.
pub(crate) fn failed(span: &Span, error: &dyn std::fmt::Display) {
    span.record("otel.status_code", "error");
    span.record("otel.status_description", tracing::field::display(error));
}
