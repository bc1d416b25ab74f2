//! The HTTP interface: places and shows orders.

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use jetwright_process::http::{HttpMetrics, Json, Path, Problem, idempotency_key, with_defaults};
use jetwright_proto::events::v1::OrderPlaced;
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    configuration::ShopConfig,
    order::{Order, OrderAggregate, OrderResult, TimelineEntry},
    orders::Orders,
    placement::{NewOrder, is_same, order_id, place},
};

/// The state of the routes.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The stream of orders.
    pub orders: Orders,
    /// The articles and their prices.
    pub shop: ShopConfig,
}

/// The routes.
pub fn router(state: AppState, metrics: HttpMetrics) -> Router {
    let routes = Router::new().route("/orders", post(create_order)).route("/orders/{id}", get(get_order));
    with_defaults(routes, metrics).with_state(state)
}

#[derive(Debug, Serialize)]
struct Accepted {
    order_id: String,
}

/// Places an order. It is accepted once its event is stored; its location shows what follows.
async fn create_order(
    State(state): State<AppState>,
    headers: HeaderMap,
    Json(order): Json<NewOrder>,
) -> Result<impl IntoResponse, Problem> {
    let key = idempotency_key(&headers)?;
    let order_id = order_id(&order, key);
    let before = match place(&order, order_id, &state.shop, Timestamp::now()) {
        Ok(placed) => state.orders.place(&placed).await?,
        // What was placed under this key counts, and not what the shop sells by now.
        Err(problem) if key.is_some() => Some(placed_before(&state.orders, order_id).await?.ok_or(problem)?),
        Err(problem) => return Err(problem),
    };
    if before.is_some_and(|before| !is_same(&before, &order)) {
        let detail = "was used for another order";
        return Err(Problem::invalid("one key is for one order").field("Idempotency-Key", detail));
    }
    let location = format!("/orders/{order_id}");
    let accepted = Json(Accepted { order_id: order_id.to_string() });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], accepted))
}

async fn placed_before(orders: &Orders, order_id: Uuid) -> Result<Option<OrderPlaced>, Problem> {
    let order = orders.load(&order_id.to_string()).await?.into_state().order;
    Ok(order.map(|order| order.placed))
}

/// An order as a caller sees it.
#[derive(Debug, Serialize)]
struct OrderView {
    order_id: String,
    user_id: String,
    state: &'static str,
    lines: Vec<LineView>,
    amount: i64,
    currency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rejection: Option<Rejection>,
    timeline: Vec<TimelineEntry>,
}

#[derive(Debug, Serialize)]
struct LineView {
    sku: String,
    quantity: u32,
    unit_price: i64,
}

#[derive(Debug, Serialize)]
struct Rejection {
    step: &'static str,
    reason: String,
}

async fn get_order(State(state): State<AppState>, Path(id): Path<Uuid>) -> Result<Json<OrderView>, Problem> {
    let OrderAggregate { order, timeline } = state.orders.load(&id.to_string()).await?.into_state();
    let order = order.ok_or_else(|| Problem::not_found("there is no such order"))?;
    Ok(Json(view(order, timeline)))
}

fn view(order: Order, timeline: Vec<TimelineEntry>) -> OrderView {
    let state = order.state();
    let (authorization_id, rejection) = match order.end {
        None => (None, None),
        Some(OrderResult::Confirmed(end)) => (Some(end.authorization_id), None),
        Some(OrderResult::Rejected(end)) => {
            (None, Some(Rejection { step: end.step().name(), reason: end.reason }))
        }
    };
    let placed = order.placed;
    let lines = placed.lines.into_iter();
    OrderView {
        order_id: placed.order_id,
        user_id: placed.user_id,
        state,
        lines: lines
            .map(|line| LineView { sku: line.sku, quantity: line.quantity, unit_price: line.unit_price })
            .collect(),
        amount: placed.amount,
        currency: placed.currency,
        authorization_id,
        rejection,
        timeline,
    }
}
