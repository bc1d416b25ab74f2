//! What every HTTP interface has around its own routes: a bound address, a span and a metric per request, limits, errors as
//! `application/problem+json`, and a graceful end.

mod input;
mod metrics;
mod problem;
mod propagation;
mod server;

pub use input::{Json, Path, idempotency_key};
pub use metrics::{CATALOGUE as METRICS, HttpMetrics};
pub use problem::Problem;
pub use propagation::inject;
pub use server::{Drain, Server, bind, with_defaults};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::http::{HeaderMap, Request, StatusCode};
    use axum::response::{IntoResponse, Response};
    use axum::routing::{get, post};
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;
    use serde::Deserialize;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::telemetry::log::tests::{Output, keep_lines_undecided};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        lines: Vec<Line>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        quantity: u32,
    }

    async fn count(Json(order): Json<Order>) -> String {
        order.lines.iter().map(|line| line.quantity).sum::<u32>().to_string()
    }

    async fn outgoing() -> String {
        let mut headers = HeaderMap::new();
        inject(&mut headers);
        headers["traceparent"].to_str().unwrap().to_owned()
    }

    fn router(registry: &mut Registry) -> Router {
        keep_lines_undecided();
        let routes = Router::new()
            .route("/orders", post(count))
            .route("/orders/{number}", get(async |Path(number): Path<u32>| number.to_string()))
            .route("/outgoing", get(outgoing))
            .route("/slow", get(async || tokio::time::sleep(Duration::from_mins(1)).await));
        with_defaults(routes, HttpMetrics::register(registry))
    }

    async fn answer(request: Request<Body>) -> Response {
        router(&mut Registry::default()).oneshot(request).await.unwrap()
    }

    async fn body(response: Response) -> String {
        String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
    }

    fn order(content_type: &str, body: impl Into<Body>) -> Request<Body> {
        Request::post("/orders").header("content-type", content_type).body(body.into()).unwrap()
    }

    /// The response as a problem: status and body.
    async fn problem(request: Request<Body>) -> (u16, Value) {
        let response = answer(request).await;
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let status = response.status().as_u16();
        let body: Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!(body["status"], status);
        (status, body)
    }

    #[tokio::test]
    async fn a_right_body_is_taken() {
        let request =
            order("Application/JSON; charset=utf-8", r#"{"lines": [{"quantity": 2}, {"quantity": 3}]}"#);
        assert_eq!(body(answer(request).await).await, "5");
    }

    #[tokio::test]
    async fn a_wrong_field_is_named_by_its_path() {
        for (body, field, detail) in [
            (
                r#"{"lines": [{"quantity": -1}]}"#,
                "lines[0].quantity",
                "invalid value: integer `-1`, expected u32",
            ),
            (r#"{"lines": [{}]}"#, "lines[0].quantity", "missing field `quantity`"),
            ("{}", "lines", "missing field `lines`"),
            (r#"{"lines": [], "lime": 1}"#, "lime", "unknown field `lime`, expected `lines`"),
        ] {
            let (status, problem) = problem(order("application/json", body)).await;
            assert_eq!(status, 422, "{body}");
            assert_eq!(problem["errors"], json!([{"field": field, "detail": detail}]), "{body}");
        }
    }

    #[tokio::test]
    async fn what_is_no_json_is_shown_by_its_status() {
        let long = format!(r#"{{"lines": [{}]}}"#, " ".repeat(65 * 1024));
        for (content_type, body, status) in [
            ("application/json", "{\"lines\": [", 400),
            ("application/json", "", 400),
            ("application/json", "{\"lines\": []} and more", 400),
            ("text/plain", "{\"lines\": []}", 415),
            ("application/json", &long, 413),
        ] {
            assert_eq!(
                problem(order(content_type, body.to_owned())).await.0,
                status,
                "{content_type} {body:.20}"
            );
        }
    }

    #[tokio::test]
    async fn paths_and_methods_that_there_are_not_are_problems_too() {
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(problem(get("/nowhere")).await.0, 404);
        assert_eq!(problem(get("/orders/seven")).await.0, 404);
        let response = answer(get("/orders")).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "POST");
    }

    #[tokio::test]
    async fn an_unavailable_problem_says_when_to_retry() {
        let problem = Problem::unavailable("NATS is away").retry_after(Duration::from_millis(300));
        assert_eq!(problem.into_response().headers()["retry-after"], "1");
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_takes_too_long_is_the_programs_own_failure() {
        let slow = || Request::get("/slow").body(Body::empty()).unwrap();
        assert_eq!(problem(slow()).await.0, 503);
        assert_eq!(answer(slow()).await.headers()["retry-after"], "1");
    }

    /// A body that never ends.
    struct Unending;

    impl axum::body::HttpBody for Unending {
        type Data = axum::body::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
            std::task::Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_takes_too_long_is_the_callers_matter() {
        assert_eq!(problem(order("application/json", Body::new(Unending))).await.0, 408);
    }

    #[test]
    fn an_idempotency_key_is_one_printable_text() {
        let key = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("idempotency-key", value.parse().unwrap());
            }
            idempotency_key(&headers).map(|key| key.map(str::to_owned)).map_err(|problem| problem.status())
        };
        assert_eq!(key(&[]), Ok(None));
        assert_eq!(key(&["order 7"]), Ok(Some("order 7".to_owned())));
        for wrong in [&[""][..], &["a", "b"], &["schlüssel"], &["x".repeat(256).as_str()]] {
            assert_eq!(key(wrong), Err(StatusCode::UNPROCESSABLE_ENTITY), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_request_continues_the_callers_trace_in_the_log_and_in_what_it_asks_of_others() {
        opentelemetry::global::set_text_map_propagator(
            opentelemetry_sdk::propagation::TraceContextPropagator::new(),
        );
        let output = Output::default();
        let _guard = output.subscribe();
        let trace_id = "0af7651916cd43dd8448eb211c80319c";
        let traceparent = format!("00-{trace_id}-b7ad6b7169203331-01");
        let request =
            Request::get("/outgoing").header("traceparent", &traceparent).body(Body::empty()).unwrap();
        let sent_on = body(answer(request).await).await;
        assert!(sent_on.starts_with(&format!("00-{trace_id}-")), "{sent_on}");
        assert_ne!(sent_on, traceparent);
        let line = &output.lines()[0];
        assert_eq!((&line["trace_id"], &line["status"]), (&json!(trace_id), &json!(200)));
        assert_eq!(line["span"]["otel.name"], "GET /outgoing");
    }

    #[tokio::test]
    async fn requests_are_counted_by_route_and_never_by_path() {
        let mut registry = Registry::default();
        let router = router(&mut registry);
        for path in ["/orders/1", "/orders/2", "/made/up"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            router.clone().oneshot(request).await.unwrap();
        }
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let counted = |route: &str, status: u16, count: u32| {
            let labels = format!(
                r#"http_request_method="GET",http_route="{route}",http_response_status_code="{status}""#
            );
            text.contains(&format!("http_server_request_duration_seconds_count{{{labels}}} {count}"))
        };
        assert!(counted("/orders/{number}", 200, 2) && counted("", 404, 1), "{text}");
    }

    #[tokio::test]
    async fn a_stop_answers_what_is_in_flight_for_a_bounded_time() {
        let server = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.local_address().unwrap();
        let (shutdown, arrived) =
            (tokio_util::sync::CancellationToken::new(), tokio_util::sync::CancellationToken::new());
        let seen = arrived.clone();
        let stuck = get(async move || {
            seen.cancel();
            std::future::pending::<()>().await;
        });
        let router = Router::new().route("/stuck", stuck);
        let serving =
            tokio::spawn(server.serve(router, shutdown.clone(), Drain::at_once(Duration::from_millis(50))));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, request).await.unwrap();
        arrived.cancelled().await;
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), serving).await.unwrap().unwrap().unwrap();
    }
}
