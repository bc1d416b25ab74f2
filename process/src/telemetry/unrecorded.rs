//! Work of which no span is made, because nobody would record it. Its trace goes on in what it asks of others, and its log lines
//! say what they would say within its span, at a small part of a span's cost.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use opentelemetry::{
    Context,
    trace::{SpanContext, TraceContextExt},
};
use serde_json::{Map, Value};

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
pub trait Work: Send + Sync + 'static {
    /// The fields, with `name` among them.
    fn fields(&self) -> Map<String, Value>;
}

/// The work of a context.
struct Unrecorded(Arc<dyn Work>);

impl fmt::Debug for Unrecorded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Unrecorded").field(&self.0.fields()).finish()
    }
}

/// The context of work that is part of this trace. It has to be attached while the work goes on.
#[must_use]
pub fn unrecorded(parent: SpanContext, work: Arc<dyn Work>) -> Context {
    Context::new().with_value(Unrecorded(work)).with_remote_span_context(parent)
}

/// The fields of the work around this line, if no span is made of it.
pub(super) fn fields() -> Option<Map<String, Value>> {
    Context::map_current(|context| context.get::<Unrecorded>().map(|work| work.0.fields()))
}

/// The trace of the work around this line, if it has one.
pub(super) fn span_context() -> Option<SpanContext> {
    Context::map_current(|context| Some(context.span().span_context().clone())).filter(SpanContext::is_valid)
}
