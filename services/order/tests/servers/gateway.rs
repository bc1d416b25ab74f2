//! A payment gateway that does what the test says and remembers what it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The gateway; clones are the same one. Declines amounts that end in 13.
#[derive(Clone, Debug, Default)]
pub struct Gateway(Arc<Mutex<Ledger>>);

#[derive(Debug, Default)]
struct Ledger {
    /// Requests to answer 503 before any decision.
    failures: u32,
    /// Requests to answer 422 before any decision.
    refused: u32,
    /// Requests to answer 401 before any decision.
    unauthorized: u32,
    /// Requests to answer 500 after the decision.
    lost: u32,
    /// Requests to answer never, after the decision.
    hanging: u32,
    /// Everything is answered 503.
    away: bool,
    asked: u32,
    /// What is authorized and was not voided.
    authorized: BTreeMap<String, i64>,
    voids_asked: u32,
    voided: Vec<String>,
    /// Traces of the requests that came with one.
    traces: Vec<String>,
}

impl Gateway {
    /// Serves until the test ends; returns the address.
    pub async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/authorizations", post(authorize))
            .route("/authorizations/{key}/void", post(void))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        format!("http://{address}")
    }

    pub fn fail(&self, times: u32) {
        self.0.lock().unwrap().failures = times;
    }

    pub fn set_away(&self, away: bool) {
        self.0.lock().unwrap().away = away;
    }

    pub fn refuse(&self, times: u32) {
        self.0.lock().unwrap().refused = times;
    }

    pub fn lock_out(&self, times: u32) {
        self.0.lock().unwrap().unauthorized = times;
    }

    pub fn hang(&self, times: u32) {
        self.0.lock().unwrap().hanging = times;
    }

    pub fn lose_answers(&self, times: u32) {
        self.0.lock().unwrap().lost = times;
    }

    pub fn asked(&self) -> u32 {
        self.0.lock().unwrap().asked
    }

    /// What is authorized now, by key.
    pub fn authorized(&self) -> BTreeMap<String, i64> {
        self.0.lock().unwrap().authorized.clone()
    }

    pub fn traces(&self) -> Vec<String> {
        self.0.lock().unwrap().traces.clone()
    }

    pub fn voids_asked(&self) -> u32 {
        self.0.lock().unwrap().voids_asked
    }

    pub fn voided(&self) -> Vec<String> {
        self.0.lock().unwrap().voided.clone()
    }
}

async fn authorize(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let answer = gateway.0.lock().unwrap().authorize(&headers, &body);
    match answer {
        Some((status, body)) => (status, Json(body)),
        None => std::future::pending().await,
    }
}

impl Ledger {
    /// The answer, if there is to be one.
    fn authorize(&mut self, headers: &HeaderMap, body: &Value) -> Option<(StatusCode, Value)> {
        self.asked += 1;
        let parent = headers.get("traceparent").and_then(|parent| parent.to_str().ok());
        self.traces.extend(parent.and_then(|parent| parent.split('-').nth(1)).map(ToOwned::to_owned));
        if self.away || once(&mut self.failures) {
            return Some((StatusCode::SERVICE_UNAVAILABLE, json!({})));
        }
        if once(&mut self.refused) {
            return Some((StatusCode::UNPROCESSABLE_ENTITY, json!({})));
        }
        if once(&mut self.unauthorized) {
            return Some((StatusCode::UNAUTHORIZED, json!({})));
        }
        let amount = body["amount"].as_i64().unwrap();
        if amount % 100 == 13 {
            return Some((StatusCode::PAYMENT_REQUIRED, json!({"detail": "the card was declined"})));
        }
        let key = headers["idempotency-key"].to_str().unwrap().to_owned();
        if self.voided.contains(&key) {
            return Some((StatusCode::CONFLICT, json!({})));
        }
        self.authorized.insert(key.clone(), amount);
        if once(&mut self.lost) {
            return Some((StatusCode::INTERNAL_SERVER_ERROR, json!({})));
        }
        if once(&mut self.hanging) {
            return None;
        }
        Some((StatusCode::CREATED, json!({"id": format!("auth-{key}"), "status": "authorized"})))
    }
}

/// Counts down to nothing.
fn once(times: &mut u32) -> bool {
    let left = *times > 0;
    *times = times.saturating_sub(1);
    left
}

async fn void(State(gateway): State<Gateway>, Path(key): Path<String>) -> (StatusCode, Json<Value>) {
    let mut ledger = gateway.0.lock().unwrap();
    ledger.voids_asked += 1;
    if ledger.away {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({})));
    }
    let amount = ledger.authorized.remove(&key);
    ledger.voided.push(key.clone());
    (StatusCode::OK, Json(json!({"id": format!("auth-{key}"), "status": "voided", "amount": amount})))
}
