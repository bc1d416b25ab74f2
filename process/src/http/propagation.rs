//! The trace's context in HTTP headers (W3C Trace Context), from the caller and on to the next.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::global::get_text_map_propagator;
use opentelemetry::propagation::{Extractor, Injector};

/// Writes the current trace context into the headers of an outgoing request.
pub fn inject(headers: &mut HeaderMap) {
    let context = Context::current();
    get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut Outgoing(headers)));
}

/// The caller's context; empty if the caller sent none.
pub(super) fn extract(headers: &HeaderMap) -> Context {
    get_text_map_propagator(|propagator| propagator.extract(&Incoming(headers)))
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
