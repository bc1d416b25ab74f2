//! The first step: the user who ordered exists. Reads the projection of users, and their stream if the projection has a
//! gap. Changes nothing, so there is nothing to undo.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::HandlerError;

use super::StepResult;
use crate::{order::id, saga::ports::Ports};

/// Refuses an order of an unknown user.
pub(super) async fn validate<P: Ports>(
    ports: &P,
    order: &OrderPlaced,
) -> Result<StepResult<()>, HandlerError> {
    let exists = match id(&order.user_id) {
        Some(user_id) => ports.user_exists(user_id).await?,
        None => false,
    };
    Ok(if exists {
        StepResult::Passed(())
    } else {
        StepResult::Refused(format!("there is no user {}", order.user_id))
    })
}
