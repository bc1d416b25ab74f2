//! The context of a trace in the headers of a message (W3C Trace Context): into them and out of them. Pure, but for random ids.

use std::sync::LazyLock;

use async_nats::{HeaderMap, HeaderName};
use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::known_headers::KnownHeaders;

/// Headers of W3C Trace Context.
pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";

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

/// The trace that headers name.
pub(crate) fn extract(headers: &HeaderMap, known: KnownHeaders<'_>) -> Option<SpanContext> {
    let parent = known.traceparent?;
    let plain = match known.tracestate {
        None => plain(parent),
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
    let (trace, rest) = parent.as_bytes().strip_prefix(b"00-")?.split_at_checked(32)?;
    let (span, flags) = rest.strip_prefix(b"-")?.split_at_checked(16)?;
    let sampled = match flags {
        b"-00" => false,
        b"-01" => true,
        _ => return None,
    };
    let (high, low) = trace.split_at(16);
    let trace = (u128::from(hex(high)?) << 64) | u128::from(hex(low)?);
    let (trace, span) = (TraceId::from(trace), SpanId::from(hex(span)?));
    let flags = TraceFlags::default().with_sampled(sampled);
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// The value of at most 16 hexadecimal digits, none of them a capital.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some((value << 4) | u64::from(digit))
    })
}

/// A trace that nobody records: it correlates log lines.
pub(super) fn new_trace() -> SpanContext {
    let (trace, span) = (TraceId::from(rand::random::<u128>()), SpanId::from(rand::random::<u64>()));
    SpanContext::new(trace, span, TraceFlags::default(), false, TraceState::default())
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
            assert_eq!(extract(&headers, KnownHeaders::find(&headers)), Some(context));
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
            assert_eq!(extract(&headers, KnownHeaders::find(&headers)), expected, "{parent}");
        }
    }

    #[test]
    fn without_a_trace_nothing_is_written() {
        let mut headers = HeaderMap::new();
        inject(&SpanContext::NONE, &mut headers);
        assert!(headers.is_empty());
    }
}
