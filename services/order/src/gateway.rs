//! The payment gateway over HTTP: sends requests, limited in time and size, and interprets the responses. Responses to a wrong
//! address or a rotated credential, and those of a broken proxy, are no fault of the order, so they are Transient.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use jetwright_process::http::inject;
use jetwright_runtime::HandlerError;
use reqwest::{RequestBuilder, Url, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use tracing::{Instrument, Span, field::Empty};

/// Maximum bytes of a response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// Maximum characters of the gateway's reason in an event and in the response to the user.
const MAX_REASON_CHARS: usize = 200;

/// The gateway's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The amount is authorized under this id.
    Authorized(String),
    /// It is not, and why.
    Declined(String),
}

/// The payment gateway. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Gateway {
    client: reqwest::Client,
    url: Url,
}

#[derive(Deserialize)]
struct Authorized {
    id: String,
}

#[derive(Deserialize)]
struct Declined {
    #[serde(default)]
    detail: String,
}

/// The state of a key after it was voided; without an amount if nothing was requested under it.
#[derive(Deserialize)]
struct Voided {
    id: String,
    status: String,
    amount: Option<i64>,
}

/// A complete response.
#[derive(Debug)]
struct GatewayResponse {
    status: StatusCode,
    body: Vec<u8>,
}

/// Why there is no response. The gateway may have decided; to ask again under the same key is safe.
#[derive(Debug, thiserror::Error)]
enum NoResponse {
    #[error("the payment gateway did not respond: {0}")]
    Lost(reqwest::Error),
    #[error("the payment gateway responded with more than {MAX_RESPONSE_BYTES} bytes")]
    TooLong,
}

impl Gateway {
    /// At this address; a response takes no longer than the timeout. Redirects are not followed: they would carry the
    /// payment to an address that nobody configured.
    ///
    /// # Errors
    ///
    /// The HTTP client cannot be built.
    pub fn new(url: &Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client =
            reqwest::Client::builder().timeout(timeout).no_proxy().redirect(Policy::none()).build()?;
        Ok(Self { client, url: url.clone() })
    }

    /// Requests an amount under the order's id, which the gateway decides once.
    ///
    /// # Errors
    ///
    /// Permanent if the gateway understood and will never take this payment (422), otherwise Transient.
    pub async fn authorize(
        &self,
        order_id: &str,
        amount: i64,
        currency: &str,
    ) -> Result<Decision, HandlerError> {
        let body = serde_json::json!({"amount": amount, "currency": currency});
        let key = HeaderValue::try_from(order_id).map_err(HandlerError::permanent)?;
        let request = self.post(&["authorizations"]).header("idempotency-key", key).json(&body);
        let response = self.send("authorize", request).await?;
        match response.status {
            StatusCode::CREATED => Ok(Decision::Authorized(response.read::<Authorized>()?.id)),
            StatusCode::PAYMENT_REQUIRED => {
                let Declined { detail } = response.read()?;
                Ok(Decision::Declined(detail.chars().take(MAX_REASON_CHARS).collect()))
            }
            StatusCode::CONFLICT => Ok(Decision::Declined("the payment was voided".to_owned())),
            other => Err(refused(other)),
        }
    }

    /// Voids what was authorized under the order's id, and prevents a later authorization of the id; may be repeated. Returns the id
    /// of the authorization, if there was one and the gateway names it.
    ///
    /// # Errors
    ///
    /// Transient, whatever the gateway responds: an amount that may be authorized is voided until that succeeds.
    pub async fn void(&self, order_id: &str) -> Result<Option<String>, HandlerError> {
        let response = self.send("void", self.post(&["authorizations", order_id, "void"])).await?;
        if !response.status.is_success() {
            return Err(HandlerError::transient(refusal(response.status)));
        }
        let voided: Option<Voided> = serde_json::from_slice(&response.body).ok();
        Ok(voided
            .filter(|voided| voided.status == "voided" && voided.amount.is_some())
            .map(|voided| voided.id))
    }

    /// A request to this path below the gateway's address, its segments escaped.
    fn post(&self, path: &[&str]) -> RequestBuilder {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        self.client.post(url)
    }

    async fn send(
        &self,
        name: &'static str,
        request: RequestBuilder,
    ) -> Result<GatewayResponse, HandlerError> {
        let span = tracing::info_span!(
            "payment gateway",
            otel.name = format!("gateway {name}"),
            otel.kind = "client",
            otel.status_code = Empty,
            error.type = Empty,
            http.request.method = "POST",
            http.response.status_code = Empty,
            server.address = self.url.host_str(),
            server.port = self.url.port_or_known_default(),
        );
        async {
            let mut headers = HeaderMap::new();
            inject(&mut headers);
            let response = exchange(request.headers(headers)).await;
            if let Some(error) = failure(&response) {
                Span::current().record("otel.status_code", "error").record("error.type", error);
            }
            response.map_err(HandlerError::transient)
        }
        .instrument(span)
        .await
    }
}

async fn exchange(request: RequestBuilder) -> Result<GatewayResponse, NoResponse> {
    let mut response = request.send().await?;
    let (status, mut body) = (response.status(), Vec::new());
    Span::current().record("http.response.status_code", status.as_u16());
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(NoResponse::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(GatewayResponse { status, body })
}

impl GatewayResponse {
    fn read<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            HandlerError::transient(format!(
                "failed to read the payment gateway's response {}: {error}",
                self.status
            ))
        })
    }
}

/// An address may contain a password, so errors are stored without theirs.
impl From<reqwest::Error> for NoResponse {
    fn from(error: reqwest::Error) -> Self {
        Self::Lost(error.without_url())
    }
}

/// The kind of failure of an exchange, if it failed (OpenTelemetry's `error.type`): decisions are no failures, whatever
/// their status.
fn failure(response: &Result<GatewayResponse, NoResponse>) -> Option<&str> {
    match response {
        Ok(GatewayResponse { status: StatusCode::PAYMENT_REQUIRED | StatusCode::CONFLICT, .. }) => None,
        Ok(GatewayResponse { status, .. }) => (!status.is_success()).then(|| status.as_str()),
        Err(NoResponse::TooLong) => Some("too_long"),
        Err(NoResponse::Lost(error)) if error.is_timeout() => Some("timeout"),
        Err(NoResponse::Lost(error)) if error.is_connect() => Some("connect"),
        Err(NoResponse::Lost(_)) => Some("lost"),
    }
}

/// Only 422 speaks of the payment itself; every other status may change once the settings, the credential or the gateway are
/// fixed.
fn refused(status: StatusCode) -> HandlerError {
    let why = refusal(status);
    if status == StatusCode::UNPROCESSABLE_ENTITY {
        HandlerError::Permanent(why)
    } else {
        HandlerError::Transient(why)
    }
}

fn refusal(status: StatusCode) -> String {
    format!("the payment gateway responded {status}")
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        io::{Result as Written, Write},
    };

    use axum::{Router, body::Bytes, routing::post};
    use tokio::net::TcpListener;
    use tracing_subscriber::fmt::{self, format::FmtSpan};

    use super::*;

    /// A gateway that always responds this.
    async fn gateway(status: StatusCode, body: impl Into<Bytes>) -> Gateway {
        let body = body.into();
        let response = move || async move { (status, [("location", "/elsewhere")], body) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/authorizations", post(response.clone()))
            .route("/v1/authorizations/{key}/void", post(response));
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Gateway::new(&url.parse().unwrap(), Duration::from_secs(5)).unwrap()
    }

    #[tokio::test]
    async fn only_what_is_about_the_payment_itself_is_the_end_of_an_order() {
        for status in [301, 400, 401, 403, 404, 408, 413, 429, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            let gateway = gateway(status, "{}").await;
            let authorized = gateway.authorize("o", 1, "EUR").await;
            assert!(matches!(authorized, Err(HandlerError::Transient(_))), "{status}: {authorized:?}");
            let voided = gateway.void("o").await;
            assert!(matches!(voided, Err(HandlerError::Transient(_))), "{status}: {voided:?}");
        }
        let gateway = gateway(StatusCode::UNPROCESSABLE_ENTITY, "{}").await;
        assert!(matches!(gateway.authorize("o", 1, "EUR").await, Err(HandlerError::Permanent(_))));
        assert!(matches!(gateway.void("o").await, Err(HandlerError::Transient(_))));
    }

    #[tokio::test]
    async fn answers_are_read_up_to_a_length_and_reasons_cut() {
        let reason = "ä".repeat(1000);
        let body = serde_json::json!({"detail": reason}).to_string();
        let declined =
            gateway(StatusCode::PAYMENT_REQUIRED, body).await.authorize("o", 1, "EUR").await.unwrap();
        assert_eq!(declined, Decision::Declined("ä".repeat(MAX_REASON_CHARS)));

        let body = format!(r#"{{"id": "a", "more": "{}"}}"#, "x".repeat(MAX_RESPONSE_BYTES));
        let error = gateway(StatusCode::CREATED, body).await.authorize("o", 1, "EUR").await.unwrap_err();
        assert!(error.to_string().contains("more than 65536 bytes"), "{error}");
    }

    #[tokio::test]
    async fn a_voided_authorization_differs_from_one_that_never_was() {
        for (body, expected) in [
            (r#"{"id": "a", "status": "voided", "amount": 7}"#, Some("a")),
            (r#"{"id": "a", "status": "voided"}"#, None),
            (r#"{"id": "a", "status": "declined", "amount": 7}"#, None),
            ("", None),
        ] {
            let voided = gateway(StatusCode::OK, body).await.void("o").await.unwrap();
            assert_eq!(voided.as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn ids_stay_within_their_segment_of_the_path() {
        let gateway = Gateway::new(&"http://pay.test/v1".parse().unwrap(), Duration::from_secs(1)).unwrap();
        let request = gateway.post(&["authorizations", "../a?b", "void"]).build().unwrap();
        assert_eq!(request.url().as_str(), "http://pay.test/v1/authorizations/..%2Fa%3Fb/void");
    }

    thread_local! {
        /// The log of this test's thread: parallel tests have threads of their own.
        static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    struct Lines;

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> Written<usize> {
            LINES.with_borrow_mut(|lines| lines.write(bytes))
        }

        fn flush(&mut self) -> Written<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_span_of_a_failed_request_says_so_and_that_of_a_decision_does_not() {
        fmt::fmt().with_span_events(FmtSpan::CLOSE).with_ansi(false).with_writer(|| Lines).init();
        let span = async |gateway: Gateway| {
            LINES.take();
            let _ = gateway.authorize("o", 1, "EUR").await;
            String::from_utf8(LINES.take()).unwrap()
        };
        let refused = span(gateway(StatusCode::UNAUTHORIZED, "").await).await;
        for field in [
            r#"otel.status_code="error""#,
            r#"error.type="401""#,
            "http.response.status_code=401",
            r#"server.address="127.0.0.1""#,
        ] {
            assert!(refused.contains(field), "{field} is not in {refused}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody =
            Gateway::new(&format!("http://{nobody}").parse().unwrap(), Duration::from_secs(5)).unwrap();
        let lost = span(nobody).await;
        assert!(lost.contains(r#"error.type="connect""#), "{lost}");
        let declined = span(gateway(StatusCode::PAYMENT_REQUIRED, "{}").await).await;
        assert!(declined.contains("status_code=402") && !declined.contains("error"), "{declined}");
    }
}
