//! Payments of orders: what the gateway decided, told in a stream of their own.

use bytes::Bytes;
use jetwright_proto::events::v1::{OrderPlaced, PaymentAuthorized, PaymentDeclined, PaymentVoided};
use jetwright_runtime::{
    Aggregate, Aggregates, ErrorKind, Event, Failure, NewEvent, Recorded, Undecodable, decode,
};
use jiff::Timestamp;

use crate::gateway::{Decision, Gateway};

/// JetStream stream of payments.
pub const STREAM: &str = "payments";
/// What the subjects of all payments' events begin with: `payments.<order id>.<event>`.
pub const PREFIX: &str = "payments";

/// Payments of orders. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Payments {
    gateway: Gateway,
    events: Aggregates<Payment>,
}

/// What was told of the payment of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// The authorization, if there was one.
    authorization_id: Option<String>,
    /// It was given back.
    voided: bool,
}

/// An event of a payment.
#[derive(Clone, Debug, PartialEq)]
pub enum PaymentEvent {
    /// The amount was set aside.
    Authorized(PaymentAuthorized),
    /// It was given back.
    Voided,
    /// Whatever else is told.
    Other,
}

impl Event for PaymentEvent {
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, Undecodable> {
        match event_type {
            "events.v1.PaymentAuthorized" => decode(payload).map(Self::Authorized),
            "events.v1.PaymentVoided" => Ok(Self::Voided),
            _ => Ok(Self::Other),
        }
    }
}

impl Aggregate for Payment {
    type Event = PaymentEvent;

    fn apply(&mut self, event: PaymentEvent, _recorded: &Recorded) {
        match event {
            PaymentEvent::Authorized(authorized) => self.authorization_id = Some(authorized.authorization_id),
            PaymentEvent::Voided => self.voided = true,
            PaymentEvent::Other => {}
        }
    }
}

impl Payments {
    /// Through this gateway, told by these events.
    #[must_use]
    pub fn new(gateway: Gateway, events: Aggregates<Payment>) -> Self {
        Self { gateway, events }
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
                self.tell(&order.order_id, NewEvent::new("authorized", event)).await?;
            }
            Decision::Declined(reason) => {
                let event = PaymentDeclined { order_id, amount, currency, reason, declined_at: now };
                self.tell(&order.order_id, NewEvent::new("declined", event)).await?;
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
        let payment = self.events.load(order_id).await?;
        if payment.state().voided {
            return Ok(());
        }
        let voided = self.gateway.void(order_id).await?;
        let Some(authorization_id) = payment.state().authorization_id.clone().or(voided) else {
            return Ok(());
        };
        let (order_id, voided_at) = (order_id.to_owned(), Timestamp::now().as_millisecond());
        let event = PaymentVoided { order_id, authorization_id, reason: why.to_owned(), voided_at };
        self.events.append(&payment, NewEvent::new("voided", event)).await?;
        Ok(())
    }

    /// Tells the first event of a payment. A conflict means that another attempt told it.
    async fn tell(&self, order_id: &str, event: NewEvent) -> Result<(), Failure> {
        match self.events.append(&self.events.presume_new(order_id), event).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error.into()),
            _ => Ok(()),
        }
    }
}
