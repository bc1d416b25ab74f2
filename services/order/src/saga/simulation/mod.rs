//! The saga on a model: any interleaving of its attempts, with kills, lost and late responses and timeouts between any two of
//! their requests. The saga is the one that runs in production; only its ports are the model's.

mod delivered;
mod ports;
mod properties;
mod scenarios;
mod world;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use jetwright_proto::events::v1::OrderRejected;
use jetwright_runtime::{Handler, HandlerError, HeaderMap, Metadata, Source};
use prometheus_client::registry::Registry;

use self::{
    ports::{ModelPorts, Network, Pending, no_answer},
    world::{ORDER, Request, World, placed},
};
use crate::{
    order::OrderResult, saga::compensation::Compensation, saga::fulfilment::Fulfilment,
    saga::steps::StepMetrics,
};

/// Deliveries of the placed order until it becomes a dead letter.
const MAX_ATTEMPTS: u32 = 3;
/// Attempts at one event that run at once: a redelivery goes to another process while a slow one is still at work.
const MAX_CONCURRENT: usize = 2;
/// Maximum requests until an order must have settled.
const MAX_REQUESTS: u32 = 1000;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Answered,
    /// It takes effect, and its response is lost.
    AnswerLost,
    /// It takes no effect and has no response.
    Lost,
    /// It has no response, and takes effect later.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consumer {
    Fulfilment,
    Compensation,
}

struct Attempt {
    id: u64,
    consumer: Consumer,
    is_last: bool,
    work: Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>,
}

/// One order, and everything that happens to it.
struct Simulation {
    network: Arc<Mutex<Network>>,
    attempts: Vec<Attempt>,
    metrics: StepMetrics,
    begun: u64,
    /// Deliveries of the placed order.
    deliveries: u32,
    /// The placed order is acknowledged.
    fulfilled: bool,
    /// The placed order is a dead letter.
    dead: bool,
    /// The rejected order was delivered so often.
    compensations: u32,
    /// The rejected order is acknowledged.
    compensated: bool,
}

impl Simulation {
    fn new(world: World) -> Self {
        Self {
            network: Arc::new(Mutex::new(Network::new(world))),
            attempts: Vec::new(),
            metrics: StepMetrics::register(&mut Registry::default()),
            begun: 0,
            deliveries: 0,
            fulfilled: false,
            dead: false,
            compensations: 0,
            compensated: false,
        }
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap()
    }

    /// Delivers the placed order once more, unless JetStream would not.
    fn deliver(&mut self) -> Option<u64> {
        if self.fulfilled || self.dead || self.running(Consumer::Fulfilment) >= MAX_CONCURRENT {
            return None;
        }
        self.deliveries += 1;
        if self.deliveries > MAX_ATTEMPTS {
            self.dead = true;
            return None;
        }
        let metadata = metadata("placed", self.deliveries, self.deliveries == MAX_ATTEMPTS);
        let (ports, metrics) = (self.ports(), self.metrics.clone());
        let fulfilment = Fulfilment { ports, metrics, handler_deadline: Duration::from_secs(20) };
        let is_last = metadata.is_last_attempt;
        let work = Box::pin(async move { fulfilment.handle(placed(), &metadata).await });
        Some(self.begin(Consumer::Fulfilment, is_last, work))
    }

    /// Delivers the rejection, if there is one that is not acknowledged.
    fn compensate(&mut self) -> Option<u64> {
        let rejected = self.rejection()?;
        if self.compensated || self.running(Consumer::Compensation) >= MAX_CONCURRENT {
            return None;
        }
        self.compensations += 1;
        let metadata = metadata("rejected", self.compensations, false);
        let compensation = Compensation { ports: self.ports() };
        let work = Box::pin(async move { compensation.handle(rejected, &metadata).await });
        Some(self.begin(Consumer::Compensation, false, work))
    }

    fn running(&self, consumer: Consumer) -> usize {
        self.attempts.iter().filter(|attempt| attempt.consumer == consumer).count()
    }

    fn rejection(&self) -> Option<OrderRejected> {
        match self.network().world.ends.first() {
            Some(OrderResult::Rejected(rejected)) => Some(rejected.clone()),
            _ => None,
        }
    }

    fn ports(&self) -> ModelPorts {
        ModelPorts { network: Arc::clone(&self.network), attempt: self.begun + 1 }
    }

    fn begin(
        &mut self,
        consumer: Consumer,
        is_last: bool,
        work: Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>,
    ) -> u64 {
        self.begun += 1;
        self.attempts.push(Attempt { id: self.begun, consumer, is_last, work });
        self.run();
        self.begun
    }

    /// Every attempt runs up to its next request that is not answered.
    fn run(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut ended = Vec::new();
        self.attempts.retain_mut(|attempt| match attempt.work.as_mut().poll(&mut context) {
            Poll::Pending => true,
            Poll::Ready(result) => {
                ended.push((attempt.consumer, attempt.is_last, result));
                false
            }
        });
        for (consumer, is_last, result) in ended {
            match (consumer, result) {
                (Consumer::Fulfilment, Ok(())) => self.fulfilled = true,
                (Consumer::Fulfilment, Err(HandlerError::Permanent(_))) => self.dead = true,
                (Consumer::Fulfilment, Err(_)) => self.dead |= is_last,
                (Consumer::Compensation, Ok(())) => self.compensated = true,
                (Consumer::Compensation, Err(_)) => {}
            }
        }
    }

    /// Gives the request of this place its fate.
    fn serve(&mut self, index: usize, fate: Fate) {
        let mut network = self.network();
        let Pending { id, request, .. } = network.pending.remove(index);
        let lost = Err(no_answer());
        let answer = match fate {
            _ if network.is_away(&request) => lost,
            Fate::Answered => network.answer(&request),
            Fate::AnswerLost => {
                network.world.serve(&request);
                lost
            }
            Fate::Lost => lost,
            Fate::Late => {
                network.late.push(request);
                lost
            }
        };
        network.answers.insert(id, answer);
        drop(network);
        self.run();
    }

    /// A late request takes effect.
    fn land(&mut self, index: usize) {
        let mut network = self.network();
        let request = network.late.remove(index);
        network.world.serve(&request);
    }

    /// The steps of an attempt are over by their deadline.
    fn time_out(&mut self, attempt: u64) {
        self.network().timed_out.insert(attempt);
        self.run();
    }

    /// The process of an attempt is killed. Its last request may still take effect.
    fn kill(&mut self, attempt: u64) {
        self.attempts.retain(|running| running.id != attempt);
    }

    /// Answers an attempt's requests up to this one, which waits; `false` if the attempt ends before.
    fn advance(&mut self, attempt: u64, mut stop: impl FnMut(&Request) -> bool) -> bool {
        for _ in 0..MAX_REQUESTS {
            let Some(index) = self.pending_of(attempt).first().copied() else { return false };
            if stop(&self.network().pending[index].request) {
                return true;
            }
            self.serve(index, Fate::Answered);
        }
        panic!("attempt {attempt} never ends");
    }

    /// The gateway is back. Answers every request, and delivers every unacknowledged event, until nothing is left; an operator replays a dead
    /// letter. Then late requests take effect, however late.
    fn settle(&mut self) {
        self.network().gateway_away = false;
        for _ in 0..MAX_REQUESTS {
            if !self.network().pending.is_empty() {
                self.serve(0, Fate::Answered);
            } else if self.deliver().is_some() || self.compensate().is_some() {
            } else if self.dead {
                (self.dead, self.deliveries) = (false, 0);
            } else if !self.network().late.is_empty() {
                self.land(0);
            } else {
                assert!(self.fulfilled && self.attempts.is_empty(), "settled without its acknowledgement");
                return;
            }
        }
        panic!("an order does not settle");
    }

    /// Places of an attempt's requests that have no response yet.
    fn pending_of(&self, attempt: u64) -> Vec<usize> {
        let network = self.network();
        let own = network.pending.iter().enumerate().filter(|(_, pending)| pending.attempt == attempt);
        own.map(|(index, _)| index).collect()
    }

    fn check_settled(&self) -> Result<(), String> {
        self.network().world.check_settled()
    }
}

fn metadata(event: &str, attempt: u32, is_last_attempt: bool) -> Metadata {
    Metadata {
        subject: format!("orders.{ORDER}.{event}").into(),
        partition: None,
        headers: HeaderMap::new(),
        source: Arc::new(Source {
            stream: "orders".to_owned(),
            consumer: "order".to_owned(),
            event_consumer: "order".to_owned(),
            epoch: 0,
        }),
        sequence: 1,
        time: jiff::Timestamp::UNIX_EPOCH,
        attempt,
        is_last_attempt,
        lag: 0,
    }
}
