//! LogFields of which no span is made, because nobody would record it. Its trace goes on in what it asks of others, and its log lines
//! say what they would say within its span, at a small part of a span's cost.

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

/// Whether spans go anywhere. Until telemetry is started whoever set up tracing is taken to want them.
static RECORDS: AtomicBool = AtomicBool::new(true);

/// Whether spans are exported: if not, sampled ones are no better than none.
#[must_use]
pub fn records() -> bool {
    RECORDS.load(Ordering::Relaxed)
}

pub(super) fn set_records(records: bool) {
    RECORDS.store(records, Ordering::Relaxed);
}

/// What is worked on, as log lines tell it under `span`.
pub trait LogFields: Send + Sync + 'static {
    /// The fields, with `name` among them.
    fn fields(&self) -> Map<String, Value>;
}

task_local! {
    /// What this thread works on now.
    static WORK: Arc<dyn LogFields>;
}

/// LogFields that is part of a trace, without a span of its own.
pub struct UnsampledSpan {
    trace: Context,
    work: Arc<dyn LogFields>,
}

impl UnsampledSpan {
    /// LogFields that is part of this trace.
    #[must_use]
    pub fn new(trace: SpanContext, work: Arc<dyn LogFields>) -> Self {
        Self { trace: Context::new().with_remote_span_context(trace), work }
    }

    /// Does some of the work.
    pub fn in_scope<T>(&self, doing: impl FnOnce() -> T) -> T {
        let _attached = self.trace.clone().attach();
        WORK.sync_scope(Arc::clone(&self.work), doing)
    }
}

/// The fields of the work around this line, if no span is made of it.
pub(super) fn fields() -> Option<Map<String, Value>> {
    WORK.try_with(|work| work.fields()).ok()
}

/// The trace of the work around this line, if it has one.
pub(super) fn span_context() -> Option<SpanContext> {
    Context::map_current(|context| Some(context.span().span_context().clone())).filter(SpanContext::is_valid)
}
