//! The names of spans and of their attributes, which are those of OpenTelemetry's conventions for messaging (version 1.44, where they are in
//! development). Pure. What a name is made of has few values: never a subject with an id in it.

use opentelemetry::{
    KeyValue, Value,
    trace::{Link, SpanBuilder, SpanContext, SpanKind},
};

use crate::Metadata;

/// No system of this name is listed in the conventions, and everybody uses it.
const SYSTEM: &str = "nats";

/// The span of publishing one event, or the dead letter of one, which has no type of its own.
pub(super) fn publish(
    subject: &str,
    template: Option<&str>,
    event_type: Option<&'static str>,
) -> SpanBuilder {
    let mut attributes = vec![
        KeyValue::new("messaging.system", SYSTEM),
        KeyValue::new("messaging.operation.name", "publish"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("subject", subject.to_owned()),
    ];
    attributes.extend(event_type.map(|event_type| KeyValue::new("event.type", event_type)));
    attributes.extend(
        template.map(|template| KeyValue::new("messaging.destination.template", template.to_owned())),
    );
    let name = format!("publish {}", template.or(event_type).unwrap_or("event"));
    SpanBuilder::from_name(name).with_kind(SpanKind::Producer).with_attributes(attributes)
}

/// The span of one attempt at an event, which links the attempt before it.
pub(super) fn attempt(
    metadata: &Metadata,
    template: Option<&str>,
    previous: Option<&SpanContext>,
) -> SpanBuilder {
    let Metadata { subject, partition, source, sequence, attempt, .. } = metadata;
    let name = format!("process {}", template.unwrap_or(&source.stream));
    let number = |value: u64| Value::I64(i64::try_from(value).unwrap_or(i64::MAX));
    let destination = match template {
        Some(template) => KeyValue::new("messaging.destination.template", template.to_owned()),
        // A consumer of everything: the stream is all that can be said of where its events come from.
        None => KeyValue::new("messaging.destination.name", source.stream.clone()),
    };
    let mut attributes = vec![
        KeyValue::new("messaging.system", SYSTEM),
        KeyValue::new("messaging.operation.name", "process"),
        KeyValue::new("messaging.operation.type", "process"),
        destination,
        KeyValue::new("messaging.consumer.group.name", source.event_consumer.clone()),
        KeyValue::new("messaging.destination.subscription.name", source.consumer.clone()),
        KeyValue::new("messaging.message.id", format!("{}/{sequence}", source.stream)),
        KeyValue::new("subject", subject.as_str().to_owned()),
        KeyValue::new("stream", source.stream.clone()),
        KeyValue::new("sequence", number(*sequence)),
        KeyValue::new("attempt", number((*attempt).into())),
    ];
    if let Some(partition) = partition {
        attributes.push(KeyValue::new("messaging.destination.partition.id", partition.to_string()));
    }
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Consumer).with_attributes(attributes);
    match previous {
        Some(previous) => builder.with_links(vec![Link::with_context(previous.clone())]),
        None => builder,
    }
}
