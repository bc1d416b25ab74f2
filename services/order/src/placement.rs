//! Turns a caller's order into an event, or into a problem with every mistake. Pure.

use std::collections::BTreeSet;

use jetwright_process::http::Problem;
use jetwright_proto::events::v1::{OrderLine, OrderPlaced};
use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::configuration::ShopConfig;

/// Maximum lines of one order.
const MAX_LINES: usize = 50;
/// Maximum pieces of one line.
const MAX_PIECES_PER_LINE: u32 = 1000;
/// Namespace of ids from idempotency keys, so that a key always has the same order.
const NAMESPACE: Uuid = Uuid::from_u128(0x0d1f_7a1e_6b52_4a4e_9d0b_3f64_52c8_71e5);

/// The body of a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewOrder {
    user_id: Uuid,
    lines: Vec<NewLine>,
}

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLine {
    sku: String,
    quantity: u32,
}

/// The id of a new order: the same for the same user and key, otherwise a new one.
#[must_use]
pub fn order_id(order: &NewOrder, idempotency_key: Option<&str>) -> Uuid {
    match idempotency_key {
        None => Uuid::now_v7(),
        Some(key) => Uuid::new_v5(&NAMESPACE, format!("{}/{key}", order.user_id).as_bytes()),
    }
}

/// The order as an event, with the shop's prices.
///
/// # Errors
///
/// Every field that is wrong.
pub fn place(
    order: &NewOrder,
    order_id: Uuid,
    shop: &ShopConfig,
    now: Timestamp,
) -> Result<OrderPlaced, Problem> {
    let mut problem = Problem::invalid("the order cannot be placed");
    if order.lines.is_empty() || order.lines.len() > MAX_LINES {
        problem =
            problem.field("lines", format!("expected 1 to {MAX_LINES} lines, found {}", order.lines.len()));
    }
    let mut seen = BTreeSet::new();
    let mut lines = Vec::new();
    for (index, NewLine { sku, quantity }) in order.lines.iter().enumerate() {
        if !seen.insert(sku) {
            problem = problem.field(format!("lines[{index}].sku"), "each article is in one line only");
        }
        if !(1..=MAX_PIECES_PER_LINE).contains(quantity) {
            let detail = format!("expected 1 to {MAX_PIECES_PER_LINE}, found {quantity}");
            problem = problem.field(format!("lines[{index}].quantity"), detail);
        }
        match shop.catalogue.get(sku) {
            None => problem = problem.field(format!("lines[{index}].sku"), "there is no such article"),
            Some(article) => lines.push(OrderLine {
                sku: sku.clone(),
                quantity: *quantity,
                unit_price: article.unit_price,
            }),
        }
    }
    if problem.has_fields() {
        return Err(problem);
    }
    let amount = amount(&lines).ok_or_else(|| problem.field("lines", "they cost more than can be paid"))?;
    Ok(OrderPlaced {
        order_id: order_id.to_string(),
        user_id: order.user_id.to_string(),
        lines,
        amount,
        currency: shop.currency.clone(),
        placed_at: now.as_millisecond(),
    })
}

fn amount(lines: &[OrderLine]) -> Option<i64> {
    lines
        .iter()
        .try_fold(0_i64, |sum, line| sum.checked_add(line.unit_price.checked_mul(line.quantity.into())?))
}

/// Whether a placed order is what this request orders: the same request, sent again. Prices are the shop's and not the
/// request's, and may have changed.
#[must_use]
pub fn is_same(placed: &OrderPlaced, order: &NewOrder) -> bool {
    let before = placed.lines.iter().map(|line| (&line.sku, line.quantity));
    let now = order.lines.iter().map(|line| (&line.sku, line.quantity));
    placed.user_id == order.user_id.to_string() && before.eq(now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shop(catalogue: &str) -> ShopConfig {
        ShopConfig {
            catalogue: catalogue.parse().unwrap(),
            currency: "EUR".to_owned(),
            payments_url: "http://payments".parse().unwrap(),
            payments_timeout: Duration::from_secs(1),
        }
    }

    fn order(lines: &[(&str, u32)]) -> NewOrder {
        let lines =
            lines.iter().map(|(sku, quantity)| NewLine { sku: (*sku).to_owned(), quantity: *quantity });
        NewOrder { user_id: Uuid::from_u128(7), lines: lines.collect() }
    }

    fn placed(lines: &[(&str, u32)]) -> Result<OrderPlaced, Problem> {
        let shop = shop("mug=1250:10,pin=99:10,gold=9000000000000000000:10");
        place(&order(lines), Uuid::from_u128(1), &shop, Timestamp::from_millisecond(5).unwrap())
    }

    #[test]
    fn an_order_has_the_shops_prices_and_their_sum() {
        let line = |sku: &str, quantity, unit_price| OrderLine { sku: sku.to_owned(), quantity, unit_price };
        let expected = OrderPlaced {
            order_id: "00000000-0000-0000-0000-000000000001".to_owned(),
            user_id: "00000000-0000-0000-0000-000000000007".to_owned(),
            lines: vec![line("mug", 2, 1250), line("pin", 1, 99)],
            amount: 2599,
            currency: "EUR".to_owned(),
            placed_at: 5,
        };
        assert_eq!(placed(&[("mug", 2), ("pin", 1)]), Ok(expected));
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let expected = Problem::invalid("the order cannot be placed")
            .field("lines[0].quantity", "expected 1 to 1000, found 0")
            .field("lines[1].sku", "each article is in one line only")
            .field("lines[2].sku", "there is no such article");
        assert_eq!(placed(&[("mug", 0), ("mug", 1), ("hat", 1)]), Err(expected));
        assert!(placed(&[]).is_err());
        assert!(placed(&[("gold", 2)]).is_err());
    }

    #[test]
    fn a_key_names_one_order_of_one_user() {
        let (one, mut other) = (order(&[("mug", 1)]), order(&[("pin", 1)]));
        assert_eq!(order_id(&one, Some("k")), order_id(&other, Some("k")));
        other.user_id = Uuid::from_u128(8);
        assert_ne!(order_id(&one, Some("k")), order_id(&other, Some("k")));
        assert_ne!(order_id(&one, None), order_id(&one, None));
    }

    #[test]
    fn a_repeated_request_is_known_by_what_it_orders() {
        let first = OrderPlaced { amount: 1, ..placed(&[("mug", 1)]).unwrap() };
        assert!(is_same(&first, &order(&[("mug", 1)])));
        assert!(!is_same(&first, &order(&[("mug", 2)])));
        assert!(!is_same(&first, &order(&[("mug", 1), ("pin", 1)])));
        let another_user = NewOrder { user_id: Uuid::from_u128(8), ..order(&[("mug", 1)]) };
        assert!(!is_same(&first, &another_user));
    }
}
