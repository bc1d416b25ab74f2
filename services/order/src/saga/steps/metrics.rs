//! How long steps take and how they end: a span and a histogram for each.

use std::time::Instant;

use jetwright_proto::events::v1::FulfilmentStep;
use jetwright_runtime::HandlerError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tracing::{Instrument, field::Empty};

use super::StepResult;
use crate::metrics::STEP_DURATION;

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
        STEP_DURATION.register(registry, durations.clone());
        Self { durations }
    }

    /// Runs a step within its span, and records how it ended: `passed`, `refused` or `failed`. The span of a step that did not pass is an error
    /// with the reason: of the trace of a rejected order, that is the one span to look at.
    pub(super) async fn observe<T>(
        &self,
        step: FulfilmentStep,
        work: impl Future<Output = Result<StepResult<T>, HandlerError>>,
    ) -> Result<StepResult<T>, HandlerError> {
        let span = tracing::info_span!(
            "step",
            otel.name = step.name(),
            outcome = Empty,
            error.type = Empty,
            otel.status_description = Empty,
        );
        let begun = Instant::now();
        let result = work.instrument(span.clone()).await;
        let (outcome, error) = match &result {
            Ok(StepResult::Passed(_)) => ("passed", None),
            Ok(StepResult::Refused(reason)) => ("refused", Some(reason.clone())),
            Err(failure) => ("failed", Some(failure.to_string())),
        };
        span.record("outcome", outcome);
        if let Some(error) = error {
            // A description makes it an error.
            span.record("error.type", outcome).record("otel.status_description", error);
        }
        let labels = Labels { step: step.name(), outcome };
        self.durations.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
        result
    }
}
