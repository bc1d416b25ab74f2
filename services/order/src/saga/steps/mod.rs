//! The steps of the saga, in their order: one file for each, with what undoes it. Each is a span and a metric.
//!
//! | step | does | undone by |
//! | --- | --- | --- |
//! | `user_validation` | reads whether the user exists | – |
//! | `inventory_reservation` | reserves the pieces | `release` |
//! | `payment_authorization` | authorizes the amount | `void` |

mod inventory_reservation;
mod metrics;
mod payment_authorization;
mod user_validation;

use jetwright_proto::events::v1::{FulfilmentStep, OrderPlaced};
use jetwright_runtime::HandlerError;
use tokio::time::Instant;

pub use self::metrics::StepMetrics;
use crate::saga::ports::Ports;

/// How a step ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StepResult<T> {
    /// The order may continue.
    Passed(T),
    /// It may not, and why, in words for the user.
    Refused(String),
}

/// The decision of the steps about an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every step passed: the pieces are reserved, and this authorization pays for them.
    Passed {
        /// As the payment gateway named it.
        authorization_id: String,
    },
    /// A step refused.
    Refused {
        /// Which one.
        step: FulfilmentStep,
        /// Why, in words for the user.
        reason: String,
    },
}

/// Why the steps end before the last one passed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Interruption {
    /// A step refused.
    Refused(FulfilmentStep, String),
    /// A step could not decide.
    Undecided(FulfilmentStep, HandlerError),
}

/// The steps of one attempt at one order.
#[derive(Debug)]
pub struct Steps<'a, P: Ports> {
    /// The saga's access to everything outside.
    pub ports: &'a P,
    /// Records how they end.
    pub metrics: &'a StepMetrics,
    /// The order.
    pub order: &'a OrderPlaced,
    /// The order's version that this attempt decides on.
    pub version: &'a P::Version,
    /// Deadline at which an undecided step is interrupted.
    pub deadline: Instant,
}

impl<P: Ports> Steps<'_, P> {
    /// Takes the order through all steps, up to the first that refuses.
    ///
    /// # Errors
    ///
    /// The step that could not decide, and why.
    pub async fn take(&self) -> Result<Verdict, (FulfilmentStep, HandlerError)> {
        match self.pass_all().await {
            Ok(authorization_id) => Ok(Verdict::Passed { authorization_id }),
            Err(Interruption::Refused(step, reason)) => Ok(Verdict::Refused { step, reason }),
            Err(Interruption::Undecided(step, failure)) => Err((step, failure)),
        }
    }

    async fn pass_all(&self) -> Result<String, Interruption> {
        use FulfilmentStep::{InventoryReservation, PaymentAuthorization, UserValidation};
        let Self { ports, order, version, .. } = self;
        // Boxed, since what a step awaits is large, and is moved through what bounds and observes it.
        self.pass(UserValidation, Box::pin(user_validation::validate(*ports, order))).await?;
        let reserving = Box::pin(inventory_reservation::reserve(*ports, order, version));
        self.pass(InventoryReservation, reserving).await?;
        self.pass(PaymentAuthorization, Box::pin(payment_authorization::authorize(*ports, order))).await
    }

    /// Runs one step up to the deadline.
    async fn pass<T: Send>(
        &self,
        step: FulfilmentStep,
        work: impl Future<Output = Result<StepResult<T>, HandlerError>> + Send,
    ) -> Result<T, Interruption> {
        let late = || Err(HandlerError::transient("the step did not decide before the attempt's deadline"));
        let bounded = async { self.ports.until(self.deadline, work).await.unwrap_or_else(late) };
        match self.metrics.observe(step, bounded).await {
            Ok(StepResult::Passed(passed)) => Ok(passed),
            Ok(StepResult::Refused(reason)) => Err(Interruption::Refused(step, reason)),
            Err(failure) => Err(Interruption::Undecided(step, failure)),
        }
    }
}

/// Completes what the steps did for a confirmed order: removes its pieces from the stock.
///
/// # Errors
///
/// The stock cannot be changed now.
pub async fn complete<P: Ports>(ports: &P, order: &OrderPlaced) -> Result<(), HandlerError> {
    inventory_reservation::commit(ports, order).await
}

/// Undoes the effects of all attempts at a rejected order, each step whether or not the other can be undone now.
///
/// # Errors
///
/// Something is not undone yet.
pub async fn undo<P: Ports>(ports: &P, order: &OrderPlaced, reason: &str) -> Result<(), HandlerError> {
    let (released, voided) = tokio::join!(
        inventory_reservation::release(ports, order),
        payment_authorization::void(ports, &order.order_id, reason),
    );
    released.and(voided)
}
