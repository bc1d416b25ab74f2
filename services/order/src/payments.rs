//! The payment of an order, folded from its events. Pure.

use bytes::Bytes;
use jetwright_proto::events::v1::{PaymentAuthorized, PaymentDeclined, PaymentVoided};
use jetwright_runtime::{Aggregate, DecodeError, Event, NewEvent, StoredEvent, decode};

/// JetStream stream of payments.
pub const STREAM: &str = "payments";
/// The prefix of the subjects of all payments' events: `payments.<order id>.<event>`.
pub const PREFIX: &str = "payments";

/// The payment of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    /// The gateway decided.
    decided: bool,
    /// The authorization, if there was one.
    authorization_id: Option<String>,
    /// It was voided.
    voided: bool,
}

/// An event of a payment.
#[derive(Clone, Debug, PartialEq)]
pub enum PaymentEvent {
    /// The gateway authorized the amount.
    Authorized(PaymentAuthorized),
    /// The gateway declined.
    Declined(PaymentDeclined),
    /// The authorization was voided.
    Voided(PaymentVoided),
    /// An event of a later program.
    Unknown,
}

impl Event for PaymentEvent {
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
        match event_type {
            "events.v1.PaymentAuthorized" => decode(payload).map(Self::Authorized),
            "events.v1.PaymentDeclined" => decode(payload).map(Self::Declined),
            "events.v1.PaymentVoided" => decode(payload).map(Self::Voided),
            _ => Ok(Self::Unknown),
        }
    }
}

impl Payment {
    /// The event to append because of this one, if any. A decision is recorded once, and not after a void: its
    /// attempt was slow. A void is recorded once, if there is an authorization to void.
    #[must_use]
    pub fn accepts(&self, event: &PaymentEvent) -> Option<PaymentEvent> {
        match event {
            PaymentEvent::Authorized(_) | PaymentEvent::Declined(_) => {
                (!self.decided && !self.voided).then(|| event.clone())
            }
            PaymentEvent::Voided(_) if self.voided => None,
            PaymentEvent::Voided(voided) => {
                let known = Some(voided.authorization_id.clone()).filter(|id| !id.is_empty());
                let authorization_id = self.authorization_id.clone().or(known)?;
                Some(PaymentEvent::Voided(PaymentVoided { authorization_id, ..voided.clone() }))
            }
            PaymentEvent::Unknown => None,
        }
    }

    /// The payment after this event.
    pub fn record(&mut self, event: &PaymentEvent) {
        match event {
            PaymentEvent::Authorized(authorized) => {
                self.decided = true;
                self.authorization_id = Some(authorized.authorization_id.clone());
            }
            PaymentEvent::Declined(_) => self.decided = true,
            PaymentEvent::Voided(_) => self.voided = true,
            PaymentEvent::Unknown => {}
        }
    }
}

impl Aggregate for Payment {
    type Event = PaymentEvent;

    fn apply(&mut self, event: PaymentEvent, _recorded: &StoredEvent) {
        self.record(&event);
    }
}

impl PaymentEvent {
    /// The event as it is appended to the stream.
    pub(crate) fn to_append(&self) -> Option<NewEvent> {
        Some(match self.clone() {
            Self::Authorized(event) => NewEvent::new("authorized", event),
            Self::Declined(event) => NewEvent::new("declined", event),
            Self::Voided(event) => NewEvent::new("voided", event),
            Self::Unknown => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorized() -> PaymentEvent {
        let authorization_id = "a".to_owned();
        PaymentEvent::Authorized(PaymentAuthorized { authorization_id, ..PaymentAuthorized::default() })
    }

    fn voided(id: &str) -> PaymentEvent {
        PaymentEvent::Voided(PaymentVoided { authorization_id: id.to_owned(), ..PaymentVoided::default() })
    }

    fn after(events: &[PaymentEvent]) -> Payment {
        let mut payment = Payment::default();
        for event in events {
            payment.record(event);
        }
        payment
    }

    #[test]
    fn a_decision_is_recorded_once_and_never_after_a_void() {
        assert_eq!(after(&[]).accepts(&authorized()), Some(authorized()));
        assert_eq!(after(&[authorized()]).accepts(&authorized()), None);
        assert_eq!(after(&[voided("a")]).accepts(&authorized()), None);
        let declined = PaymentEvent::Declined(PaymentDeclined::default());
        assert_eq!(after(std::slice::from_ref(&declined)).accepts(&declined), None);
    }

    #[test]
    fn a_void_is_recorded_once_and_where_there_was_an_authorization() {
        assert_eq!(after(&[authorized()]).accepts(&voided("")), Some(voided("a")));
        assert_eq!(after(&[]).accepts(&voided("a")), Some(voided("a")));
        assert_eq!(after(&[]).accepts(&voided("")), None);
        assert_eq!(after(&[authorized(), voided("a")]).accepts(&voided("a")), None);
    }
}
