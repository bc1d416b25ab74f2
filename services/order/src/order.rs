//! An order: its events folded. Pure.

use bytes::Bytes;
use jetwright_proto::events::v1::{OrderConfirmed, OrderPlaced, OrderRejected};
use jetwright_runtime::{Aggregate, DecodeError, Event, StoredEvent, decode};
use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

/// The prefix of the subjects of all orders' events: `orders.<order id>.<event>`.
pub const PREFIX: &str = "orders";

/// This text as an id, in the spelling of every writer of the shop (one id has many spellings, and each would be an
/// aggregate of its own).
#[must_use]
pub fn id(text: &str) -> Option<Uuid> {
    text.parse().ok().filter(|id: &Uuid| id.to_string() == text)
}

/// Whether the event was stored under this id, the subject's second token, and the id is well spelt.
#[must_use]
pub fn is_of(subject: &str, text: &str) -> bool {
    id(text).is_some() && subject.split('.').nth(1) == Some(text)
}

/// How an order ended.
#[derive(Clone, Debug, PartialEq)]
pub enum OrderResult {
    /// Every step succeeded.
    Confirmed(OrderConfirmed),
    /// A step refused.
    Rejected(OrderRejected),
}

/// An event of an order.
#[derive(Clone, Debug, PartialEq)]
pub enum OrderEvent {
    /// It was placed.
    Placed(OrderPlaced),
    /// It ended.
    Ended(OrderResult),
    /// Of a later program; it does not change what this one knows of an order.
    Unknown,
}

impl Event for OrderEvent {
    fn decode(event_type: &str, payload: Bytes) -> Result<Self, DecodeError> {
        match event_type {
            "events.v1.OrderPlaced" => decode(payload).map(Self::Placed),
            "events.v1.OrderConfirmed" => decode(payload).map(OrderResult::Confirmed).map(Self::Ended),
            "events.v1.OrderRejected" => decode(payload).map(OrderResult::Rejected).map(Self::Ended),
            _ => Ok(Self::Unknown),
        }
    }
}

/// An order.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// What was ordered.
    pub placed: OrderPlaced,
    /// How it ended, if it did.
    pub end: Option<OrderResult>,
}

/// One event of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimelineEntry {
    /// The last token of the event's subject.
    pub event: String,
    /// When it was stored.
    pub time: Timestamp,
    /// Its sequence in the stream of orders.
    pub sequence: u64,
}

/// The state of an order's id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OrderAggregate {
    /// The order, once it was placed.
    pub order: Option<Order>,
    /// All events, including those of later programs.
    pub timeline: Vec<TimelineEntry>,
}

impl OrderResult {
    /// The order's id.
    #[must_use]
    pub fn order_id(&self) -> &str {
        match self {
            Self::Confirmed(confirmed) => &confirmed.order_id,
            Self::Rejected(rejected) => &rejected.order_id,
        }
    }
}

impl Order {
    /// `placed`, `confirmed` or `rejected`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.end {
            None => "placed",
            Some(OrderResult::Confirmed(_)) => "confirmed",
            Some(OrderResult::Rejected(_)) => "rejected",
        }
    }
}

impl Aggregate for OrderAggregate {
    type Event = OrderEvent;

    fn apply(&mut self, event: OrderEvent, stored: &StoredEvent) {
        // orders.<order id>.<event>, with the partition behind it if the stream has partitions.
        let name = stored.subject.split('.').nth(2).unwrap_or_default().to_owned();
        self.timeline.push(TimelineEntry { event: name, time: stored.time, sequence: stored.sequence });
        self.order = after(self.order.take(), event);
    }
}

/// The order after this event. An event after an end, or a second placement, changes nothing: no writer can have stored it.
fn after(order: Option<Order>, event: OrderEvent) -> Option<Order> {
    match (order, event) {
        (None, OrderEvent::Placed(placed)) => Some(Order { placed, end: None }),
        (Some(order), OrderEvent::Ended(end)) if order.end.is_none() => {
            Some(Order { end: Some(end), ..order })
        }
        (order, _) => order,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed() -> OrderEvent {
        OrderEvent::Placed(OrderPlaced { order_id: "o".to_owned(), ..OrderPlaced::default() })
    }

    fn confirmed() -> OrderResult {
        OrderResult::Confirmed(OrderConfirmed {
            authorization_id: "a".to_owned(),
            ..OrderConfirmed::default()
        })
    }

    fn folded(events: Vec<OrderEvent>) -> Option<Order> {
        events.into_iter().fold(None, after)
    }

    #[test]
    fn an_id_has_one_spelling_and_is_that_of_its_subject() {
        let usual = "0193f0a6-7d2b-7c3e-8a4f-0123456789ab";
        assert_eq!(id(usual).map(|id| id.to_string()).as_deref(), Some(usual));
        let others = [usual.to_uppercase(), usual.replace('-', ""), format!("{{{usual}}}")];
        for other in &others {
            assert_eq!(id(other), None);
            assert!(!is_of(&format!("orders.{other}.placed"), other));
        }
        assert!(is_of(&format!("orders.{usual}.placed"), usual));
        assert!(is_of(&format!("orders.{usual}.placed.3"), usual));
        assert!(!is_of(&format!("orders.{}.placed", Uuid::nil()), usual));
    }

    #[test]
    fn an_order_is_placed_and_ends_once() {
        assert_eq!(folded(vec![]), None);
        assert_eq!(folded(vec![placed()]).map(|order| order.state()), Some("placed"));
        let rejected = OrderResult::Rejected(OrderRejected::default());
        let order =
            folded(vec![placed(), OrderEvent::Ended(confirmed()), OrderEvent::Ended(rejected)]).unwrap();
        assert_eq!(order.state(), "confirmed");
    }

    #[test]
    fn an_event_of_a_later_program_does_not_change_an_order() {
        let order = folded(vec![placed(), OrderEvent::Unknown]).unwrap();
        assert_eq!(order.state(), "placed");
        assert!(matches!(
            OrderEvent::decode("events.v1.OrderShipped", vec![1].into()),
            Ok(OrderEvent::Unknown)
        ));
    }
}
