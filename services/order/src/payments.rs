//! Payments of orders: what the gateway decided, told in a stream of their own.

use jetwright_proto::events::v1::{OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentVoided};
use jetwright_runtime::{Error, ErrorKind, Expected, Failure, PublishOptions, Publisher, Reader};
use jiff::Timestamp;
use prost::Name;

use crate::gateway::{Decision, Gateway};

/// JetStream stream of payments, where they are read. What is published goes by its subject, to whichever stream has it, so
/// the stream of `payments.*.*` must have this name.
const STREAM: &str = "payments";

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
                self.tell(&order.order_id, "authorized", &event).await?;
            }
            Decision::Declined(reason) => {
                let event = PaymentDeclined { order_id, amount, currency, reason, declined_at: now };
                self.tell(&order.order_id, "declined", &event).await?;
            }
        }
        Ok(decision)
    }

    /// Gives back what was authorized for an order that was rejected nevertheless, if anything was, and keeps the gateway
    /// from authorizing it later. The gateway is asked even where no event tells of an authorization: the attempt that got
    /// it may have ended before it could tell.
    ///
    /// # Errors
    ///
    /// Transient where the gateway or the stream does not answer, or something was told of the payment meanwhile.
    pub async fn void(&self, order_id: &str, why: &str) -> Result<(), Failure> {
        let history = self.reader.history(STREAM, &subjects(order_id)).await?;
        if history.events.iter().any(|event| event.event_type() == PaymentVoided::full_name()) {
            return Ok(());
        }
        let told = history.events.iter().find_map(|event| event.decode::<PaymentAuthorized>().ok());
        let voided = self.gateway.void(order_id).await?;
        let Some(authorization_id) = told.map(|event| event.authorization_id).or(voided) else {
            return Ok(());
        };
        let (order_id, voided_at) = (order_id.to_owned(), Timestamp::now().as_millisecond());
        let event =
            PaymentVoided { order_id: order_id.clone(), authorization_id, reason: why.to_owned(), voided_at };
        Ok(self.publish(&order_id, "voided", &event, history.last_sequence()).await?)
    }

    /// Tells the first event of a payment. A conflict means that another attempt told it.
    async fn tell<E>(&self, order_id: &str, what: &str, event: &E) -> Result<(), Failure>
    where
        E: prost::Message + Name,
    {
        match self.publish(order_id, what, event, 0).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error.into()),
            _ => Ok(()),
        }
    }

    async fn publish<E>(&self, order_id: &str, what: &str, event: &E, last_sequence: u64) -> Result<(), Error>
    where
        E: prost::Message + Name,
    {
        let expected = Some(Expected::last(last_sequence, subjects(order_id)));
        let options = PublishOptions { expected, ..PublishOptions::default() };
        self.publisher.publish(&format!("payments.{order_id}.{what}"), event, options).await.map(drop)
    }
}

fn subjects(order_id: &str) -> String {
    format!("payments.{order_id}.>")
}
