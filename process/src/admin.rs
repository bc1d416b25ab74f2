//! What the cluster asks of a program: `/livez`, `/readyz` and `/metrics`, on an address of their own; and `/log-level`, which changes what is
//! logged.
//!
//! Nobody is asked who he is here. What changes something is therefore taken from the machine's own addresses alone, which are those of
//! `kubectl port-forward` and `kubectl exec`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::configuration::{Problems, Reader};
use crate::health::{Health, Reasons};
use crate::http::{self, Drain, Server};
use crate::metrics::scrape;
use crate::telemetry::{self, LogFilterError};

/// The OpenMetrics text format, as its specification names it.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A scrape that has begun may go on for a second after the stop.
const DRAIN: Drain = Drain::at_once(Duration::from_secs(1));

/// The address of the endpoints: `JETWRIGHT_ADMIN_ADDRESS`, which the operator sets so that its probes reach them (default:
/// `0.0.0.0:9090`).
///
/// # Errors
///
/// The variable is not an address.
pub fn address() -> Result<SocketAddr, Problems> {
    let mut reader = Reader::open(None, "JETWRIGHT")?;
    let address = reader.value("admin.address", SocketAddr::from(([0, 0, 0, 0], 9090)));
    reader.finish().map(|()| address)
}

/// Binds the address, so that an address in use is an error before anything else starts. Port 0 takes a free port.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<Admin> {
    Ok(Admin { server: http::bind(address).await? })
}

/// The bound endpoints, not served yet.
#[derive(Debug)]
pub struct Admin {
    server: Server,
}

impl Admin {
    /// The bound address.
    ///
    /// # Errors
    ///
    /// The system does not know the socket's address.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.server.local_address()
    }

    /// Serves until `shutdown`. It stops last: until then `/readyz` says that the program is stopping, and `/metrics` shows what it
    /// does meanwhile.
    ///
    /// # Errors
    ///
    /// The listener fails.
    pub async fn serve(
        self,
        health: Health,
        registry: Arc<Registry>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        self.server.serve(router(health, registry), shutdown, DRAIN).await
    }
}

fn router(health: Health, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(async |State(health): State<Health>| verdict(health.live())))
        .route("/readyz", get(async |State(health): State<Health>| verdict(health.ready())))
        .with_state(health)
        .route("/metrics", get(metrics).with_state(registry))
        .route("/log-level", get(log_level).put(set_log_level))
}

fn verdict(reasons: Result<(), Reasons>) -> Response {
    match reasons {
        Ok(()) => Json(json!({"status": "ok"})).into_response(),
        Err(reasons) => {
            let reasons: Map<_, _> =
                reasons.into_iter().map(|(name, reason)| (name, Value::String(reason))).collect();
            let body = Json(json!({"status": "unavailable", "reasons": reasons}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn log_level() -> Response {
    match telemetry::log_filter() {
        Some(filter) => format!("{filter}\n").into_response(),
        None => (StatusCode::NOT_FOUND, format!("{}\n", LogFilterError::NotStarted)).into_response(),
    }
}

/// Changes what is logged to the directives in the body, until the next change or the end of the program.
async fn set_log_level(ConnectInfo(peer): ConnectInfo<SocketAddr>, directives: String) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "only this machine may change what is logged: use kubectl port-forward\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    match telemetry::set_log_filter(&directives) {
        Ok(before) => {
            tracing::warn!(before, after = directives.trim(), "changed what is logged");
            format!("{}\n", directives.trim()).into_response()
        }
        Err(error) => {
            let status = match error {
                LogFilterError::Invalid(_) => StatusCode::BAD_REQUEST,
                LogFilterError::NotStarted => StatusCode::NOT_FOUND,
            };
            (status, format!("{error}\n")).into_response()
        }
    }
}

async fn metrics(State(registry): State<Arc<Registry>>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|accepted| accepted.to_str().ok());
    let compressed = accepted.is_some_and(scrape::takes_gzip);
    // It takes a while where there are thousands of objects.
    let encode = if compressed { scrape::gzip } else { scrape::plain };
    let encoded = tokio::task::spawn_blocking(move || encode(&registry)).await;
    let Ok(Ok(body)) = encoded else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
    let mut response = ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], body).into_response();
    if compressed {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// Serves on a free port; the token ends it.
    async fn served(
        health: &Health,
    ) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<io::Result<()>>) {
        let admin = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = admin.local_address().unwrap();
        let mut registry = Registry::default();
        crate::metrics::register(&mut registry, "a-program");
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(admin.serve(health.clone(), Arc::new(registry), shutdown.clone()));
        (address, shutdown, serving)
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_follow_the_health_and_say_why_not() {
        let health = Health::new();
        let gate = health.gate("nats", "not connected yet");
        let (address, shutdown, serving) = served(&health).await;

        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.contains(r#""reasons":{"nats":"not connected yet"}"#), "{answer}");
        gate.open();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200 "));
        health.stop("shutting down");
        assert!(ask(address, "/readyz").await.contains(r#""stopping":"shutting down""#));

        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200 "));
        health.fail("consumer loop", "it panicked");
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 503 "));

        shutdown.cancel();
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn what_is_logged_is_changed_by_the_machine_itself_alone() {
        for (peer, expected) in [
            ("10.1.2.3:4", StatusCode::FORBIDDEN),
            ("[2001:db8::1]:4", StatusCode::FORBIDDEN),
            // Telemetry was not started.
            ("127.0.0.1:4", StatusCode::NOT_FOUND),
            ("[::1]:4", StatusCode::NOT_FOUND),
            ("[::ffff:127.0.0.1]:4", StatusCode::NOT_FOUND),
        ] {
            let peer = ConnectInfo(peer.parse::<SocketAddr>().unwrap());
            assert_eq!(set_log_level(peer, "debug".to_owned()).await.status(), expected, "{peer:?}");
        }
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() {
        let (address, _shutdown, _serving) = served(&Health::new()).await;
        let answer = ask(address, "/metrics").await;
        assert!(answer.contains(&format!("content-type: {METRICS_CONTENT_TYPE}")), "{answer}");
        assert!(answer.contains("process_resident_memory_bytes "), "{answer}");
        assert!(answer.trim_end().ends_with("# EOF"), "{answer}");
    }

    #[tokio::test]
    async fn metrics_are_compressed_for_who_takes_that() {
        let (address, _shutdown, _serving) = served(&Health::new()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            "GET /metrics HTTP/1.1\r\nHost: admin\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("content-encoding: gzip\r\n"), "{answer}");
        assert!(!answer.contains("# EOF"), "{answer}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_at_once() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let error = bind(first.local_address().unwrap()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
