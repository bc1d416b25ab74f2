//! Settling: JetStream is told how each delivery ended, until it confirms that, and meanwhile that it is still being handled.

use async_nats::{Message, StatusCode, Subject};
use futures::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::{
    super::acknowledge::{Due, IN_PROGRESS, Settlement, Unconfirmed},
    BATCH, Desk, Held, State,
};
use crate::{Acknowledge, Handler, connection::Link};

impl<H: Handler> Desk<H> {
    pub(super) async fn settle(&mut self, place: usize, settlement: &Settlement) {
        let Some(held) = self.held.get(place) else { return };
        if held.lane.is_some_and(|_| matches!(settlement, Settlement::Nak { .. })) {
            self.returned.extend(held.lane);
        }
        // Sequences begin again with a stream: what this settlement names may be another event there.
        if held.incarnation != *self.incarnation.borrow() {
            return self.drop_predecessors(place);
        }
        let connected = self.link.borrow().connected;
        let unconfirmed = self.consumption.limits.acknowledge == Acknowledge::Sent && held.lane.is_none();
        if connected && unconfirmed && *settlement == Settlement::Ack {
            let reply = held.reply.clone();
            self.publish(reply, settlement.payload()).await;
            return self.release(place);
        }
        let now = Instant::now();
        let mut unconfirmed = Unconfirmed::new(settlement, self.consumption.binding.ack_wait.0, now);
        if !connected {
            unconfirmed.lost();
        }
        if let Some(held) = self.held.get_mut(place) {
            held.state = State::Settling(unconfirmed);
        }
        if connected {
            self.tell(place, now).await;
        }
    }

    /// Tells JetStream how a delivery ended.
    async fn tell(&mut self, place: usize, now: Instant) {
        self.numbers += 1;
        let number = self.numbers;
        let Some(Held { reply, state: State::Settling(unconfirmed), .. }) = self.held.get_mut(place) else {
            return;
        };
        unconfirmed.tell(number, now);
        let (to, payload) = (reply.clone(), unconfirmed.payload.clone());
        let answer = format!("{}.{place}.{number}", self.inbox);
        if let Err(error) = self.consumption.connection.client().publish_with_reply(to, answer, payload).await
        {
            tracing::debug!(%error, "a settlement could not be sent");
        }
    }

    pub(super) fn answered(&mut self, first: &Message) {
        self.confirmed(first);
        for _ in 1..BATCH {
            let Some(Some(answer)) = self.confirmations.next().now_or_never() else { return };
            self.confirmed(&answer);
        }
    }

    /// JetStream confirms a settlement.
    fn confirmed(&mut self, answer: &Message) {
        let mut tokens = answer.subject.rsplit('.');
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (Some(number), Some(place)) = (number(), number()) else { return };
        let Ok(place) = usize::try_from(place) else { return };
        let Some(Held { state: State::Settling(unconfirmed), .. }) = self.held.get_mut(place) else { return };
        if !unconfirmed.is_answered_by(number) {
            return;
        }
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return unconfirmed.refused(Instant::now());
        }
        self.release(place);
    }

    /// Sees to what is due: deliveries of which JetStream has to hear, settlements that it did not confirm.
    pub(super) async fn look(&mut self) {
        let now = Instant::now();
        let half = self.consumption.binding.ack_wait.0 / 2;
        let Link { connected, .. } = *self.link.borrow();
        let newest = *self.incarnation.borrow();
        let (mut in_progress, mut due) = (Vec::new(), Vec::new());
        for (place, held) in &mut self.held {
            match &mut held.state {
                State::Settling(unconfirmed) => match unconfirmed.due(now) {
                    Due::Nothing => {}
                    what => due.push((place, what)),
                },
                State::Waiting(_) | State::Paused(..) | State::Working => {
                    if connected && held.incarnation == newest && now >= held.heard + half {
                        held.heard = now;
                        in_progress.push(held.reply.clone());
                    }
                }
            }
        }
        for reply in in_progress {
            self.publish(reply, IN_PROGRESS.into()).await;
        }
        for (place, due) in due {
            match due {
                Due::Tell { silent } => {
                    if silent {
                        self.consumption.doubt.notify_one();
                    }
                    self.tell(place, now).await;
                }
                _ => self.give_up(place, "JetStream did not confirm a settlement"),
            }
        }
    }

    async fn publish(&self, to: Subject, payload: bytes::Bytes) {
        if let Err(error) = self.consumption.connection.client().publish(to, payload).await {
            tracing::debug!(%error, "an acknowledgement could not be sent");
        }
    }

    /// The connection was lost or made again; answers to what was told before do not come, and what was said last may not have been
    /// heard.
    pub(super) async fn linked(&mut self) {
        let Link { connected, generation, .. } = *self.link.borrow_and_update();
        if generation != self.generation {
            // The subscription ended with the client.
            let client = self.consumption.connection.client();
            if let Ok(confirmations) = client.subscribe(format!("{}.*.*", self.inbox)).await {
                (self.confirmations, self.generation) = (confirmations, generation);
            }
        }
        let now = Instant::now();
        let half = self.consumption.binding.ack_wait.0 / 2;
        for (_, held) in &mut self.held {
            match &mut held.state {
                State::Settling(unconfirmed) => {
                    unconfirmed.lost();
                    if connected {
                        unconfirmed.found(now);
                    }
                }
                State::Waiting(_) | State::Paused(..) | State::Working => {
                    held.heard = now.checked_sub(half).unwrap_or(held.heard);
                }
            }
        }
        self.look().await;
    }

    /// Another consumer has the name now.
    pub(super) fn forget_predecessors(&mut self) {
        let newest = *self.incarnation.borrow_and_update();
        let old = |(place, held): (usize, &Held)| (held.incarnation != newest).then_some(place);
        for place in self.held.iter().filter_map(old).collect::<Vec<_>>() {
            match self.held.get(place).map(|held| &held.state) {
                Some(State::Settling(_)) => self.drop_predecessors(place),
                // Its turn comes now, and then it is dropped.
                Some(State::Paused(_, pause)) => {
                    self.pauses.remove(pause);
                    self.resume(place);
                }
                _ => {}
            }
        }
    }

    pub(super) fn drop_predecessors(&mut self, place: usize) {
        self.give_up(
            place,
            "the consumer was made again; the settlement of its predecessor's delivery is dropped",
        );
    }

    /// The servers do not let this be said. Whoever pulls is told, and the log is.
    pub(super) fn not_permitted(&mut self, reply: &str) {
        let settling = |held: &Held| matches!(held.state, State::Settling(_)) && *held.reply == *reply;
        let place = self.held.iter().find(|(_, held)| settling(held)).map(|(place, _)| place);
        if let Some(place) = place {
            self.give_up(place, "this program's user may not settle its deliveries");
        }
    }

    /// Lets a delivery go without JetStream's word: it may be delivered again.
    pub(super) fn give_up(&mut self, place: usize, why: &str) {
        let sequence = self.held.get(place).map(|held| held.sequence);
        tracing::warn!(binding = H::BINDING, sequence, why, "the event may be delivered again");
        self.consumption.metrics.unconfirmed();
        self.release(place);
    }

    /// Lets a delivery go; the next one of its key may begin.
    pub(super) fn release(&mut self, place: usize) {
        let Some(held) = self.held.try_remove(place) else { return };
        self.consumption.leave();
        let Some((lane, lanes)) = held.lane.zip(self.lanes.as_mut()) else { return };
        self.next.extend(lanes.leave(lane));
    }
}
