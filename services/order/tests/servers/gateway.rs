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
    /// Requests to answer 500 after the decision.
    lost: u32,
    asked: u32,
    authorized: BTreeMap<String, i64>,
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

    pub fn lose_answers(&self, times: u32) {
        self.0.lock().unwrap().lost = times;
    }

    pub fn asked(&self) -> u32 {
        self.0.lock().unwrap().asked
    }

    /// What was authorized, by key.
    pub fn authorized(&self) -> BTreeMap<String, i64> {
        self.0.lock().unwrap().authorized.clone()
    }

    pub fn traces(&self) -> Vec<String> {
        self.0.lock().unwrap().traces.clone()
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
    let mut ledger = gateway.0.lock().unwrap();
    ledger.asked += 1;
    let parent = headers.get("traceparent").and_then(|parent| parent.to_str().ok());
    ledger.traces.extend(parent.and_then(|parent| parent.split('-').nth(1)).map(ToOwned::to_owned));
    if ledger.failures > 0 {
        ledger.failures -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({})));
    }
    let amount = body["amount"].as_i64().unwrap();
    if amount % 100 == 13 {
        return (StatusCode::PAYMENT_REQUIRED, Json(json!({"detail": "the card was declined"})));
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    ledger.authorized.insert(key.clone(), amount);
    if ledger.lost > 0 {
        ledger.lost -= 1;
        return (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({})));
    }
    (StatusCode::CREATED, Json(json!({"id": format!("auth-{key}"), "status": "authorized"})))
}

async fn void(State(gateway): State<Gateway>, Path(key): Path<String>) -> Json<Value> {
    gateway.0.lock().unwrap().voided.push(key);
    Json(json!({"status": "voided"}))
}
