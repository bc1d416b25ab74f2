//! In: samples of the partitions of one consumer. Out: whether they move, whether another pod could relieve one, and how few pods could bear them.
//! Pure.
//!
//! Partitions have different loads, and a pod has whole ones, whichever they are. So pods are removed only where also the one that has the busiest
//! partitions of all could bear them. Pods are added by what waits: which partitions a pod has shows then.

use std::{collections::BTreeMap, time::Duration};

use jetwright_partitions::lease::RENEWAL_INTERVAL;

use super::{
    capacity::WARMUP,
    figures::Part,
    spec::{Scaling, Useful, as_f64},
};

/// Time in which what arrived loses half of its weight.
const HALF_LIFE: Duration = Duration::from_mins(2);
/// What each partition is taken to have received at first, so that a few messages make no difference between them.
const PRIOR_ARRIVALS: f64 = 10.0;
/// Weight of the messages by which something was to do lately.
const MIN_RECENT_ARRIVALS: f64 = 0.5;
/// Time in which a process reports of a partition that it has taken: two of its renewals.
const FIRST_REPORT: Duration = Duration::from_secs(2 * RENEWAL_INTERVAL.as_secs());
/// Part of its capacity that a pod may have to bear after others were removed. From all of it on, one is added.
const MAX_LOAD: f64 = 0.9;

/// Whether partitions change their processes. What one gave back is delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Movement {
    /// They are where they were.
    None,
    /// They came there a moment ago.
    Settling,
    /// They are elsewhere than at the last look.
    Moved,
}

/// The loads of the partitions of one consumer.
#[derive(Clone, Debug, Default)]
pub struct PartitionLoads {
    at: Duration,
    moved_at: Option<Duration>,
    parts: Vec<PartitionLoad>,
    /// The seconds in which the recent messages of all parts came, those of long ago with less weight.
    seconds: f64,
}

/// What one partition received, and who has it.
#[derive(Clone, Debug)]
struct PartitionLoad {
    /// Messages so far, redeliveries included.
    so_far: u64,
    /// The last ones, those of long ago with less weight.
    recent: f64,
    /// Messages at which nobody works yet.
    unbegun: u64,
    /// Since when more of them wait than what comes between two reports of its process.
    waiting_since: Option<Duration>,
    process: Option<String>,
    /// Whether its process has as much of it as it can work at.
    is_busy: bool,
}

impl PartitionLoad {
    fn new(part: &Part) -> Self {
        let process = part.process().map(str::to_owned);
        Self {
            so_far: part.sample.arrived(),
            recent: 0.0,
            unbegun: 0,
            waiting_since: None,
            process,
            is_busy: false,
        }
    }

    /// Whether there is, or was lately, something to do.
    fn is_used(&self) -> bool {
        self.unbegun > 0 || self.recent >= MIN_RECENT_ARRIVALS
    }

    /// Whether something waits that another process could begin: nobody has it, or it waits for longer than its process takes to report what it
    /// has begun.
    fn is_lagging(&self, at: Duration) -> bool {
        let lasts = |since| at >= since + RENEWAL_INTERVAL;
        self.unbegun > 0 && (self.process.is_none() || self.waiting_since.is_some_and(lasts))
    }

    fn process(&self) -> Option<&str> {
        self.process.as_deref()
    }
}

impl PartitionLoads {
    /// Takes over what was sampled.
    pub fn add(&mut self, parts: &[Part]) -> Movement {
        let at = parts.iter().map(|part| part.sample.at).max().unwrap_or_default();
        if parts.len() != self.parts.len() {
            (self.parts, self.seconds, self.at) = (parts.iter().map(PartitionLoad::new).collect(), 0.0, at);
        }
        let has_moved = self.parts.iter().zip(parts).any(|(known, part)| known.process() != part.process());
        if has_moved {
            self.moved_at = Some(at);
        }
        let is_silent =
            parts.iter().any(|part| part.holder.as_ref().is_some_and(|holder| holder.work.is_none()));
        let settled = if is_silent { FIRST_REPORT } else { WARMUP };
        let movement = match self.moved_at {
            _ if has_moved => Movement::Moved,
            Some(moved) if at < moved + settled => Movement::Settling,
            _ => Movement::None,
        };
        let passed = at.saturating_sub(self.at).as_secs_f64();
        let weight = 0.5_f64.powf(passed / HALF_LIFE.as_secs_f64());
        self.seconds = self.seconds * weight + if movement == Movement::None { passed } else { 0.0 };
        for (known, part) in self.parts.iter_mut().zip(parts) {
            let arrived = part.sample.arrived();
            let came = arrived.saturating_sub(known.so_far);
            let came = if movement == Movement::None { as_f64(came) } else { 0.0 };
            known.recent = known.recent * weight + came;
            (known.so_far, known.unbegun, known.is_busy) = (arrived, part.unbegun(), part.is_busy());
            known.process = part.process().map(str::to_owned);
            let between_reports = known.recent / self.seconds.max(1.0) * RENEWAL_INTERVAL.as_secs_f64();
            let waits = as_f64(known.unbegun) > between_reports && !part.awaits_retry();
            known.waiting_since = waits.then(|| known.waiting_since.unwrap_or(at));
        }
        self.at = at;
        movement
    }

    /// The most pods that can take something: as many as partitions in which something waits, and one more than there are where that one could
    /// relieve another.
    #[must_use]
    pub fn takers(&self, replicas: u32) -> u32 {
        let lagging = self.parts.iter().filter(|part| part.is_lagging(self.at)).count();
        let more = u32::from(self.can_be_relieved());
        u32::try_from(lagging).unwrap_or(u32::MAX).max(replicas.saturating_add(more))
    }

    /// Whether another pod may relieve a busy process.
    #[must_use]
    pub fn can_be_relieved(&self) -> bool {
        self.relievable().next().is_some()
    }

    /// Whether a process that another one may relieve has more to do than it can: its share of what all receive in a second, and what waits.
    #[must_use]
    pub fn is_overloaded(&self, scaling: &Scaling, arrivals: f64, pod_capacity: f64) -> bool {
        let mut loads = BTreeMap::<_, f64>::new();
        for (part, load) in self.parts.iter().zip(self.loads(scaling, arrivals)) {
            *loads.entry(part.process()).or_default() += load;
        }
        self.relievable().any(|process| loads.get(&Some(process)).is_some_and(|load| *load > pod_capacity))
    }

    /// Processes that have as much to do as they can, and several partitions in which there is something to do: another one may take some.
    fn relievable(&self) -> impl Iterator<Item = &str> {
        let mut used = BTreeMap::<_, usize>::new();
        for part in self.parts.iter().filter(|part| part.is_used()) {
            *used.entry(part.process()).or_default() += 1;
        }
        let busy = self.parts.iter().filter(|part| part.is_busy).filter_map(PartitionLoad::process);
        busy.filter(move |process| used.get(&Some(*process)).is_some_and(|used| *used > 1))
    }

    /// The smallest useful number of pods of which none can have more than it could bear, where all of them receive so much in a second. Where the
    /// busiest partition alone is that much already, no pod has another one that counts.
    #[must_use]
    pub fn min_pods(&self, scaling: &Scaling, arrivals: f64, pod_capacity: f64) -> u32 {
        let mut loads = self.loads(scaling, arrivals);
        loads.sort_unstable_by(|one, other| other.total_cmp(one));
        let partitions = u32::try_from(loads.len()).unwrap_or(u32::MAX);
        let useful = Useful { partitions };
        let busiest_pod = |pods: u32| -> f64 {
            let share = usize::try_from(partitions.div_ceil(pods)).unwrap_or(usize::MAX);
            loads.iter().take(share).sum()
        };
        let busiest_partition = loads.first().copied().unwrap_or_default();
        let most = match busiest_partition {
            // None can bear it. What others add to it is no reason for pods.
            alone if alone > pod_capacity => alone / MAX_LOAD,
            alone => alone.max(MAX_LOAD * pod_capacity),
        };
        let mut counts = (1..=partitions).filter(|pods| useful.round_down(*pods) == *pods);
        counts.find(|pods| busiest_pod(*pods) <= most).unwrap_or(1)
    }

    /// The loads of the partitions in messages a second.
    fn loads(&self, scaling: &Scaling, arrivals: f64) -> Vec<f64> {
        let all: f64 = self.parts.iter().map(|part| part.recent + PRIOR_ARRIVALS).sum();
        let target = scaling.target_drain_time.as_secs_f64();
        let load = |part: &PartitionLoad| {
            arrivals * (part.recent + PRIOR_ARRIVALS) / all + as_f64(part.unbegun) / target
        };
        self.parts.iter().map(load).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        partitions::sharing::{HolderWork, PartitionHolder},
        scaling::{figures::Sample, simulation::scaling},
    };

    /// Of a partition that has received so much, with what its process says.
    fn part(second: u64, delivered: u64, process: Option<(&str, bool)>) -> Part {
        let at = Duration::from_secs(second);
        let holder = process.map(|(process, is_busy)| PartitionHolder {
            process: process.to_owned(),
            work: Some(HolderWork { is_busy, ..HolderWork::default() }),
        });
        Part { sample: Sample { at, delivered, ..Sample::default() }, holder }
    }

    /// Of partitions that received so much in each of many seconds.
    fn loads(rates: &[u64]) -> PartitionLoads {
        let mut loads = PartitionLoads::default();
        for second in (0..120).step_by(2) {
            loads.add(&rates.iter().map(|rate| part(second, rate * second, None)).collect::<Vec<_>>());
        }
        loads
    }

    fn min_pods(rates: &[u64]) -> u32 {
        loads(rates).min_pods(&scaling(), as_f64(rates.iter().sum()), 100.0)
    }

    #[test]
    fn of_partitions_with_the_same_load_the_number_of_pods_counts() {
        assert_eq!(min_pods(&[2; 8]), 1);
        assert_eq!(min_pods(&[20; 8]), 2);
        assert_eq!(min_pods(&[28; 8]), 3);
        assert_eq!(min_pods(&[40; 8]), 4);
        assert_eq!(min_pods(&[50; 8]), 8);
    }

    #[test]
    fn the_busiest_partitions_may_come_together_in_one_pod() {
        assert_eq!(min_pods(&[50, 50, 50, 50, 50, 0, 0, 0]), 8);
        assert_eq!(min_pods(&[60, 60, 0, 0, 0, 0, 0, 0]), 8);
        assert_eq!(min_pods(&[50, 30, 20, 10, 0, 0, 0, 0]), 4);
        assert_eq!(min_pods(&[85, 1, 1, 1, 1, 1, 1, 1]), 2);
        assert_eq!(min_pods(&[95, 1, 1, 1, 1, 1, 1, 1]), 8);
    }

    #[test]
    fn what_is_too_much_for_one_pod_is_so_with_any_number() {
        assert_eq!(min_pods(&[300, 1, 1, 1, 1, 1, 1, 1]), 1);
        assert_eq!(min_pods(&[300, 300, 1, 1, 1, 1, 1, 1]), 8);
    }

    #[test]
    fn a_few_messages_make_no_difference_and_what_waits_does() {
        let mut loads = loads(&[0; 8]);
        let waiting = |second, delivered, pending| {
            let mut first = part(second, delivered, None);
            first.sample.pending = pending;
            [vec![first], vec![part(second, 0, None); 7]].concat()
        };
        loads.add(&waiting(200, 0, 3));
        assert_eq!(loads.min_pods(&scaling(), 250.0, 100.0), 4);
        assert_eq!(loads.min_pods(&scaling(), 70.0, 100.0), 1);
        for part in &mut loads.parts {
            part.unbegun = 360;
        }
        assert_eq!(loads.min_pods(&scaling(), 0.0, 100.0), 2);
    }

    #[test]
    fn partitions_move_where_another_process_has_one_and_settle_after_it() {
        let mut loads = PartitionLoads::default();
        let mut add = |second, delivered, second_process, says: bool| {
            let mut parts = [part(second, 0, Some(("a", true))), part(second, delivered, second_process)];
            if let Some(holder) = parts[1].holder.as_mut().filter(|_| !says) {
                holder.work = None;
            }
            let movement = loads.add(&parts);
            (movement, loads.parts[1].recent > 0.0)
        };
        let (a, b) = (Some(("a", true)), Some(("b", true)));
        assert_eq!(add(0, 0, a, true), (Movement::None, false));
        assert_eq!(add(2, 0, Some(("a", false)), true), (Movement::None, false));
        assert_eq!(add(4, 0, None, true), (Movement::Moved, false), "nobody has it");
        assert_eq!(add(6, 256, b, false), (Movement::Moved, false), "what was delivered before");
        assert_eq!(add(10, 300, b, false), (Movement::Settling, false));
        assert_eq!(add(12, 301, b, false), (Movement::Settling, false), "it has not reported yet");
        assert_eq!(add(14, 301, b, true), (Movement::None, false));
        assert_eq!(add(16, 302, b, true), (Movement::None, true));
        // Some programs never report.
        assert_eq!(add(18, 303, a, false).0, Movement::Moved);
        assert_eq!(add(28, 304, a, false).0, Movement::None);
    }

    #[test]
    fn another_pod_can_take_something_where_a_busy_one_has_several_partitions_with_something_to_do() {
        let takers = |parts: &[(&str, bool, u64)]| {
            let mut loads = PartitionLoads::default();
            for second in [0, 2] {
                let part = |(process, is_busy, rate): &(&str, bool, u64)| {
                    part(second, rate * second, Some((*process, *is_busy)))
                };
                loads.add(&parts.iter().map(part).collect::<Vec<_>>());
            }
            loads.takers(4)
        };
        assert_eq!(takers(&[("a", true, 9), ("a", false, 9), ("b", false, 9)]), 5);
        assert_eq!(takers(&[("a", true, 9), ("a", false, 0), ("b", false, 9), ("b", false, 9)]), 4);
        assert_eq!(takers(&[("a", false, 9), ("a", false, 9)]), 4);
        let mut loads = loads(&[0; 8]);
        for part in &mut loads.parts[..6] {
            (part.unbegun, part.waiting_since) = (1, Some(Duration::from_secs(100)));
        }
        assert_eq!(loads.takers(4), 6);
    }
}
