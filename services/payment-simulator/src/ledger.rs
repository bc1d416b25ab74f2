//! Decisions by key. Pure: a request and the state in, a response out.

use std::collections::{HashMap, VecDeque};

use uuid::Uuid;

/// Namespace of ids from keys, so that a key has the same id even after a restart.
const NAMESPACE: Uuid = Uuid::from_u128(0x5e1f_3c52_9a34_4c6e_8d57_21c0_7b1e_94aa);

/// A requested payment: an amount in minor units of a currency (an ISO 4217 code).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payment {
    pub(crate) amount: i64,
    pub(crate) currency: String,
}

/// The state of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authorization {
    pub(crate) id: String,
    pub(crate) status: Status,
    /// Absent if the key was voided before any request.
    pub(crate) payment: Option<Payment>,
}

/// The decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Authorized,
    /// And why.
    Declined(&'static str),
    Voided,
}

/// Why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The key was used for another amount or currency.
    AnotherPayment,
    /// The key was voided.
    Voided,
}

/// All authorizations, up to a maximum. Beyond it the oldest key is forgotten, and would be decided a second time.
#[derive(Debug)]
pub(crate) struct Ledger {
    capacity: usize,
    authorizations: HashMap<String, Authorization>,
    oldest_first: VecDeque<String>,
}

impl Ledger {
    /// An empty ledger of at most this many keys.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, authorizations: HashMap::new(), oldest_first: VecDeque::new() }
    }

    /// Decides about a payment, or returns the decision under its key.
    pub(crate) fn authorize(&mut self, key: &str, payment: Payment) -> Result<Authorization, Refusal> {
        let Some(known) = self.authorizations.get(key) else {
            let status = decide(&payment);
            return Ok(self.enter(key, status, Some(payment)));
        };
        match known {
            Authorization { status: Status::Voided, .. } => Err(Refusal::Voided),
            Authorization { payment: Some(asked), .. } if *asked != payment => Err(Refusal::AnotherPayment),
            known => Ok(known.clone()),
        }
    }

    /// The state of a key.
    pub(crate) fn get(&self, key: &str) -> Option<Authorization> {
        self.authorizations.get(key).cloned()
    }

    /// Voids an authorization, and prevents a later authorization of the key: a request whose client timed out may still be
    /// in flight. A declined payment stays declined.
    pub(crate) fn void(&mut self, key: &str) -> Authorization {
        match self.authorizations.get_mut(key) {
            None => self.enter(key, Status::Voided, None),
            Some(known) => {
                if known.status == Status::Authorized {
                    known.status = Status::Voided;
                }
                known.clone()
            }
        }
    }

    fn enter(&mut self, key: &str, status: Status, payment: Option<Payment>) -> Authorization {
        if self.oldest_first.len() >= self.capacity
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.authorizations.remove(&oldest);
        }
        let id = format!("auth-{}", Uuid::new_v5(&NAMESPACE, key.as_bytes()));
        let authorization = Authorization { id, status, payment };
        self.authorizations.insert(key.to_owned(), authorization.clone());
        self.oldest_first.push_back(key.to_owned());
        authorization
    }
}

fn decide(payment: &Payment) -> Status {
    if payment.amount % 100 == 13 {
        Status::Declined("the card's issuer declined")
    } else {
        Status::Authorized
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payment(amount: i64) -> Payment {
        Payment { amount, currency: "EUR".into() }
    }

    #[test]
    fn what_ends_in_13_is_declined_and_all_else_authorized() {
        let mut ledger = Ledger::new(10);
        for (key, amount, status) in [
            ("a", 2599, Status::Authorized),
            ("b", 2513, Status::Declined("the card's issuer declined")),
            ("c", 13, Status::Declined("the card's issuer declined")),
            ("d", 1300, Status::Authorized),
        ] {
            assert_eq!(ledger.authorize(key, payment(amount)).unwrap().status, status, "{amount}");
        }
    }

    #[test]
    fn a_key_has_one_answer_and_no_second_payment() {
        let mut ledger = Ledger::new(10);
        let first = ledger.authorize("a", payment(2599)).unwrap();
        assert_eq!(ledger.authorize("a", payment(2599)), Ok(first.clone()));
        assert_eq!(ledger.get("a"), Some(first));
        assert_eq!(ledger.authorize("a", payment(2600)), Err(Refusal::AnotherPayment));
        let dollars = Payment { amount: 2599, currency: "USD".into() };
        assert_eq!(ledger.authorize("a", dollars), Err(Refusal::AnotherPayment));
    }

    #[test]
    fn a_void_key_is_never_authorized_again_even_if_the_void_came_first() {
        let mut ledger = Ledger::new(10);
        ledger.authorize("a", payment(2599)).unwrap();
        for key in ["a", "b"] {
            assert_eq!(ledger.void(key).status, Status::Voided);
            assert_eq!(ledger.void(key), ledger.get(key).unwrap());
            assert_eq!(ledger.authorize(key, payment(2599)), Err(Refusal::Voided));
        }
    }

    #[test]
    fn what_was_declined_stays_declined() {
        let mut ledger = Ledger::new(10);
        let declined = ledger.authorize("a", payment(13)).unwrap();
        assert_eq!(ledger.void("a"), declined);
    }

    #[test]
    fn it_remembers_as_many_keys_as_it_may() {
        let mut ledger = Ledger::new(2);
        for key in ["a", "b", "c"] {
            ledger.authorize(key, payment(2599)).unwrap();
        }
        assert_eq!(ledger.get("a"), None);
        assert!(ledger.get("b").is_some() && ledger.get("c").is_some());
        assert_eq!((ledger.authorizations.len(), ledger.oldest_first.len()), (2, 2));
    }
}
