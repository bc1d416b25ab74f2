//! Sends acknowledgements until JetStream confirms them, and in-progress acknowledgements while deliveries are handled.
//!
//! Nothing is acknowledged while it is uncertain which consumer would receive it: the server compares only names and the sequence, so an
//! acknowledgement to a recreated stream would settle another event.

use std::{pin::pin, task::Poll, time::Duration};

use async_nats::{
    Message, PublishError, StatusCode, Subject, client::traits::Publisher as _, message::OutboundMessage,
};
use futures::{FutureExt, StreamExt, poll};
use jetwright_partitions::recovery::RecoveryCause;
use tokio::time::{Instant, timeout};

use super::{BATCH, Dispatcher, Held, Observation, State};
use crate::{
    AckMode, Handler,
    consumer::ack::{AckAction, AckStatus, IN_PROGRESS, PendingAck, Settlement},
};

/// How long the client may take to accept a command.
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(1);

impl<H: Handler> Dispatcher<H> {
    pub(super) async fn settle(&mut self, slot: usize, settlement: &Settlement) {
        let now = Instant::now();
        let can_send = self.can_send(now);
        let Some(held) = self.in_flight.get_mut(slot) else { return };
        let is_unconfirmed =
            self.consumer.runner.options.ack_mode == AckMode::FireAndForget && held.key.is_none();
        if can_send && is_unconfirmed && *settlement == Settlement::Ack {
            if let Some(held) = self.take_out(slot) {
                self.publish(held.reply, settlement.payload()).await;
            }
            return;
        }
        let mut ack = PendingAck::new(settlement, now);
        if !can_send {
            ack.suspend();
        }
        held.state = State::Settling(ack);
        if can_send {
            self.send_ack(slot).await;
        }
    }

    /// Whether an acknowledgement can be sent now and reaches the consumer that delivered the events in flight.
    fn can_send(&mut self, now: Instant) -> bool {
        if self.unverified_since.is_none() && !self.consumer.proof.holds(now) {
            self.unverified_since = Some(now);
            self.consumer.discovery.recheck();
        }
        self.is_undoubted()
    }

    /// The same, if JetStream has just responded: that is enough for this moment, however long the response took.
    fn is_undoubted(&self) -> bool {
        // A new connection that is not processed yet may lead to another consumer.
        let is_connected = self.link.borrow().connected && !self.link.has_changed().unwrap_or(true);
        self.unverified_since.is_none() && is_connected
    }

    /// Reports to JetStream how a delivery ended.
    async fn send_ack(&mut self, slot: usize) {
        self.ack_numbers += 1;
        let number = self.ack_numbers;
        let Some(Held { reply, state: State::Settling(ack), .. }) = self.in_flight.get_mut(slot) else {
            return;
        };
        let answer_to = format!("{}.{slot}.{number}", self.inbox);
        // The client checks the subject alone: that of the confirmation is its own.
        let message = OutboundMessage {
            subject: reply.clone(),
            reply: Some(answer_to.into()),
            payload: ack.payload.clone(),
            headers: None,
        };
        send_and_note(self.client.publish_message(message), ack, number).await;
    }

    pub(super) fn confirmed_all(&mut self, first: &Message) {
        let now = Instant::now();
        self.confirmed(first, now);
        for _ in 1..BATCH {
            let confirmations = self.confirmations.as_mut();
            let Some(Some(confirmation)) = confirmations.and_then(|more| more.next().now_or_never()) else {
                return;
            };
            self.confirmed(&confirmation, now);
        }
    }

    /// JetStream confirms an acknowledgement.
    fn confirmed(&mut self, confirmation: &Message, now: Instant) {
        let mut tokens = confirmation.subject.rsplit('.');
        let mut number = || tokens.next()?.parse::<u64>().ok();
        let (Some(number), Some(slot)) = (number(), number()) else { return };
        let Ok(slot) = usize::try_from(slot) else { return };
        let Some(Held { state: State::Settling(ack), .. }) = self.in_flight.get_mut(slot) else { return };
        if !ack.is_answered_by(number) {
            return;
        }
        if confirmation.status == Some(StatusCode::NO_RESPONDERS) {
            ack.refused(now);
            return self.suspect_consumer(now);
        }
        self.settled(slot, now);
    }

    /// Does what is due: in-progress acknowledgements of the events in flight, and unconfirmed acknowledgements.
    ///
    /// `is_permitted` says whether acknowledgements can be sent, if JetStream has just responded.
    pub(super) async fn send_due_acks(&mut self, now: Instant, is_permitted: Option<bool>) {
        let half = self.consumer.ack_wait() / 2;
        // An in-progress acknowledgement does no harm, whichever event has its sequence.
        let can_say_in_progress = self.link.borrow().connected && self.may_hold();
        let (mut in_progress, mut due) = (Vec::new(), Vec::new());
        for (slot, held) in self.in_flight.iter_mut() {
            match &mut held.state {
                State::Settling(ack) => match ack.due(now) {
                    AckAction::Wait => {}
                    action => due.push((held.sequence, slot, action)),
                },
                State::Waiting(_) | State::Paused(..) | State::Running | State::Returned => {
                    if can_say_in_progress && !held.is_orphan && now >= held.in_progress_at + half {
                        held.in_progress_at = now;
                        in_progress.push(held.reply.clone());
                    }
                }
            }
        }
        for reply in in_progress {
            self.publish(reply, IN_PROGRESS.into()).await;
        }
        let can_send = !due.is_empty() && is_permitted.unwrap_or_else(|| self.can_send(now));
        // NAKed events are redelivered in the order of the NAKs.
        due.sort_unstable_by_key(|(sequence, ..)| *sequence);
        for (_, slot, action) in due {
            match action {
                AckAction::Wait => {}
                AckAction::Send { unanswered: true } => self.unanswered(slot, now).await,
                AckAction::Send { unanswered: false } if can_send => self.send_ack(slot).await,
                AckAction::Send { unanswered: false } => self.suspend(slot),
                AckAction::GiveUp => self.give_up(slot, "JetStream did not confirm the redelivery"),
            }
        }
    }

    fn suspend(&mut self, slot: usize) {
        if let Some(Held { state: State::Settling(ack), .. }) = self.in_flight.get_mut(slot) {
            ack.suspend();
        }
    }

    /// JetStream does not confirm. Silence says nothing about what it knows, so JetStream is asked for its consumer, and the acknowledgement repeated.
    async fn unanswered(&mut self, slot: usize, now: Instant) {
        self.begin_recovery(RecoveryCause::UnansweredAck, now);
        self.consumer.discovery.recheck();
        if self.link.borrow().connected && self.unverified_since.is_none() {
            self.send_ack(slot).await;
        } else {
            self.suspend(slot);
        }
    }

    pub(super) async fn publish(&self, to: Subject, payload: bytes::Bytes) {
        send(self.client.publish(to, payload)).await;
    }

    /// The consumer's state decides some of the unconfirmed acknowledgements, and lets the others be sent.
    pub(super) async fn resolve_acks(&mut self, observation: &Observation) {
        let now = Instant::now();
        let can_send = self.is_undoubted();
        let Observation { info, asked_at, .. } = observation;
        let mut decided = Vec::new();
        for (slot, sequence, ack) in self.in_flight.acks() {
            match ack.observed(sequence, info, *asked_at) {
                AckStatus::Unknown if can_send => ack.resume(now),
                AckStatus::Unknown => {}
                fate => decided.push((slot, fate)),
            }
        }
        for (slot, fate) in decided {
            if fate == AckStatus::Settled {
                self.settled(slot, now);
            } else {
                self.give_up(slot, "JetStream does not know its delivery any more");
                self.begin_recovery(RecoveryCause::UnansweredAck, now);
            }
        }
        self.send_due_acks(now, Some(can_send)).await;
    }

    /// The servers do not permit an acknowledgement. The fetcher gets the same violation.
    pub(super) fn not_permitted(&mut self, reply: &str) {
        let is_settling = |held: &Held| matches!(held.state, State::Settling(_)) && *held.reply == *reply;
        let slot = self.in_flight.iter().find(|(_, held)| is_settling(held)).map(|(slot, _)| slot);
        if let Some(slot) = slot {
            self.give_up(slot, "this program's NATS user may not acknowledge it");
            // It comes again, and the next event of its key must not begin before.
            self.begin_recovery(RecoveryCause::DeniedAck, Instant::now());
        }
    }

    /// JetStream knows how a delivery ended.
    fn settled(&mut self, slot: usize, now: Instant) {
        if let Some(Held { sequence, time, state: State::Settling(ack), .. }) = self.in_flight.get(slot)
            && ack.ends_event()
        {
            self.ended.insert(*sequence, *time, now);
        }
        if let (Some(order), Some(Held { key: Some(key), sequence, state: State::Settling(ack), .. })) =
            (&mut self.order, self.in_flight.get(slot))
            && ack.ends_event()
        {
            order.sentinel.settle(*key, *sequence);
        }
        self.release(slot);
    }

    /// Releases a delivery without JetStream's confirmation: it may be delivered again.
    pub(super) fn give_up(&mut self, slot: usize, why: &str) {
        let sequence = self.in_flight.get(slot).map(|held| held.sequence);
        tracing::warn!(
            binding = self.consumer.name(),
            partition = self.consumer.partition(),
            sequence,
            why,
            "released delivery without confirmation; its event may be redelivered"
        );
        self.consumer.runner.metrics.ack_unconfirmed();
        self.release(slot);
    }

    /// Releases what is left at the end.
    pub(super) fn release_rest(&mut self) {
        let rest = self.in_flight.in_order(|_| true);
        if !rest.is_empty() {
            tracing::warn!(
                binding = self.consumer.name(),
                partition = self.consumer.partition(),
                count = rest.len(),
                "released deliveries without confirmation; their events may be redelivered"
            );
        }
        for slot in rest {
            self.consumer.runner.metrics.ack_unconfirmed();
            self.release(slot);
        }
    }

    /// Releases a delivery; the next one of its key may begin.
    pub(super) fn release(&mut self, slot: usize) {
        self.take_out(slot);
    }

    fn take_out(&mut self, slot: usize) -> Option<Held> {
        self.leave_queue(slot);
        let held = self.in_flight.remove(slot)?;
        self.consumer.release_capacity(held.size);
        Some(held)
    }

    /// The consumer that delivered it is gone: it is not acknowledged. A running attempt is waited for.
    pub(super) fn drop_predecessor(&mut self, slot: usize) {
        self.in_flight.orphan(slot);
        match self.in_flight.get(slot).map(|held| &held.state) {
            Some(State::Settling(_) | State::Returned) => {
                self.give_up(
                    slot,
                    "the consumer was recreated; its predecessor's delivery is not acknowledged",
                );
            }
            Some(State::Paused(_, timer)) => {
                self.paused.remove(timer);
                self.resume(slot);
            }
            _ => {}
        }
    }
}

/// Passes an acknowledgement to the client. It was sent when the client has it, which takes a while where that is busy.
async fn send_and_note(
    sending: impl Future<Output = Result<(), PublishError>>,
    ack: &mut PendingAck,
    number: u64,
) {
    send(sending).await;
    ack.send(number, Instant::now());
}

/// Passes a command to the client. A client that is connecting reads none, and would block everything once its queue is full; what is
/// not sent is due again.
async fn send(sending: impl Future<Output = Result<(), PublishError>>) {
    let mut sending = pin!(sending);
    let sent = match poll!(sending.as_mut()) {
        Poll::Ready(sent) => sent,
        Poll::Pending => match timeout(SEND_TIMEOUT, sending).await {
            Ok(sent) => sent,
            Err(_) => return tracing::debug!("failed to send an acknowledgement: the client is busy"),
        },
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "failed to send an acknowledgement");
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::consumer::observation::ConsumerInfo;

    /// JetStream has delivered nothing.
    fn forgetful() -> ConsumerInfo {
        let none = serde_json::json!({"consumer_seq": 0, "stream_seq": 0});
        serde_json::from_value(serde_json::json!({
            "created": "a", "delivered": none, "ack_floor": none, "num_ack_pending": 0, "num_waiting": 0, "config": {},
        }))
        .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_jetstream_is_asked_while_the_client_is_busy_decides_nothing_of_what_is_sent_then() {
        let mut ack = PendingAck::new(&Settlement::Ack, Instant::now());
        send_and_note(async { Ok(()) }, &mut ack, 1).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ack.due(Instant::now()), AckAction::Send { unanswered: true });
        let asked_at = Instant::now() + SEND_TIMEOUT / 4;
        let busy = async {
            sleep(SEND_TIMEOUT / 2).await;
            Ok(())
        };
        send_and_note(busy, &mut ack, 2).await;
        assert_eq!(ack.observed(7, &forgetful(), asked_at), AckStatus::Unknown);
        assert_eq!(ack.observed(7, &forgetful(), Instant::now()), AckStatus::Forgotten);
    }
}
