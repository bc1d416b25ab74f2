//! The trace of an event: the spans of publishing and handling, and what of them travels in headers.

mod context;
mod names;
mod templates;

use std::{future::poll_fn, pin::Pin, sync::Arc};

use futures::future::Either;
pub(crate) use jetwright_process::telemetry::fail_current;
use jetwright_process::telemetry::{WorkSpan, records};
use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt},
};

use self::context::new_trace;
pub(crate) use self::{
    context::{TRACEPARENT, TRACESTATE, extract, inject, push_hex},
    templates::Templates,
};
use crate::{Error, Metadata};

/// The span of one attempt at an event: in the trace that the event's headers name (`parent`), or in a new one. It links the attempt before it, where this
/// process made that.
pub(crate) fn of_attempt(
    templates: &Templates,
    metadata: &Arc<Metadata>,
    parent: Option<SpanContext>,
    previous: Option<&SpanContext>,
) -> WorkSpan {
    let span = match parent {
        Some(parent) if !records() || !parent.is_sampled() => WorkSpan::unsampled(parent),
        None if !records() => WorkSpan::unsampled(new_trace()),
        parent => {
            let template = templates.of(&metadata.subject);
            WorkSpan::start(names::attempt(metadata, template.as_deref(), previous), parent)
        }
    };
    span.with_fields(Arc::clone(metadata) as _)
}

/// Polls a future within a span. It is borrowed, since it may be large.
pub(crate) async fn within<T>(span: &WorkSpan, mut work: Pin<&mut impl Future<Output = T>>) -> T {
    poll_fn(|context| span.in_scope(|| work.as_mut().poll(context))).await
}

/// The span of publishing one event, or the dead letter of one, within the current one; no span if nobody would record it. And the context
/// that travels with it.
pub(crate) fn of_publish(
    subject: &str,
    template: Option<&str>,
    event_type: Option<&'static str>,
) -> (Option<WorkSpan>, SpanContext) {
    let current = Context::map_current(|context| context.span().span_context().clone());
    if records() && (current.is_sampled() || !current.is_valid()) {
        let parent = Some(current).filter(SpanContext::is_valid);
        let span = WorkSpan::start(names::publish(subject, template, event_type), parent);
        let context = span.span_context();
        return (Some(span), context);
    }
    (None, if current.is_valid() { current } else { new_trace() })
}

/// Publishes within the span, if there is one, and marks it where that fails. Not an `async fn`, whose future would be twice as large.
pub(crate) fn publishing<T>(
    span: Option<WorkSpan>,
    publish: impl Future<Output = Result<T, Error>>,
) -> impl Future<Output = Result<T, Error>> {
    let Some(span) = span else { return Either::Left(publish) };
    let mut publish = Box::pin(publish);
    Either::Right(async move {
        let published = within(&span, publish.as_mut()).await;
        if let Err(error) = &published {
            span.fail(error.kind().as_str(), error);
        }
        published
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, pin::pin};

    use async_nats::HeaderMap;
    use jetwright_process::telemetry::record_with;
    use opentelemetry::trace::{SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};

    use super::*;
    use crate::known_headers::KnownHeaders;

    /// The spans of this trace, oldest first. All tests of the process share the provider.
    fn spans_of(exporter: &InMemorySpanExporter, trace: TraceId) -> Vec<SpanData> {
        let mut spans = exporter.get_finished_spans().unwrap();
        spans.retain(|span| span.span_context.trace_id() == trace);
        spans
    }

    fn attributes(span: &SpanData) -> BTreeMap<&str, String> {
        span.attributes
            .iter()
            .map(|attribute| (attribute.key.as_str(), attribute.value.to_string()))
            .collect()
    }

    #[tokio::test]
    async fn a_sampled_attempt_is_a_span_of_its_trace_in_the_words_of_the_conventions() {
        let exporter = InMemorySpanExporter::default();
        record_with(&SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build());
        let ids = (TraceId::from(7_u128), SpanId::from(9_u64));
        let templates = Templates::default();
        templates.set(&["orders.*.placed"]);
        let attempt = |sampled: bool, attempt: u32, previous: Option<&SpanContext>| {
            let flags = TraceFlags::default().with_sampled(sampled);
            let mut headers = HeaderMap::new();
            inject(&SpanContext::new(ids.0, ids.1, flags, true, TraceState::default()), &mut headers);
            let parent = extract(&headers, KnownHeaders::find(&headers));
            let metadata = Metadata { headers, attempt, ..Metadata::example(7) };
            of_attempt(&templates, &Arc::new(metadata), parent, previous)
        };
        let unsampled = attempt(false, 1, None);
        let work = async || {
            let (publish, travels) = of_publish(
                "payments.42.authorized",
                Some("payments.*.authorized"),
                Some("PaymentAuthorized"),
            );
            drop(publish);
            fail_current("transient", &"busy");
            travels
        };
        let travels = within(&unsampled, pin!(work())).await;
        assert_eq!((travels.trace_id(), travels.span_id(), travels.is_sampled()), (ids.0, ids.1, false));
        drop(unsampled);
        let first = attempt(true, 1, None);
        let previous = first.span_context();
        within(&first, pin!(work())).await;
        drop(first);
        drop(attempt(true, 2, Some(&previous)));

        let spans = spans_of(&exporter, ids.0);
        let [publish, first, second] = spans.as_slice() else { panic!("{spans:?}") };
        assert_eq!((first.parent_span_id, second.parent_span_id), (ids.1, ids.1));
        assert_eq!((first.name.as_ref(), &first.span_kind), ("process orders.*.placed", &SpanKind::Consumer));
        assert_eq!((&first.status, &second.status), (&Status::error("busy"), &Status::Unset));
        assert!(first.links.is_empty());
        assert_eq!(second.links.iter().map(|link| &link.span_context).collect::<Vec<_>>(), [&previous]);
        let expected = [
            ("messaging.system", "nats"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.template", "orders.*.placed"),
            ("messaging.consumer.group.name", "order-fulfilment"),
            ("messaging.destination.subscription.name", "fulfilment"),
            ("messaging.message.id", "orders/7"),
            ("subject", "orders.42.placed"),
            ("stream", "orders"),
            ("sequence", "7"),
            ("attempt", "1"),
            ("error.type", "transient"),
        ];
        assert_eq!(attributes(first), expected.map(|(name, value)| (name, value.to_owned())).into());

        assert_eq!(publish.parent_span_id, first.span_context.span_id());
        assert_eq!(
            (publish.name.as_ref(), &publish.span_kind),
            ("publish payments.*.authorized", &SpanKind::Producer)
        );
        let expected = [
            ("messaging.system", "nats"),
            ("messaging.operation.name", "publish"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.template", "payments.*.authorized"),
            ("event.type", "PaymentAuthorized"),
            ("subject", "payments.42.authorized"),
        ];
        assert_eq!(attributes(publish), expected.map(|(name, value)| (name, value.to_owned())).into());
    }
}
