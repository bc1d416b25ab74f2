//! In: spans. Out: the body of a request to a collector, as OTLP has it in protobuf (opentelemetry/proto/trace/v1/trace.proto). Pure.
//!
//! Written at once: to make the generated types of them first, with a copy of every key and value, takes more of the processor than all the
//! rest of a span.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanContext, SpanId, SpanKind, Status};
use opentelemetry::{Array, InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;

/// Wire types of protobuf.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

/// Flags of a span or link beside those of its trace: whether it is known if the context is remote, and whether it is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Bytes that a span usually takes, to begin with.
const SPAN_BYTES: usize = 512;

/// The body of a request with these spans of a program.
pub(super) fn encode(resource: &Resource, spans: &[SpanData]) -> Vec<u8> {
    let mut body = Message(Vec::with_capacity(spans.len() * SPAN_BYTES));
    body.message(1, |of_resource| {
        of_resource.message(1, |message| {
            for (key, value) in resource {
                message.message(1, |attribute| key_value(attribute, key.as_str(), value));
            }
        });
        let mut scopes: Vec<&InstrumentationScope> = Vec::new();
        for span in spans {
            if !scopes.contains(&&span.instrumentation_scope) {
                scopes.push(&span.instrumentation_scope);
            }
        }
        for scope in scopes {
            let spans = spans.iter().filter(|span| span.instrumentation_scope == *scope);
            of_resource.message(2, |message| of_scope(message, scope, spans));
        }
        of_resource.text(3, resource.schema_url().unwrap_or_default());
    });
    body.0
}

fn of_scope<'a>(
    message: &mut Message,
    scope: &InstrumentationScope,
    spans: impl Iterator<Item = &'a SpanData>,
) {
    message.message(1, |message| {
        message.text(1, scope.name());
        message.text(2, scope.version().unwrap_or_default());
        attributes(message, 3, scope.attributes());
    });
    for one in spans {
        message.message(2, |message| span(message, one));
    }
    message.text(3, scope.schema_url().unwrap_or_default());
}

fn span(message: &mut Message, span: &SpanData) {
    context(message, &span.span_context);
    if span.parent_span_id != SpanId::INVALID {
        message.bytes(4, &span.parent_span_id.to_bytes());
    }
    message.text(5, &span.name);
    message.number(
        6,
        match span.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
    );
    message.fixed64(7, nanoseconds(span.start_time));
    message.fixed64(8, nanoseconds(span.end_time));
    attributes(message, 9, span.attributes.iter());
    message.number(10, span.dropped_attributes_count.into());
    for one in &span.events.events {
        message.message(11, |message| event(message, one));
    }
    message.number(12, span.events.dropped_count.into());
    for one in &span.links.links {
        message.message(13, |message| link(message, one));
    }
    message.number(14, span.links.dropped_count.into());
    message.message(15, |message| match &span.status {
        Status::Unset => {}
        Status::Ok => message.number(3, 1),
        Status::Error { description } => {
            message.text(2, description);
            message.number(3, 2);
        }
    });
    message.fixed32(16, flags(&span.span_context, span.parent_span_is_remote));
}

fn event(message: &mut Message, event: &Event) {
    message.fixed64(1, nanoseconds(event.timestamp));
    message.text(2, &event.name);
    attributes(message, 3, event.attributes.iter());
    message.number(4, event.dropped_attributes_count.into());
}

fn link(message: &mut Message, link: &Link) {
    context(message, &link.span_context);
    attributes(message, 4, link.attributes.iter());
    message.number(5, link.dropped_attributes_count.into());
    message.fixed32(6, flags(&link.span_context, link.span_context.is_remote()));
}

/// What a span and a link have in common.
fn context(message: &mut Message, context: &SpanContext) {
    message.bytes(1, &context.trace_id().to_bytes());
    message.bytes(2, &context.span_id().to_bytes());
    message.text(3, &context.trace_state().header());
}

fn flags(context: &SpanContext, is_remote: bool) -> u32 {
    let remote = if is_remote { HAS_IS_REMOTE | IS_REMOTE } else { HAS_IS_REMOTE };
    u32::from(context.trace_flags().to_u8()) | remote
}

fn attributes<'a>(message: &mut Message, field: u8, attributes: impl Iterator<Item = &'a KeyValue>) {
    for KeyValue { key, value, .. } in attributes {
        message.message(field, |message| key_value(message, key.as_str(), value));
    }
}

fn key_value(message: &mut Message, key: &str, value: &Value) {
    message.text(1, key);
    message.message(2, |message| any_value(message, value));
}

/// Of a value, its kind is said also where it is empty or 0.
fn any_value(message: &mut Message, value: &Value) {
    match value {
        Value::String(text) => message.some_bytes(1, text.as_str().as_bytes()),
        Value::Bool(holds) => message.some_number(2, (*holds).into()),
        Value::I64(number) => message.some_number(3, number.cast_unsigned()),
        Value::F64(number) => message.some_fixed64(4, number.to_bits()),
        Value::Array(array) => message.message(5, |message| array_value(message, array)),
        // A kind that a later version of the library adds.
        other => message.some_bytes(1, other.to_string().as_bytes()),
    }
}

fn array_value(message: &mut Message, array: &Array) {
    let mut each = |value: &Value| message.message(1, |message| any_value(message, value));
    match array {
        Array::Bool(values) => values.iter().for_each(|value| each(&Value::Bool(*value))),
        Array::I64(values) => values.iter().for_each(|value| each(&Value::I64(*value))),
        Array::F64(values) => values.iter().for_each(|value| each(&Value::F64(*value))),
        Array::String(values) => values.iter().for_each(|value| each(&Value::String(value.clone()))),
        _ => {}
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The bytes of a message. Fields that have their default value are left out.
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    fn tag(&mut self, field: u8, wire_type: u8) {
        self.varint(u64::from(field) << 3 | u64::from(wire_type));
    }

    fn number(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.some_number(field, value);
        }
    }

    fn some_number(&mut self, field: u8, value: u64) {
        self.tag(field, VARINT);
        self.varint(value);
    }

    fn fixed64(&mut self, field: u8, value: u64) {
        if value != 0 {
            self.some_fixed64(field, value);
        }
    }

    fn some_fixed64(&mut self, field: u8, value: u64) {
        self.tag(field, FIXED64);
        self.0.extend(value.to_le_bytes());
    }

    fn fixed32(&mut self, field: u8, value: u32) {
        self.tag(field, FIXED32);
        self.0.extend(value.to_le_bytes());
    }

    fn text(&mut self, field: u8, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn bytes(&mut self, field: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.some_bytes(field, bytes);
        }
    }

    fn some_bytes(&mut self, field: u8, bytes: &[u8]) {
        self.tag(field, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A message within this one. Its length stands before it, and is known after it: most take one byte, for which there is room.
    fn message(&mut self, field: u8, write: impl FnOnce(&mut Self)) {
        self.tag(field, BYTES);
        let start = self.0.len();
        self.0.push(0);
        write(self);
        let bytes = self.0.len() - start - 1;
        if let Ok(short @ ..0x80) = u8::try_from(bytes) {
            self.0[start] = short;
            return;
        }
        let mut length = Self(Vec::new());
        length.varint(bytes as u64);
        self.0.splice(start..=start, length.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use opentelemetry::StringValue;
    use opentelemetry::trace::{TraceFlags, TraceId, TraceState};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use prost::Message as _;

    use super::*;

    fn context(id: u64, is_remote: bool) -> SpanContext {
        let state = TraceState::from_key_value([("vendor", "a:1")]).unwrap();
        SpanContext::new(TraceId::from(7_u128), SpanId::from(id), TraceFlags::SAMPLED, is_remote, state)
    }

    fn example(status: Status, parent: SpanId, scope: InstrumentationScope) -> SpanData {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let strings = vec![StringValue::from("a"), StringValue::from("")];
        let attributes = vec![
            KeyValue::new("text", "x".repeat(300)),
            KeyValue::new("empty", ""),
            KeyValue::new("number", -5_i64),
            KeyValue::new("zero", 0_i64),
            KeyValue::new("fraction", 0.5),
            KeyValue::new("flag", false),
            KeyValue::new("texts", Value::Array(Array::String(strings))),
            KeyValue::new("numbers", Value::Array(Array::I64(vec![0, i64::MIN]))),
            KeyValue::new("fractions", Value::Array(Array::F64(vec![0.0, 1.5]))),
            KeyValue::new("flags", Value::Array(Array::Bool(vec![true, false]))),
        ];
        let mut events = SpanEvents::default();
        events.events.push(Event::new("event", at(2), vec![KeyValue::new("level", "INFO")], 3));
        events.dropped_count = 4;
        let mut links = SpanLinks::default();
        links.links.push(Link::new(context(5, true), vec![KeyValue::new("why", "retry")], 0));
        links.links.push(Link::new(SpanContext::NONE, Vec::new(), 1));
        SpanData {
            span_context: context(9, false),
            parent_span_id: parent,
            parent_span_is_remote: parent != SpanId::INVALID,
            span_kind: SpanKind::Consumer,
            name: "process orders.*.placed".into(),
            start_time: at(1),
            end_time: at(3),
            attributes,
            dropped_attributes_count: 2,
            events,
            links,
            status,
            instrumentation_scope: scope,
        }
    }

    #[test]
    fn what_is_written_is_what_the_librarys_own_types_are() {
        let resource = Resource::builder_empty()
            .with_schema_url(
                [KeyValue::new("service.name", "orders"), KeyValue::new("n", 7_i64)],
                "https://a.test",
            )
            .build();
        let scope = || InstrumentationScope::builder("jetwright").with_version("1").build();
        let other =
            InstrumentationScope::builder("other").with_attributes([KeyValue::new("a", 1_i64)]).build();
        let spans = vec![
            example(Status::Unset, SpanId::INVALID, scope()),
            example(Status::error("no such user"), SpanId::from(3_u64), other),
            example(Status::Ok, SpanId::from(3_u64), scope()),
        ];
        let written = ExportTraceServiceRequest::decode(encode(&resource, &spans).as_slice()).unwrap();
        let resource_spans = group_spans_by_resource_and_scope(spans, &(&resource).into());
        let mut expected = ExportTraceServiceRequest { resource_spans };
        // Their order is that of a hash map.
        let by_key = |request: &mut ExportTraceServiceRequest| {
            let resource = request.resource_spans[0].resource.as_mut().unwrap();
            resource.attributes.sort_by(|one, other| one.key.cmp(&other.key));
        };
        let mut written = written;
        by_key(&mut written);
        by_key(&mut expected);
        assert_eq!(written, expected);
    }
}
