//! Payments: the gateway over HTTP, and the stream that tells of them.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use jetwright_process::http::inject;
use jetwright_proto::events::v1::{OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentVoided};
use jetwright_runtime::{Error, ErrorKind, Expected, Failure, PublishOptions, Publisher, Reader};
use jiff::Timestamp;
use prost::Name;
use serde::Deserialize;
use tracing::{Instrument, Span, field::Empty};

/// JetStream stream of payments.
const STREAM: &str = "payments";

/// What the gateway decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The amount is set aside under this id.
    Authorized(String),
    /// It is not, and why.
    Declined(String),
}

/// Payments of orders. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Payments {
    gateway: Gateway,
    publisher: Publisher,
    reader: Reader,
}

impl Payments {
    /// Through this gateway, told in the stream.
    #[must_use]
    pub fn new(gateway: Gateway, publisher: Publisher, reader: Reader) -> Self {
        Self { gateway, publisher, reader }
    }

    /// Asks for an order's amount, and tells what was decided. However often it is asked, there is one decision and one
    /// event of it.
    ///
    /// # Errors
    ///
    /// Transient where the gateway does not decide or the stream does not take the event.
    pub async fn authorize(&self, order: &OrderPlaced) -> Result<Decision, Failure> {
        let decision = self.gateway.authorize(&order.order_id, order.amount, &order.currency).await?;
        let (order_id, amount, currency) = (order.order_id.clone(), order.amount, order.currency.clone());
        let now = Timestamp::now().as_millisecond();
        match decision.clone() {
            Decision::Authorized(authorization_id) => {
                let event =
                    PaymentAuthorized { order_id, authorization_id, amount, currency, authorized_at: now };
                self.tell(&order.order_id, "authorized", &event, 0).await?;
            }
            Decision::Declined(reason) => {
                let event = PaymentDeclined { order_id, amount, currency, reason, declined_at: now };
                self.tell(&order.order_id, "declined", &event, 0).await?;
            }
        }
        Ok(decision)
    }

    /// Gives back what was authorized for an order that was rejected nevertheless, if anything was.
    ///
    /// # Errors
    ///
    /// Transient where the gateway or the stream does not answer.
    pub async fn void(&self, order_id: &str, why: &str) -> Result<(), Failure> {
        let history = self.reader.history(STREAM, &subjects(order_id)).await?;
        let authorized = history.events.iter().find_map(|event| event.decode::<PaymentAuthorized>().ok());
        let voided = history.events.iter().any(|event| event.event_type() == PaymentVoided::full_name());
        let Some(PaymentAuthorized { order_id, authorization_id, .. }) = authorized.filter(|_| !voided)
        else {
            return Ok(());
        };
        self.gateway.void(&order_id).await?;
        let voided_at = Timestamp::now().as_millisecond();
        let event =
            PaymentVoided { order_id: order_id.clone(), authorization_id, reason: why.to_owned(), voided_at };
        self.tell(&order_id, "voided", &event, history.last_sequence()).await
    }

    /// A conflict means that another attempt told it.
    async fn tell<E>(&self, order_id: &str, what: &str, event: &E, last_sequence: u64) -> Result<(), Failure>
    where
        E: prost::Message + Name,
    {
        let expected = Some(Expected::last(last_sequence, subjects(order_id)));
        let options = PublishOptions { expected, ..PublishOptions::default() };
        let published: Result<_, Error> =
            self.publisher.publish(&format!("payments.{order_id}.{what}"), event, options).await;
        match published {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn subjects(order_id: &str) -> String {
    format!("payments.{order_id}.>")
}

/// The payment gateway. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Gateway {
    client: reqwest::Client,
    url: String,
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

impl Gateway {
    /// At this address; an answer takes no longer than the time-out.
    ///
    /// # Errors
    ///
    /// The HTTP client cannot be made.
    pub fn new(url: &reqwest::Url, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder().timeout(timeout).no_proxy().build()?;
        Ok(Self { client, url: url.as_str().trim_end_matches('/').to_owned() })
    }

    /// Asks for an amount under the order's id, which the gateway decides once.
    async fn authorize(&self, order_id: &str, amount: i64, currency: &str) -> Result<Decision, Failure> {
        let body = serde_json::json!({"amount": amount, "currency": currency});
        let request = self.client.post(format!("{}/authorizations", self.url)).json(&body);
        let key = HeaderValue::try_from(order_id).map_err(Failure::permanent)?;
        let response = self.send("authorize", request.header("idempotency-key", key)).await?;
        match response.status() {
            StatusCode::CREATED => {
                let Authorized { id } = response.json().await.map_err(unclear)?;
                Ok(Decision::Authorized(id))
            }
            StatusCode::PAYMENT_REQUIRED => {
                let Declined { detail } = response.json().await.map_err(unclear)?;
                Ok(Decision::Declined(detail))
            }
            StatusCode::CONFLICT => Ok(Decision::Declined("the payment was voided".to_owned())),
            other => Err(refused(other)),
        }
    }

    /// Gives an authorization back; however often it is asked.
    async fn void(&self, order_id: &str) -> Result<(), Failure> {
        let request = self.client.post(format!("{}/authorizations/{order_id}/void", self.url));
        let response = self.send("void", request).await?;
        if response.status().is_success() { Ok(()) } else { Err(refused(response.status())) }
    }

    async fn send(
        &self,
        name: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, Failure> {
        let span = tracing::info_span!(
            "payment gateway",
            otel.name = format!("gateway {name}"),
            otel.kind = "client",
            http.request.method = "POST",
            http.response.status_code = Empty,
        );
        async {
            let mut headers = HeaderMap::new();
            inject(&mut headers);
            let response = request.headers(headers).send().await.map_err(unclear)?;
            Span::current().record("http.response.status_code", response.status().as_u16());
            Ok(response)
        }
        .instrument(span)
        .await
    }
}

/// Whether anything was decided is not known; to ask again under the same key is safe.
fn unclear(error: reqwest::Error) -> Failure {
    Failure::transient(format!("the payment gateway did not answer: {}", error.without_url()))
}

fn refused(status: StatusCode) -> Failure {
    let why = format!("the payment gateway answered {status}");
    let later = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if later { Failure::Transient(why) } else { Failure::Permanent(why) }
}
