//! A model of everything outside of the saga: the streams, the stock and the gateway of one order. Pure.

use std::collections::BTreeMap;

use jetwright_proto::events::v1::{OrderLine, OrderPlaced};

use crate::{
    gateway::Decision,
    order::{Order, OrderResult},
    payments::{Payment, PaymentEvent},
    saga::ports::StockEntry,
    stock::Stock,
};

pub(super) const ORDER: &str = "0193f0a6-7d2b-7c3e-8a4f-0123456789ab";
pub(super) const ARTICLES: [&str; 2] = ["mug", "pin"];
/// Pieces of each article at first, and how many the order wants.
pub(super) const STOCK: u64 = 4;
pub(super) const QUANTITY: u32 = 2;

/// One call of a port.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    LoadOrder,
    IsCurrent(u64),
    EndOrder(u64, OrderResult),
    UserExists,
    GetStock(String),
    UpdateStock(String, Stock, u64),
    Restock,
    Authorize,
    Void,
    RecordPayment(PaymentEvent),
    Notify,
}

/// What it gives.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    NotPlaced,
    Order(Order, u64),
    Yes(bool),
    Stock(Option<StockEntry>),
    Decision(Decision),
    Voided(Option<String>),
    Done,
}

/// What the gateway has under the order's id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Authorization {
    #[default]
    None,
    Authorized,
    Declined,
    Voided,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) is_placed: bool,
    pub(super) user_exists: bool,
    pub(super) gateway_declines: bool,
    pub(super) ends: Vec<OrderResult>,
    pub(super) stocks: BTreeMap<String, StockEntry>,
    /// Pieces that other orders have taken, by article.
    pub(super) taken_by_others: BTreeMap<String, u64>,
    pub(super) authorization: Authorization,
    pub(super) payment: Payment,
    pub(super) notifications: u32,
}

pub(super) fn placed() -> OrderPlaced {
    let line = |sku: &str| OrderLine { sku: sku.to_owned(), quantity: QUANTITY, unit_price: 1 };
    OrderPlaced {
        order_id: ORDER.to_owned(),
        user_id: ORDER.to_owned(),
        lines: ARTICLES.map(line).into(),
        amount: 4,
        currency: "EUR".to_owned(),
        placed_at: 1,
    }
}

impl World {
    pub(super) fn new() -> Self {
        let entry = |sku: &str| (sku.to_owned(), StockEntry { stock: Stock::of(STOCK), revision: 1 });
        Self {
            is_placed: true,
            user_exists: true,
            gateway_declines: false,
            ends: Vec::new(),
            stocks: ARTICLES.map(entry).into(),
            taken_by_others: BTreeMap::new(),
            authorization: Authorization::None,
            payment: Payment::default(),
            notifications: 0,
        }
    }

    /// Sequence of the order's newest event; the first is 1.
    fn last_sequence(&self) -> u64 {
        1 + self.ends.len() as u64
    }

    /// Another order takes a piece, or returns one.
    pub(super) fn trade(&mut self, sku: &str, takes: bool) {
        let Some(entry) = self.stocks.get_mut(sku) else { return };
        let others = self.taken_by_others.entry(sku.to_owned()).or_default();
        let available = &mut entry.stock.available;
        let (from, to) = if takes { (available, others) } else { (others, available) };
        if *from > 0 {
            (*from, *to) = (*from - 1, *to + 1);
            entry.revision += 1;
        }
    }

    pub(super) fn serve(&mut self, request: &Request) -> Answer {
        match request {
            Request::LoadOrder if !self.is_placed => Answer::NotPlaced,
            Request::LoadOrder => {
                let end = self.ends.first().cloned();
                Answer::Order(Order { placed: placed(), end }, self.last_sequence())
            }
            Request::IsCurrent(version) => Answer::Yes(self.last_sequence() == *version),
            Request::EndOrder(version, result) => {
                let current = self.last_sequence() == *version;
                if current {
                    self.ends.push(result.clone());
                }
                Answer::Yes(current)
            }
            Request::UserExists => Answer::Yes(self.user_exists),
            Request::GetStock(sku) => Answer::Stock(self.stocks.get(sku).cloned()),
            Request::UpdateStock(sku, stock, revision) => {
                let entry = self.stocks.get_mut(sku).filter(|entry| entry.revision == *revision);
                let written = entry.map(|entry| {
                    *entry = StockEntry { stock: stock.clone(), revision: revision + 1 };
                });
                Answer::Yes(written.is_some())
            }
            Request::Restock => Answer::Yes(true),
            Request::Authorize => Answer::Decision(self.authorize()),
            Request::Void => {
                let was_authorized = self.authorization == Authorization::Authorized;
                if self.authorization != Authorization::Declined {
                    self.authorization = Authorization::Voided;
                }
                Answer::Voided(was_authorized.then(|| "auth".to_owned()))
            }
            Request::RecordPayment(event) => {
                if let Some(event) = self.payment.accepts(event) {
                    self.payment.record(&event);
                }
                Answer::Done
            }
            Request::Notify => {
                self.notifications += 1;
                Answer::Done
            }
        }
    }

    /// The gateway's contract: it decides once, and never authorizes what was voided.
    fn authorize(&mut self) -> Decision {
        if self.authorization == Authorization::None {
            self.authorization =
                if self.gateway_declines { Authorization::Declined } else { Authorization::Authorized };
        }
        match self.authorization {
            Authorization::Authorized => Decision::Authorized("auth".to_owned()),
            _ => Decision::Declined("no".to_owned()),
        }
    }

    /// What holds once an order is settled: it has one end, and what is taken and authorized is what that end says.
    pub(super) fn check_settled(&self) -> Result<(), String> {
        let [end] = self.ends.as_slice() else { return Err(format!("{} ends", self.ends.len())) };
        let confirmed = matches!(end, OrderResult::Confirmed(_));
        let authorized = self.authorization == Authorization::Authorized;
        if authorized != confirmed {
            return Err(format!("{:?} for {end:?}", self.authorization));
        }
        if !confirmed && self.notifications == 0 {
            return Err("the user was not notified".to_owned());
        }
        for (sku, StockEntry { stock, .. }) in &self.stocks {
            let others = self.taken_by_others.get(sku).copied().unwrap_or_default();
            let handed_out = if confirmed { u64::from(QUANTITY) } else { 0 };
            if *stock != Stock::of(STOCK - others - handed_out) {
                return Err(format!("{sku} has {stock:?} after {end:?}, others took {others}"));
            }
        }
        Ok(())
    }
}
