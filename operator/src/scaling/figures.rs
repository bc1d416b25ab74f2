//! What JetStream says of one consumer, and why its figures may be unknown. Pure.

use std::{collections::BTreeSet, time::Duration};

use crate::partitions::sharing::Owner;

/// What the leader of a consumer said at one moment.
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
    /// With order per key, what the processes say that have its partitions; None where not all of them do.
    pub owners: Option<Owners>,
    /// Messages that are with processes which have more than they can work at.
    pub held: u64,
    /// Messages that the processes work at, where they say so.
    pub running: Option<u64>,
}

/// The processes that have the partitions of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Those that have as much to do as they can in one of their partitions.
    pub busy: u32,
    /// The others.
    pub idle: u32,
}

/// One partition of a consumer, or all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub sample: Sample,
    /// None without partitions, where nobody has it, and where its owner says nothing.
    pub owner: Option<Owner>,
}

impl Sample {
    /// What was said of the parts of one consumer, as one; None of none.
    #[must_use]
    pub fn sum(parts: &[Part]) -> Option<Self> {
        let samples = || parts.iter().map(|part| &part.sample);
        let last = samples().max_by_key(|one| one.at)?;
        let sum = |figure: fn(&Self) -> u64| samples().map(figure).sum();
        let limits: Option<Vec<_>> = samples().map(|one| one.max_ack_pending).collect();
        let held = parts.iter().filter(|part| part.owner.as_ref().is_some_and(|owner| owner.is_busy));
        Some(Self {
            at: last.at,
            delivered: sum(|one| one.delivered),
            pending: sum(|one| one.pending),
            ack_pending: sum(|one| one.ack_pending),
            max_ack_pending: limits.map(|limits| limits.iter().sum()),
            waiting_pulls: sum(|one| one.waiting_pulls),
            owners: owners(parts),
            held: held.map(|part| part.sample.ack_pending).sum(),
            running: parts.iter().map(|part| part.owner.as_ref()?.running).sum(),
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

    /// Messages that other pods could work at: no pod has them, or one that has more than it can do.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.pending + self.held
    }

    /// What came so far, redeliveries included: it grows with each arrival alone.
    #[must_use]
    pub fn arrived(&self) -> u64 {
        self.delivered + self.pending
    }

    /// Whether JetStream delivers no more until something is settled, however many pods there are.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.max_ack_pending.is_some_and(|limit| self.ack_pending >= limit)
    }

    /// Whether some pod has all that it can work at.
    #[must_use]
    pub fn has_busy_pods(&self) -> bool {
        self.owners.map_or_else(|| self.is_unasked(), |owners| owners.busy > 0)
    }

    /// Whether each pod has all that it can work at.
    #[must_use]
    pub fn has_busy_pods_alone(&self) -> bool {
        self.has_busy_pods() && self.owners.is_none_or(|owners| owners.idle == 0)
    }

    /// Whether something waits that no pod asks for: JetStream delivers at once where a pull waits.
    fn is_unasked(&self) -> bool {
        self.pending > 0 && self.waiting_pulls == 0 && !self.is_limited()
    }
}

/// What the owners of all parts say; None where one says nothing.
fn owners(parts: &[Part]) -> Option<Owners> {
    let all: Vec<_> = parts.iter().map(|part| part.owner.as_ref()).collect::<Option<_>>()?;
    let processes: BTreeSet<_> = all.iter().map(|owner| &owner.process).collect();
    let busy: BTreeSet<_> = all.iter().filter(|owner| owner.is_busy).map(|owner| &owner.process).collect();
    let count = |processes: usize| u32::try_from(processes).unwrap_or(u32::MAX);
    Some(Owners { busy: count(busy.len()), idle: count(processes.len() - busy.len()) })
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

/// One look at a consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is known: all of it, or those of its partitions that answered.
    pub parts: Vec<Part>,
    /// Why the rest is unknown, if any is.
    pub unknown: Option<Unknown>,
}

impl Reading {
    /// Nothing is known.
    #[must_use]
    pub fn unknown(why: Unknown) -> Self {
        Self { parts: Vec::new(), unknown: Some(why) }
    }

    /// All of it as one.
    ///
    /// # Errors
    ///
    /// Where not all is known.
    pub fn whole(&self) -> Result<Sample, Unknown> {
        match self.unknown {
            Some(unknown) => Err(unknown),
            None => Sample::sum(&self.parts).ok_or(Unknown::Missing),
        }
    }

    /// The processes that are busy in one of the partitions which they have, and what was said of all that these have, as one.
    #[must_use]
    pub fn busy(&self) -> Option<(BTreeSet<String>, Sample)> {
        let owners = || self.parts.iter().filter_map(|part| part.owner.as_ref());
        let busy: BTreeSet<_> =
            owners().filter(|owner| owner.is_busy).map(|owner| owner.process.clone()).collect();
        let is_theirs = |part: &&Part| part.owner.as_ref().is_some_and(|owner| busy.contains(&owner.process));
        let theirs: Vec<_> = self.parts.iter().filter(is_theirs).cloned().collect();
        let sample = Sample::sum(&theirs)?;
        Some((busy, sample))
    }

    /// How many parts, of those that are known, have messages which are not settled.
    #[must_use]
    pub fn lagging(&self) -> u32 {
        let lagging = self.parts.iter().filter(|part| part.sample.lag() > 0).count();
        u32::try_from(lagging).unwrap_or(u32::MAX)
    }
}

impl From<Sample> for Reading {
    fn from(sample: Sample) -> Self {
        Self { parts: vec![Part { sample, owner: None }], unknown: None }
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
        Part { sample, owner: Some(Owner { process: process.into(), is_busy, running: Some(1) }) }
    }

    fn sum(samples: &[Sample]) -> Option<Sample> {
        let parts: Vec<_> = samples.iter().map(|sample| Part { sample: *sample, owner: None }).collect();
        Sample::sum(&parts)
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
            owners: None,
            held: 0,
            running: None,
        };
        assert_eq!(sum(&[sample(1, 3, Some(256)), sample(2, 0, Some(256))]), Some(expected));
        assert_eq!(sum(&[sample(1, 3, None), sample(2, 0, Some(1))]).unwrap().max_ack_pending, None);
        assert_eq!(sum(&[sample(1, 3, Some(1))]), Some(sample(1, 3, Some(1))));
        assert_eq!(sum(&[]), None);
    }

    #[test]
    fn what_a_process_has_beyond_what_it_can_do_waits_and_a_process_is_busy_by_any_of_its_partitions() {
        let one = sample(1, 0, Some(256));
        let parts = [part(one, "a", true), part(one, "a", false), part(one, "b", false)];
        let summed = Sample::sum(&parts).unwrap();
        assert_eq!((summed.owners, summed.waiting()), (Some(Owners { busy: 1, idle: 1 }), 2));
        assert_eq!((summed.in_hand(), one.in_hand()), (3, 2));
        assert!(summed.has_busy_pods() && !summed.has_busy_pods_alone());
        assert!(Sample::sum(&parts[..2]).unwrap().has_busy_pods_alone());
        assert!(!Sample::sum(&parts[2..]).unwrap().has_busy_pods());
        // Of a partition of which nobody says anything, it is not known.
        let unsaid = [parts[0].clone(), Part { sample: one, owner: None }];
        assert_eq!(Sample::sum(&unsaid).unwrap().owners, None);
    }

    #[test]
    fn without_owners_pods_are_busy_where_something_waits_that_none_asks_for() {
        let unasked = Sample { waiting_pulls: 0, ..sample(1, 3, Some(9)) };
        assert!(unasked.has_busy_pods_alone());
        let others = [
            Sample { pending: 0, ..unasked },
            Sample { waiting_pulls: 1, ..unasked },
            Sample { max_ack_pending: Some(2), ..unasked },
        ];
        assert!(others.iter().all(|other| !other.has_busy_pods()));
    }
}
