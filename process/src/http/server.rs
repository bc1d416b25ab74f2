//! The server, and what surrounds every request. Does the network's I/O.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tower::Layer as _;
use tracing::field::Empty;
use tracing::{Instrument, Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::input::whole_body;
use super::metrics::{HttpMetrics, Request as Labels};
use super::{Problem, propagation};

/// Maximum body of a request, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum time until a body is complete, and from then to the response.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum time until a request's headers are complete, from the connection's beginning or the previous response.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time in which a caller reads nothing of a response. Without a limit, callers that do not read would occupy all
/// connections.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum concurrent connections; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Pause when the system cannot accept a connection, as when the process has too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Binds the address, so that an address in use is an error before anything else starts. Port 0 takes a free port.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<Server> {
    Ok(Server { listener: TcpListener::bind(address).await?, max_connections: MAX_CONNECTIONS })
}

/// A bound address, not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// Maximum concurrent connections.
    max_connections: usize,
}

impl Server {
    /// The bound address.
    ///
    /// # Errors
    ///
    /// The system does not know the socket's address.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, and then drains: it accepts and answers for `drain.accept`, takes no new connection
    /// from then on, and finishes open requests for at most `drain.finish`.
    ///
    /// # Errors
    ///
    /// The listener fails.
    pub async fn serve(self, router: Router, shutdown: CancellationToken, drain: Drain) -> io::Result<()> {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        let router = closing_connections_after(&shutdown, router);
        let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        let accepting =
            Accepting { listener: self.listener, permits: Arc::new(Semaphore::new(self.max_connections)) };
        let mut closed = pin!(async {
            shutdown.cancelled().await;
            sleep(drain.accept).await;
        });
        loop {
            let (stream, peer, permit) = tokio::select! {
                biased;
                () = &mut closed => break,
                Some(_) = connections.join_next() => continue,
                accepted = accepting.next() => accepted?,
            };
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(WRITE_TIMEOUT));
            let service = TowerToHyperService::new(Extension(ConnectInfo(peer)).layer(router.clone()));
            let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                // A caller that disconnects, sends no HTTP or does not read its response concerns nobody else.
                let _ = connection.await;
                drop(permit);
            });
        }
        drop(accepting);
        if timeout(drain.finish, graceful.shutdown()).await.is_err() {
            tracing::warn!(after = ?drain.finish, "dropping requests that are still unanswered");
        }
        Ok(())
    }
}

/// How a server stops.
///
/// Kubernetes asks a deleted pod to stop at the moment when it removes the pod from its Service's endpoints, and every node and
/// proxy learns of that a little later: until then callers still connect, and a closed listener refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long the server accepts connections after the stop.
    pub accept: Duration,
    /// Maximum time from then on for the requests in flight.
    pub finish: Duration,
}

impl Drain {
    /// For a program behind a Service or a load balancer: five seconds until the endpoints have changed everywhere, and then as
    /// long as a response may take. Together that is less than the 30 seconds after which Kubernetes kills a pod.
    pub const BEHIND_SERVICE: Self = Self { accept: Duration::from_secs(5), finish: REQUEST_TIMEOUT };

    /// For a program without callers that have to move elsewhere.
    #[must_use]
    pub const fn at_once(finish: Duration) -> Self {
        Self { accept: Duration::ZERO, finish }
    }
}

/// Responses after `stop` close their connections, so that callers with open connections reconnect elsewhere before the end, and
/// none sends a request into a connection that is just being closed.
fn closing_connections_after(stop: &CancellationToken, router: Router) -> Router {
    let stop = stop.clone();
    router.layer(map_response(move |mut response: Response| {
        if stop.is_cancelled() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        std::future::ready(response)
    }))
}

struct Accepting {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Accepting {
    /// The next connection, with where it comes from and its permit. Cancel safe.
    async fn next(&self) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(io::Error::other)?;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return Ok((stream, peer, permit)),
                // EINVAL: the socket no longer listens (accept(2)). All other errors concern one connection or pass.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Adds what every route needs: a span that continues the caller's trace, a metric and a log line for each request; bodies of at
/// most 64 KiB and within 15 seconds, responses within 15 more, and a [`Problem`] if no route takes the request.
pub fn with_defaults<S: Clone + Send + Sync + 'static>(router: Router<S>, metrics: HttpMetrics) -> Router<S> {
    let no_route = async || Problem::not_found("there is nothing at this path");
    let no_method =
        async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(metrics, around))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

async fn around(State(metrics): State<HttpMetrics>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let span = server_span(&request, method, &route);
    let response = async {
        let response = match received(request).await {
            Ok(request) => respond_in_time(next.run(request)).await,
            Err(problem) => problem.into_response(),
        };
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
    metrics.record_response(&labels, started.elapsed());
    response
}

/// The request with its whole body, so that a caller's slowness counts as the caller's and not as the program's.
async fn received(request: Request) -> Result<Request, Problem> {
    let (parts, body) = request.into_parts();
    let reading = whole_body(Request::from_parts(parts.clone(), body), &());
    let body = timeout(REQUEST_TIMEOUT, reading).await.map_err(|_| {
        let detail = format!("not received within {} s", REQUEST_TIMEOUT.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    })??;
    Ok(Request::from_parts(parts, Body::from(body)))
}

async fn respond_in_time(response: impl Future<Output = Response>) -> Response {
    timeout(REQUEST_TIMEOUT, response).await.unwrap_or_else(|_| {
        Problem::unavailable(format!("not answered within {} s", REQUEST_TIMEOUT.as_secs())).into_response()
    })
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
    // Without telemetry no layer takes a parent, and nothing is there to continue.
    let _ = span.set_parent(propagation::extract(request.headers()));
    span
}

/// The method as OpenTelemetry names it: every unknown method is `_OTHER`.
fn known(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    known.into_iter().find(|name| method.as_str() == *name).unwrap_or("_OTHER")
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_mins(10);

    async fn served(max_connections: usize) -> (SocketAddr, CancellationToken) {
        let (address, shutdown, _) = served_until(max_connections, Drain::at_once(Duration::ZERO)).await;
        (address, shutdown)
    }

    async fn served_until(
        max_connections: usize,
        drain: Drain,
    ) -> (SocketAddr, CancellationToken, JoinHandle<io::Result<()>>) {
        let mut server = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        server.max_connections = max_connections;
        let (address, shutdown) = (server.local_address().unwrap(), CancellationToken::new());
        let long = "x".repeat(1 << 20);
        let router =
            Router::new().route("/", get(async || "here")).route("/long", get(async move || long.clone()));
        let serving = tokio::spawn(server.serve(router, shutdown.clone(), drain));
        (address, shutdown, serving)
    }

    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// What comes until the server closes the connection.
    async fn rest(mut stream: TcpStream) -> String {
        let mut text = String::new();
        timeout(LONG, stream.read_to_string(&mut text)).await.expect("the server closes it").unwrap();
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_headers_do_not_end_holds_its_connection_for_a_bounded_time() {
        let (address, _shutdown) = served(MAX_CONNECTIONS).await;
        for text in ["", "GET / HTTP/1.1\r\nHost:"] {
            assert_eq!(rest(send(address, text).await).await, "", "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_connections_than_there_are_places_wait_their_turn() {
        let (address, _shutdown) = served(1).await;
        let first = send(address, "").await;
        let begun = tokio::time::Instant::now();
        let second = send(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(rest(second).await.ends_with("here"));
        // After the first connection timed out.
        assert!(begun.elapsed() >= HEADER_TIMEOUT, "{:?}", begun.elapsed());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_do_not_read_their_answers_keep_nobody_else_out() {
        let (address, _shutdown) = served(2).await;
        // More than fits into the sockets' buffers, so that the server waits for its caller.
        let asked = "GET /long HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
        let idle = [send(address, &asked).await, send(address, &asked).await];
        let other = send(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(rest(other).await.ends_with("here"));
        drop(idle);
    }

    #[tokio::test]
    async fn one_that_is_asked_to_stop_answers_old_and_new_callers_and_leads_them_away() {
        let drain = Drain { accept: LONG, ..Drain::BEHIND_SERVICE };
        let (address, shutdown, _serving) = served_until(MAX_CONNECTIONS, drain).await;
        let request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let mut kept = send(address, request).await;
        let (mut answer, mut part) = (String::new(), [0; 1024]);
        while !answer.ends_with("here") {
            let length = kept.read(&mut part).await.unwrap();
            answer += str::from_utf8(&part[..length]).unwrap();
        }
        assert!(!answer.contains("connection: close"), "{answer}");
        shutdown.cancel();
        kept.write_all(request.as_bytes()).await.unwrap();
        let led_away = |answer: String| answer.contains("connection: close") && answer.ends_with("here");
        assert!(led_away(rest(kept).await));
        for number in 0..20 {
            assert!(led_away(rest(send(address, request).await).await), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_asked_to_stop_accepts_no_more_once_its_callers_have_learnt_of_it() {
        let (address, shutdown, serving) = served_until(MAX_CONNECTIONS, Drain::BEHIND_SERVICE).await;
        let begun = tokio::time::Instant::now();
        shutdown.cancel();
        serving.await.unwrap().unwrap();
        assert!(begun.elapsed() >= Drain::BEHIND_SERVICE.accept, "{:?}", begun.elapsed());
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
