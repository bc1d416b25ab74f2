//! The stock of one article, and its changes by orders. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Maximum open orders of one article. Each is some 45 bytes of the article's value, which must fit into a message (1 MiB by
/// default) and is written whole with every change.
const MAX_RESERVATIONS: usize = 10_000;

/// The stock of one article.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stock {
    /// Pieces that any order may take.
    pub available: u64,
    /// Reserved pieces, by open order.
    pub reserved: BTreeMap<String, u32>,
    /// Fields of a later program, which this one preserves.
    #[serde(flatten)]
    others: Map<String, Value>,
}

/// The result of a change of a stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The stock becomes this one.
    To(Stock),
    /// Nothing changes: the stock is in this state already.
    None,
    /// The stock has fewer pieces than the order wants.
    Short,
    /// The article has its maximum of open orders.
    Full,
}

impl Stock {
    /// A stock without reservations.
    #[must_use]
    pub fn of(available: u64) -> Self {
        Self { available, ..Self::default() }
    }

    /// Reserves pieces for an order.
    #[must_use]
    pub fn reserve(mut self, order_id: &str, quantity: u32) -> Change {
        if self.reserved.contains_key(order_id) {
            return Change::None;
        }
        if self.reserved.len() >= MAX_RESERVATIONS {
            return Change::Full;
        }
        let Some(left) = self.available.checked_sub(quantity.into()) else { return Change::Short };
        self.available = left;
        self.reserved.insert(order_id.to_owned(), quantity);
        Change::To(self)
    }

    /// Releases an order's reservation. Always a change, also without a reservation: the write makes a new
    /// revision, so that a reservation in flight at an older revision fails.
    #[must_use]
    pub fn release(mut self, order_id: &str) -> Change {
        if let Some(quantity) = self.reserved.remove(order_id) {
            self.available = self.available.saturating_add(quantity.into());
        }
        Change::To(self)
    }

    /// Removes an order's reserved pieces from the stock.
    #[must_use]
    pub fn commit(mut self, order_id: &str) -> Change {
        if self.reserved.remove(order_id).is_some() { Change::To(self) } else { Change::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stock(available: u64, reserved: &[(&str, u32)]) -> Stock {
        let reserved = reserved.iter().map(|(order, quantity)| ((*order).to_owned(), *quantity)).collect();
        Stock { available, reserved, ..Stock::default() }
    }

    #[test]
    fn a_reservation_takes_from_what_is_available_once() {
        assert_eq!(stock(5, &[]).reserve("a", 3), Change::To(stock(2, &[("a", 3)])));
        assert_eq!(stock(2, &[("a", 3)]).reserve("a", 3), Change::None);
        assert_eq!(stock(2, &[("a", 3)]).reserve("b", 3), Change::Short);
        assert_eq!(stock(2, &[("a", 3)]).reserve("b", 2), Change::To(stock(0, &[("a", 3), ("b", 2)])));
    }

    #[test]
    fn a_released_reservation_is_available_again_once() {
        assert_eq!(stock(2, &[("a", 3)]).release("a"), Change::To(stock(5, &[])));
    }

    #[test]
    fn a_release_is_a_write_also_where_nothing_is_set_aside() {
        assert_eq!(stock(5, &[]).release("a"), Change::To(stock(5, &[])));
    }

    #[test]
    fn what_is_handed_out_is_gone() {
        assert_eq!(stock(2, &[("a", 3)]).commit("a"), Change::To(stock(2, &[])));
        assert_eq!(stock(2, &[]).commit("a"), Change::None);
    }

    #[test]
    fn an_article_has_so_many_open_orders_and_no_more() {
        let orders = (0..MAX_RESERVATIONS).map(|order| (order.to_string(), 1));
        let full = Stock { available: 5, reserved: orders.collect(), ..Stock::default() };
        assert_eq!(full.clone().reserve("one more", 1), Change::Full);
        assert_eq!(full.clone().reserve("7", 1), Change::None);
        assert!(serde_json::to_vec(&full).unwrap().len() < 1 << 20);
    }

    #[test]
    fn what_a_later_program_keeps_beside_the_stock_stays() {
        let text = r#"{"available":5,"reserved":{},"shelf":"left"}"#;
        let stock: Stock = serde_json::from_str(text).unwrap();
        let Change::To(stock) = stock.reserve("a", 3) else { panic!("not reserved") };
        let text = r#"{"available":2,"reserved":{"a":3},"shelf":"left"}"#;
        assert_eq!(serde_json::to_string(&stock).unwrap(), text);
    }
}
