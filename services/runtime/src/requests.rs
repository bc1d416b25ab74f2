//! Requests that wait for their answers: one inbox for all of them, and one table from which each hears what came of it.
//!
//! A request has a place in the table and a number of its own, both of which its answer carries in its subject. No number is given
//! twice, so an answer that comes late is nobody's, whoever has the place then.

use std::{
    mem,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_nats::{Client, Message, PublishError, StatusCode, Subject, SubscribeError, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use jetwright_process::nats::{Violation, Watch};
use slab::Slab;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, sleep},
};

/// How often requests are looked through for those whose time is over.
const TICK: Duration = Duration::from_millis(50);

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
    /// Somebody looks through it for requests whose time is over.
    looked_through: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    subject: Subject,
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

    /// A place for a request that is about to be sent to this subject; `None` while there is no connection.
    ///
    /// # Errors
    ///
    /// Its answer could not be heard.
    pub(crate) fn begin(
        &self,
        subject: &Subject,
        deadline: Instant,
    ) -> Result<Option<Ticket<'_>>, Violation> {
        let (teller, answer) = oneshot::channel();
        let subject = subject.clone();
        let mut table = self.table();
        if let Some(violation) = &table.deaf {
            return Err(violation.clone());
        }
        if !table.connected {
            return Ok(None);
        }
        table.numbers += 1;
        let number = table.numbers;
        let place = table.waiting.insert(Waiting { number, subject, deadline, teller });
        let unattended = !mem::replace(&mut table.looked_through, true);
        drop(table);
        if unattended {
            self.busy.notify_one();
        }
        Ok(Some(Ticket { requests: self, place, number, answer, over: false }))
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
        let concerned = |waiting: &Waiting| waiting.subject.as_str() == subject;
        self.table().end(|waiting| concerned(waiting).then(|| Unanswered::Forbidden(violation.clone())));
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The request of this number, if it still has its place.
    fn take(&mut self, place: usize, number: u64) -> Option<Waiting> {
        let there = self.waiting.get(place).is_some_and(|waiting| waiting.number == number);
        there.then(|| self.waiting.remove(place))
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
    /// Where the answer is to go.
    pub(crate) fn reply(&self) -> Subject {
        let inbox = self.requests.inbox.get().map_or("", String::as_str);
        Subject::from(format!("{inbox}.{}.{}", self.place, self.number))
    }

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

    fn begin<'a>(requests: &'a Requests, subject: &'static str) -> Ticket<'a> {
        requests.begin(&Subject::from_static(subject), Instant::now() + LATER).unwrap().unwrap()
    }

    fn answer(to: &Subject, payload: &'static str) -> Message {
        Message {
            subject: to.clone(),
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
        let late = begin(&requests, "a").reply();
        let mut next = begin(&requests, "a");
        for (to, payload) in [(&two.reply(), "2"), (&late, "late"), (&one.reply(), "1")] {
            requests.answered(answer(to, payload));
        }
        let payload = |ticket: &mut Ticket<'_>| heard(ticket).map(Result::unwrap);
        assert_eq!([&mut one, &mut two].map(payload), [Some("1".into()), Some("2".into())]);
        assert!(heard(&mut next).is_none());
        for subject in ["inbox.x.4", "inbox.4", "inbox.7.4"] {
            requests.answered(answer(&Subject::from_static(subject), "of nobody"));
        }
        assert_eq!(waiting(&requests), 1);
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_leaves_nothing_behind() {
        let requests = connected();
        let ticket = begin(&requests, "a");
        let reply = ticket.reply();
        drop(ticket);
        assert_eq!(waiting(&requests), 0);
        requests.answered(answer(&reply, "late"));
    }

    #[tokio::test]
    async fn the_loss_of_the_connection_ends_what_was_asked_on_it_alone() {
        let requests = connected();
        let mut old = begin(&requests, "a");
        requests.disconnected();
        assert!(matches!(heard(&mut old), Some(Err(Unanswered::Lost))));
        assert!(matches!(requests.begin(&Subject::from_static("a"), Instant::now() + LATER), Ok(None)));
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
        let deaf = |requests: &Requests| requests.begin(&Subject::from_static("a"), Instant::now()).is_err();
        assert!(deaf(&requests));
        requests.connected();
        assert!(!deaf(&requests));
    }

    #[tokio::test]
    async fn silence_ends_a_request_in_time_whenever_it_was_begun() {
        let requests = Arc::new(connected());
        let expiring = Arc::clone(&requests);
        let expiring = tokio::spawn(async move { expiring.expire().await });
        for _ in 0..2 {
            let (subject, begun) = (Subject::from_static("a"), Instant::now());
            let mut soon = requests.begin(&subject, begun + TICK).unwrap().unwrap();
            let mut later = requests.begin(&subject, begun + LATER).unwrap().unwrap();
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
