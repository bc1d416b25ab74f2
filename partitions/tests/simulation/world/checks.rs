//! What must always be true, and what at the end.

use super::*;

impl World {
    pub(super) fn begin(&mut self, node: Node, partition: u32, key: u32, sequence: u64, loop_id: u64) {
        if let Some(before) = self.running.get(&key).copied()
            && self.is_frozen_past_its_lease(before.node)
        {
            self.unfenced += 1;
            self.end(key, before.loop_id);
        }
        self.note(format!("{node:?} begins {sequence} of key {key}, partition {partition}"));
        let violation = self.sentinel.begin(key.into(), sequence);
        let is_removed = self.is_removed(sequence);
        if is_removed {
            // A delivery that was under way, or waited.
            self.sentinel.settle(key.into(), sequence);
        }
        let is_newest = self.newest.insert(key, sequence) == Some(sequence);
        let is_settled_late = self.settled_by.get(&sequence).is_some_and(|by| *by != node)
            || !self.confirmed.contains(&sequence);
        if violation == Some(OrderViolation::Back) && is_newest && (is_settled_late || is_removed) {
            self.settled_late += 1;
        } else if let Some(violation) = violation {
            let running = self.running.get(&key);
            self.assert(false, || {
                format!("{violation:?} at {sequence} of key {key} by {node:?}; before: {running:?}")
            });
        }
        self.running.insert(key, Handling { node, loop_id, sequence });
        let (least, most) = self.handler;
        let duration = if self.is_lossy && self.rng.permille(15) {
            self.rng.within(2_000, 15_000)
        } else {
            self.rng.within(least, most)
        };
        let handled = Message::Handled { partition, sequence, loop_id };
        self.schedule(self.now + duration, Event::ToNode(node, handled));
    }

    pub(super) fn end(&mut self, key: u32, loop_id: u64) {
        if let Some(handling) = self.running.get(&key).copied().filter(|handling| handling.loop_id == loop_id)
        {
            self.running.remove(&key);
            self.sentinel.end(key.into(), handling.sequence);
        }
    }

    pub(super) fn is_frozen_past_its_lease(&self, node: Node) -> bool {
        let Node::Process(index, incarnation) = node else { return false };
        let process = self.processes[index].as_ref().filter(|process| process.incarnation == incarnation);
        process.is_some_and(|process| process.frozen_until.is_some() && !process.lease_holds(self.now))
    }

    pub(super) fn served(&mut self, node: Node, partition: u32, epoch: u64) {
        self.serves += 1;
        let now = self.now;
        let is_open =
            |pull: &&Pull| pull.expires > now && Node::Process(pull.process, pull.incarnation) != node;
        // Where a wall clock was set forward, a lease ended before its time.
        let is_known = self.clock_set_at.is_some_and(|at| now < at + 60_000);
        let open = self.consumers[partition as usize].pulls.iter().find(is_open).map(|pull| pull.process);
        self.assert(is_known || open.is_none(), || {
            format!(
                "a pull request of process {open:?} for partition {partition} is open when {node:?} serves it"
            )
        });
        if let Some((before, of)) = self.epochs.insert(partition, (epoch, node)) {
            let grows = epoch > before || (epoch == before && of == node);
            self.assert(grows, || format!("epoch {epoch} of partition {partition} follows {before}"));
        }
    }

    pub(super) fn check(&mut self) {
        let now = self.now;
        for partition in 0..self.shared {
            let serves = |process: &&Process| process.serves(partition) && process.lease_holds(now);
            let owners: Vec<_> =
                self.processes.iter().flatten().filter(serves).map(|process| process.index).collect();
            self.assert(owners.len() <= 1, || format!("partition {partition} is served by {owners:?}"));
            let is_owned =
                self.processes.iter().flatten().filter(serves).any(|process| process.frozen_until.is_none());
            let since = *self.unowned.entry(partition).or_insert(now);
            if is_owned {
                self.unowned.insert(partition, now);
            }
            let gap = now - since;
            let longest = self.gaps.entry(partition).or_default();
            *longest = gap.max(*longest);
            let is_due = now > self.calm_at.max(since) + UNOWNED_BOUND;
            let is_possible = self.processes.iter().flatten().any(|process| !process.is_leaving);
            self.assert(!(is_due && is_possible && !is_owned), || {
                format!("partition {partition} is nobody's since {since}")
            });
            let since = *self.recovered.entry(partition).or_insert(now);
            if self.is_recovered(partition) {
                self.recovered.insert(partition, now);
            }
            let is_due = now > self.calm_at.max(since) + STALLED_BOUND;
            self.assert(!(is_due && is_possible), || {
                format!("partition {partition} stands still since {since}")
            });
        }
    }

    /// Whether everything is handled and acknowledged but what was removed, and the partitions are shared out within one.
    pub fn assert_well(&mut self) {
        let published = self.stream.len() as u64;
        let is_lost = |sequence: &u64| !self.acked.contains(sequence) && !self.is_removed(*sequence);
        let lost: Vec<_> = (1..=published).filter(is_lost).collect();
        let (number, first) = (lost.len(), lost.iter().take(5).collect::<Vec<_>>());
        self.assert(lost.is_empty(), || {
            let loops: Vec<_> =
                self.processes.iter().flatten().map(|process| (process.index, &process.loops)).collect();
            format!("{number} events were never acknowledged: {first:?}…\n{loops:#?}\n{:#?}", self.consumers)
        });
        let all_done = self.consumers.iter().all(Consumer::is_done);
        self.assert(all_done, || "a consumer has events left".to_owned());
        let loads = self.loads();
        let (most, fewest) = (loads.iter().max().copied(), loads.iter().min().copied());
        self.assert(loads.iter().sum::<usize>() == self.shared as usize, || {
            format!("partitions are owned {loads:?}")
        });
        self.assert(most <= fewest.map(|fewest| fewest + 1), || {
            format!("partitions are shared out {loads:?}")
        });
    }

    pub fn loads(&self) -> Vec<usize> {
        let load =
            |process: &Process| (0..self.shared).filter(|partition| process.is_recovered(*partition)).count();
        self.processes.iter().flatten().map(load).collect()
    }

    /// Whether events of a partition may begin somewhere.
    pub fn is_recovered(&self, partition: u32) -> bool {
        self.processes.iter().flatten().any(|process| process.is_recovered(partition))
    }

    /// Nothing is published any more.
    pub fn stop_publishing(&mut self) {
        self.publish_every = u64::MAX / 2;
    }

    /// Whether one of its handlers runs.
    pub fn is_handling(&self, index: usize) -> bool {
        self.running.values().any(|handling| matches!(handling.node, Node::Process(of, _) if of == index))
    }

    pub fn published(&self) -> usize {
        self.stream.len()
    }

    pub fn in_vain(&self) -> u64 {
        self.consumers.iter().map(|consumer| consumer.in_vain).sum()
    }

    pub fn redeliveries(&self) -> u64 {
        self.consumers.iter().map(|consumer| consumer.redeliveries).sum()
    }
}
