//! The trace of an event: into and out of headers (W3C Trace Context), and the spans of publishing and handling with
//! OpenTelemetry's attributes for messaging.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, LazyLock},
};

use async_nats::{HeaderMap, HeaderName};
use jetwright_process::telemetry::{UnsampledSpan, records};
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{
    Span,
    field::{Empty, display},
};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::Metadata;

/// Headers of W3C Trace Context.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

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

/// The trace of an attempt.
pub(crate) enum Trace {
    /// With a span of its own.
    Recorded(Span),
    /// Without a span, since nobody would record it.
    UnsampledSpan(UnsampledSpan),
}

/// The trace of one attempt at an event: that of the event's headers, or a new one.
pub(crate) fn of_attempt(binding: &str, metadata: &Arc<Metadata>) -> Trace {
    let parent = extract(&metadata.headers);
    let unsampled = |trace| Trace::UnsampledSpan(UnsampledSpan::new(trace, Arc::clone(metadata) as _));
    match parent {
        Some(parent) if !records() || !parent.is_sampled() => unsampled(parent),
        None if !records() => unsampled(new_trace()),
        parent => {
            let span = attempt_span(binding, metadata);
            let context = parent.map(|parent| Context::new().with_remote_span_context(parent));
            // Refused only if no telemetry is installed, and then there is nothing to continue.
            let _ = span.set_parent(context.unwrap_or_default());
            Trace::Recorded(span)
        }
    }
}

impl Trace {
    /// Polls a future within the trace. The trace is borrowed, since it is large.
    pub(crate) async fn around<T>(self, mut work: Pin<&mut impl Future<Output = T>>) -> T {
        poll_fn(|context| {
            let poll = || work.as_mut().poll(context);
            match &self {
                Self::Recorded(span) => span.in_scope(poll),
                Self::UnsampledSpan(unsampled) => unsampled.in_scope(poll),
            }
        })
        .await
    }
}

/// The trace that headers name.
fn extract(headers: &HeaderMap) -> Option<SpanContext> {
    let parent = headers.get(HeaderName::from_static(TRACEPARENT))?;
    let plain = match headers.get(HeaderName::from_static(TRACESTATE)) {
        None => plain(parent.as_str()),
        Some(_) => None,
    };
    let context = plain.unwrap_or_else(|| {
        let context = W3C.extract_with_context(&Context::new(), &Headers(headers));
        context.span().span_context().clone()
    });
    Some(context).filter(SpanContext::is_valid)
}

/// Reads the usual `traceparent`: of the first version, sampled or not, and nothing else. Every event has one, for which the
/// propagator allocates several times.
fn plain(parent: &str) -> Option<SpanContext> {
    let digits = |text: &str| text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    let (trace, rest) = parent.strip_prefix("00-")?.split_at_checked(32)?;
    let (span, flags) = rest.strip_prefix('-')?.split_at_checked(16)?;
    let sampled = match flags {
        "-00" => false,
        "-01" => true,
        _ => return None,
    };
    if !digits(trace) || !digits(span) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let flags = TraceFlags::default().with_sampled(sampled);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// A trace that nobody records: it correlates log lines.
fn new_trace() -> SpanContext {
    let (trace, span) = (TraceId::from(rand::random::<u128>()), SpanId::from(rand::random::<u64>()));
    SpanContext::new(trace, span, TraceFlags::default(), false, TraceState::default())
}

/// Writes the current context into a message's headers; nothing if there is no trace.
pub(crate) fn inject_current(headers: &mut HeaderMap) {
    Context::map_current(|context| inject(context.span().span_context(), headers));
}

/// Writes a trace's context into a message's headers; nothing if there is no trace.
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
    headers.insert(HeaderName::from_static(TRACEPARENT), parent);
    let state = of.trace_state().header();
    // An empty `tracestate` says nothing, and some readers refuse it.
    if !state.is_empty() {
        headers.insert(HeaderName::from_static(TRACESTATE), state);
    }
}

/// Adds hexadecimal digits. Every message has dozens, and formatting takes several times as long.
pub(crate) fn push_hex(text: &mut String, bytes: &[u8]) {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]));
}

/// The span of publishing one event, and the context that travels with it; no span if nobody would record it.
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
        error.type = Empty,
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = subject,
    )
}

fn attempt_span(binding: &str, metadata: &Metadata) -> Span {
    let Metadata { subject, source, sequence, attempt, .. } = metadata;
    tracing::info_span!(
        "handle",
        otel.name = format!("process {binding}"),
        otel.kind = "consumer",
        otel.status_code = Empty,
        otel.status_description = Empty,
        error.type = Empty,
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.name = subject.as_str(),
        messaging.destination.subscription.name = source.consumer,
        messaging.message.id = format!("{}/{sequence}", source.stream),
        stream = source.stream,
        sequence,
        attempt,
    )
}

/// Marks the span as failed, with an error type of few values.
pub(crate) fn failed(span: &Span, way: &str, error: &dyn fmt::Display) {
    span.record("otel.status_code", "error");
    span.record("otel.status_description", display(error));
    span.record("error.type", way);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, pin::pin};

    use opentelemetry::trace::{SpanKind, Status, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[tokio::test]
    async fn a_sampled_attempt_is_a_span_of_its_trace_in_the_words_of_the_conventions() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let ids = (TraceId::from(7_u128), SpanId::from(9_u64));
        let traces = [true, false].map(|sampled| {
            let flags = TraceFlags::default().with_sampled(sampled);
            let mut headers = HeaderMap::new();
            inject(&SpanContext::new(ids.0, ids.1, flags, true, TraceState::default()), &mut headers);
            let metadata = Metadata { headers, attempt: 2, ..Metadata::example(7) };
            of_attempt("order-fulfilment", &Arc::new(metadata))
        });
        for trace in traces {
            trace.around(pin!(async { failed(&Span::current(), "transient", &"busy") })).await;
        }
        let spans = exporter.get_finished_spans().unwrap();
        let [span] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((span.span_context.trace_id(), span.parent_span_id), ids);
        assert_eq!((span.name.as_ref(), &span.span_kind), ("process order-fulfilment", &SpanKind::Consumer));
        assert_eq!(span.status, Status::error("busy"));
        let attributes: BTreeMap<_, _> = span
            .attributes
            .iter()
            .map(|attribute| (attribute.key.as_str(), attribute.value.to_string()))
            .collect();
        for (name, value) in [
            ("messaging.system", "nats"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", "orders.42.placed"),
            ("messaging.destination.subscription.name", "fulfilment"),
            ("messaging.message.id", "orders/7"),
            ("error.type", "transient"),
            ("attempt", "2"),
        ] {
            assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}: {attributes:?}");
        }
    }

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
            assert_eq!(extract(&headers), Some(context));
            assert_eq!(headers.len(), 1 + usize::from(sampled));
        }
    }

    #[test]
    fn what_is_read_is_what_the_propagator_reads() {
        let (trace, span) = ("00fedcba9876543210ff0a0908070605", "0102030405060708");
        for parent in [
            format!("00-{trace}-{span}-01"),
            format!("00-{trace}-{span}-00"),
            format!("00-{trace}-{span}-03"),
            format!("01-{trace}-{span}-01-more"),
            format!("00-{trace}-{span}-01-more"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}01"),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-+{}-{span}-01", &trace[1..]),
            format!("00-{}é-{span}-01", &trace[2..]),
            format!("00-{trace}é{span}-01"),
            format!("ff-{trace}-{span}-01"),
            trace.to_owned(),
            String::new(),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, parent.as_str());
            let context = W3C.extract_with_context(&Context::new(), &Headers(&headers));
            let expected = Some(context.span().span_context().clone()).filter(SpanContext::is_valid);
            assert_eq!(extract(&headers), expected, "{parent}");
        }
    }

    #[test]
    fn without_a_trace_nothing_is_written() {
        let mut headers = HeaderMap::new();
        inject(&SpanContext::NONE, &mut headers);
        assert!(headers.is_empty());
    }
}
