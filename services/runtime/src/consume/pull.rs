//! Pulling from one consumer: asks for no more than there is room for, and keeps account of what was asked for.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use async_nats::{Client, Message, StatusCode, Subscriber};
use futures::{FutureExt, StreamExt};
use jetwright_process::nats::{Violation, Watch};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::connection::{Connection, Link};

/// How long a request for messages stays open at the server.
pub(super) const EXPIRES: Duration = Duration::from_secs(1);
/// How much longer its end may take to be heard of.
const SILENCE: Duration = Duration::from_secs(2);
/// Header of a status that ends a request: how much of it was not served (NATS ADR-13).
const PENDING: &str = "Nats-Pending-Messages";

/// The requests that are open at one consumer.
pub(super) struct Pull {
    connection: Connection,
    client: Client,
    /// Of the client to which the arrivals belong.
    generation: u64,
    link: watch::Receiver<Link>,
    violations: Watch,
    inbox: String,
    subject: String,
    /// Stands in the subjects on which deliveries are acknowledged.
    of: String,
    /// By turn.
    arrivals: Vec<Subscriber>,
    capacity: usize,
    account: Account,
    served: u64,
}

/// What came of a request.
pub(super) enum Arrival {
    Message(Message),
    /// A request ended as requests do.
    Ended,
    /// The consumer is not there, or does not answer, and why that is believed.
    Gone(String),
    /// The servers do not permit to pull from it, to hear it, or to acknowledge.
    Forbidden(Violation),
}

/// Subscriptions over which requests are spread in turn, for a second each. A delivery does not say which request it
/// serves, but over which subscription it comes: so what a request was not given, and nobody said why (its server died),
/// is known to be lost when the turn comes again.
const TURNS: usize = 4;
const TURN: Duration = Duration::from_secs(1);
// A turn that comes again has no request open: the last one was made when it ended, and was over and heard of since.
const _: () = assert!((TURNS as u64 - 1) * TURN.as_secs() >= EXPIRES.as_secs() + SILENCE.as_secs());

/// What was asked for and has neither come nor been called off.
#[derive(Debug, Default)]
struct Account {
    /// Requests by number with what they asked for, oldest first.
    open: VecDeque<(u64, usize)>,
    numbers: u64,
    /// Requests up to this number are forgotten.
    forgotten: u64,
    /// By turn.
    outstanding: [usize; TURNS],
    turn: usize,
    turn_began: Option<Instant>,
    last_asked: Option<Instant>,
}

impl Account {
    /// The turn and the number of a new request.
    fn ask(&mut self, count: usize, now: Instant) -> (usize, u64) {
        self.numbers += 1;
        // Requests that were served whole end without a word; no more than these can be open.
        if self.open.len() >= 64 {
            self.open.pop_front();
        }
        self.open.push_back((self.numbers, count));
        self.outstanding[self.turn] += count;
        self.last_asked = Some(now);
        (self.turn, self.numbers)
    }

    /// Goes on to the next turn when this one is over, and gives up what its requests of before still owe.
    fn turn(&mut self, now: Instant) {
        if self.turn_began.is_none_or(|began| now >= began + TURN) {
            self.turn = (self.turn + 1) % TURNS;
            self.turn_began = Some(now);
            self.outstanding[self.turn] = 0;
        }
    }

    fn outstanding(&self) -> usize {
        self.outstanding.iter().sum()
    }

    fn came(&mut self, turn: usize) {
        self.outstanding[turn] = self.outstanding[turn].saturating_sub(1);
    }

    /// A request ended with this much unserved; the whole of it where the server does not say. One that was forgotten
    /// owes nothing any more.
    fn ended(&mut self, turn: usize, number: u64, unserved: Option<usize>) {
        if number <= self.forgotten {
            return;
        }
        let place = self.open.iter().position(|(open, _)| *open == number);
        let asked = place.and_then(|place| self.open.remove(place)).map(|(_, asked)| asked);
        self.outstanding[turn] = self.outstanding[turn].saturating_sub(unserved.or(asked).unwrap_or(0));
    }

    /// Forgets every request. What still comes of them counts for the turn that was theirs, not for the next one.
    fn forget(&mut self) {
        self.open.clear();
        self.forgotten = self.numbers;
        self.outstanding = [0; TURNS];
        self.turn_began = None;
        self.last_asked = None;
    }

    /// When the server must have ended every request, and silence means that it does not answer.
    fn silent_from(&self) -> Option<Instant> {
        self.last_asked.filter(|_| self.outstanding() > 0).map(|asked| asked + EXPIRES + SILENCE)
    }

    /// How much to ask for now: all the room there is, but not in crumbs while plenty is under way.
    fn wanted(&self, busy: usize, capacity: usize) -> usize {
        let outstanding = self.outstanding();
        let room = capacity.saturating_sub(busy + outstanding);
        let crumbs = outstanding > 0 && (room < capacity.div_ceil(8) || outstanding * 2 > capacity);
        if crumbs { 0 } else { room }
    }
}

impl Pull {
    pub(super) async fn open(
        connection: &Connection,
        stream: &str,
        consumer: &str,
        capacity: usize,
    ) -> Result<Self, async_nats::SubscribeError> {
        let (link, violations) = (connection.link(), connection.violations());
        let generation = link.borrow().generation;
        let client = connection.client();
        let inbox = client.new_inbox();
        let arrivals = subscribe(&client, &inbox).await?;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let of = format!(".{stream}.{consumer}.");
        let account = Account::default();
        let connection = connection.clone();
        Ok(Self {
            connection,
            client,
            generation,
            link,
            violations,
            inbox,
            subject,
            of,
            arrivals,
            capacity,
            account,
            served: 0,
        })
    }

    /// Begins to pull on the connection that there is now; `false` where there is none.
    ///
    /// A request of the connection before may still be served, for as long as it was made for: then more is held for a
    /// moment than there is room for, rather than what NATS sent be left to wait for ackWait.
    pub(super) async fn resume(&mut self) -> bool {
        self.account.forget();
        self.violations.forget();
        let Link { connected, generation, .. } = *self.link.borrow_and_update();
        if generation != self.generation {
            // The subscriptions ended with the client.
            let client = self.connection.client();
            let Ok(arrivals) = subscribe(&client, &self.inbox).await else { return false };
            (self.client, self.arrivals, self.generation) = (client, arrivals, generation);
        }
        connected
    }

    /// How often the consumer answered as it should, by now.
    pub(super) fn served(&self) -> u64 {
        self.served
    }

    /// Asks for as much as there is room for beside what is being handled and what is under way.
    pub(super) async fn ask_for_room(&mut self, busy: usize) -> Result<(), async_nats::PublishError> {
        let now = Instant::now();
        self.account.turn(now);
        let count = self.account.wanted(busy, self.capacity);
        if count == 0 {
            return Ok(());
        }
        let (turn, number) = self.account.ask(count, now);
        let request = serde_json::json!({"batch": count, "expires": nanoseconds(EXPIRES)}).to_string();
        let reply = format!("{}.{turn}.{number}", self.inbox);
        self.client.publish_with_reply(self.subject.clone(), reply, request.into()).await
    }

    /// The next thing that happens. May be dropped and called again without loss.
    pub(super) async fn next(&mut self) -> Arrival {
        let silent = self.account.silent_from();
        let (subject, inbox, of) = (&self.subject, &self.inbox, &self.of);
        let concerns = |violation: &Violation| match violation {
            Violation::Publish(to) => to == subject || to.starts_with("$JS.ACK.") && to.contains(of),
            Violation::Subscribe(to) => to.starts_with(inbox),
        };
        tokio::select! {
            biased;
            arrival = arrival(&mut self.arrivals, self.account.turn) => self.arrived(arrival),
            _ = self.link.changed() => {
                self.account.forget();
                Arrival::Gone("the connection to NATS was lost".to_owned())
            }
            violation = self.violations.any(concerns) => {
                self.account.forget();
                Arrival::Forbidden(violation)
            }
            () = async { if let Some(at) = silent { sleep_until(at).await } else { std::future::pending().await } } => {
                self.account.forget();
                Arrival::Gone("the consumer does not answer".to_owned())
            }
        }
    }

    /// What has arrived already, if anything has.
    pub(super) fn at_once(&mut self) -> Option<Arrival> {
        let arrival = arrival(&mut self.arrivals, self.account.turn).now_or_never()?;
        Some(self.arrived(arrival))
    }

    /// What still comes of what was asked for; `None` when that is all.
    pub(super) async fn rest(&mut self) -> Option<Message> {
        while self.account.outstanding() > 0 {
            match self.next().await {
                Arrival::Message(message) => return Some(message),
                Arrival::Ended => {}
                Arrival::Gone(_) | Arrival::Forbidden(_) => break,
            }
        }
        None
    }

    fn arrived(&mut self, arrival: Option<(usize, Message)>) -> Arrival {
        let arrival = self.read(arrival);
        self.served += u64::from(matches!(arrival, Arrival::Message(_) | Arrival::Ended));
        arrival
    }

    fn read(&mut self, arrival: Option<(usize, Message)>) -> Arrival {
        let Some((turn, message)) = arrival else {
            self.account.forget();
            return Arrival::Gone("the connection to NATS is closed".to_owned());
        };
        let Some(status) = message.status else {
            self.account.came(turn);
            return Arrival::Message(message);
        };
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let pending = message.headers.as_ref().and_then(|headers| headers.get(PENDING));
        let unserved = pending.and_then(|pending| pending.as_str().parse().ok());
        self.account.ended(turn, number.unwrap_or_default(), unserved);
        let description = message.description.unwrap_or_default();
        match status {
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => Arrival::Ended,
            // A consumer that moves or a server that stops: another one answers the next request.
            _ if ["Leadership Change", "Batch Completed"].contains(&description.as_str()) => Arrival::Ended,
            StatusCode::NO_RESPONDERS => Arrival::Gone("nobody answers for the consumer".to_owned()),
            _ => Arrival::Gone(format!("{status} {description}")),
        }
    }
}

async fn subscribe(client: &Client, inbox: &str) -> Result<Vec<Subscriber>, async_nats::SubscribeError> {
    let mut arrivals = Vec::new();
    for turn in 0..TURNS {
        arrivals.push(client.subscribe(format!("{inbox}.{turn}.*")).await?);
    }
    Ok(arrivals)
}

/// The next message of any turn, and its turn; that which is asked in now is looked at first.
async fn arrival(arrivals: &mut [Subscriber], turn: usize) -> Option<(usize, Message)> {
    poll_fn(|context| {
        let mut closed = 0;
        for turn in (turn..arrivals.len()).chain(0..turn) {
            match arrivals[turn].poll_next_unpin(context) {
                Poll::Ready(Some(message)) => return Poll::Ready(Some((turn, message))),
                Poll::Ready(None) => closed += 1,
                Poll::Pending => {}
            }
        }
        if closed == arrivals.len() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_than_there_is_room() {
        let mut account = Account::default();
        assert_eq!(account.wanted(0, 16), 16);
        let (turn, _) = account.ask(16, Instant::now());
        assert_eq!(account.wanted(0, 16), 0);
        (0..12).for_each(|_| account.came(turn));
        // Twelve are being handled and four are under way: full.
        assert_eq!(account.wanted(12, 16), 0);
        // Six were handled.
        assert_eq!(account.wanted(6, 16), 6);
    }

    #[test]
    fn a_single_place_is_asked_for_only_when_nothing_is_under_way() {
        let mut account = Account::default();
        assert_eq!(account.wanted(15, 16), 1);
        let (turn, _) = account.ask(1, Instant::now());
        assert_eq!(account.wanted(14, 16), 0);
        account.came(turn);
        assert_eq!(account.wanted(14, 16), 2);
        assert_eq!(account.wanted(1, 1), 0);
    }

    #[test]
    fn what_a_server_calls_off_makes_room_again() {
        let mut account = Account::default();
        let (turn, first) = account.ask(10, Instant::now());
        (0..3).for_each(|_| account.came(turn));
        account.ended(turn, first, Some(7));
        assert_eq!(account.outstanding(), 0);
        let (turn, second) = account.ask(5, Instant::now());
        account.ended(turn, second, None);
        assert_eq!(account.outstanding(), 0);
        account.ended(turn, 99, None);
        assert_eq!(account.silent_from(), None);
    }

    #[test]
    fn the_end_of_a_forgotten_request_is_not_taken_for_that_of_a_new_one() {
        let mut account = Account::default();
        let (turn, old) = account.ask(10, Instant::now());
        account.forget();
        account.ask(10, Instant::now());
        account.ended(turn, old, Some(10));
        assert_eq!(account.outstanding(), 10);
    }

    #[test]
    fn what_was_lost_while_asking_went_on_makes_room_again() {
        let (mut account, mut now) = (Account::default(), Instant::now());
        account.turn(now);
        // Six of these are lost with the server that had them, and it says nothing.
        let (turn, _) = account.ask(8, now);
        (0..2).for_each(|_| account.came(turn));
        for _ in 0..10 {
            now += TURN / 2;
            account.turn(now);
            // Everything later is served at once.
            let count = account.wanted(0, 16);
            let (turn, _) = account.ask(count, now);
            (0..count).for_each(|_| account.came(turn));
        }
        assert_eq!((account.outstanding(), account.wanted(0, 16)), (0, 16));
    }
}
