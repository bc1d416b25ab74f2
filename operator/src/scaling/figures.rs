//! What JetStream says of one consumer, and with order per key the processes that have its partitions; and why that may be unknown. Pure.

use std::{collections::BTreeSet, time::Duration};

use crate::partitions::sharing::{HolderWork, PartitionHolder};

/// What the leader of a consumer said at one moment, or what was said of all parts of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, since the process began to sample.
    pub at: Duration,
    /// Deliveries since the consumer was made, redeliveries included.
    pub delivered: u64,
    /// Messages that no pod has.
    pub pending: u64,
    /// Messages that were delivered and are not settled.
    pub ack_pending: u64,
    /// Most messages that may be so; None without a limit.
    pub max_ack_pending: Option<u64>,
    /// Pull requests that wait for messages.
    pub waiting_pulls: u64,
    /// With order per key, the processes that have parts; None where not all of them say how much there is to do, and where there are none.
    pub processes: Option<ProcessCounts>,
    /// Of those: events that they could begin, and have no room for.
    pub queued: u64,
    /// Of all parts: messages that pods work at, as far as that is known.
    pub running: Option<u64>,
    /// Parts in which something waits that no pod asks for, or that its pod may not have yet; and those in which something is not settled.
    pub unasked: u32,
    pub lagging: u32,
}

/// The processes that have the partitions of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessCounts {
    /// Those that have as much of one of their partitions as they can work at.
    pub busy: u32,
    /// The others.
    pub idle: u32,
}

/// One partition of a consumer, or all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub sample: Sample,
    /// None without partitions, and where nobody has it.
    pub holder: Option<PartitionHolder>,
}

impl Sample {
    /// What was said of the parts of one consumer, as one; None of none.
    #[must_use]
    pub fn sum<'p>(parts: impl Iterator<Item = &'p Part> + Clone) -> Option<Self> {
        let samples = || parts.clone().map(|part| &part.sample);
        let last = samples().max_by_key(|one| one.at)?;
        let sum = |figure: fn(&Self) -> u64| samples().map(figure).sum();
        let limits: Option<Vec<_>> = samples().map(|one| one.max_ack_pending).collect();
        Some(Self {
            at: last.at,
            delivered: sum(|one| one.delivered),
            pending: sum(|one| one.pending),
            ack_pending: sum(|one| one.ack_pending),
            max_ack_pending: limits.map(|limits| limits.iter().sum()),
            waiting_pulls: sum(|one| one.waiting_pulls),
            processes: process_counts(parts.clone()),
            queued: parts.clone().filter_map(Part::work).map(|work| work.queued).sum(),
            running: Some(parts.clone().map(Part::in_hand).sum()),
            unasked: count(parts.clone().filter(|part| part.is_unasked())),
            lagging: count(parts.filter(|part| part.sample.lag() > 0)),
        })
    }

    /// Deliveries that were settled: each attempt counts.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.delivered.saturating_sub(self.ack_pending)
    }

    /// Messages that are not settled.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.pending + self.ack_pending
    }

    /// Messages that pods work at, as far as that is known.
    #[must_use]
    pub fn in_hand(&self) -> u64 {
        self.running.unwrap_or(self.ack_pending)
    }

    /// Messages that are not settled, and at which nobody works yet.
    #[must_use]
    pub fn unbegun(&self) -> u64 {
        self.lag().saturating_sub(self.in_hand())
    }

    /// Messages that other pods could work at: no pod has them, or one that has no room for them.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.pending + self.queued
    }

    /// What came so far, redeliveries included: it grows with each arrival alone.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.delivered + self.pending
    }

    /// Whether JetStream delivers no more until something is settled, however many pods there are.
    fn is_limited(&self) -> bool {
        self.max_ack_pending.is_some_and(|limit| self.ack_pending >= limit)
    }

    /// Whether pods work at as many messages as may be unacknowledged: with more of them they would do more.
    #[must_use]
    pub fn is_limiting(&self) -> bool {
        self.max_ack_pending.is_some_and(|limit| self.in_hand() >= limit)
    }

    /// Whether some pod has all that it can work at.
    #[must_use]
    pub fn any_pod_busy(&self) -> bool {
        self.processes.map_or(self.unasked > 0, |processes| processes.busy > 0)
    }

    /// Whether each pod has all that it can work at.
    #[must_use]
    pub fn all_pods_busy(&self) -> bool {
        let others =
            self.processes.map_or(self.lagging.saturating_sub(self.unasked), |processes| processes.idle);
        self.any_pod_busy() && others == 0
    }
}

impl Part {
    fn work(&self) -> Option<HolderWork> {
        self.holder.as_ref()?.work
    }

    /// Messages that are not settled, and at which nobody works yet.
    #[must_use]
    pub fn unbegun(&self) -> u64 {
        self.sample.lag().saturating_sub(self.in_hand())
    }

    /// Messages that its process works at: all that it has, where it does not say.
    fn in_hand(&self) -> u64 {
        self.work().map_or(self.sample.ack_pending, |work| work.running)
    }

    /// The process that has it.
    #[must_use]
    pub fn process(&self) -> Option<&str> {
        self.holder.as_ref().map(|holder| holder.process.as_str())
    }

    /// Whether its process has as much of it as it can work at: it has no room for more, or works at as many messages as may be unacknowledged
    /// while others wait.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.holder.as_ref().is_some_and(PartitionHolder::is_busy) || self.is_at_ack_limit()
    }

    /// Whether its process works at none of it and has room: what it has waits for a next attempt or for a recovery, as it would in another one.
    #[must_use]
    pub fn awaits_retry(&self) -> bool {
        self.work().is_some_and(|work| work.running == 0 && work.queued == 0)
    }

    /// The process that has it, where that is busy with it.
    fn busy_process(&self) -> Option<&str> {
        self.process().filter(|_| self.is_busy())
    }

    /// Whether its process works at as many messages as may be unacknowledged, and others wait.
    fn is_at_ack_limit(&self) -> bool {
        let sample = Sample { running: Some(self.in_hand()), ..self.sample };
        self.holder.is_some() && sample.pending > 0 && sample.is_limiting()
    }

    /// Whether something waits that no pod asks for: JetStream delivers at once where a pull waits.
    fn is_unasked(&self) -> bool {
        let Sample { pending, waiting_pulls, .. } = self.sample;
        (pending > 0 && waiting_pulls == 0 && !self.sample.is_limited()) || self.is_at_ack_limit()
    }
}

fn count(parts: impl Iterator) -> u32 {
    u32::try_from(parts.count()).unwrap_or(u32::MAX)
}

fn process_counts<'p>(parts: impl Iterator<Item = &'p Part> + Clone) -> Option<ProcessCounts> {
    let held = parts.clone().filter(|part| part.holder.is_some());
    let processes: BTreeSet<_> = held.map(|part| part.work().and(part.process())).collect::<Option<_>>()?;
    let busy: BTreeSet<_> = parts.filter_map(Part::busy_process).collect();
    let idle = count(processes.difference(&busy));
    (!processes.is_empty()).then(|| ProcessCounts { busy: count(busy.iter()), idle })
}

/// Why the figures of a consumer are unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Sampling began a moment ago.
    New,
    /// JetStream did not answer.
    Unanswered,
    /// JetStream has no such consumer, or not this object's.
    Missing,
    /// The consumer delivers nothing, on purpose.
    Paused,
    /// The figures fell back a moment ago: another leader, or another consumer of the name.
    Reset,
}

impl Unknown {
    /// In words, after the consumer's name.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::New => "has been sampled for less than 10s",
            Self::Unanswered => "does not answer",
            Self::Missing => "does not exist",
            Self::Paused => "is paused",
            Self::Reset => "counts from an earlier point: it has another leader, or was recreated",
        }
    }
}

/// The processes of a consumer that have as much of one of their partitions as they can work at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyProcesses {
    pub ids: BTreeSet<String>,
    /// What was said of all partitions that they have.
    pub total: Sample,
}

/// One look at a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is known: all of it, or those of its partitions that answered.
    pub parts: Vec<Part>,
    /// Why the rest is unknown, if any is.
    pub unknown: Option<Unknown>,
    /// With order per key, how many partitions it has.
    pub partitions: Option<u32>,
}

impl Reading {
    /// Nothing is known.
    #[must_use]
    pub fn unknown(why: Unknown) -> Self {
        Self { unknown: Some(why), ..Self::default() }
    }

    /// All of it as one.
    ///
    /// # Errors
    ///
    /// Where not all is known.
    pub fn total(&self) -> Result<Sample, Unknown> {
        match self.unknown {
            Some(unknown) => Err(unknown),
            None => Sample::sum(self.parts.iter()).ok_or(Unknown::Missing),
        }
    }

    /// The processes that have as much of one of their partitions as they can work at.
    #[must_use]
    pub fn busy_processes(&self) -> Option<BusyProcesses> {
        let ids: BTreeSet<_> = self.parts.iter().filter_map(Part::busy_process).map(str::to_owned).collect();
        let is_theirs = |part: &&Part| part.process().is_some_and(|process| ids.contains(process));
        let total = Sample::sum(self.parts.iter().filter(is_theirs))?;
        Some(BusyProcesses { ids, total })
    }

    /// Whether messages of some part that is known are not settled.
    #[must_use]
    pub fn is_lagging(&self) -> bool {
        self.parts.iter().any(|part| part.sample.lag() > 0)
    }
}

impl From<Sample> for Reading {
    fn from(sample: Sample) -> Self {
        Self { parts: vec![Part { sample, holder: None }], ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u64, pending: u64, limit: Option<u64>) -> Sample {
        let at = Duration::from_secs(at);
        let (delivered, ack_pending, waiting_pulls) = (5, 2, 1);
        Sample {
            at,
            delivered,
            pending,
            ack_pending,
            max_ack_pending: limit,
            waiting_pulls,
            ..Sample::default()
        }
    }

    fn part(sample: Sample, process: &str, is_busy: bool) -> Part {
        let work = Some(HolderWork { is_busy, running: 1, queued: is_busy.into() });
        Part { sample, holder: Some(PartitionHolder { process: process.into(), work }) }
    }

    fn sum(samples: &[Sample]) -> Option<Sample> {
        let parts: Vec<_> = samples.iter().map(|sample| Part { sample: *sample, holder: None }).collect();
        Sample::sum(parts.iter())
    }

    #[test]
    fn partitions_are_one_consumer_with_all_that_waits_in_them() {
        let expected = Sample {
            at: Duration::from_secs(2),
            delivered: 10,
            pending: 3,
            ack_pending: 4,
            max_ack_pending: Some(512),
            waiting_pulls: 2,
            processes: None,
            queued: 0,
            running: Some(4),
            unasked: 0,
            lagging: 2,
        };
        assert_eq!(sum(&[sample(1, 3, Some(256)), sample(2, 0, Some(256))]), Some(expected));
        assert_eq!(sum(&[sample(1, 3, None), sample(2, 0, Some(1))]).unwrap().max_ack_pending, None);
        assert_eq!(
            sum(&[sample(1, 3, Some(1))]),
            Some(Sample { lagging: 1, running: Some(2), ..sample(1, 3, Some(1)) })
        );
        assert_eq!(sum(&[]), None);
    }

    #[test]
    fn what_a_process_has_beyond_what_it_can_do_waits_and_a_process_is_busy_by_any_of_its_partitions() {
        let one = sample(1, 0, Some(256));
        let parts = [part(one, "a", true), part(one, "a", false), part(one, "b", false)];
        let summed = Sample::sum(parts.iter()).unwrap();
        assert_eq!((summed.processes, summed.waiting()), (Some(ProcessCounts { busy: 1, idle: 1 }), 1));
        assert_eq!((summed.in_hand(), one.in_hand()), (3, 2));
        assert!(summed.any_pod_busy() && !summed.all_pods_busy());
        assert!(Sample::sum(parts[..2].iter()).unwrap().all_pods_busy());
        assert!(!Sample::sum(parts[2..].iter()).unwrap().any_pod_busy());
        // It is not known where a process says nothing. A partition that nobody has is nothing of any process.
        let silent = PartitionHolder { process: "b".into(), work: None };
        let with = |holder| [parts[0].clone(), Part { sample: one, holder }];
        assert_eq!(Sample::sum(with(Some(silent)).iter()).unwrap().processes, None);
        let without_owner = Sample::sum(with(None).iter()).unwrap();
        assert_eq!(without_owner.processes, Some(ProcessCounts { busy: 1, idle: 0 }));
    }

    #[test]
    fn a_process_is_busy_that_works_at_as_many_messages_as_may_be_unacknowledged_while_others_wait() {
        let limited = Sample { ack_pending: 4, waiting_pulls: 1, ..sample(1, 3, Some(4)) };
        let held =
            |work, sample| Part { sample, holder: Some(PartitionHolder { process: "a".into(), work }) };
        let works_at = |running| Some(HolderWork { running, ..HolderWork::default() });
        let is_busy = |part: Part| {
            let summed = Sample::sum([part.clone()].iter()).unwrap();
            assert_eq!(part.is_busy(), summed.all_pods_busy());
            summed.any_pod_busy()
        };
        assert!(is_busy(held(works_at(4), limited)));
        assert!(is_busy(held(None, limited)), "a program that does not say what it works at has them all");
        assert!(!is_busy(held(works_at(3), limited)), "it has one that waits for another one of its key");
        assert!(!is_busy(held(works_at(4), Sample { pending: 0, ..limited })));
        assert!(!is_busy(held(works_at(4), Sample { max_ack_pending: None, ..limited })));
    }

    #[test]
    fn without_a_word_of_processes_pods_are_busy_where_something_waits_that_none_asks_for() {
        let unasked = Sample { waiting_pulls: 0, ..sample(1, 3, Some(9)) };
        assert!(sum(&[unasked]).unwrap().all_pods_busy());
        let others = [
            Sample { pending: 0, ..unasked },
            Sample { waiting_pulls: 1, ..unasked },
            Sample { max_ack_pending: Some(2), ..unasked },
        ];
        for other in others {
            assert!(!sum(&[other]).unwrap().any_pod_busy());
            let both = sum(&[unasked, other]).unwrap();
            assert!(both.any_pod_busy() && !both.all_pods_busy());
        }
        assert!(
            sum(&[unasked, Sample::default()]).unwrap().all_pods_busy(),
            "an empty partition waits for nothing"
        );
    }
}
