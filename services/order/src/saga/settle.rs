//! Does by hand for one order what the saga's handlers do.

use std::sync::Arc;

use anyhow::bail;
use jetwright_runtime::{Handler, HandlerError, HeaderMap, Metadata, Setup, Source};
use jiff::Timestamp;
use uuid::Uuid;

use super::{COMPENSATION, FULFILMENT, Saga, ports::Ports};
use crate::{
    configuration::ShopConfig,
    order::{self, OrderResult},
};

/// Does for one order what the consumers do, as their last attempt: ends it if it is open, and completes or undoes it. For an
/// order whose event became a dead letter. It may run beside the pods, and again.
///
/// # Errors
///
/// The order does not exist, or something is not done: NATS or the gateway did not respond.
pub async fn settle(mut setup: Setup, shop: ShopConfig, order_id: Uuid) -> anyhow::Result<()> {
    let stream = setup.service.stream_of(FULFILMENT)?.to_owned();
    let saga = Saga::new(&mut setup, &shop)?;
    let (order_id, ports) = (order_id.to_string(), saga.fulfilment.ports.clone());
    let metadata = |event: &str, consumer: &str, sequence| Metadata {
        subject: format!("{}.{order_id}.{event}", order::PREFIX).into(),
        partition: None,
        headers: HeaderMap::new(),
        source: Arc::new(Source {
            stream: stream.clone(),
            consumer: consumer.to_owned(),
            event_consumer: consumer.to_owned(),
            epoch: 0,
        }),
        sequence,
        time: Timestamp::now(),
        attempt: 1,
        is_last_attempt: true,
        lag: 0,
    };
    let Some((order, placed)) = ports.load_order(&order_id).await.map_err(failed)? else {
        bail!("order {order_id} does not exist");
    };
    let metadata_of_placed = metadata("placed", FULFILMENT, placed.last_sequence());
    Box::pin(saga.fulfilment.handle(order.placed, &metadata_of_placed)).await.map_err(failed)?;
    let ended = ports.load_order(&order_id).await.map_err(failed)?;
    if let Some((order::Order { end: Some(OrderResult::Rejected(rejected)), .. }, last)) = ended {
        let metadata = metadata("rejected", COMPENSATION, last.last_sequence());
        saga.compensation.handle(rejected, &metadata).await.map_err(failed)?;
    }
    tracing::info!(order_id, "settled order");
    Ok(())
}

#[allow(clippy::needless_pass_by_value, reason = "map_err gives the error away")]
fn failed(failure: HandlerError) -> anyhow::Error {
    anyhow::anyhow!("failed to settle the order: {failure}")
}
