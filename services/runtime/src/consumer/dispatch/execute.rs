//! Begins deliveries when they may, and decides what follows an attempt.

use std::{mem, time::Duration};

use jetwright_partitions::{recovery::RecoveryCause, sentinel::OrderViolation};
use tokio::time::Instant;

use super::{
    AllRoom, AttemptResult, Attempted, Delivery, Dispatcher, ExclusiveRun, Held, Isolation, Job, Room,
    SETTLE_TIMEOUT, State,
};
use crate::{
    Handler,
    consumer::{ack::NAK_ON_SHUTDOWN, workers::WorkerPanic},
    partitions::Instruction,
};

/// When an attempt is made that this process might not begin.
const NOT_BEGUN_PAUSE: Duration = Duration::from_millis(100);

impl<H: Handler> Dispatcher<H> {
    /// A delivery waits for its turn.
    pub(super) fn enqueue(&mut self, slot: usize, key: Option<u64>) {
        match (&mut self.order, key) {
            (Some(order), _) if order.recovery.is_active() => {}
            (Some(order), Some(key)) => {
                if order.queue.has(key)
                    && let Some(Held { state: State::Waiting(delivery), .. }) = self.in_flight.get_mut(slot)
                {
                    delivery.count_as_not_begun();
                }
                if order.queue.push(key, slot) {
                    self.next.push_back(slot);
                }
            }
            _ => self.next.push_back(slot),
        }
    }

    /// Begins what may begin.
    pub(super) async fn begin_next(&mut self) {
        if let ExclusiveRun::Waiting(slot) = self.exclusive
            && self.running == 0
            && self.may_begin_alone()
        {
            self.exclusive = ExclusiveRun::Running(slot);
            if !self.begin(slot).await {
                (self.exclusive, self.all_room) = (ExclusiveRun::None, None);
            }
        }
        // After a reconnect more may have been delivered than was asked for; a stop gives it back.
        while self.exclusive == ExclusiveRun::None
            && !self.next.is_empty()
            && (self.running < self.concurrency || self.is_stop_near())
            && self.take_room()
            && let Some(slot) = self.next.pop_front()
        {
            self.begin_or_give_room_back(slot).await;
        }
        if self.room == Room::Taken {
            self.room = Room::Unneeded;
            self.pool.give_room_back();
        }
    }

    /// Takes room for one attempt of this handler, if this process may make one and there is room.
    fn take_room(&mut self) -> bool {
        // What is given back needs neither room nor the lease.
        if self.is_stop_near() || mem::replace(&mut self.room, Room::Unneeded) == Room::Taken {
            return true;
        }
        if !self.may_begin() {
            return false;
        }
        let is_taken = self.pool.try_take_room();
        if !is_taken {
            self.room = Room::Wanted;
        }
        is_taken
    }

    /// Whether what waits to run alone may begin, or be given back.
    fn may_begin_alone(&self) -> bool {
        let has_room = !self.pool.is_shared() || matches!(self.all_room, Some(AllRoom::Taken { .. }));
        self.is_stop_near() || (self.may_begin() && has_room)
    }

    async fn begin_or_give_room_back(&mut self, slot: usize) -> bool {
        let has_room = !self.is_stop_near();
        let begun = self.begin(slot).await;
        if has_room && !begun {
            self.pool.give_room_back();
        }
        begun
    }

    /// Whether the program stops so soon that nothing more begins.
    fn is_stop_near(&self) -> bool {
        self.last_begin.is_some_and(|last| Instant::now() >= last)
    }

    /// Begins an attempt, if there is still time and reason for it; returns whether it did.
    async fn begin(&mut self, slot: usize) -> bool {
        let stop_is_near = self.is_stop_near();
        let Some(held) = self.in_flight.get_mut(slot) else { return false };
        if held.is_orphan {
            self.give_up(slot, "the consumer was recreated");
            return false;
        }
        if stop_is_near || held.key.is_some_and(|key| self.nacked_keys.contains(&key)) {
            self.give_back(slot).await;
            return false;
        }
        let State::Waiting(delivery) = mem::replace(&mut held.state, State::Running) else { return false };
        if let Some(not_before) = delivery.not_before
            && let now = Instant::now()
            && not_before > now
        {
            if self.last_begin.is_some() {
                self.give_back(slot).await;
                return false;
            }
            self.pause(slot, not_before - now, delivery);
            return false;
        }
        if delivery.isolation == Isolation::Alone && self.exclusive == ExclusiveRun::None {
            // Several of them take turns that differ each time: one that ends its process keeps no other from ever being handled.
            if !self.next.is_empty() && rand::random() {
                held.state = State::Waiting(delivery);
                self.next.push_back(slot);
                return false;
            }
            if self.running > 0 || self.pool.is_shared() {
                held.state = State::Waiting(delivery);
                self.exclusive = ExclusiveRun::Waiting(slot);
                self.all_room = self.pool.all_room();
                return false;
            }
            self.exclusive = ExclusiveRun::Running(slot);
        }
        self.run_attempt(slot, delivery);
        true
    }

    fn run_attempt(&mut self, slot: usize, delivery: Box<Delivery>) {
        if let Some(order) = &mut self.order
            && let Some(Held { key: Some(key), sequence, .. }) = self.in_flight.get(slot)
        {
            let violation = order.sentinel.begin(*key, *sequence);
            self.consumer.runner.metrics.order_checked(violation.map(OrderViolation::as_str));
            if let Some(violation) = violation {
                let (violation, subject) = (violation.as_str(), delivery.metadata.subject.as_str());
                tracing::error!(
                    binding = self.consumer.name(),
                    partition = self.consumer.partition(),
                    sequence,
                    subject,
                    violation,
                    "began event out of order"
                );
            }
        }
        self.running += 1;
        let tenure = self.consumer.tenure.clone();
        self.workers.begin(Job { slot, delivery, tenure });
    }

    /// Processes the attempts that ended.
    ///
    /// # Errors
    ///
    /// Code other than a handler panicked.
    pub(super) async fn finish_attempts(&mut self) -> Result<(), WorkerPanic> {
        let mut results = mem::take(&mut self.results);
        self.workers.take_results(&mut results);
        for result in results.drain(..) {
            self.attempt_ended(result?).await;
        }
        self.results = results;
        Ok(())
    }

    async fn attempt_ended(&mut self, Attempted { slot, result, delivery }: Attempted) {
        self.running -= 1;
        if self.exclusive == ExclusiveRun::Running(slot) {
            (self.exclusive, self.all_room) = (ExclusiveRun::None, None);
        } else {
            self.pool.give_room_back();
        }
        let Some(held) = self.in_flight.get(slot) else { return };
        if let (Some(order), Some(key)) = (&mut self.order, held.key) {
            order.sentinel.end(key, held.sequence);
        }
        if held.is_orphan {
            return self
                .give_up(slot, "the consumer was recreated; its predecessor's delivery is not acknowledged");
        }
        match result {
            Some(AttemptResult::Settle(settlement)) => self.settle(slot, &settlement).await,
            _ if self.last_begin.is_some() => self.give_back(slot).await,
            Some(AttemptResult::RetryInPlace { after }) => self.pause(slot, after, delivery),
            None => self.pause(slot, NOT_BEGUN_PAUSE, delivery),
        }
    }

    /// Other keys take the room of a delivery that is retried later.
    fn pause(&mut self, slot: usize, after: Duration, mut delivery: Box<Delivery>) {
        let Some(held) = self.in_flight.get_mut(slot) else { return };
        delivery.not_before = Some(Instant::now() + after);
        held.state = State::Paused(delivery, self.paused.insert(slot, after));
        if let (Some(order), Some(key)) = (&mut self.order, held.key) {
            self.next.extend(order.queue.pause(key));
        }
    }

    /// The time of a pause is over.
    pub(super) fn resume(&mut self, slot: usize) {
        let Some(held) = self.in_flight.get_mut(slot) else { return };
        if !matches!(held.state, State::Paused(..)) {
            return;
        }
        let State::Paused(mut delivery, _) = mem::replace(&mut held.state, State::Running) else { return };
        delivery.not_before = None;
        held.state = State::Waiting(delivery);
        match (&mut self.order, held.key) {
            // If there is no room, or the order is uncertain, it waits as the first of its key.
            (Some(order), Some(key)) if !order.recovery.is_active() => {
                if order.queue.resume(key, slot) {
                    self.next.push_back(slot);
                }
            }
            (Some(_), Some(_)) => {}
            _ => self.next.push_back(slot),
        }
    }

    /// It stops: waiting deliveries have half of a handler's deadline, and those between two attempts have none. Where another process waits
    /// for the partition, or has it, nothing begins any more.
    pub(super) async fn begin_stop(&mut self) {
        let now = Instant::now();
        self.last_begin = Some(now);
        let handler_deadline = self.consumer.binding.handler_deadline.0;
        match self.consumer.tenure.as_ref().map(|tenure| (tenure.instruction(), tenure.drain_until())) {
            None => self.last_begin = Some(now + handler_deadline / 2),
            Some((Instruction::Abandon, _)) => self.abandon(now),
            // What has just begun has its time, whatever another machine's clock says.
            Some((_, until)) => {
                self.ends_at = until.map(|until| until.max(now + handler_deadline) + SETTLE_TIMEOUT);
            }
        }
        if self.consumer.tenure.is_some() {
            self.hold_back(RecoveryCause::HandOver, now);
            self.give_back_recovering().await;
        }
        self.paused.clear();
        for slot in self.in_flight.in_order(|held| matches!(held.state, State::Paused(..))) {
            self.give_back(slot).await;
        }
    }

    /// Another process has it, and gets what has not begun by itself.
    pub(super) fn abandon(&mut self, now: Instant) {
        self.ends_at = Some(now + SETTLE_TIMEOUT);
        for slot in self.in_flight.in_order(|held| matches!(held.state, State::Returned)) {
            self.release(slot);
        }
    }

    /// A stop does not wait for a recovery: other processes get what has not begun.
    pub(super) async fn give_back_recovering(&mut self) {
        let is_recovering = self.order.as_ref().is_some_and(|order| order.recovery.is_active());
        if self.last_begin.is_none() || !is_recovering {
            return;
        }
        for slot in self.in_flight.in_order(Held::has_not_begun) {
            self.give_back(slot).await;
        }
    }

    /// Another process gets it. An open pull request of this process would receive it, so the NAK waits until the last one has ended.
    async fn give_back(&mut self, slot: usize) {
        if let Some(held) = self.in_flight.get_mut(slot) {
            self.nacked_keys.extend(held.key);
        }
        if self.is_abandoned() {
            return self.release(slot);
        }
        self.leave_queue(slot);
        if let Some(held) = self.in_flight.get_mut(slot) {
            held.state = State::Returned;
        }
        if self.drained {
            self.settle(slot, &NAK_ON_SHUTDOWN).await;
        }
    }

    /// Nothing is delivered any more: NAKs follow for other processes, in the order of the stream.
    pub(super) async fn end_of_deliveries(&mut self) {
        self.give_back_recovering().await;
        self.drained = true;
        for slot in self.in_flight.in_order(|held| matches!(held.state, State::Returned)) {
            self.settle(slot, &NAK_ON_SHUTDOWN).await;
        }
    }

    /// A delivery leaves its place in the order; the next one of its key may begin.
    pub(super) fn leave_queue(&mut self, slot: usize) {
        let Some(held) = self.in_flight.get_mut(slot) else { return };
        let waits = held.has_not_begun();
        let (Some(order), Some(key)) = (&mut self.order, held.key.take()) else { return };
        // While the order is recovered, the queue knows only those that run: the place of the key is theirs.
        if !(waits && order.recovery.is_active()) {
            self.next.extend(order.queue.complete(key));
        }
    }
}
