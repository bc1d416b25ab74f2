//! What is uncertain: which consumer has the name, whether the server received what was sent, and what is still owed. Begins recoveries.

use std::sync::atomic;

use jetwright_nats::Link;
use jetwright_partitions::recovery::RecoveryCause;
use tokio::time::Instant;

use super::{
    Dispatcher, ExclusiveRun,
    in_flight::{Held, State},
};
use crate::Handler;

impl<H: Handler> Dispatcher<H> {
    /// Begins an uncertainty about acknowledgements and order: the consumer may be gone, or another one may have its name.
    pub(super) fn suspect_consumer(&mut self, now: Instant) {
        self.unverified_since = Some(now);
        self.consumer.proof.revoke();
        self.consumer.discovery.recheck();
        self.in_flight.acks().for_each(|(_, _, ack)| ack.suspend());
    }

    /// Nothing new begins until everything that was delivered is here.
    pub(super) fn begin_recovery(&mut self, doubt: RecoveryCause, now: Instant) {
        if self.hold_back(doubt, now) {
            tracing::info!(
                binding = self.consumer.name(),
                partition = self.consumer.partition(),
                cause = doubt.as_str(),
                "recovering the order of events"
            );
            self.consumer.runner.metrics.recovery(doubt.as_str());
            self.consumer.recovering.store(true, atomic::Ordering::Relaxed);
            self.consumer.capacity_freed.notify_one();
        }
    }

    /// Nothing new begins; returns whether some might have.
    pub(super) fn hold_back(&mut self, doubt: RecoveryCause, now: Instant) -> bool {
        let Some(order) = &mut self.order else { return false };
        if !order.recovery.doubt(doubt, now.into_std()) {
            return false;
        }
        order.queue.clear_waiting();
        if let ExclusiveRun::Waiting(slot) = self.exclusive {
            (self.exclusive, self.all_room) = (ExclusiveRun::None, None);
            self.next.push_back(slot);
        }
        // Those that were about to begin have not.
        for slot in self.next.drain(..) {
            if let Some(Held { key: Some(key), .. }) = self.in_flight.get(slot) {
                order.queue.complete(*key);
            }
        }
        true
    }

    /// JetStream reported which consumer exists, and which deliveries are unacknowledged.
    pub(super) async fn observed(&mut self) {
        let Some(observation) = self.observations.borrow_and_update().clone() else { return };
        self.note_consumer_epoch(observation.consumer_epoch);
        self.consumer.proof.renew(observation.asked_at);
        if self.unverified_since.is_some_and(|unverified_since| observation.asked_at >= unverified_since) {
            self.unverified_since = None;
        }
        self.resolve_acks(&observation).await;
        self.go_on_with_recovery(&observation);
        if self.order.as_ref().is_some_and(|order| order.recovery.is_active()) {
            self.hurry(&observation).await;
        }
    }

    /// Another consumer has the name now: it knows nothing of its predecessor's deliveries.
    pub(super) fn note_consumer_epoch(&mut self, consumer_epoch: u64) {
        if consumer_epoch <= self.consumer_epoch {
            return;
        }
        let is_first = self.consumer_epoch == 0;
        self.consumer_epoch = consumer_epoch;
        if is_first {
            return;
        }
        for slot in self.in_flight.in_order(|_| true) {
            self.drop_predecessor(slot);
        }
        if let Some(order) = &mut self.order {
            order.sentinel.reset();
        }
        self.begin_recovery(RecoveryCause::Reconnect, Instant::now());
        // Those that had not begun; the queue no longer knows them.
        if self.order.is_some() {
            let is_waiting = |held: &Held| held.is_orphan && matches!(held.state, State::Waiting(_));
            for slot in self.in_flight.in_order(is_waiting) {
                self.give_up(slot, "the consumer was recreated");
            }
        }
    }

    /// The connection was lost or reestablished: replies to earlier commands do not arrive, and the last commands may be lost.
    pub(super) fn connection_changed(&mut self) {
        let Link { connected, generation, .. } = *self.link.borrow_and_update();
        if generation != self.generation {
            self.confirmations = None;
        }
        let now = Instant::now();
        let half = self.consumer.ack_wait() / 2;
        for (_, held) in self.in_flight.iter_mut() {
            match &mut held.state {
                State::Settling(ack) => ack.suspend(),
                _ => held.in_progress_at = now.checked_sub(half).unwrap_or(held.in_progress_at),
            }
        }
        self.suspect_consumer(now);
        if connected {
            if let Some(order) = &mut self.order {
                order.sentinel.reset();
            }
            self.begin_recovery(RecoveryCause::Reconnect, now);
        }
    }
}
