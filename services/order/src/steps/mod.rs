//! The steps of the fulfilment, in their order. Each is a span and a metric.

mod inventory_reservation;
mod payment_authorization;
mod user_validation;

use std::{future::Future, time::Instant};

use jetwright_proto::events::v1::{FulfilmentStep, OrderPlaced};
use jetwright_runtime::Failure;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tracing::{Instrument, Span, field::Empty};

use crate::{inventory::Inventory, orders::Orders, payments::Payments, users::Users};

/// What the steps work with.
#[derive(Clone, Debug)]
pub struct Steps {
    /// What orders have come to.
    pub orders: Orders,
    /// Who may order.
    pub users: Users,
    /// What there is.
    pub inventory: Inventory,
    /// How it is paid.
    pub payments: Payments,
    /// How long each step takes and how it ends.
    pub metrics: StepMetrics,
}

/// How a step, or all of them, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// The order may go on, with what the step has to tell.
    Passed(T),
    /// It may not, and why, in words for the user.
    Refused(FulfilmentStep, String),
}

impl Steps {
    /// Takes an order through all steps, up to the first that refuses. Passing gives the payment's authorization.
    ///
    /// # Errors
    ///
    /// A step could not decide.
    pub async fn take(&self, order: &OrderPlaced) -> Result<Verdict<String>, Failure> {
        use FulfilmentStep::{InventoryReservation, PaymentAuthorization, UserValidation};
        let checked = self.step(UserValidation, user_validation::validate(&self.users, order)).await?;
        if let Verdict::Refused(step, why) = checked {
            return Ok(Verdict::Refused(step, why));
        }
        let reserving = inventory_reservation::reserve(&self.inventory, &self.orders, order);
        if let Verdict::Refused(step, why) = self.step(InventoryReservation, reserving).await? {
            return Ok(Verdict::Refused(step, why));
        }
        self.step(PaymentAuthorization, payment_authorization::authorize(&self.payments, order)).await
    }

    /// Runs one step within its span, and notes how it ended.
    async fn step<T>(
        &self,
        step: FulfilmentStep,
        work: impl Future<Output = Result<Result<T, String>, Failure>>,
    ) -> Result<Verdict<T>, Failure> {
        let span =
            tracing::info_span!("step", otel.name = step.name(), outcome = Empty, otel.status_code = Empty);
        let begun = Instant::now();
        let result = work.instrument(span.clone()).await;
        let outcome = match &result {
            Ok(Ok(_)) => "passed",
            Ok(Err(_)) => "refused",
            Err(_) => "failed",
        };
        note(&span, outcome);
        let labels = Step { step: step.name(), outcome };
        self.metrics.durations.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
        Ok(match result? {
            Ok(told) => Verdict::Passed(told),
            Err(why) => Verdict::Refused(step, why),
        })
    }
}

fn note(span: &Span, outcome: &'static str) {
    span.record("outcome", outcome);
    if outcome == "failed" {
        span.record("otel.status_code", "error");
    }
}

/// Metrics of the steps. Clones share them.
#[derive(Clone, Debug)]
pub struct StepMetrics {
    durations: Family<Step, Histogram, fn() -> Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Step {
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
}
