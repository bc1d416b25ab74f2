//! The server, and what surrounds every request. Does the network's I/O.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
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
use tracing::field::Empty;
use tracing::{Instrument, Span, info, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::input::whole_body;
use super::metrics::{HttpMetrics, Request as Labels};
use super::{Problem, propagation};

/// Longest body of a request, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// Longest time until a body is there, and from then to the answer.
const DEADLINE: Duration = Duration::from_secs(15);
/// Longest time until a request's headers are there, from the connection's beginning or the answer before them.
const HEADERS: Duration = Duration::from_secs(10);
/// Longest time in which a caller takes nothing of an answer that waits for it. Without a bound, callers that do not read
/// would keep their places among the connections at once, and everybody else out.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 1024;
/// The pause when the system cannot give a connection out, as when the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Binds the address, so that a taken one is told before anything else is started. Port 0 takes a free one.
///
/// # Errors
///
/// The address cannot be bound.
pub async fn bind(address: SocketAddr) -> io::Result<Server> {
    Ok(Server { listener: TcpListener::bind(address).await?, most: CONNECTIONS })
}

/// A bound address, not served yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    /// Connections at once.
    most: usize,
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

    /// Serves until `shutdown`, and then drains: it accepts and answers for `drain.accept` as before, takes no new connection
    /// from then on, and answers what it has for at most `drain.finish`.
    ///
    /// # Errors
    ///
    /// The listener fails.
    pub async fn serve(self, router: Router, shutdown: CancellationToken, drain: Drain) -> io::Result<()> {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADERS);
        let service = TowerToHyperService::new(closing_connections_after(&shutdown, router));
        let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        let accepting = Accepting { listener: self.listener, places: Arc::new(Semaphore::new(self.most)) };
        let mut closed = pin!(async {
            shutdown.cancelled().await;
            sleep(drain.accept).await;
        });
        loop {
            let (stream, place) = tokio::select! {
                biased;
                () = &mut closed => break,
                Some(_) = connections.join_next() => continue,
                accepted = accepting.next() => accepted?,
            };
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(WRITE_TIMEOUT));
            let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service.clone());
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                // A caller that goes away, sends no HTTP or does not read its answer is its own matter.
                let _ = connection.await;
                drop(place);
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
/// A pod that is deleted is asked to stop at the same time as it is taken out of its Service's endpoints, and every node and
/// proxy learns of that a little later: until then callers still connect to it, and a closed listener refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long it goes on accepting connections after it was asked to stop.
    pub accept: Duration,
    /// Longest time from then on for the requests in flight.
    pub finish: Duration,
}

impl Drain {
    /// For a program that callers reach through a Service or a load balancer: five seconds until the endpoints have changed
    /// everywhere, and then as long as an answer may take. Together that is less than the 30 seconds after which Kubernetes
    /// kills a pod.
    pub const BEHIND_SERVICE: Self = Self { accept: Duration::from_secs(5), finish: DEADLINE };

    /// For a program that nobody has to be led away from.
    #[must_use]
    pub const fn at_once(finish: Duration) -> Self {
        Self { accept: Duration::ZERO, finish }
    }
}

/// Answers from `stop` on end their connections, so that callers who keep theirs open go elsewhere before the end, and none
/// sends a request into a connection that is just being closed.
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
    places: Arc<Semaphore>,
}

impl Accepting {
    /// The next connection, with its place among those at once. May be dropped and called again.
    async fn next(&self) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(io::Error::other)?;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Ok((stream, place)),
                // EINVAL: it listens no more (accept(2)). All else concerns one connection or passes.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Adds what every route is to have: a span that continues the caller's trace, a metric and a line in the log for each
/// request; bodies of at most 64 KiB and within 15 seconds, answers within 15 more, and a [`Problem`] where no route takes the request.
pub fn with_defaults<S: Clone + Send + Sync + 'static>(router: Router<S>, metrics: HttpMetrics) -> Router<S> {
    let no_route = async || Problem::not_found("there is nothing at this path");
    let no_method =
        async || Problem::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method");
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(metrics, around))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
}

async fn around(State(metrics): State<HttpMetrics>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let span = server_span(&request, method, &route);
    let response = async {
        let response = match received(request).await {
            Ok(request) => answered(next.run(request)).await,
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
    metrics.answered(&labels, started.elapsed());
    response
}

/// The request with all of its body, so that a caller's slowness is told from the program's.
async fn received(request: Request) -> Result<Request, Problem> {
    let (parts, body) = request.into_parts();
    let reading = whole_body(Request::from_parts(parts.clone(), body), &());
    let body = timeout(DEADLINE, reading).await.map_err(|_| {
        let detail = format!("not received within {} s", DEADLINE.as_secs());
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    })??;
    Ok(Request::from_parts(parts, Body::from(body)))
}

async fn answered(response: impl Future<Output = Response>) -> Response {
    timeout(DEADLINE, response).await.unwrap_or_else(|_| {
        Problem::unavailable(format!("not answered within {} s", DEADLINE.as_secs())).into_response()
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
    // Without telemetry there is no layer that would take a parent, and nothing to continue.
    let _ = span.set_parent(propagation::extract(request.headers()));
    span
}

/// The method as OpenTelemetry names it: whatever a caller makes up is `_OTHER`.
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

    async fn served(most: usize) -> (SocketAddr, CancellationToken) {
        let (address, shutdown, _) = served_until(most, Drain::at_once(Duration::ZERO)).await;
        (address, shutdown)
    }

    async fn served_until(
        most: usize,
        drain: Drain,
    ) -> (SocketAddr, CancellationToken, JoinHandle<io::Result<()>>) {
        let mut server = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        server.most = most;
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
        let (address, _shutdown) = served(CONNECTIONS).await;
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
        // When the first one's time was over.
        assert!(begun.elapsed() >= HEADERS, "{:?}", begun.elapsed());
        drop(first);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_that_do_not_read_their_answers_keep_nobody_else_out() {
        let (address, _shutdown) = served(2).await;
        // More than the sockets' buffers hold, so that the server waits for its caller.
        let asked = "GET /long HTTP/1.1\r\nHost: x\r\n\r\n".repeat(64);
        let idle = [send(address, &asked).await, send(address, &asked).await];
        let other = send(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(rest(other).await.ends_with("here"));
        drop(idle);
    }

    #[tokio::test]
    async fn one_that_is_asked_to_stop_answers_old_and_new_callers_and_leads_them_away() {
        let drain = Drain { accept: LONG, ..Drain::BEHIND_SERVICE };
        let (address, shutdown, _serving) = served_until(CONNECTIONS, drain).await;
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
        let (address, shutdown, serving) = served_until(CONNECTIONS, Drain::BEHIND_SERVICE).await;
        let begun = tokio::time::Instant::now();
        shutdown.cancel();
        serving.await.unwrap().unwrap();
        assert!(begun.elapsed() >= Drain::BEHIND_SERVICE.accept, "{:?}", begun.elapsed());
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
