//! The request mux: one inbox for the replies to all requests of a connection, and one table of the requests that wait for theirs.
//!
//! A request has a slot in the table and a number, and the subject of its reply carries both. No number is used twice, so a late reply
//! never reaches the request that has the slot by then.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    mem,
    sync::OnceLock,
    time::Duration,
};

use async_nats::{
    Client, Message, PublishError, PublishErrorKind, StatusCode, SubscribeError, Subscriber,
    client::traits::Publisher as _, message::OutboundMessage,
};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use tokio::{
    sync::{Notify, oneshot},
    task::yield_now,
    time::{Instant, sleep},
};

use crate::violation::{Violation, ViolationReceiver};

/// How often requests whose deadline has passed are removed.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(50);
/// Length of the queue of unsent requests at which abandoned ones are removed from it.
const PRUNE_AT: usize = 4096;

/// Why a request has no reply.
#[derive(Debug, thiserror::Error)]
pub enum NoReply {
    /// There was no connection, and the request was not sent.
    #[error("NATS is not connected")]
    NotConnected,
    /// The connection was lost; the request may have arrived.
    #[error("the connection to NATS was lost")]
    Lost,
    /// No reply came in time; the request may have arrived.
    #[error("NATS does not answer")]
    Silence,
    /// Nobody subscribes to its subject.
    #[error("no responders: JetStream is unavailable, or no stream has this subject")]
    NoResponders,
    /// The servers do not permit publishing to its subject, or subscribing to the inbox.
    #[error(transparent)]
    Forbidden(Violation),
    /// The client does not take it.
    #[error(transparent)]
    NotSent(PublishError),
}

/// The reply's payload.
type Reply = Result<Bytes, NoReply>;

/// The requests in flight. They survive neither a connection nor a client; the mux itself survives both.
#[derive(Debug, Default)]
pub(crate) struct RequestMux {
    /// Prefix of the subjects of replies; a request's slot and number follow. Set by the first subscription.
    inbox: OnceLock<String>,
    pending: Mutex<PendingTable>,
    hasher: RandomState,
    /// Notified when the queue of unsent requests is not empty any more.
    unsent: Notify,
    /// Notified when the table is not empty any more.
    busy: Notify,
}

#[derive(Debug, Default)]
struct PendingTable {
    connected: bool,
    /// Why no reply can arrive on this connection.
    inbox_denied: Option<Violation>,
    waiting: Slab<Waiting>,
    numbers: u64,
    /// Slots and numbers of requests that are not sent yet.
    unsent: VecDeque<(usize, u64)>,
    /// A task sends.
    sending: bool,
    /// A task removes requests whose deadline has passed.
    expiring: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    /// Hash of the subject, which is compared after the message was sent.
    subject: u64,
    /// Until it is sent.
    message: Option<OutboundMessage>,
    deadline: Instant,
    reply_tx: oneshot::Sender<Reply>,
}

/// A request's slot in the table. Dropping it abandons the request.
#[derive(Debug)]
pub(crate) struct PendingReply<'a> {
    mux: &'a RequestMux,
    slot: usize,
    number: u64,
    reply_rx: oneshot::Receiver<Reply>,
    /// It has left the table.
    done: bool,
}

/// What became of a request that was submitted.
#[derive(Debug)]
pub(crate) enum Submitted<'a> {
    Pending(PendingReply<'a>),
    /// There is no connection; the message is handed back.
    NotConnected(OutboundMessage),
    /// Its reply could not arrive.
    InboxDenied(Violation),
}

impl RequestMux {
    /// Subscribes this client to the replies. No request may be submitted before.
    pub(crate) async fn subscribe(&self, client: &Client) -> Result<Subscriber, SubscribeError> {
        let inbox = self.inbox.get_or_init(|| client.new_inbox());
        client.subscribe(format!("{inbox}.*.*")).await
    }

    /// There is a new connection.
    pub(crate) fn connected(&self) {
        let mut pending = self.pending();
        (pending.connected, pending.inbox_denied) = (true, None);
        pending.end(|_| Some(NoReply::Lost));
    }

    /// The connection was lost, and its requests with it.
    pub(crate) fn disconnected(&self) {
        let mut pending = self.pending();
        pending.connected = false;
        pending.end(|_| Some(NoReply::Lost));
    }

    /// No reply can arrive on this connection.
    pub(crate) fn deny_inbox(&self, violation: &Violation) {
        let mut pending = self.pending();
        pending.inbox_denied = Some(violation.clone());
        pending.end(|_| Some(NoReply::Forbidden(violation.clone())));
    }

    /// Queues a request, if there is a connection.
    pub(crate) fn submit(&self, message: OutboundMessage, deadline: Instant) -> Submitted<'_> {
        let (reply_tx, reply_rx) = oneshot::channel();
        let subject = self.hash(&message.subject);
        let mut pending = self.pending();
        if let Some(violation) = &pending.inbox_denied {
            return Submitted::InboxDenied(violation.clone());
        }
        if !pending.connected {
            return Submitted::NotConnected(message);
        }
        let (slot, number) =
            pending.enter(Waiting { number: 0, subject, message: Some(message), deadline, reply_tx });
        let idle = !mem::replace(&mut pending.sending, true);
        let unattended = !mem::replace(&mut pending.expiring, true);
        drop(pending);
        if idle {
            self.unsent.notify_one();
        }
        if unattended {
            self.busy.notify_one();
        }
        Submitted::Pending(PendingReply { mux: self, slot, number, reply_rx, done: false })
    }

    /// Sends requests until the client takes no more commands, which is for ever. At most one task may do this at a time.
    ///
    /// Callers do not send for themselves: each would wake the client's task, which would write one request at a time.
    pub(crate) async fn send(&self, client: &Client) {
        loop {
            // First, since the task before may have been aborted between its wake-up and its work.
            while let Some((slot, number, mut message)) = self.next_to_send() {
                let inbox = self.inbox.get().map_or("", String::as_str);
                message.reply = Some(format!("{inbox}.{slot}.{number}").into());
                // It waits while the client has too much to write already.
                let Err(error) = client.publish_message(message).await else { continue };
                let ended = error.kind() == PublishErrorKind::Send;
                if let Some(Waiting { reply_tx, .. }) = self.pending().take(slot, number) {
                    let _ = reply_tx.send(Err(NoReply::NotSent(error)));
                }
                if ended {
                    return;
                }
            }
            self.unsent.notified().await;
            // All callers that are about to submit do it first.
            yield_now().await;
        }
    }

    fn next_to_send(&self) -> Option<(usize, u64, OutboundMessage)> {
        let mut pending = self.pending();
        while let Some((slot, number)) = pending.unsent.pop_front() {
            // It may be abandoned.
            if let Some(message) = pending.get(slot, number).and_then(|waiting| waiting.message.take()) {
                return Some((slot, number, message));
            }
        }
        pending.sending = false;
        None
    }

    /// Hands replies to their requests until the subscription ends, which it does with its client alone.
    pub(crate) async fn dispatch_replies(&self, mut replies: Subscriber, mut violations: ViolationReceiver) {
        let publish = |violation: &Violation| matches!(violation, Violation::Publish(_));
        loop {
            tokio::select! {
                biased;
                reply = replies.next() => match reply {
                    Some(reply) => self.dispatch(reply),
                    None => return,
                },
                violation = violations.next_matching(publish) => self.forbidden(&violation),
            }
        }
    }

    /// Ends requests whose deadline has passed. Never returns.
    pub(crate) async fn expire(&self) {
        loop {
            self.busy.notified().await;
            loop {
                sleep(EXPIRY_INTERVAL).await;
                let (now, mut pending) = (Instant::now(), self.pending());
                pending.end(|waiting| (waiting.deadline <= now).then_some(NoReply::Silence));
                pending.expiring = !pending.waiting.is_empty();
                if !pending.expiring {
                    break;
                }
            }
        }
    }

    fn dispatch(&self, reply: Message) {
        let mut tokens = reply.subject.rsplit('.');
        let (number, slot) = (tokens.next(), tokens.next());
        let (Some(Ok(number)), Some(Ok(slot))) = (number.map(str::parse), slot.map(str::parse)) else {
            return;
        };
        let Some(Waiting { reply_tx, .. }) = self.pending().take(slot, number) else { return };
        let reply = match reply.status {
            Some(StatusCode::NO_RESPONDERS) => Err(NoReply::NoResponders),
            _ => Ok(reply.payload),
        };
        // It may have been abandoned just now.
        let _ = reply_tx.send(reply);
    }

    fn forbidden(&self, violation: &Violation) {
        let Violation::Publish(subject) = violation else { return };
        let subject = self.hash(subject);
        let why = || NoReply::Forbidden(violation.clone());
        self.pending().end(|waiting| (waiting.subject == subject).then(why));
    }

    fn hash(&self, subject: &str) -> u64 {
        self.hasher.hash_one(subject)
    }

    fn pending(&self) -> MutexGuard<'_, PendingTable> {
        self.pending.lock()
    }
}

impl PendingTable {
    /// Gives a request its number and its slot, and queues it.
    fn enter(&mut self, waiting: Waiting) -> (usize, u64) {
        self.numbers += 1;
        let number = self.numbers;
        let slot = self.waiting.insert(Waiting { number, ..waiting });
        if self.unsent.len() >= PRUNE_AT {
            let Self { unsent, waiting, .. } = self;
            unsent.retain(|(slot, number)| waiting.get(*slot).is_some_and(|there| there.number == *number));
        }
        self.unsent.push_back((slot, number));
        (slot, number)
    }

    /// The request of this number, if it still has its slot.
    fn get(&mut self, slot: usize, number: u64) -> Option<&mut Waiting> {
        self.waiting.get_mut(slot).filter(|waiting| waiting.number == number)
    }

    /// The same, and its slot is free.
    fn take(&mut self, slot: usize, number: u64) -> Option<Waiting> {
        self.get(slot, number).is_some().then(|| self.waiting.remove(slot))
    }

    /// Ends those requests for which there is a reason.
    fn end(&mut self, reason: impl Fn(&Waiting) -> Option<NoReply>) {
        let ended = self.waiting.iter().filter_map(|(slot, waiting)| Some((slot, reason(waiting)?)));
        for (slot, why) in ended.collect::<Vec<_>>() {
            // It may have been abandoned just now.
            let _ = self.waiting.remove(slot).reply_tx.send(Err(why));
        }
    }
}

impl PendingReply<'_> {
    /// The reply, or why there is none. Cancel safe until it has returned once.
    pub(crate) async fn reply(&mut self) -> Reply {
        let reply = (&mut self.reply_rx).await;
        self.done = true;
        reply.unwrap_or(Err(NoReply::Lost))
    }
}

impl Drop for PendingReply<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.mux.pending().take(self.slot, self.number);
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
    fn connected() -> RequestMux {
        let mux = RequestMux::default();
        mux.inbox.set("inbox".to_owned()).unwrap();
        mux.connected();
        mux
    }

    fn message(subject: &'static str) -> OutboundMessage {
        OutboundMessage { subject: subject.into(), reply: None, payload: Bytes::new(), headers: None }
    }

    /// A request whose deadline is so far away.
    fn submit_within<'a>(mux: &'a RequestMux, subject: &'static str, within: Duration) -> PendingReply<'a> {
        match mux.submit(message(subject), Instant::now() + within) {
            Submitted::Pending(pending) => pending,
            other => panic!("{other:?}"),
        }
    }

    fn submit<'a>(mux: &'a RequestMux, subject: &'static str) -> PendingReply<'a> {
        submit_within(mux, subject, LATER)
    }

    /// The subject of a request's reply.
    fn inbox(pending: &PendingReply<'_>) -> String {
        format!("inbox.{}.{}", pending.slot, pending.number)
    }

    fn reply(to: &str, payload: &'static str) -> Message {
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

    /// The reply that a request has by now.
    fn received(pending: &mut PendingReply<'_>) -> Option<Reply> {
        pending.reply().now_or_never()
    }

    fn waiting(mux: &RequestMux) -> usize {
        mux.pending().waiting.len()
    }

    #[tokio::test]
    async fn each_request_hears_its_own_answer_and_no_late_one() {
        let mux = connected();
        let (mut one, mut two) = (submit(&mux, "a"), submit(&mux, "a"));
        let late = inbox(&submit(&mux, "a"));
        let mut next = submit(&mux, "a");
        for (to, payload) in [(&inbox(&two), "2"), (&late, "late"), (&inbox(&one), "1")] {
            mux.dispatch(reply(to, payload));
        }
        let payload = |pending: &mut PendingReply<'_>| received(pending).map(Result::unwrap);
        assert_eq!([&mut one, &mut two].map(payload), [Some("1".into()), Some("2".into())]);
        assert!(received(&mut next).is_none());
        for subject in ["inbox.x.4", "inbox.4", "inbox.7.4"] {
            mux.dispatch(reply(subject, "of nobody"));
        }
        assert_eq!(waiting(&mux), 1);
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_leaves_nothing_behind() {
        let mux = connected();
        let pending = submit(&mux, "a");
        let inbox = inbox(&pending);
        drop(pending);
        assert_eq!(waiting(&mux), 0);
        mux.dispatch(reply(&inbox, "late"));
    }

    #[tokio::test]
    async fn requests_are_sent_in_their_order_and_not_those_that_were_given_up() {
        let mux = connected();
        let (first, given_up, last) = (submit(&mux, "a"), submit(&mux, "b"), submit(&mux, "c"));
        let slot = given_up.slot;
        drop(given_up);
        let other = submit(&mux, "d");
        assert_eq!(other.slot, slot);
        let sent = std::iter::from_fn(|| mux.next_to_send());
        let sent: Vec<_> = sent.map(|(_, number, message)| (number, message.subject.to_string())).collect();
        let expected = [(&first, "a"), (&last, "c"), (&other, "d")];
        assert_eq!(sent, expected.map(|(pending, subject)| (pending.number, subject.to_owned())));
    }

    #[tokio::test]
    async fn what_is_given_up_before_it_is_sent_is_forgotten_in_time() {
        let mux = connected();
        let kept = submit(&mux, "a");
        for _ in 0..3 * PRUNE_AT {
            drop(submit(&mux, "b"));
        }
        assert!(mux.pending().unsent.len() <= PRUNE_AT);
        assert_eq!(mux.next_to_send().map(|(_, number, _)| number), Some(kept.number));
    }

    #[tokio::test]
    async fn the_loss_of_the_connection_ends_what_was_asked_on_it_alone() {
        let mux = connected();
        let mut old = submit(&mux, "a");
        mux.disconnected();
        assert!(matches!(received(&mut old), Some(Err(NoReply::Lost))));
        assert!(matches!(mux.submit(message("a"), Instant::now() + LATER), Submitted::NotConnected(_)));
        mux.connected();
        let mut new = submit(&mux, "a");
        assert!(received(&mut new).is_none());
        // No event said that it was lost.
        mux.connected();
        assert!(matches!(received(&mut new), Some(Err(NoReply::Lost))));
    }

    #[tokio::test]
    async fn a_violation_ends_the_requests_to_its_subject_and_one_of_the_inbox_all() {
        let mux = connected();
        let (mut denied, mut other) = (submit(&mux, "a.b"), submit(&mux, "a.bc"));
        mux.forbidden(&Violation::Publish("a.b".to_owned()));
        assert!(matches!(received(&mut denied), Some(Err(NoReply::Forbidden(Violation::Publish(_))))));
        assert!(received(&mut other).is_none());
        mux.deny_inbox(&Violation::Subscribe("inbox.*".to_owned()));
        assert!(matches!(received(&mut other), Some(Err(NoReply::Forbidden(Violation::Subscribe(_))))));
        assert!(matches!(mux.submit(message("a"), Instant::now() + LATER), Submitted::InboxDenied(_)));
        mux.connected();
        submit(&mux, "a");
    }

    #[tokio::test]
    async fn silence_ends_a_request_in_time_whenever_it_was_begun() {
        let mux = Arc::new(connected());
        let expiring = Arc::clone(&mux);
        let expiring = tokio::spawn(async move { expiring.expire().await });
        for _ in 0..2 {
            let begun = Instant::now();
            let mut soon = submit_within(&mux, "a", EXPIRY_INTERVAL);
            let mut later = submit(&mux, "a");
            assert!(matches!(soon.reply().await, Err(NoReply::Silence)));
            assert!(begun.elapsed() >= EXPIRY_INTERVAL && received(&mut later).is_none());
            drop(later);
            // Until the task sleeps, from which the next request has to wake it.
            while mux.pending().expiring {
                sleep(EXPIRY_INTERVAL).await;
            }
        }
        expiring.abort();
    }
}
