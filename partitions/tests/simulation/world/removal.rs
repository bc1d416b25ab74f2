//! Events that are removed from the stream, as its limits, times to live, administrators and purges do.

use super::*;

/// How many of the newest events may be chosen.
const NEWEST: u64 = 60;

impl World {
    /// Some that are not acknowledged, if there are any; or from now on each that is not among the newest of its key.
    pub fn remove_some(&mut self) {
        let next = self.published() as u64 + 1;
        match self.rng.within(0, 10) {
            0..5 => {
                for _ in 0..self.rng.within(1, 4) {
                    if let Some(chosen) = self.choose_unacknowledged() {
                        self.remove_event(chosen, true);
                    }
                }
            }
            5..7 => self.kept = [None, Some(1), Some(2)][self.rng.index(3)],
            7 => self.purge_before(next),
            8 => {
                let first = next.saturating_sub(self.rng.within(0, 20)).max(1);
                self.purge_before(first);
            }
            _ => {
                if let Some(chosen) = self.choose_unacknowledged() {
                    self.purge_key(self.key_of(chosen));
                }
            }
        }
    }

    pub(super) fn is_removed(&self, sequence: u64) -> bool {
        !self.left[&self.key_of(sequence)].contains(&sequence)
    }

    /// As the limit of messages per subject does.
    pub(super) fn keep_the_newest(&mut self, key: u32) {
        let Some(kept) = self.kept else { return };
        let of_key = self.left.entry(key).or_default();
        let old: Vec<_> = of_key.iter().rev().skip(kept).copied().collect();
        for sequence in old {
            self.remove_event(sequence, true);
        }
    }

    fn purge_before(&mut self, first: u64) {
        self.note(format!("the stream is purged before {first}"));
        let old: Vec<_> = self.left.values().flat_map(|of_key| of_key.range(..first)).copied().collect();
        for sequence in old {
            self.remove_event(sequence, true);
        }
        for consumer in &mut self.consumers {
            consumer.purged(first, self.now);
        }
    }

    /// The consumer has other keys, too: it looks at what is unacknowledged only where the first event of the stream is beyond its
    /// acknowledgement floor.
    fn purge_key(&mut self, key: u32) {
        self.note(format!("key {key} is purged"));
        let of_key = self.left.get(&key).cloned().unwrap_or_default();
        let others = self.left.iter().filter(|(of, _)| **of != key);
        let first = others.filter_map(|(_, of_key)| of_key.first()).min();
        let first = first.copied().unwrap_or(self.published() as u64 + 1);
        let consumer = self.consumer_of(key) as usize;
        let is_noticed = self.consumers[consumer].info(self.now).ack_floor < first;
        for sequence in of_key {
            self.remove_event(sequence, is_noticed);
        }
        self.consumers[consumer].purged(first, self.now);
    }

    fn remove_event(&mut self, sequence: u64, is_noticed: bool) {
        // JetStream no longer counts it, so a division does not wait for its handler. That is not promised.
        let is_running = self.running.values().any(|handling| handling.sequence == sequence);
        if self.division.is_some() && is_running {
            return;
        }
        let key = self.key_of(sequence);
        if !self.acked.contains(&sequence) {
            self.note(format!("event {sequence} of key {key} is removed"));
        }
        self.removed_early += u64::from(!self.handled.contains(&sequence));
        self.left.entry(key).or_default().remove(&sequence);
        self.sentinel.settle(key.into(), sequence);
        for consumer in &mut self.consumers {
            consumer.remove(sequence, is_noticed);
        }
    }

    fn choose_unacknowledged(&mut self) -> Option<u64> {
        let last = self.published() as u64;
        let newest = last.saturating_sub(NEWEST) + 1..=last;
        let is_open = |sequence: &u64| !self.acked.contains(sequence) && !self.is_removed(*sequence);
        let open: Vec<_> = newest.filter(is_open).collect();
        (!open.is_empty()).then(|| open[self.rng.index(open.len())])
    }

    fn key_of(&self, sequence: u64) -> u32 {
        self.stream[usize::try_from(sequence).unwrap() - 1].1
    }
}
