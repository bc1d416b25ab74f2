//! The stream of orders: loads one, places one, ends one. Decides nothing.

use jetwright_proto::events::v1::OrderPlaced;
use jetwright_runtime::{Error, ErrorKind, Expected, Failure, History, PublishOptions, Publisher, Reader};

use crate::order::{End, Order, subjects};

/// The orders of the shop. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Orders {
    publisher: Publisher,
    reader: Reader,
    stream: String,
}

impl Orders {
    /// In this stream.
    #[must_use]
    pub fn new(publisher: Publisher, reader: Reader, stream: String) -> Self {
        Self { publisher, reader, stream }
    }

    /// The events of an order.
    ///
    /// # Errors
    ///
    /// The stream cannot be read.
    pub async fn history(&self, order_id: &str) -> Result<History, Error> {
        self.reader.history(&self.stream, &subjects(order_id)).await
    }

    /// An order as its handler needs it.
    ///
    /// # Errors
    ///
    /// Transient where the stream cannot be read, permanent where an event cannot.
    pub async fn load(&self, order_id: &str) -> Result<Option<Order>, Failure> {
        let history = self.history(order_id).await?;
        Order::from_history(&history).map_err(Failure::permanent)
    }

    /// Writes the first event of an order; `false` where there is one already.
    ///
    /// # Errors
    ///
    /// The stream cannot take it now, or at all.
    pub async fn place(&self, placed: &OrderPlaced) -> Result<bool, Error> {
        let subject = format!("orders.{}.placed", placed.order_id);
        let options = PublishOptions {
            expected: Some(Expected::none(subjects(&placed.order_id))),
            ..PublishOptions::default()
        };
        match self.publisher.publish(&subject, placed, options).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes the last event of an order.
    ///
    /// # Errors
    ///
    /// [`Conflict`](ErrorKind::Conflict) where the order has newer events; or the stream cannot take it.
    pub async fn end(&self, order_id: &str, last_sequence: u64, end: &End) -> Result<(), Error> {
        let expected = Some(Expected::last(last_sequence, subjects(order_id)));
        let options = PublishOptions { expected, ..PublishOptions::default() };
        let subject = |event: &str| format!("orders.{order_id}.{event}");
        match end {
            End::Confirmed(event) => self.publisher.publish(&subject("confirmed"), event, options).await,
            End::Rejected(event) => self.publisher.publish(&subject("rejected"), event, options).await,
        }
        .map(drop)
    }
}
