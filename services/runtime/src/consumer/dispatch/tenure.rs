//! What the loop of a partition does as it is told, and what it reports.

use jetwright_nats::ACK_PREFIX;
use jetwright_partitions::recovery::RecoveryCause;
use tokio::time::{Instant, timeout};

use super::{Dispatcher, Observation, SEND_TIMEOUT};
use crate::{
    Handler,
    consumer::ack::NAK_ON_SHUTDOWN,
    partitions::{Instruction, Looked},
};

/// Maximum deliveries of another process that are asked for; beyond that they come when their time is over.
const MAX_HURRIED: u64 = 10_000;

impl<H: Handler> Dispatcher<H> {
    /// The process has the partition again after its lease was over, or gives it up: [`begin_stop`](Self::begin_stop) follows then, unless it has
    /// begun with a drain.
    pub(super) fn instructed(&mut self, instruction: Instruction) {
        match instruction {
            Instruction::Serve => self.begin_recovery(RecoveryCause::LeaseOver, Instant::now()),
            Instruction::Abandon if self.last_begin.is_some() => self.abandon(Instant::now()),
            Instruction::Abandon | Instruction::Drain | Instruction::Suspend => {}
        }
    }

    /// Whether another process has it: what has not begun is forgotten.
    pub(super) fn is_abandoned(&self) -> bool {
        self.consumer.tenure.as_ref().is_some_and(|tenure| tenure.instruction() == Instruction::Abandon)
    }

    /// Whether handlers may begin as far as the lease is concerned.
    pub(super) fn may_begin(&self) -> bool {
        self.consumer.tenure.as_ref().is_none_or(|tenure| tenure.may_begin())
    }

    /// Whether JetStream may be told that events are still being handled.
    pub(super) fn may_hold(&self) -> bool {
        self.consumer.tenure.as_ref().is_none_or(|tenure| tenure.may_hold())
    }

    /// Has JetStream deliver again what the process before this one had and did not settle, instead of waiting for its time to be over. Nothing
    /// depends on it. The server ignores it for what is settled.
    pub(super) async fn hurry(&mut self, observation: &Observation) {
        if !std::mem::take(&mut self.hurries) {
            return;
        }
        let info = &observation.info;
        let (floor, delivered) = (info.ack_floor.stream_seq, info.delivered);
        if delivered.stream_seq.saturating_sub(floor) > MAX_HURRIED {
            return;
        }
        let (stream, consumer) = (&self.consumer.binding.stream, &self.consumer.durable);
        let number = delivered.consumer_seq;
        let owed =
            (floor + 1..=delivered.stream_seq).filter(|sequence| self.in_flight.find(*sequence).is_none());
        let asking = async {
            for sequence in owed {
                let to = format!("{ACK_PREFIX}{stream}.{consumer}.1.{sequence}.{number}.0.0");
                // Refused if the client has ended.
                let _ = self.client.publish(to, NAK_ON_SHUTDOWN.payload()).await;
            }
        };
        // A client that is connecting reads nothing, and events in flight wait meanwhile.
        let _ = timeout(SEND_TIMEOUT, asking).await;
    }

    /// Updates what the process reports of the partition.
    pub(super) fn report(&mut self) {
        let Some(tenure) = &self.consumer.tenure else { return };
        // What waits for an earlier one of its key, for its next attempt or for a recovery could not begin with more room either.
        let queued = match &self.order {
            Some(order) if !order.recovery.is_active() && self.may_begin() => {
                self.next.len() + order.queue.ready()
            }
            _ => 0,
        };
        let count = |events: usize| events.try_into().unwrap_or(u64::MAX);
        tenure.look(Looked {
            oldest: self.in_flight.oldest(),
            in_flight: count(self.in_flight.len()),
            running: count(self.running),
            queued: count(queued),
        });
        self.is_busy = !self.in_flight.is_empty();
    }
}
