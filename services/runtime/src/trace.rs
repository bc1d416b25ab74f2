//! The trace that an event is part of: into and out of headers (W3C Trace Context), and the spans of publishing and
//! handling with OpenTelemetry's attributes for messaging.

use std::sync::{Arc, LazyLock};

use async_nats::{HeaderMap, HeaderName};
use jetwright_process::telemetry::{records, unrecorded};
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
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
    Context::map_current(|context| inject(context.span().span_context(), headers));
}

/// Writes a trace's context into a message's headers; nothing where there is no trace.
pub(crate) fn inject(of: &SpanContext, headers: &mut HeaderMap) {
    if !of.is_valid() {
        return;
    }
    let mut parent = String::with_capacity(55);
    parent.push_str("00-");
    push_hex(&mut parent, &of.trace_id().to_bytes());
    parent.push('-');
    push_hex(&mut parent, &of.span_id().to_bytes());
    parent.push_str(if of.is_sampled() { "-01" } else { "-00" });
    headers.insert(HeaderName::from_static("traceparent"), parent);
    let state = of.trace_state().header();
    // An empty `tracestate` says nothing, and some readers refuse it.
    if !state.is_empty() {
        headers.insert(HeaderName::from_static("tracestate"), state);
    }
}

/// Adds hexadecimal digits. Every message has dozens, and formatting takes several times as long.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]));
}

/// The span of publishing one event, and the context that is to travel with it; no span where nobody would record it.
pub(crate) fn of_publish(subject: &str, event_type: &str) -> (Span, SpanContext) {
    let current = Context::map_current(|context| context.span().span_context().clone());
    if records() && (current.is_sampled() || !current.is_valid()) {
        let span = publish_span(subject, event_type);
        let context = span.context().span().span_context().clone();
        return (span, context);
    }
    (Span::none(), if current.is_valid() { current } else { new_trace() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_headers_is_read_as_it_was() {
        let state = TraceState::from_key_value([("vendor", "a:1")]).unwrap();
        let ids =
            (TraceId::from(0x00fe_dcba_9876_5432_10ff_0a09_0807_0605), SpanId::from(0x0102_0304_0506_0708));
        for (sampled, state) in [(false, TraceState::default()), (true, state)] {
            let flags = TraceFlags::default().with_sampled(sampled);
            let context = SpanContext::new(ids.0, ids.1, flags, true, state);
            let mut headers = HeaderMap::new();
            inject(&context, &mut headers);
            let read = W3C.extract_with_context(&Context::new(), &Headers(&headers));
            assert_eq!(*read.span().span_context(), context);
            assert_eq!(headers.len(), 1 + usize::from(sampled));
        }
    }

    #[test]
    fn without_a_trace_nothing_is_written() {
        let mut headers = HeaderMap::new();
        inject(&SpanContext::NONE, &mut headers);
        assert!(headers.is_empty());
    }
}
