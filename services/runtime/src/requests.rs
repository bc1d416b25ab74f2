//! Requests that wait for their answers: one inbox for all of them, and one table from which each is sent and hears what came of it.
//!
//! A request has a place in the table and a number of its own, both of which its answer carries in its subject. No number is given
//! twice, so an answer that comes late is nobody's, whoever has the place then.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    mem,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, Message, PublishError, StatusCode, SubscribeError, Subscriber, client::traits::Publisher as _,
    message::OutboundMessage,
};
use bytes::Bytes;
use futures::StreamExt;
use jetwright_process::nats::{Violation, Watch};
use slab::Slab;
use tokio::{
    sync::{Notify, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};

/// How often requests are looked through for those whose time is over.
const TICK: Duration = Duration::from_millis(50);
/// Requests that may wait to be sent before those are looked for among them that were given up meanwhile.
const MANY: usize = 4096;

/// Why a request has no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// There was no connection, and it was not sent.
    NotConnected,
    /// The connection was lost; the request may have been heard.
    Lost,
    /// Nobody answered in time; the request may have been heard.
    Silence,
    /// Nobody takes requests to this subject.
    NoResponders,
    /// The servers do not permit to publish to its subject, or to hear its answer.
    Forbidden(Violation),
    /// The client does not take it.
    NotSent(PublishError),
}

/// The answer's payload.
type Heard = Result<Bytes, Unanswered>;

/// The requests in flight on one connection.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// What the subjects of answers begin with; the request's place and number follow. Known once answers are heard.
    inbox: OnceLock<String>,
    table: Mutex<Table>,
    hasher: RandomState,
    /// Rung where there is a request to send, after all others were sent.
    unsent: Notify,
    /// Rung where there is a request again, after a time without any.
    busy: Notify,
}

#[derive(Debug, Default)]
struct Table {
    connected: bool,
    /// What keeps answers from being heard on this connection.
    deaf: Option<Violation>,
    waiting: Slab<Waiting>,
    numbers: u64,
    /// Places and numbers of those that are still to be sent.
    unsent: VecDeque<(usize, u64)>,
    /// Somebody sends.
    sending: bool,
    /// Somebody looks through it for requests whose time is over.
    looked_through: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// Hash of the subject, which is needed when the message is gone.
    subject: u64,
    /// Until it is sent.
    message: Option<OutboundMessage>,
    deadline: Instant,
    teller: oneshot::Sender<Heard>,
}

/// A request's place in the table, which is given up with it.
#[derive(Debug)]
pub(crate) struct Ticket<'a> {
    requests: &'a Requests,
    place: usize,
    number: u64,
    answer: oneshot::Receiver<Heard>,
    /// It is not in the table any more.
    over: bool,
}

/// Whether a request is under way.
#[derive(Debug)]
pub(crate) enum Begun<'a> {
    UnderWay(Ticket<'a>),
    /// There is no connection.
    NotYet(OutboundMessage),
    /// Its answer could not be heard.
    Deaf(Violation),
}

impl Requests {
    /// Begins to hear answers. Nothing is to be asked before.
    pub(crate) async fn subscribe(&self, client: &Client) -> Result<Subscriber, SubscribeError> {
        let inbox = self.inbox.get_or_init(|| client.new_inbox());
        client.subscribe(format!("{inbox}.*.*")).await
    }

    /// Another connection is there.
    pub(crate) fn connected(&self) {
        let mut table = self.table();
        (table.connected, table.deaf) = (true, None);
        table.end(|_| Some(Unanswered::Lost));
    }

    /// The connection was lost, and what it was asked.
    pub(crate) fn disconnected(&self) {
        let mut table = self.table();
        table.connected = false;
        table.end(|_| Some(Unanswered::Lost));
    }

    /// No answer can be heard on this connection.
    pub(crate) fn deaf(&self, violation: &Violation) {
        let mut table = self.table();
        table.deaf = Some(violation.clone());
        table.end(|_| Some(Unanswered::Forbidden(violation.clone())));
    }

    /// Has a request sent, if there is a connection.
    pub(crate) fn begin(&self, message: OutboundMessage, deadline: Instant) -> Begun<'_> {
        let (teller, answer) = oneshot::channel();
        let subject = self.hash(&message.subject);
        let mut table = self.table();
        if let Some(violation) = &table.deaf {
            return Begun::Deaf(violation.clone());
        }
        if !table.connected {
            return Begun::NotYet(message);
        }
        let (place, number) =
            table.enter(Waiting { number: 0, subject, message: Some(message), deadline, teller });
        let idle = !mem::replace(&mut table.sending, true);
        let unattended = !mem::replace(&mut table.looked_through, true);
        drop(table);
        if idle {
            self.unsent.notify_one();
        }
        if unattended {
            self.busy.notify_one();
        }
        Begun::UnderWay(Ticket { requests: self, place, number, answer, over: false })
    }

    /// Sends requests. Never returns.
    ///
    /// Those who ask do not send for themselves: each would wake the client's task, which would write out one request at a time.
    pub(crate) async fn send(&self, client: &Client) {
        loop {
            self.unsent.notified().await;
            // All who are about to ask do it first.
            yield_now().await;
            while let Some((place, number, mut message)) = self.next_to_send() {
                let inbox = self.inbox.get().map_or("", String::as_str);
                message.reply = Some(format!("{inbox}.{place}.{number}").into());
                // It waits while the client has too much to write out already.
                if let Err(error) = client.publish_message(message).await
                    && let Some(Waiting { teller, .. }) = self.table().take(place, number)
                {
                    let _ = teller.send(Err(Unanswered::NotSent(error)));
                }
            }
        }
    }

    fn next_to_send(&self) -> Option<(usize, u64, OutboundMessage)> {
        let mut table = self.table();
        while let Some((place, number)) = table.unsent.pop_front() {
            // It may have been given up.
            if let Some(message) = table.get(place, number).and_then(|waiting| waiting.message.take()) {
                return Some((place, number, message));
            }
        }
        table.sending = false;
        None
    }

    /// Tells requests what came, until the subscription ends with its connection.
    pub(crate) async fn hear(&self, mut answers: Subscriber, mut violations: Watch) {
        let publish = |violation: &Violation| matches!(violation, Violation::Publish(_));
        loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(answer) => self.answered(answer),
                    None => return self.disconnected(),
                },
                violation = violations.any(publish) => self.forbidden(&violation),
            }
        }
    }

    /// Ends requests whose time is over. Never returns.
    pub(crate) async fn expire(&self) {
        loop {
            self.busy.notified().await;
            loop {
                sleep(TICK).await;
                let (now, mut table) = (Instant::now(), self.table());
                table.end(|waiting| (waiting.deadline <= now).then_some(Unanswered::Silence));
                table.looked_through = !table.waiting.is_empty();
                if !table.looked_through {
                    break;
                }
            }
        }
    }

    fn answered(&self, answer: Message) {
        let mut tokens = answer.subject.rsplit('.');
        let (number, place) = (tokens.next(), tokens.next());
        let (Some(Ok(number)), Some(Ok(place))) = (number.map(str::parse), place.map(str::parse)) else {
            return;
        };
        let Some(Waiting { teller, .. }) = self.table().take(place, number) else { return };
        let heard = match answer.status {
            Some(StatusCode::NO_RESPONDERS) => Err(Unanswered::NoResponders),
            _ => Ok(answer.payload),
        };
        // It may have been given up just now.
        let _ = teller.send(heard);
    }

    fn forbidden(&self, violation: &Violation) {
        let Violation::Publish(subject) = violation else { return };
        let subject = self.hash(subject);
        let why = || Unanswered::Forbidden(violation.clone());
        self.table().end(|waiting| (waiting.subject == subject).then(why));
    }

    fn hash(&self, subject: &str) -> u64 {
        self.hasher.hash_one(subject)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Gives a request its number and a place, from which it is to be sent.
    fn enter(&mut self, waiting: Waiting) -> (usize, u64) {
        self.numbers += 1;
        let number = self.numbers;
        let place = self.waiting.insert(Waiting { number, ..waiting });
        if self.unsent.len() >= MANY {
            let Self { unsent, waiting, .. } = self;
            unsent.retain(|(place, number)| waiting.get(*place).is_some_and(|there| there.number == *number));
        }
        self.unsent.push_back((place, number));
        (place, number)
    }

    /// The request of this number, if it still has its place.
    fn get(&mut self, place: usize, number: u64) -> Option<&mut Waiting> {
        self.waiting.get_mut(place).filter(|waiting| waiting.number == number)
    }

    /// The same, and its place is free.
    fn take(&mut self, place: usize, number: u64) -> Option<Waiting> {
        self.get(place, number).is_some().then(|| self.waiting.remove(place))
    }

    /// Ends those requests for which there is a reason.
    fn end(&mut self, reason: impl Fn(&Waiting) -> Option<Unanswered>) {
        let ended = self.waiting.iter().filter_map(|(place, waiting)| Some((place, reason(waiting)?)));
        for (place, why) in ended.collect::<Vec<_>>() {
            // It may have been given up just now.
            let _ = self.waiting.remove(place).teller.send(Err(why));
        }
    }
}

impl Ticket<'_> {
    /// What came of the request. May be dropped and called again, until it has returned once.
    pub(crate) async fn heard(&mut self) -> Heard {
        let heard = (&mut self.answer).await;
        self.over = true;
        heard.unwrap_or(Err(Unanswered::Lost))
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.requests.table().take(self.place, self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt;

    use super::*;

    const LATER: Duration = Duration::from_secs(2);

    /// A table on a connection that is there, whose inbox is `inbox`.
    fn connected() -> Requests {
        let requests = Requests::default();
        requests.inbox.set("inbox".to_owned()).unwrap();
        requests.connected();
        requests
    }

    fn message(subject: &'static str) -> OutboundMessage {
        OutboundMessage { subject: subject.into(), reply: None, payload: Bytes::new(), headers: None }
    }

    /// A request that is to hear within this time.
    fn begin_within<'a>(requests: &'a Requests, subject: &'static str, within: Duration) -> Ticket<'a> {
        match requests.begin(message(subject), Instant::now() + within) {
            Begun::UnderWay(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn begin<'a>(requests: &'a Requests, subject: &'static str) -> Ticket<'a> {
        begin_within(requests, subject, LATER)
    }

    /// Where a request's answer goes.
    fn inbox(ticket: &Ticket<'_>) -> String {
        format!("inbox.{}.{}", ticket.place, ticket.number)
    }

    fn answer(to: &str, payload: &'static str) -> Message {
        Message {
            subject: to.into(),
            reply: None,
            payload: payload.into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    /// What a request has heard by now.
    fn heard(ticket: &mut Ticket<'_>) -> Option<Heard> {
        ticket.heard().now_or_never()
    }

    fn waiting(requests: &Requests) -> usize {
        requests.table().waiting.len()
    }

    #[tokio::test]
    async fn each_request_hears_its_own_answer_and_no_late_one() {
        let requests = connected();
        let (mut one, mut two) = (begin(&requests, "a"), begin(&requests, "a"));
        let late = inbox(&begin(&requests, "a"));
        let mut next = begin(&requests, "a");
        for (to, payload) in [(&inbox(&two), "2"), (&late, "late"), (&inbox(&one), "1")] {
            requests.answered(answer(to, payload));
        }
        let payload = |ticket: &mut Ticket<'_>| heard(ticket).map(Result::unwrap);
        assert_eq!([&mut one, &mut two].map(payload), [Some("1".into()), Some("2".into())]);
        assert!(heard(&mut next).is_none());
        for subject in ["inbox.x.4", "inbox.4", "inbox.7.4"] {
            requests.answered(answer(subject, "of nobody"));
        }
        assert_eq!(waiting(&requests), 1);
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_leaves_nothing_behind() {
        let requests = connected();
        let ticket = begin(&requests, "a");
        let inbox = inbox(&ticket);
        drop(ticket);
        assert_eq!(waiting(&requests), 0);
        requests.answered(answer(&inbox, "late"));
    }

    #[tokio::test]
    async fn requests_are_sent_in_their_order_and_not_those_that_were_given_up() {
        let requests = connected();
        let (first, given_up, last) = (begin(&requests, "a"), begin(&requests, "b"), begin(&requests, "c"));
        let place = given_up.place;
        drop(given_up);
        let other = begin(&requests, "d");
        assert_eq!(other.place, place);
        let sent = std::iter::from_fn(|| requests.next_to_send());
        let sent: Vec<_> = sent.map(|(_, number, message)| (number, message.subject.to_string())).collect();
        let expected = [(&first, "a"), (&last, "c"), (&other, "d")];
        assert_eq!(sent, expected.map(|(ticket, subject)| (ticket.number, subject.to_owned())));
    }

    #[tokio::test]
    async fn what_is_given_up_before_it_is_sent_is_forgotten_in_time() {
        let requests = connected();
        let kept = begin(&requests, "a");
        for _ in 0..3 * MANY {
            drop(begin(&requests, "b"));
        }
        assert!(requests.table().unsent.len() <= MANY);
        assert_eq!(requests.next_to_send().map(|(_, number, _)| number), Some(kept.number));
    }

    #[tokio::test]
    async fn the_loss_of_the_connection_ends_what_was_asked_on_it_alone() {
        let requests = connected();
        let mut old = begin(&requests, "a");
        requests.disconnected();
        assert!(matches!(heard(&mut old), Some(Err(Unanswered::Lost))));
        assert!(matches!(requests.begin(message("a"), Instant::now() + LATER), Begun::NotYet(_)));
        requests.connected();
        let mut new = begin(&requests, "a");
        assert!(heard(&mut new).is_none());
        // Its loss was not told.
        requests.connected();
        assert!(matches!(heard(&mut new), Some(Err(Unanswered::Lost))));
    }

    #[tokio::test]
    async fn a_violation_ends_the_requests_to_its_subject_and_one_of_the_inbox_all() {
        let requests = connected();
        let (mut denied, mut other) = (begin(&requests, "a.b"), begin(&requests, "a.bc"));
        requests.forbidden(&Violation::Publish("a.b".to_owned()));
        assert!(matches!(heard(&mut denied), Some(Err(Unanswered::Forbidden(Violation::Publish(_))))));
        assert!(heard(&mut other).is_none());
        requests.deaf(&Violation::Subscribe("inbox.*".to_owned()));
        assert!(matches!(heard(&mut other), Some(Err(Unanswered::Forbidden(Violation::Subscribe(_))))));
        assert!(matches!(requests.begin(message("a"), Instant::now() + LATER), Begun::Deaf(_)));
        requests.connected();
        begin(&requests, "a");
    }

    #[tokio::test]
    async fn silence_ends_a_request_in_time_whenever_it_was_begun() {
        let requests = Arc::new(connected());
        let expiring = Arc::clone(&requests);
        let expiring = tokio::spawn(async move { expiring.expire().await });
        for _ in 0..2 {
            let begun = Instant::now();
            let mut soon = begin_within(&requests, "a", TICK);
            let mut later = begin(&requests, "a");
            assert!(matches!(soon.heard().await, Err(Unanswered::Silence)));
            assert!(begun.elapsed() >= TICK && heard(&mut later).is_none());
            drop(later);
            // Until nobody looks any more, which the next request has to change.
            while requests.table().looked_through {
                sleep(TICK).await;
            }
        }
        expiring.abort();
    }
}
