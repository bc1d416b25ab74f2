//! The names of spans and of their attributes, which are those of OpenTelemetry's conventions for messaging (version 1.44, where they are in
//! development). Pure. What a name is made of has few values: never a subject with an id in it.

use std::{borrow::Cow, sync::Arc};

use opentelemetry::{
    KeyValue, Value,
    trace::{Link, SpanBuilder, SpanContext, SpanKind},
};

use super::templates::Template;
use crate::Metadata;

/// No system of this name is listed in the conventions, and everybody uses it.
const SYSTEM: &str = "nats";

/// The span of publishing one event, or the dead letter of one, which has no type of its own.
pub(super) fn publish(
    subject: &str,
    template: Option<Cow<'static, str>>,
    event_type: Option<&'static str>,
) -> SpanBuilder {
    let name = ["publish ", template.as_deref().or(event_type).unwrap_or("event")].concat();
    let mut attributes = Vec::with_capacity(6);
    attributes.extend([
        KeyValue::new("messaging.system", SYSTEM),
        KeyValue::new("messaging.operation.name", "publish"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("subject", subject.to_owned()),
    ]);
    attributes.extend(event_type.map(|event_type| KeyValue::new("event.type", event_type)));
    attributes.extend(template.map(|template| KeyValue::new("messaging.destination.template", template)));
    SpanBuilder::from_name(name).with_kind(SpanKind::Producer).with_attributes(attributes)
}

/// The span of one attempt at an event, which links the attempt before it. What all events of a consumer share is not copied.
pub(super) fn attempt(
    metadata: &Metadata,
    template: Option<Template>,
    previous: Option<&SpanContext>,
) -> SpanBuilder {
    let Metadata { subject, source, sequence, attempt, .. } = metadata;
    let number = |value: u64| Value::I64(i64::try_from(value).unwrap_or(i64::MAX));
    let (name, destination) = match template {
        Some(Template { filter, attempt }) => {
            (attempt.to_string(), KeyValue::new("messaging.destination.template", filter))
        }
        // A consumer of everything: the stream is all that can be said of where its events come from.
        None => (
            ["process ", &*source.stream].concat(),
            KeyValue::new("messaging.destination.name", Arc::clone(&source.stream)),
        ),
    };
    let attributes = vec![
        KeyValue::new("messaging.system", SYSTEM),
        KeyValue::new("messaging.operation.name", "process"),
        KeyValue::new("messaging.operation.type", "process"),
        destination,
        KeyValue::new("messaging.consumer.group.name", Arc::clone(&source.event_consumer)),
        KeyValue::new("messaging.destination.subscription.name", Arc::clone(&source.consumer)),
        KeyValue::new("messaging.message.id", format!("{}/{sequence}", source.stream)),
        KeyValue::new("subject", subject.as_str().to_owned()),
        KeyValue::new("stream", Arc::clone(&source.stream)),
        KeyValue::new("sequence", number(*sequence)),
        KeyValue::new("attempt", number((*attempt).into())),
    ];
    let builder = SpanBuilder::from_name(name).with_kind(SpanKind::Consumer).with_attributes(attributes);
    match previous {
        Some(previous) => builder.with_links(vec![Link::with_context(previous.clone())]),
        None => builder,
    }
}
