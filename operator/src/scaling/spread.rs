//! In: samples of the partitions of one consumer. Out: with how many pods none of them can have more to do than it can. Pure.
//!
//! Partitions have different loads, and a pod has whole ones, whichever they are. So pods are removed only where also the one that has the busiest
//! partitions of all could bear them. Pods are added by what waits: which partitions a pod has shows then.

use std::{collections::BTreeMap, time::Duration};

use super::{
    figures::Part,
    spec::{Scaling, UTILIZATION, Useful, as_f64},
};
use crate::partitions::sharing::Owner;

/// Time in which what arrived loses half of its weight.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// What each partition is taken to have received at first, so that a few messages make no difference between them.
const EVEN: f64 = 10.0;
/// Weight of the messages by which something was to do lately.
const LEAST: f64 = 0.5;

/// How the load of one consumer is spread over its partitions.
#[derive(Clone, Debug, Default)]
pub struct Spread {
    at: Duration,
    parts: Vec<Arrivals>,
}

/// What one partition received, and who has it.
#[derive(Clone, Debug)]
struct Arrivals {
    /// Messages so far, redeliveries included.
    so_far: u64,
    /// The last ones, those of long ago with less weight.
    lately: f64,
    /// Messages that are not settled.
    lag: u64,
    owner: Option<Owner>,
}

impl Arrivals {
    fn new(part: &Part) -> Self {
        Self { so_far: part.sample.arrived(), lately: 0.0, lag: 0, owner: None }
    }

    /// Whether there is, or was lately, something to do.
    fn is_used(&self) -> bool {
        self.lag > 0 || self.lately >= LEAST
    }
}

impl Spread {
    /// Takes over what was sampled. While partitions move, events are delivered again that did not arrive.
    pub fn add(&mut self, parts: &[Part], is_moving: bool) {
        let at = parts.iter().map(|part| part.sample.at).max().unwrap_or_default();
        if parts.len() != self.parts.len() {
            self.parts = parts.iter().map(Arrivals::new).collect();
        }
        let passed = at.saturating_sub(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        for (known, Part { sample, owner }) in self.parts.iter_mut().zip(parts) {
            let came = sample.arrived().saturating_sub(known.so_far);
            let came = if is_moving { 0.0 } else { as_f64(came) };
            known.lately = known.lately * 0.5_f64.powf(passed) + came;
            (known.so_far, known.lag) = (sample.arrived(), sample.lag());
            known.owner.clone_from(owner);
        }
        self.at = at;
    }

    /// Whether a process that another one may relieve has more to do than it can: its share of what all receive in a second, and what waits.
    #[must_use]
    pub fn is_overloaded(&self, scaling: &Scaling, arrivals: f64, each: f64) -> bool {
        let mut loads = BTreeMap::<_, f64>::new();
        for (part, load) in self.parts.iter().zip(self.loads(scaling, arrivals)) {
            if let Some(owner) = &part.owner {
                *loads.entry(&owner.process).or_default() += load;
            }
        }
        self.crowded().any(|process| loads.get(process).is_some_and(|load| *load > each))
    }

    /// Whether a process that has as much to do as it can has several partitions in which there is something to do: another one may take some.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.crowded().next().is_some()
    }

    fn crowded(&self) -> impl Iterator<Item = &String> {
        let owners = || self.parts.iter().filter_map(|part| Some((part, part.owner.as_ref()?)));
        let is_its =
            |process: &str, (part, owner): &(&Arrivals, &Owner)| owner.process == process && part.is_used();
        let busy = owners().filter(|(_, owner)| owner.is_busy).map(|(_, owner)| &owner.process);
        busy.filter(move |process| owners().filter(|one| is_its(process, one)).count() > 1)
    }

    /// The smallest useful number of pods of which none can have more than its share of the load takes, where all of them receive so much in a
    /// second, and one pod settles `each`. Where the busiest partition alone is too much for a pod, none is of use that relieves its own little.
    #[must_use]
    pub fn enough(&self, scaling: &Scaling, arrivals: f64, each: f64) -> u32 {
        let mut loads = self.loads(scaling, arrivals);
        loads.sort_unstable_by(|one, other| other.total_cmp(one));
        let partitions = u32::try_from(loads.len()).unwrap_or(u32::MAX);
        let useful = Useful { partitions, lagging: partitions };
        let busiest = |pods: u32| -> f64 {
            let share = usize::try_from(partitions.div_ceil(pods)).unwrap_or(usize::MAX);
            loads.iter().take(share).sum()
        };
        let most = (UTILIZATION * each).max(busiest(partitions.max(1)) / UTILIZATION);
        let counts = (1..=partitions).filter(|pods| useful.round_down(*pods) == *pods);
        counts.into_iter().find(|pods| busiest(*pods) <= most).unwrap_or(1)
    }

    /// The loads of the partitions in messages a second.
    fn loads(&self, scaling: &Scaling, arrivals: f64) -> Vec<f64> {
        let all: f64 = self.parts.iter().map(|part| part.lately + EVEN).sum();
        let target = scaling.target_drain_time.as_secs_f64();
        let load = |part: &Arrivals| arrivals * (part.lately + EVEN) / all + as_f64(part.lag) / target;
        self.parts.iter().map(load).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::{figures::Sample, simulation::scaling};

    /// Of partitions that received so much in each of many seconds.
    fn spread(rates: &[u64]) -> Spread {
        let mut spread = Spread::default();
        for second in (0..120).step_by(2) {
            let at = Duration::from_secs(second);
            let part = |rate: &u64| Part {
                sample: Sample { at, delivered: rate * second, ..Sample::default() },
                owner: None,
            };
            spread.add(&rates.iter().map(part).collect::<Vec<_>>(), false);
        }
        spread
    }

    fn enough(rates: &[u64]) -> u32 {
        spread(rates).enough(&scaling(), as_f64(rates.iter().sum()), 100.0)
    }

    #[test]
    fn of_partitions_with_the_same_load_the_number_of_pods_counts() {
        assert_eq!(enough(&[2; 8]), 1);
        assert_eq!(enough(&[20; 8]), 2);
        assert_eq!(enough(&[25; 8]), 3);
        assert_eq!(enough(&[30; 8]), 4);
        assert_eq!(enough(&[45; 8]), 8);
    }

    #[test]
    fn the_busiest_partitions_may_come_together_in_one_pod() {
        assert_eq!(enough(&[50, 50, 50, 50, 50, 0, 0, 0]), 8);
        assert_eq!(enough(&[60, 60, 0, 0, 0, 0, 0, 0]), 8);
        assert_eq!(enough(&[40, 15, 15, 15, 0, 0, 0, 0]), 3);
    }

    #[test]
    fn what_is_too_much_for_one_pod_is_so_with_any_number() {
        assert_eq!(enough(&[300, 1, 1, 1, 1, 1, 1, 1]), 1);
        assert_eq!(enough(&[90, 9, 9, 1, 1, 1, 1, 1]), 2);
    }

    #[test]
    fn a_few_messages_make_no_difference_and_what_waits_does() {
        let mut spread = spread(&[0; 8]);
        let waiting = |lag| {
            let sample = Sample { at: Duration::from_secs(200), pending: lag, ..Sample::default() };
            let rest = vec![Part::default(); 7];
            [vec![Part { sample, owner: None }], rest].concat()
        };
        spread.add(&waiting(3), false);
        assert_eq!(spread.enough(&scaling(), 250.0, 100.0), 4);
        assert_eq!(spread.enough(&scaling(), 70.0, 100.0), 1);
        // These were delivered before, and come again.
        spread.add(&waiting(1200), true);
        assert_eq!(spread.enough(&scaling(), 70.0, 100.0), 2);
    }

    #[test]
    fn a_busy_process_is_crowded_where_it_has_something_to_do_in_several_partitions() {
        let crowded = |parts: &[(&str, bool, u64)]| {
            let mut spread = Spread::default();
            for second in [0, 2] {
                let part = |(process, is_busy, rate): &(&str, bool, u64)| Part {
                    sample: Sample {
                        at: Duration::from_secs(second),
                        delivered: rate * second,
                        ..Sample::default()
                    },
                    owner: Some(Owner { process: (*process).to_owned(), is_busy: *is_busy, running: None }),
                };
                spread.add(&parts.iter().map(part).collect::<Vec<_>>(), false);
            }
            spread.is_crowded()
        };
        assert!(crowded(&[("a", true, 9), ("a", false, 9), ("b", false, 9)]));
        assert!(!crowded(&[("a", true, 9), ("a", false, 0), ("b", false, 9), ("b", false, 9)]));
        assert!(!crowded(&[("a", false, 9), ("a", false, 9)]));
    }
}
