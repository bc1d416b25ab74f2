//! Takes deliveries in: each has a slot, and a delivery of an event in flight changes how that event is settled.

use jetwright_partitions::recovery::Arrival;
use jiff::Timestamp;
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::{
        ack::{PendingAck, Settlement},
        attempt::Delivery,
        delivery::Delivered,
        fetch::Fetched,
    },
    BATCH, Dispatcher,
    in_flight::{Held, State},
};
use crate::Handler;

impl<H: Handler> Dispatcher<H> {
    pub(super) fn receive_some(&mut self, first: Fetched, inbound: &mut mpsc::UnboundedReceiver<Fetched>) {
        let (now, time) = (Instant::now(), Timestamp::now());
        self.receive(first, now, time);
        for _ in 1..BATCH {
            let Ok(fetched) = inbound.try_recv() else { return };
            self.receive(fetched, now, time);
        }
    }

    fn receive(&mut self, fetched: Fetched, now: Instant, time: Timestamp) {
        match fetched {
            Fetched::ConsumerSuspect => self.suspect_consumer(now),
            Fetched::Opened(observation) => {
                self.note_consumer_epoch(observation.consumer_epoch);
                self.go_on_with_recovery(&observation);
            }
            Fetched::Deliveries { consumer_epoch, deliveries } => {
                self.note_consumer_epoch(consumer_epoch);
                for delivered in deliveries {
                    if consumer_epoch < self.consumer_epoch {
                        self.consumer.release_capacity(delivered.size);
                        continue;
                    }
                    self.take(delivered, now, time);
                }
            }
        }
    }

    fn take(&mut self, delivered: Delivered, now: Instant, time: Timestamp) {
        let (sequence, event_time) = (delivered.metadata.sequence, delivered.metadata.time);
        if let Some(tenure) = &self.consumer.tenure {
            tenure.report(|figures| {
                figures.delivered = figures.delivered.max(sequence);
                figures.pending = delivered.metadata.lag;
            });
        }
        let has_ended = self.ended.contains(sequence, event_time, delivered.metadata.attempt, now);
        let arrival = match delivered.metadata.attempt {
            ..=1 => Arrival::New,
            _ if has_ended || self.in_flight.find(sequence).is_some() => Arrival::Known,
            _ => Arrival::Owed(sequence),
        };
        let number = delivered.consumer_sequence;
        let doubt = self.order.as_mut().and_then(|order| order.recovery.received(number, arrival));
        if let Some(doubt) = doubt {
            self.begin_recovery(doubt, now);
        }
        if let Some(slot) = self.in_flight.find(sequence) {
            let is_same = self.in_flight.get(slot).is_some_and(|held| held.time == event_time);
            if !is_same {
                // Another event has its sequence: the stream was recreated.
                self.drop_predecessor(slot);
            } else if self.redelivered(slot, &delivered, now) {
                return self.consumer.release_capacity(delivered.size);
            }
        }
        let key = self.order.as_ref().map(|order| order.key_tokens.key(&delivered.metadata.subject));
        let (reply, size) = (delivered.reply.clone(), delivered.size);
        let (key, state) = if has_ended {
            (None, State::Settling(PendingAck::new(&Settlement::Ack, now)))
        } else {
            (key, State::Waiting(Box::new(Delivery::new(&self.consumer.runner, delivered, time))))
        };
        let held = Held {
            reply,
            sequence,
            time: event_time,
            size,
            key,
            is_orphan: false,
            in_progress_at: now,
            delivered_at: now,
            state,
        };
        let slot = self.in_flight.insert(held);
        if !has_ended {
            self.enqueue(slot, key);
        }
    }

    /// Whether this event is in flight; then it is settled as its newest delivery.
    fn redelivered(&mut self, slot: usize, delivered: &Delivered, now: Instant) -> bool {
        let Some(held) = self.in_flight.get_mut(slot) else { return false };
        match &mut held.state {
            // It was NAKed, and the confirmation was lost.
            State::Settling(ack) if ack.is_done_by_redelivery() => {
                self.release(slot);
                return false;
            }
            // JetStream did not receive its acknowledgement.
            State::Settling(ack) => ack.repeat(now),
            // It is being handled, and JetStream had no acknowledgement in time: it may wait for less time now. Or another consumer delivers it too.
            State::Waiting(_) | State::Paused(..) | State::Running | State::Returned => {
                self.consumer.discovery.recheck();
            }
        }
        held.reply = delivered.reply.clone();
        (held.in_progress_at, held.delivered_at) = (now, now);
        held.is_orphan = false;
        true
    }
}
