//! What surrounds every request: a span that continues the caller's trace, bounds on time and size, and answers as
//! problems where nothing else answers.

use std::{io, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use opentelemetry::propagation::{Extractor, Injector};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, field::Empty};

use super::Problem;
use crate::trace;

/// Largest body of a request, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// How long a request may take, its body included.
const LONGEST_REQUEST: Duration = Duration::from_secs(15);

/// Adds what every route is to have: spans that continue an incoming `traceparent`, bodies of at most 64 KiB, answers
/// within 15 seconds, and 404 and 405 as problems.
pub fn with_defaults<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(|uri: Uri| async move { Problem::not_found(format!("there is nothing at {}", uri.path())) })
        .method_not_allowed_fallback(|uri: Uri| async move {
            let detail = format!("{} does not take this method", uri.path());
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
        })
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(middleware::from_fn(around))
}

/// Serves until `shutdown`; then no more connections are taken, and requests in flight are answered.
///
/// # Errors
///
/// The listener fails.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

/// Writes the current span's context into the headers of an outgoing request.
pub fn inject(headers: &mut HeaderMap) {
    trace::inject_into(&Span::current(), &mut HeadersMut(headers));
}

async fn around(request: Request, next: Next) -> Response {
    let span = span(&request);
    async {
        let answered = timeout(LONGEST_REQUEST, next.run(request)).await;
        let response =
            answered.unwrap_or_else(|_| Problem::unavailable("the request took too long").into_response());
        let status = response.status();
        Span::current().record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            trace::failed(&Span::current(), &status);
        }
        tracing::debug!(status = status.as_u16(), "answered");
        response
    }
    .instrument(span)
    .await
}

fn span(request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let method = request.method().as_str();
    let span = tracing::info_span!(
        "request",
        otel.name = route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")),
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        http.request.method = method,
        http.route = route,
        url.path = request.uri().path(),
        http.response.status_code = Empty,
    );
    trace::continue_from(&span, &Headers(request.headers()));
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
