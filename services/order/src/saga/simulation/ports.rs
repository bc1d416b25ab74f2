//! The saga's ports on the model. Each call is a request that waits until the simulation answers it, or loses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    task::Poll,
};

use jetwright_proto::events::v1::OrderRejectedNotification;
use jetwright_runtime::HandlerError;
use tokio::time::Instant;
use uuid::Uuid;

use super::world::{Answer, Request, World};
use crate::{
    gateway::Decision,
    order::{Order, OrderResult},
    payments::PaymentEvent,
    saga::ports::{Ports, StockEntry},
    stock::Stock,
};

/// A request without a response yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: u64,
    pub(super) attempt: u64,
    pub(super) request: Request,
}

/// The state shared by attempts and the simulation.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) world: World,
    pub(super) pending: Vec<Pending>,
    pub(super) answers: BTreeMap<u64, Result<Answer, HandlerError>>,
    /// Requests whose callers are gone, and which take effect later.
    pub(super) late: Vec<Request>,
    /// Attempts whose steps are over by their deadline.
    pub(super) timed_out: BTreeSet<u64>,
    /// The gateway responds to nothing and decides nothing.
    pub(super) gateway_away: bool,
    /// Requests are answered when they are made, and none waits for the simulation.
    pub(super) answers_at_once: bool,
    requests: u64,
}

impl Network {
    pub(super) fn new(world: World) -> Self {
        let (pending, answers, late, timed_out) = Default::default();
        Self {
            world,
            pending,
            answers,
            late,
            timed_out,
            gateway_away: false,
            answers_at_once: false,
            requests: 0,
        }
    }

    /// Serves a request, where there is somebody who does.
    pub(super) fn answer(&mut self, request: &Request) -> Result<Answer, HandlerError> {
        if self.is_away(request) { Err(no_answer()) } else { Ok(self.world.serve(request)) }
    }

    /// Whether nobody serves the request.
    pub(super) fn is_away(&self, request: &Request) -> bool {
        self.gateway_away && matches!(request, Request::Authorize | Request::Void)
    }
}

/// What the caller of a port has where its answer does not come.
pub(super) fn no_answer() -> HandlerError {
    HandlerError::transient("no answer")
}

#[derive(Clone, Debug)]
pub(super) struct ModelPorts {
    pub(super) network: Arc<Mutex<Network>>,
    pub(super) attempt: u64,
}

/// Makes a request whose caller is gone a late one.
struct Waiting<'a>(&'a ModelPorts, u64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Self(ports, id) = self;
        let mut network = ports.network();
        network.answers.remove(id);
        if let Some(index) = network.pending.iter().position(|pending| pending.id == *id) {
            let abandoned = network.pending.remove(index);
            network.late.push(abandoned.request);
        }
    }
}

impl ModelPorts {
    fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap()
    }

    async fn ask(&self, request: Request) -> Result<Answer, HandlerError> {
        let id = {
            let mut network = self.network();
            if network.answers_at_once {
                return network.answer(&request);
            }
            network.requests += 1;
            let (id, attempt) = (network.requests, self.attempt);
            network.pending.push(Pending { id, attempt, request });
            id
        };
        let _waiting = Waiting(self, id);
        poll_fn(|_| self.network().answers.remove(&id).map_or(Poll::Pending, Poll::Ready)).await
    }

    async fn yes(&self, request: Request) -> Result<bool, HandlerError> {
        match self.ask(request).await? {
            Answer::Yes(yes) => Ok(yes),
            other => panic!("{other:?}"),
        }
    }
}

impl Ports for ModelPorts {
    type Version = u64;
    type StockLock = ();

    async fn load_order(&self, _: &str) -> Result<Option<(Order, u64)>, HandlerError> {
        match self.ask(Request::LoadOrder).await? {
            Answer::Order(order, version) => Ok(Some((order, version))),
            Answer::NotPlaced => Ok(None),
            other => panic!("{other:?}"),
        }
    }

    async fn is_current(&self, version: &u64) -> Result<bool, HandlerError> {
        self.yes(Request::IsCurrent(*version)).await
    }

    async fn end_order(&self, version: &u64, result: &OrderResult) -> Result<bool, HandlerError> {
        self.yes(Request::EndOrder(*version, result.clone())).await
    }

    async fn user_exists(&self, _: Uuid) -> Result<bool, HandlerError> {
        self.yes(Request::UserExists).await
    }

    async fn lock_stock(&self, _: &str) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn get_stock(&self, sku: &str) -> Result<Option<StockEntry>, HandlerError> {
        match self.ask(Request::GetStock(sku.to_owned())).await? {
            Answer::Stock(entry) => Ok(entry),
            other => panic!("{other:?}"),
        }
    }

    async fn update_stock(&self, sku: &str, stock: &Stock, revision: u64) -> Result<bool, HandlerError> {
        self.yes(Request::UpdateStock(sku.to_owned(), stock.clone(), revision)).await
    }

    async fn restock(&self, _: &str) -> Result<bool, HandlerError> {
        self.yes(Request::Restock).await
    }

    async fn authorize(&self, _: &str, _: i64, _: &str) -> Result<Decision, HandlerError> {
        match self.ask(Request::Authorize).await? {
            Answer::Decision(decision) => Ok(decision),
            other => panic!("{other:?}"),
        }
    }

    async fn void(&self, _: &str) -> Result<Option<String>, HandlerError> {
        match self.ask(Request::Void).await? {
            Answer::Voided(id) => Ok(id),
            other => panic!("{other:?}"),
        }
    }

    async fn record_payment(&self, _: &str, event: &PaymentEvent) -> Result<(), HandlerError> {
        self.ask(Request::RecordPayment(event.clone())).await.map(drop)
    }

    async fn notify(&self, _: &OrderRejectedNotification, _: String) -> Result<(), HandlerError> {
        self.ask(Request::Notify).await.map(drop)
    }

    async fn back_off(&self) {}

    async fn until<T: Send>(&self, _: Instant, work: impl Future<Output = T> + Send) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| {
            if self.network().timed_out.contains(&self.attempt) {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}
