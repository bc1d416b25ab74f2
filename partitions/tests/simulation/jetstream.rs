//! The JetStream consumer of one partition, as far as order goes: redeliveries in the order of their naks and time-outs, open pull
//! requests served in turn, what a change of its leader forgets, what it makes of events that are removed from the stream, and what it does
//! without a quorum.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use jetwright_partitions::recovery::{ConsumerState, Delivered, Leadership};

pub const ACK_WAIT: u64 = 10_000;
pub const MAX_ACK_PENDING: usize = 64;

/// A request of one incarnation of a process.
#[derive(Debug)]
pub struct Pull {
    pub process: usize,
    pub incarnation: u64,
    pub expires: u64,
    pub batch: usize,
}

/// An event that is delivered.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Its number among those of the consumer.
    pub consumer_sequence: u64,
    pub sequence: u64,
    /// The event was delivered before, as far as this leader knows.
    pub is_again: bool,
}

/// What a leader without a quorum has done that no other server knows.
#[derive(Debug)]
struct QuorumLoss {
    since: u64,
    until: u64,
    /// Whether a leader that follows does not know of its deliveries either.
    forgets_deliveries: bool,
    /// Deliveries, which are sent when a quorum has them, and what was delivered before each.
    unsent: VecDeque<(Sent, u64)>,
    /// Events that were acknowledged.
    acknowledged: BTreeSet<u64>,
}

/// When a leader is seen not to have heard from the others.
const QUORUM_LOSS_SEEN_AFTER: u64 = 2_500;

/// What is sent to a process.
#[derive(Debug)]
pub struct Sent {
    pub process: usize,
    pub incarnation: u64,
    pub delivery: Delivery,
}

#[derive(Debug, Default)]
pub struct Consumer {
    /// Stream sequences of its events that were not delivered.
    pub waiting: VecDeque<u64>,
    pending: BTreeMap<u64, u64>,
    redeliver: VecDeque<u64>,
    /// Unacknowledged events that are removed, which it sees when it is to deliver them again.
    ghosts: BTreeSet<u64>,
    /// Unacknowledged events that it saw to be removed, which a leader that follows on a killed one may not know.
    removed: BTreeSet<u64>,
    pub pulls: VecDeque<Pull>,
    /// Of the newest delivery.
    number: u64,
    delivered: u64,
    /// The newest deliveries: sequence, what was delivered before, and whether the event was never delivered before.
    recent: VecDeque<(u64, u64, bool)>,
    /// Deliveries of events that were delivered before.
    pub redeliveries: u64,
    /// It delivers nothing.
    pub is_paused: bool,
    stall: Option<QuorumLoss>,
    /// Events whose acknowledgements a quorum has since.
    pub acknowledged: Vec<u64>,
    /// How often it got another leader.
    leaders: u64,
    /// Deliveries and acknowledgements that a leader without a quorum made in vain.
    pub in_vain: u64,
}

impl Consumer {
    /// `last` is the newest event of the stream.
    pub fn serve(&mut self, now: u64, last: u64) -> Vec<Sent> {
        let expired = self.pending.iter_mut().filter(|(_, deadline)| **deadline <= now);
        for (sequence, deadline) in expired {
            *deadline = u64::MAX;
            if !self.redeliver.contains(sequence) {
                self.redeliver.push_back(*sequence);
            }
        }
        self.pulls.retain(|pull| pull.expires > now && pull.batch > 0);
        let mut sent = Vec::new();
        if let Some(stall) = self.stall.take_if(|stall| stall.until <= now) {
            self.acknowledged.extend(stall.acknowledged);
            sent.extend(stall.unsent.into_iter().map(|(sent, _)| sent));
        }
        if self.is_paused {
            return sent;
        }
        while !self.pulls.is_empty() {
            let Some(sequence) = self.take() else {
                if self.waiting.is_empty() {
                    // It has looked at all there is.
                    self.delivered = self.delivered.max(last);
                }
                break;
            };
            let Some(mut pull) = self.pulls.pop_front() else { break };
            let is_new = self.pending.insert(sequence, now + ACK_WAIT).is_none();
            self.number += 1;
            let before = self.delivered;
            self.delivered = before.max(sequence);
            let Pull { process, incarnation, .. } = pull;
            let delivery = Delivery { consumer_sequence: self.number, sequence, is_again: !is_new };
            let delivery = Sent { process, incarnation, delivery };
            if let Some(stall) = &mut self.stall {
                stall.unsent.push_back((delivery, before));
            } else {
                self.recent.push_back((sequence, before, is_new));
                if self.recent.len() > 4 {
                    self.recent.pop_front();
                }
                sent.push(delivery);
            }
            pull.batch -= 1;
            if pull.batch > 0 {
                self.pulls.push_back(pull);
            }
        }
        sent
    }

    fn take(&mut self) -> Option<u64> {
        while let Some(sequence) = self.redeliver.pop_front() {
            if self.ghosts.remove(&sequence) {
                self.pending.remove(&sequence);
            } else if self.pending.contains_key(&sequence) {
                self.redeliveries += 1;
                return Some(sequence);
            }
        }
        if self.pending.len() >= MAX_ACK_PENDING {
            return None;
        }
        self.waiting.pop_front()
    }

    /// Whether it is confirmed: what was not delivered, as far as this leader knows, is not.
    pub fn ack(&mut self, sequence: u64) -> bool {
        if sequence > self.delivered {
            return false;
        }
        let was_pending = self.pending.remove(&sequence).is_some();
        self.ghosts.remove(&sequence);
        if let Some(stall) = &mut self.stall {
            if was_pending {
                stall.acknowledged.insert(sequence);
            }
            return false;
        }
        true
    }

    /// Its leader has no quorum until then.
    pub fn stall(&mut self, now: u64, until: u64, forgets_deliveries: bool) {
        let (unsent, acknowledged) = Default::default();
        let new = || QuorumLoss { since: now, until, forgets_deliveries, unsent, acknowledged };
        self.stall.get_or_insert_with(new);
    }

    /// The next leader knows of nothing that the one before did without a quorum; or of its deliveries, which nobody got.
    fn end_stall(&mut self, now: u64) {
        let Some(QuorumLoss { forgets_deliveries, unsent, acknowledged, .. }) = self.stall.take() else {
            return;
        };
        self.in_vain += acknowledged.len() as u64;
        self.pending.extend(acknowledged.into_iter().map(|sequence| (sequence, now + ACK_WAIT)));
        if !forgets_deliveries {
            return;
        }
        self.in_vain += unsent.len() as u64;
        for (Sent { delivery: Delivery { sequence, is_again, .. }, .. }, before) in unsent.into_iter().rev() {
            self.number -= 1;
            self.delivered = before;
            if !is_again && self.pending.remove(&sequence).is_some() && !self.ghosts.remove(&sequence) {
                self.waiting.push_front(sequence);
            }
        }
    }

    /// An event is removed from the stream. It stays unacknowledged until it is to be delivered again, unless that is noticed.
    pub fn remove(&mut self, sequence: u64, is_noticed: bool) {
        if let Ok(place) = self.waiting.binary_search(&sequence) {
            self.waiting.remove(place);
        } else if self.pending.contains_key(&sequence) {
            if is_noticed {
                self.pending.remove(&sequence);
                self.removed.insert(sequence);
            } else {
                self.ghosts.insert(sequence);
            }
        } else if self.stall.as_ref().is_some_and(|stall| stall.acknowledged.contains(&sequence)) {
            self.ghosts.insert(sequence);
        }
    }

    /// All events before this one are removed, or those of a subject, of which this is the first one that is left in the stream: what
    /// is to be delivered again comes again when its time is over.
    pub fn purged(&mut self, first: u64, now: u64) {
        for sequence in self.redeliver.drain(..) {
            if let Some(deadline) = self.pending.get_mut(&sequence) {
                *deadline = now + ACK_WAIT;
            }
        }
        self.delivered = self.delivered.max(first - 1);
    }

    pub fn nak(&mut self, sequence: u64) {
        if let Some(deadline) = self.pending.get_mut(&sequence) {
            *deadline = u64::MAX;
            self.redeliver.push_back(sequence);
        }
    }

    pub fn in_progress(&mut self, sequence: u64, now: u64) {
        if let Some(deadline) = self.pending.get_mut(&sequence).filter(|deadline| **deadline != u64::MAX) {
            *deadline = now + ACK_WAIT;
        }
    }

    /// Another leader: naks and pull requests are forgotten, and where the one before was killed, the last deliveries that it had not
    /// replicated, which get the same numbers again, and that it saw their events removed. What was acknowledged was replicated.
    pub fn change_leader(&mut self, now: u64, steps_back: u64) {
        self.leaders += 1;
        self.end_stall(now);
        self.redeliver.clear();
        self.pulls.clear();
        // A server keeps their times, and lets them pass while it is elected: this is the latest that can be.
        self.pending.values_mut().for_each(|deadline| *deadline = now + ACK_WAIT);
        for _ in 0..steps_back {
            let Some((sequence, delivered, is_new)) = self.recent.pop_back() else { break };
            let is_removed = self.removed.remove(&sequence) || self.ghosts.remove(&sequence);
            if !is_removed && !self.pending.contains_key(&sequence) {
                break;
            }
            self.number -= 1;
            self.delivered = delivered;
            if !is_new {
                // It was delivered before, and is unacknowledged as far as this leader knows.
                self.pending.entry(sequence).or_insert(now + ACK_WAIT);
                self.ghosts.extend(is_removed.then_some(sequence));
            } else if self.pending.remove(&sequence).is_some() && !is_removed {
                self.waiting.push_front(sequence);
            }
        }
        let recent = self.recent.drain(..).map(|(sequence, ..)| sequence);
        let forgotten: Vec<_> =
            recent.filter(|sequence| steps_back > 0 && self.removed.contains(sequence)).collect();
        self.pending.extend(forgotten.iter().map(|sequence| (*sequence, now + ACK_WAIT)));
        self.ghosts.extend(forgotten);
        self.removed.clear();
    }

    pub fn info(&self, now: u64) -> ConsumerState {
        let unsent = self.stall.as_ref().map(|stall| &stall.unsent);
        let number = self.number - unsent.map_or(0, VecDeque::len) as u64;
        let delivered = unsent.and_then(VecDeque::front).map_or(self.delivered, |(_, before)| *before);
        let acknowledged = self.stall.iter().flat_map(|stall| &stall.acknowledged);
        let first = self.pending.keys().chain(acknowledged).min();
        let floor = first.map_or(delivered, |first| (first - 1).min(delivered));
        ConsumerState {
            delivered: Delivered { consumer_sequence: number, stream_sequence: delivered },
            ack_floor: floor,
            ack_pending: self.pending.len() as u64,
            ack_wait: Duration::from_millis(ACK_WAIT),
            pull_requests: self.pulls.iter().filter(|pull| pull.expires > now && pull.batch > 0).count()
                as u64,
            is_paused: self.is_paused,
            has_quorum: self.stall.as_ref().is_none_or(|stall| now < stall.since + QUORUM_LOSS_SEEN_AFTER),
        }
    }

    pub fn leadership(&self) -> Leadership {
        Leadership { leader: self.leaders.to_string(), ..Leadership::default() }
    }

    /// The first of another one's events, which begin behind what that one delivered.
    pub fn part(&mut self, is_its: impl Fn(u64) -> bool) -> Self {
        let (waiting, kept) = self.waiting.drain(..).partition(|sequence| is_its(*sequence));
        self.waiting = kept;
        Self { waiting, delivered: self.delivered, ..Self::default() }
    }

    /// Whether everything was delivered and acknowledged.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.pending.is_empty()
    }
}
