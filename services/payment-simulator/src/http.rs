//! The gateway's HTTP interface, with failures on purpose.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use jetwright_process::http::{HttpMetrics, Json, Path, Problem, idempotency_key, with_defaults};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::configuration::Simulation;
use crate::ledger::{Authorization, Ledger, Payment, Refusal, Status};

/// The state of the routes.
#[derive(Clone, Debug)]
pub(crate) struct Gateway {
    ledger: Arc<Mutex<Ledger>>,
    simulation: Simulation,
}

impl Gateway {
    /// Without any authorization yet.
    pub(crate) fn new(capacity: usize, simulation: Simulation) -> Self {
        Self { ledger: Arc::new(Mutex::new(Ledger::new(capacity))), simulation }
    }

    /// Makes a decision, or fails on purpose before or after it.
    async fn decide<T>(&self, decision: impl FnOnce(&mut Ledger) -> T) -> Result<T, Problem> {
        let Simulation { latency, failure_rate, lost_answer_rate } = self.simulation;
        if rand::random::<f64>() < failure_rate {
            return Err(Problem::unavailable("failed on purpose, without a decision"));
        }
        let decided = decision(&mut self.ledger());
        tokio::time::sleep(latency).await;
        if rand::random::<f64>() < lost_answer_rate {
            let reason = "lost on purpose: the decision was made";
            return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, reason));
        }
        Ok(decided)
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Each operation leaves the ledger consistent.
        self.ledger.lock()
    }
}

/// The routes.
pub(crate) fn router(gateway: Gateway, metrics: HttpMetrics) -> Router {
    let routes = Router::new()
        .route("/authorizations", post(authorize))
        .route("/authorizations/{key}", get(show))
        .route("/authorizations/{key}/void", post(void));
    with_defaults(routes, metrics).with_state(gateway)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewAuthorization {
    amount: i64,
    currency: String,
}

#[derive(Debug, Serialize)]
struct AuthorizationView {
    id: String,
    key: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

async fn authorize(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(new): Json<NewAuthorization>,
) -> Result<(StatusCode, Json<AuthorizationView>), Problem> {
    let key = idempotency_key(&headers)?.ok_or_else(|| {
        let detail = "must be set: the same key is decided once, however often it is sent";
        Problem::invalid("the payment has no key").field("Idempotency-Key", detail)
    })?;
    let payment = check(new)?;
    let decided = gateway.decide(|ledger| ledger.authorize(key, payment)).await?;
    match decided {
        Ok(Authorization { status: Status::Declined(reason), .. }) => {
            Err(Problem::new(StatusCode::PAYMENT_REQUIRED, reason))
        }
        Ok(authorization) => Ok((StatusCode::CREATED, Json(view(key, authorization)))),
        Err(Refusal::Voided) => Err(Problem::conflict("this key was voided")),
        Err(Refusal::AnotherPayment) => {
            let detail = "was used for another amount or currency";
            Err(Problem::invalid("one key is for one payment").field("Idempotency-Key", detail))
        }
    }
}

async fn show(
    State(gateway): State<Gateway>,
    Path(key): Path<String>,
) -> Result<Json<AuthorizationView>, Problem> {
    let authorization = gateway.ledger().get(&key);
    let authorization =
        authorization.ok_or_else(|| Problem::not_found("no payment was requested under this key"))?;
    Ok(Json(view(&key, authorization)))
}

async fn void(
    State(gateway): State<Gateway>,
    Path(key): Path<String>,
) -> Result<Json<AuthorizationView>, Problem> {
    let authorization = gateway.decide(|ledger| ledger.void(&key)).await?;
    Ok(Json(view(&key, authorization)))
}

fn check(new: NewAuthorization) -> Result<Payment, Problem> {
    let NewAuthorization { amount, currency } = new;
    let mut problem = Problem::invalid("the payment is invalid");
    if amount <= 0 {
        problem = problem.field("amount", "must be minor units of the currency, more than 0");
    }
    if currency.len() != 3 || !currency.bytes().all(|byte| byte.is_ascii_uppercase()) {
        problem = problem.field("currency", "must be an ISO 4217 code in upper case, as in EUR");
    }
    if problem.has_fields() { Err(problem) } else { Ok(Payment { amount, currency }) }
}

fn view(key: &str, authorization: Authorization) -> AuthorizationView {
    let Authorization { id, status, payment } = authorization;
    let (status, reason) = match status {
        Status::Authorized => ("authorized", None),
        Status::Declined(reason) => ("declined", Some(reason)),
        Status::Voided => ("voided", None),
    };
    let (amount, currency) = payment.map(|payment| (payment.amount, payment.currency)).unzip();
    AuthorizationView { id, key: key.to_owned(), status, amount, currency, reason }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use jetwright_process::http::METRICS;
    use jetwright_process::metrics;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;

    fn gateway(simulation: Simulation) -> Router {
        router(Gateway::new(100, simulation), HttpMetrics::register(&mut Registry::default()))
    }

    async fn ask(router: &Router, request: Request<Body>) -> (u16, Value) {
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn pay(router: &Router, key: &str, body: Value) -> (u16, Value) {
        let request = Request::post("/authorizations")
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(body.to_string().into())
            .unwrap();
        ask(router, request).await
    }

    async fn get(router: &Router, key: &str) -> (u16, Value) {
        ask(router, Request::get(format!("/authorizations/{key}")).body(Body::empty()).unwrap()).await
    }

    async fn void(router: &Router, key: &str) -> (u16, Value) {
        ask(router, Request::post(format!("/authorizations/{key}/void")).body(Body::empty()).unwrap()).await
    }

    fn euros(amount: i64) -> Value {
        json!({"amount": amount, "currency": "EUR"})
    }

    #[tokio::test]
    async fn what_is_exported_is_in_the_catalogues() {
        let mut registry = Registry::default();
        metrics::register(&mut registry, "jetwright-payment-simulator");
        let gateway = Gateway::new(100, Simulation::default());
        let router = router(gateway, HttpMetrics::register(&mut registry));
        assert_eq!(pay(&router, "o-1", euros(2599)).await.0, 201);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let catalogues = [METRICS, metrics::program::CATALOGUE];
        assert_eq!(metrics::exposition::deviations(&text, &catalogues), [""; 0]);
        assert!(text.contains("http_server_request_duration_seconds_count"), "{text}");
    }

    #[tokio::test]
    async fn a_payment_is_authorized_once_however_often_it_is_asked_for() {
        let router = gateway(Simulation::default());
        let first = pay(&router, "o-1", euros(2599)).await;
        assert_eq!(first.0, 201);
        let (id, key) = (first.1["id"].clone(), "o-1");
        let body = json!({"id": id, "key": key, "status": "authorized", "amount": 2599, "currency": "EUR"});
        assert_eq!(first.1, body);
        assert_eq!(pay(&router, "o-1", euros(2599)).await, first);
        assert_eq!(get(&router, "o-1").await, (200, body));
        assert_ne!(pay(&router, "o-2", euros(2599)).await.1["id"], first.1["id"]);
    }

    #[tokio::test]
    async fn a_declined_payment_is_402_with_the_reason() {
        let router = gateway(Simulation::default());
        let (status, problem) = pay(&router, "o-1", euros(2513)).await;
        assert_eq!((status, &problem["detail"]), (402, &json!("the card's issuer declined")));
        let (status, shown) = get(&router, "o-1").await;
        assert_eq!(
            (status, &shown["status"], &shown["reason"]),
            (200, &json!("declined"), &problem["detail"])
        );
    }

    #[tokio::test]
    async fn a_key_for_another_payment_is_refused() {
        let router = gateway(Simulation::default());
        pay(&router, "o-1", euros(2599)).await;
        let (status, problem) = pay(&router, "o-1", euros(1)).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("Idempotency-Key")));
    }

    #[tokio::test]
    async fn a_void_payment_stays_void() {
        let router = gateway(Simulation::default());
        pay(&router, "o-1", euros(2599)).await;
        let (status, shown) = void(&router, "o-1").await;
        assert_eq!((status, &shown["status"]), (200, &json!("voided")));
        assert_eq!(void(&router, "o-1").await, (200, shown));
        assert_eq!(pay(&router, "o-1", euros(2599)).await.0, 409);
        let (status, shown) = void(&router, "never-requested").await;
        assert_eq!((status, &shown["status"], shown.get("amount")), (200, &json!("voided"), None));
        assert_eq!(get(&router, "unknown").await.0, 404);
    }

    #[tokio::test]
    async fn every_wrong_field_is_named() {
        let router = gateway(Simulation::default());
        let (status, problem) = pay(&router, "o-1", json!({"amount": 0, "currency": "euro"})).await;
        let fields: Vec<_> =
            problem["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
        assert_eq!((status, fields), (422, vec![&json!("amount"), &json!("currency")]));

        let keyless = Request::post("/authorizations")
            .header("content-type", "application/json")
            .body(euros(1).to_string().into())
            .unwrap();
        assert_eq!(ask(&router, keyless).await.1["errors"][0]["field"], "Idempotency-Key");
    }

    #[tokio::test]
    async fn failures_on_purpose_decide_nothing_and_lost_answers_do() {
        let failing = gateway(Simulation { failure_rate: 1.0, ..Simulation::default() });
        assert_eq!(pay(&failing, "o-1", euros(2599)).await.0, 503);
        assert_eq!(void(&failing, "o-1").await.0, 503);
        assert_eq!(get(&failing, "o-1").await.0, 404);

        let losing = gateway(Simulation { lost_answer_rate: 1.0, ..Simulation::default() });
        assert_eq!(pay(&losing, "o-1", euros(2599)).await.0, 500);
        assert_eq!(get(&losing, "o-1").await.1["status"], "authorized");
        assert_eq!(void(&losing, "o-1").await.0, 500);
        assert_eq!(get(&losing, "o-1").await.1["status"], "voided");
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_on_a_slow_answer_has_an_authorization_all_the_same() {
        let slow = gateway(Simulation { latency: Duration::from_secs(5), ..Simulation::default() });
        let given_up = tokio::time::timeout(Duration::from_secs(1), pay(&slow, "o-1", euros(2599))).await;
        assert!(given_up.is_err());
        assert_eq!(get(&slow, "o-1").await.1["status"], "authorized");
    }
}
