//! Work without a span, because nobody would record the span. Its trace continues in its requests to other programs, and its log
//! lines have the fields of a span, at a small part of a span's cost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt},
};
use serde_json::{Map, Value};
use tokio::task_local;

/// Whether spans are exported. Until telemetry is started, a subscriber of the caller's own may want them.
static RECORDS: AtomicBool = AtomicBool::new(true);

/// Whether spans are exported: if not, sampled spans are of no use.
#[must_use]
pub fn records() -> bool {
    RECORDS.load(Ordering::Relaxed)
}

pub(super) fn set_records(records: bool) {
    RECORDS.store(records, Ordering::Relaxed);
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

/// Work that is part of a trace, without a span of its own.
pub struct UnsampledSpan {
    trace: Context,
    fields: Arc<dyn LogFields>,
}

impl UnsampledSpan {
    /// Work that is part of this trace.
    #[must_use]
    pub fn new(trace: SpanContext, fields: Arc<dyn LogFields>) -> Self {
        Self { trace: Context::new().with_remote_span_context(trace), fields }
    }

    /// Does a part of the work.
    pub fn in_scope<T>(&self, doing: impl FnOnce() -> T) -> T {
        let _attached = self.trace.clone().attach();
        FIELDS.sync_scope(Arc::clone(&self.fields), doing)
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
