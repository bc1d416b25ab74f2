//! The server, and what surrounds every request. Does the network's I/O.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::metrics::{HttpMetrics, Request as Labels};
use super::{Problem, propagation};

/// Longest body of a request, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// Longest time from a request's headers to its answer, a slowly sent body included.
const DEADLINE: Duration = Duration::from_secs(15);

/// Binds the address, so that a taken one is told before anything else is started. Port 0 takes a free one.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<Server> {
    Ok(Server { listener: TcpListener::bind(address).await? })
}

/// A bound address, not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
}

impl Server {
    /// Where it is.
    ///
    /// # Errors
    ///
    /// The system cannot tell the socket's address.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then takes no new connection and answers what it has, for at most `grace`.
    ///
    /// # Errors
    ///
    /// The listener fails.
    pub async fn serve(self, router: Router, shutdown: CancellationToken, grace: Duration) -> io::Result<()> {
        let stopped = shutdown.clone();
        let serving = axum::serve(self.listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
        let overdue = async {
            stopped.cancelled().await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            served = serving.into_future() => served,
            () = overdue => {
                tracing::warn!(?grace, "requests were still unanswered and are dropped");
                Ok(())
            }
        }
    }
}

/// Adds what every route is to have: a span that continues the caller's trace, a metric and a line in the log for each
/// request; bodies of at most 64 KiB, answers within 15 seconds, and a [`Problem`] where no route takes the request.
pub fn with_defaults<S: Clone + Send + Sync + 'static>(router: Router<S>, metrics: HttpMetrics) -> Router<S> {
    let no_route = async || Problem::not_found("there is nothing at this path");
    let no_method =
        async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(from_fn_with_state(metrics, around))
}

async fn around(State(metrics): State<HttpMetrics>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let span = server_span(&request, method, &route);
    let response = async {
        let response = timeout(DEADLINE, next.run(request)).await.unwrap_or_else(|_| {
            let detail = format!("not received and answered within {} s", DEADLINE.as_secs());
            Problem::new(StatusCode::REQUEST_TIMEOUT, detail).into_response()
        });
        let status = response.status();
        let span = Span::current();
        span.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            span.record("otel.status_code", "ERROR");
        }
        let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(status = status.as_u16(), milliseconds, "{method} answered");
        response
    }
    .instrument(span)
    .await;
    let labels = Labels {
        http_request_method: method.to_owned(),
        http_route: route,
        http_response_status_code: response.status().as_u16(),
    };
    metrics.answered(&labels, started.elapsed());
    response
}

fn server_span(request: &Request, method: &'static str, route: &str) -> Span {
    let path = request.uri().path();
    let span = info_span!(
        "http.server",
        otel.name = format!("{method} {route}").trim_end(),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        url.path = path,
        http.response.status_code = Empty,
        otel.status_code = Empty,
    );
    // Without telemetry there is no layer that would take a parent, and nothing to continue.
    let _ = span.set_parent(propagation::extract(request.headers()));
    span
}

/// The method as OpenTelemetry names it: whatever a caller makes up is `_OTHER`.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
}
