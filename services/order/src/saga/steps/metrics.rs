//! How long steps take and how they end: a span and a histogram for each.

use std::time::Instant;

use jetwright_proto::events::v1::FulfilmentStep;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tracing::{Instrument, field::Empty};

/// Metrics of the steps. Clones share them.
#[derive(Clone, Debug)]
pub struct StepMetrics {
    durations: Family<Labels, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    step: &'static str,
    outcome: &'static str,
}

impl StepMetrics {
    /// Adds `fulfilment_step_duration_seconds{step, outcome}` to the registry.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        // 1 ms to 16 s.
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let durations = Family::new_with_constructor(buckets);
        let help = "Time that a step of the fulfilment took, by how it ended";
        registry.register("fulfilment_step_duration_seconds", help, durations.clone());
        Self { durations }
    }

    /// Runs a step within its span, and records how it ended: `passed`, `refused` or `failed`.
    pub(super) async fn observe<T>(
        &self,
        step: FulfilmentStep,
        work: impl Future<Output = T>,
        outcome: impl Fn(&T) -> &'static str,
    ) -> T {
        let span =
            tracing::info_span!("step", otel.name = step.name(), outcome = Empty, otel.status_code = Empty);
        let begun = Instant::now();
        let result = work.instrument(span.clone()).await;
        let outcome = outcome(&result);
        span.record("outcome", outcome);
        if outcome == "failed" {
            span.record("otel.status_code", "error");
        }
        let labels = Labels { step: step.name(), outcome };
        self.durations.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
        result
    }
}
