//! The first step: the user who ordered exists. Reads the projection of users, and their stream where it has a gap.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::Failure;

use crate::{order::id, users::Users};

/// Refuses an order of nobody.
pub(super) async fn validate(users: &Users, order: &OrderPlaced) -> Result<Result<(), String>, Failure> {
    let exists = match id(&order.user_id) {
        Some(user_id) => users.exists(user_id).await?,
        None => false,
    };
    Ok(if exists { Ok(()) } else { Err(format!("there is no user {}", order.user_id)) })
}
