//! The event that is measured with, and its bytes.

use async_nats::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use prost::Name;

use crate::{KEYS, setting::Tracing};

/// 256 bytes in protobuf.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Measured {
    #[prost(fixed64, tag = "1")]
    pub number: u64,
    /// When it was published: nanoseconds of the clock of whoever measures.
    #[prost(fixed64, tag = "2")]
    pub published: u64,
    #[prost(string, tag = "3")]
    pub text: String,
}

impl Name for Measured {
    const NAME: &'static str = "Measured";
    const PACKAGE: &'static str = "benches.v1";

    // As generated code has it.
    fn full_name() -> String {
        "benches.v1.Measured".into()
    }
}

impl Measured {
    pub fn new(number: u64, published: u64) -> Self {
        Self { number, published, text: "x".repeat(235) }
    }

    /// Which of the ordered lanes it belongs to.
    pub fn key(&self) -> u64 {
        self.number % KEYS
    }

    /// Under which it is published, in the stream of this name.
    pub fn subject(&self, stream: &str) -> String {
        format!("{stream}.{}", self.key())
    }
}

/// The trace that an event belongs to, as whoever has it published was told of it.
pub fn trace(number: u64, tracing: Tracing) -> SpanContext {
    let (trace, span) = (TraceId::from(u128::from(number + 1)), SpanId::from(number + 1));
    let flags = TraceFlags::default().with_sampled(tracing.samples(number));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// The headers that the runtime's publisher writes, as a careful hand writes them.
pub fn headers(number: u64, tracing: Tracing) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Event-Type", "benches.v1.Measured");
    headers.insert("Content-Type", "application/protobuf");
    headers.insert("Nats-Msg-Id", format!("{:032x}", rand::random::<u128>()));
    let flags = u8::from(tracing.samples(number));
    headers.insert("traceparent", format!("00-{:032x}-{:016x}-{flags:02x}", number + 1, number + 1));
    headers
}
