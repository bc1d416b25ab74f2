//! The deliveries in flight, each in its own slot, and the slot of each event.

use std::ops::RangeInclusive;

use async_nats::Subject;
use jiff::Timestamp;
use rustc_hash::{FxBuildHasher, FxHashMap};
use slab::Slab;
use tokio::time::Instant;
use tokio_util::time::delay_queue;

use super::super::{ack::PendingAck, attempt::Delivery};

/// Deliveries for which memory is allocated in advance.
const MAX_PREALLOCATED: usize = 2_048;

/// One delivery.
pub(super) struct Held {
    /// Its acknowledgement subject.
    pub(super) reply: Subject,
    pub(super) sequence: u64,
    /// When the event was stored: with its sequence it identifies the event for ever.
    pub(super) time: Timestamp,
    /// In bytes.
    pub(super) size: usize,
    /// Its place in the order, while it has one.
    pub(super) key: Option<u64>,
    /// Another consumer has the name of the one that delivered it: unless that delivers it too, it is neither handled nor acknowledged
    /// any more.
    pub(super) is_orphan: bool,
    /// The last acknowledgement of any kind to JetStream.
    pub(super) in_progress_at: Instant,
    /// When it was last delivered.
    pub(super) delivered_at: Instant,
    pub(super) state: State,
}

impl Held {
    /// Whether it waits for its turn, or for its next attempt.
    pub(super) fn has_not_begun(&self) -> bool {
        matches!(self.state, State::Waiting(_) | State::Paused(..))
    }
}

pub(super) enum State {
    /// For those of its key that came before it, or for a recovery.
    Waiting(Box<Delivery>),
    /// For the time of its next attempt.
    Paused(Box<Delivery>, delay_queue::Key),
    Running,
    Settling(PendingAck),
    /// It is NAKed when nothing is delivered any more.
    Returned,
}

/// All of them. An event has one slot.
pub(super) struct InFlight {
    slots: Slab<Held>,
    /// Sequences are numbers of the server's own: no publisher can make them collide.
    by_sequence: FxHashMap<u64, usize>,
}

impl InFlight {
    /// With memory for so many.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.min(MAX_PREALLOCATED);
        // Twice as many: a nearly full table is cleaned up again and again.
        let by_sequence = FxHashMap::with_capacity_and_hasher(2 * capacity, FxBuildHasher);
        Self { slots: Slab::with_capacity(capacity), by_sequence }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn insert(&mut self, held: Held) -> usize {
        let sequence = held.sequence;
        let slot = self.slots.insert(held);
        self.by_sequence.insert(sequence, slot);
        slot
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Held> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Held> {
        self.slots.get_mut(slot)
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Held> {
        let held = self.slots.try_remove(slot)?;
        self.forget(held.sequence, slot);
        Some(held)
    }

    /// The slot of the event of this sequence.
    pub(super) fn find(&self, sequence: u64) -> Option<usize> {
        self.by_sequence.get(&sequence).copied()
    }

    /// Its consumer is gone. Its sequence still leads to it, until another event has that: the next consumer may deliver it.
    pub(super) fn orphan(&mut self, slot: usize) {
        if let Some(held) = self.slots.get_mut(slot) {
            held.is_orphan = true;
        }
    }

    fn forget(&mut self, sequence: u64, slot: usize) {
        if self.by_sequence.get(&sequence) == Some(&slot) {
            self.by_sequence.remove(&sequence);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Held)> {
        self.slots.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Held)> {
        self.slots.iter_mut()
    }

    /// The unconfirmed acknowledgements, with their slots and sequences.
    pub(super) fn acks(&mut self) -> impl Iterator<Item = (usize, u64, &mut PendingAck)> {
        self.slots.iter_mut().filter_map(|(slot, held)| match &mut held.state {
            State::Settling(ack) => Some((slot, held.sequence, ack)),
            _ => None,
        })
    }

    /// The slots in a state, in the order of the stream.
    pub(super) fn in_order(&self, is_wanted: impl Fn(&Held) -> bool) -> Vec<usize> {
        let wanted = self.slots.iter().filter(|(_, held)| is_wanted(held));
        let mut wanted: Vec<_> = wanted.map(|(slot, held)| (held.sequence, slot)).collect();
        wanted.sort_unstable();
        wanted.into_iter().map(|(_, slot)| slot).collect()
    }

    /// The lowest stream sequence.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.slots.iter().map(|(_, held)| held.sequence).min()
    }

    /// The highest stream sequence of those that have not begun and still may.
    pub(super) fn newest_waiting(&self) -> Option<u64> {
        let is_waiting = |held: &&Held| held.has_not_begun() && !held.is_orphan;
        self.slots.iter().map(|(_, held)| held).filter(is_waiting).map(|held| held.sequence).max()
    }

    /// Deliveries of these stream sequences for which no acknowledgement was sent.
    pub(super) fn unsettled_within(&self, sequences: &RangeInclusive<u64>) -> u64 {
        let is_unsettled = |held: &Held| {
            !held.is_orphan && sequences.contains(&held.sequence) && !matches!(held.state, State::Settling(_))
        };
        self.slots.iter().filter(|(_, held)| is_unsettled(held)).count().try_into().unwrap_or(u64::MAX)
    }
}
