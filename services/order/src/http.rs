//! The interface: orders are placed and looked at.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use jetwright_process::http::{HttpMetrics, Json, Path, Problem, idempotency_key, with_defaults};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    configuration::Shop,
    order::{End, Ledger, Moment, Order},
    orders::Orders,
    placement::{NewOrder, is_same, order_id, place},
};

/// What the routes share.
#[derive(Clone, Debug)]
pub struct Counter {
    /// Where orders are kept.
    pub orders: Orders,
    /// What can be ordered.
    pub shop: Shop,
}

/// The routes.
pub fn router(counter: Counter, metrics: HttpMetrics) -> Router {
    let routes = Router::new().route("/orders", post(take)).route("/orders/{id}", get(show));
    with_defaults(routes, metrics).with_state(counter)
}

#[derive(Debug, Serialize)]
struct Accepted {
    order_id: String,
}

/// Takes an order. It is accepted once its event is stored; what becomes of it is told at its location.
async fn take(
    State(counter): State<Counter>,
    headers: HeaderMap,
    Json(order): Json<NewOrder>,
) -> Result<impl IntoResponse, Problem> {
    let key = idempotency_key(&headers)?;
    let placed = place(&order, order_id(&order, key), &counter.shop, Timestamp::now())?;
    let before = counter.orders.place(&placed).await?;
    if before.is_some_and(|before| !is_same(&before, &placed)) {
        let detail = "was used for another order";
        return Err(Problem::invalid("one key is for one order").field("Idempotency-Key", detail));
    }
    let location = format!("/orders/{}", placed.order_id);
    let accepted = Json(Accepted { order_id: placed.order_id });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], accepted))
}

/// An order as a caller sees it.
#[derive(Debug, Serialize)]
struct Shown {
    order_id: String,
    user_id: String,
    state: &'static str,
    lines: Vec<ShownLine>,
    amount: i64,
    currency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejection: Option<Rejection>,
    timeline: Vec<Moment>,
}

#[derive(Debug, Serialize)]
struct ShownLine {
    sku: String,
    quantity: u32,
    unit_price: i64,
}

#[derive(Debug, Serialize)]
struct Rejection {
    step: &'static str,
    reason: String,
}

async fn show(State(counter): State<Counter>, Path(id): Path<Uuid>) -> Result<Json<Shown>, Problem> {
    let Ledger { order, timeline } = counter.orders.load(&id.to_string()).await?.into_state();
    let order = order.ok_or_else(|| Problem::not_found("there is no such order"))?;
    Ok(Json(shown(order, timeline)))
}

fn shown(order: Order, timeline: Vec<Moment>) -> Shown {
    let state = order.state();
    let (authorization_id, rejection) = match order.end {
        None => (None, None),
        Some(End::Confirmed(end)) => (Some(end.authorization_id), None),
        Some(End::Rejected(end)) => (None, Some(Rejection { step: end.step().name(), reason: end.reason })),
    };
    let placed = order.placed;
    let lines = placed.lines.into_iter();
    Shown {
        order_id: placed.order_id,
        user_id: placed.user_id,
        state,
        lines: lines
            .map(|line| ShownLine { sku: line.sku, quantity: line.quantity, unit_price: line.unit_price })
            .collect(),
        amount: placed.amount,
        currency: placed.currency,
        authorization_id,
        rejection,
        timeline,
    }
}
