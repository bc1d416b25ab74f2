//! The span of work that comes many times a second: made by OpenTelemetry itself, not by way of `tracing`, which costs several times as much.
//! Where nobody would record the span there is none; the trace goes on in requests to other programs all the same, and log lines have the
//! fields of a span in both cases.

use std::sync::{Arc, OnceLock};

use opentelemetry::{
    Context, KeyValue,
    trace::{SpanBuilder, SpanContext, Status, TraceContextExt, Tracer as _, TracerProvider as _},
};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use serde_json::{Map, Value};
use tokio::task_local;

/// Makes the spans; none while nothing exports them.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();

/// Whether spans are exported: if not, sampled spans are of no use.
#[must_use]
pub fn records() -> bool {
    TRACER.get().is_some()
}

/// From now on spans of work are those of this provider. [`Telemetry::start`](super::Telemetry::start) calls it where traces are exported; a
/// program with telemetry of its own calls it itself. The first call counts.
pub fn record_with(provider: &SdkTracerProvider) {
    let _ = TRACER.set(provider.tracer("jetwright"));
}

/// The fields that log lines show under `span`.
pub trait LogFields: Send + Sync + 'static {
    /// The fields, with `name` among them.
    fn fields(&self) -> Map<String, Value>;
}

task_local! {
    /// The fields of what this thread does now.
    static FIELDS: Arc<dyn LogFields>;
}

/// Work that is part of a trace. Its span, if it has one, ends when this is dropped.
pub struct WorkSpan {
    context: Context,
    /// The fields of its log lines; those of the work around it where there are none.
    fields: Option<Arc<dyn LogFields>>,
}

impl WorkSpan {
    /// Work in this trace, without a span of its own.
    #[must_use]
    pub fn unsampled(trace: SpanContext) -> Self {
        Self { context: Context::new().with_remote_span_context(trace), fields: None }
    }

    /// Work with a span within this one; in a trace of its own where there is none. The sampler decides whether it is recorded; nothing is
    /// while spans are not exported.
    #[must_use]
    pub fn start(builder: SpanBuilder, parent: Option<SpanContext>) -> Self {
        let parent =
            parent.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let context = match TRACER.get() {
            Some(tracer) => parent.with_span(tracer.build_with_context(builder, &parent)),
            None => parent,
        };
        Self { context, fields: None }
    }

    /// A request to another program as a part of the work around this call. None where nobody would record its span, and where there is no such
    /// work: a trace of one request alone says nothing.
    #[must_use]
    pub fn of_request(builder: impl FnOnce() -> SpanBuilder) -> Option<Self> {
        let parent = Context::map_current(|context| context.span().span_context().clone());
        (records() && parent.is_sampled()).then(|| Self::start(builder(), Some(parent)))
    }

    /// With fields that its log lines show.
    #[must_use]
    pub fn with_fields(self, fields: Arc<dyn LogFields>) -> Self {
        Self { fields: Some(fields), ..self }
    }

    /// The context that travels with messages and requests.
    #[must_use]
    pub fn span_context(&self) -> SpanContext {
        self.context.span().span_context().clone()
    }

    /// Says more of it, as how it ended.
    pub fn set_attribute(&self, attribute: KeyValue) {
        self.context.span().set_attribute(attribute);
    }

    /// Marks it as failed: with an error type of few values, and the error's text.
    pub fn fail(&self, error_type: &'static str, error: &dyn std::fmt::Display) {
        fail(&self.context, error_type, error);
    }

    /// Does a part of the work.
    pub fn in_scope<T>(&self, doing: impl FnOnce() -> T) -> T {
        let _attached = self.context.clone().attach();
        match &self.fields {
            Some(fields) => FIELDS.sync_scope(Arc::clone(fields), doing),
            None => doing(),
        }
    }
}

/// Marks the span of the work around this call as failed: with an error type of few values, and the error's text.
pub fn fail_current(error_type: &'static str, error: &dyn std::fmt::Display) {
    Context::map_current(|context| fail(context, error_type, error));
}

fn fail(context: &Context, error_type: &'static str, error: &dyn std::fmt::Display) {
    let span = context.span();
    if span.is_recording() {
        span.set_status(Status::error(error.to_string()));
        span.set_attribute(KeyValue::new("error.type", error_type));
    }
}

/// The fields of the work around this line, if it has no span.
pub(super) fn fields() -> Option<Map<String, Value>> {
    FIELDS.try_with(|fields| fields.fields()).ok()
}

/// The trace of the work around this line, if it has one.
pub(super) fn span_context() -> Option<SpanContext> {
    Context::map_current(|context| Some(context.span().span_context().clone())).filter(SpanContext::is_valid)
}
