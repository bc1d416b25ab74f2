//! Who is dead, by what this process saw. Pure.
//!
//! In: revisions and values of the members' keys and the operator's, each with the time at which it was seen, and containers that ended.
//! Out: whether a member is alive, and whether an operator is there.
//!
//! A suspicion harms nobody: it is written at the revision that was seen, and fails if the member has renewed meanwhile.

use std::collections::BTreeMap;

use crate::{
    keys::{ConsumerId, Key, MemberId},
    lease::{Clocks, LEASE, PATIENCE},
    records::{DeathReason, MemberRecord},
    write::Reading,
};

/// Maximum members that are remembered; beyond that, dead ones are forgotten, and read again where a key names them.
const MAX_MEMBERS: usize = 4_096;

/// What is known of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: its key has to be read.
    Unknown,
    /// It renews its membership, or its time is not over.
    Alive,
    /// It has to be declared dead, at this revision of its key.
    Suspect {
        /// The revision.
        revision: u64,
        /// Why.
        reason: DeathReason,
    },
    /// It cannot renew its membership any more.
    Dead,
}

#[derive(Debug)]
struct Seen {
    reading: Reading<MemberRecord>,
    /// When its revision was first seen.
    since: Clocks,
    /// Kubernetes reported that its container ended.
    has_ended: bool,
}

/// What one process saw of all members.
#[derive(Debug)]
pub struct Observer {
    members: BTreeMap<MemberId, Seen>,
    /// Revisions of operators' keys, and when they were seen first.
    operators: BTreeMap<Key, (u64, Clocks)>,
    began: Clocks,
}

impl Observer {
    /// Nothing was seen.
    #[must_use]
    pub fn new(now: Clocks) -> Self {
        Self { members: BTreeMap::new(), operators: BTreeMap::new(), began: now }
    }

    /// A member's key was seen.
    pub fn member(&mut self, id: &MemberId, reading: Reading<MemberRecord>, now: Clocks) {
        let Some(seen) = self.members.get_mut(id) else {
            if self.members.len() >= MAX_MEMBERS {
                let is_dead = |reading: &Reading<MemberRecord>| match reading {
                    Reading::Present(_, record) => record.dead.is_some(),
                    reading => matches!(reading, Reading::Absent(_)),
                };
                self.members.retain(|_, seen| !is_dead(&seen.reading));
            }
            if reading.revision().is_some() {
                self.members.insert(id.clone(), Seen { reading, since: now, has_ended: false });
            }
            return;
        };
        let before = seen.reading.revision();
        seen.reading.update(reading);
        if seen.reading.revision() != before {
            seen.since = now;
        }
    }

    /// A member's key was read from the leader of the bucket's stream, after something in the bucket had named the member: where it has
    /// no value, it was removed from the stream, and no later revision will show it.
    pub fn member_read(&mut self, id: &MemberId, reading: Reading<MemberRecord>, now: Clocks) {
        if reading == Reading::Absent(0) {
            self.members.insert(id.clone(), Seen { reading, since: now, has_ended: false });
        } else {
            self.member(id, reading, now);
        }
    }

    /// An operator's key was seen.
    pub fn operator(&mut self, key: &Key, revision: u64, now: Clocks) {
        if self.operators.get(key).is_none_or(|(seen, _)| revision > *seen) {
            self.operators.insert(key.clone(), (revision, now));
        }
    }

    /// Kubernetes reports that the container of this pod ended, at this second since 1970: not that the pod is missing or its node silent.
    ///
    /// That is true of the members that were seen by now and say that they joined before that: both times are of the clock of the
    /// pod's node. The container starts again in the same pod, at times before the report arrives, and its process joins under another id.
    /// A member that is seen later is not in the container that ended: where its node's clock was set back, it would be dead for ever.
    pub fn container_ended(&mut self, uid: &str, ended_at: u64) {
        for seen in self.members.values_mut() {
            if let Reading::Present(_, record) = &seen.reading {
                let was_there = record.joined.is_some_and(|joined| joined < ended_at);
                seen.has_ended |= was_there && record.uid.as_deref() == Some(uid);
            }
        }
    }

    /// Whether no operator has moved this key for so long that members share out partitions themselves.
    #[must_use]
    pub fn is_without_operator(&self, key: &Key, now: Clocks) -> bool {
        self.operator_silent_for(key, now) >= LEASE
    }

    /// How long an operator's key has stood still.
    #[must_use]
    pub(crate) fn operator_silent_for(&self, key: &Key, now: Clocks) -> std::time::Duration {
        now.since(self.operators.get(key).map_or(self.began, |(_, since)| *since))
    }

    /// What is known of a member.
    #[must_use]
    pub fn verdict(&self, id: &MemberId, now: Clocks) -> Verdict {
        let Some(Seen { reading, since, has_ended }) = self.members.get(id) else { return Verdict::Unknown };
        let is_silent = now.since(*since) >= PATIENCE;
        match reading {
            Reading::Unavailable => Verdict::Unknown,
            // Ids are never used twice, and a process takes partitions only after it has joined.
            Reading::Absent(_) => Verdict::Dead,
            Reading::Present(_, record) if record.dead.is_some() => Verdict::Dead,
            Reading::Present(revision, _) if *has_ended => {
                Verdict::Suspect { revision: *revision, reason: DeathReason::ContainerEnded }
            }
            Reading::Present(revision, _) | Reading::Unreadable(revision) if is_silent => {
                Verdict::Suspect { revision: *revision, reason: DeathReason::Silent }
            }
            Reading::Present(..) | Reading::Unreadable(_) => Verdict::Alive,
        }
    }

    /// The record of a member, if it can be read.
    #[must_use]
    pub fn record(&self, id: &MemberId) -> Option<&MemberRecord> {
        match &self.members.get(id)?.reading {
            Reading::Present(_, record) => Some(record),
            _ => None,
        }
    }

    /// The members that may be given partitions of this consumer, with their records, in the order of their ids. Suspects are among
    /// them: it is this process that may see nothing any more.
    pub fn candidates<'o>(
        &'o self,
        consumer: &'o ConsumerId,
        now: Clocks,
    ) -> impl Iterator<Item = (&'o MemberId, &'o MemberRecord)> {
        self.members.iter().filter_map(move |(id, seen)| match &seen.reading {
            Reading::Present(_, record)
                if record.is_candidate(consumer) && self.verdict(id, now) != Verdict::Dead =>
            {
                Some((id, record))
            }
            _ => None,
        })
    }

    /// All members that have to be declared dead.
    pub fn suspects(&self, now: Clocks) -> impl Iterator<Item = (&MemberId, u64, DeathReason)> {
        self.members.keys().filter_map(move |id| match self.verdict(id, now) {
            Verdict::Suspect { revision, reason } => Some((id, revision, reason)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::records::{Dead, Participation};

    fn at(seconds: u64) -> Clocks {
        Clocks { boot: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
    }

    fn a() -> MemberId {
        MemberId::new("shop", "a").unwrap()
    }

    fn alive() -> MemberRecord {
        MemberRecord { uid: Some("u1".into()), joined: Some(0), ..MemberRecord::default() }
    }

    fn dead() -> MemberRecord {
        MemberRecord {
            dead: Some(Dead { by: "x".into(), reason: DeathReason::Silent }),
            ..MemberRecord::default()
        }
    }

    #[test]
    fn a_member_whose_revision_stands_still_is_suspected_after_the_lease_and_the_skew() {
        let mut observer = Observer::new(at(0));
        assert_eq!(observer.verdict(&a(), at(0)), Verdict::Unknown);
        observer.member(&a(), Reading::Present(5, alive()), at(10));
        observer.member(&a(), Reading::Present(5, alive()), at(30));
        assert_eq!(observer.verdict(&a(), at(41)), Verdict::Alive);
        let suspect = Verdict::Suspect { revision: 5, reason: DeathReason::Silent };
        assert_eq!(observer.verdict(&a(), at(42)), suspect);
        assert_eq!(observer.suspects(at(42)).count(), 1);
        observer.member(&a(), Reading::Present(6, alive()), at(43));
        assert_eq!(observer.verdict(&a(), at(74)), Verdict::Alive);
        observer.member(&a(), Reading::Present(5, dead()), at(44));
        assert_eq!(observer.verdict(&a(), at(44)), Verdict::Alive, "an older message that comes late");
        observer.member(&a(), Reading::Present(7, dead()), at(44));
        assert_eq!(observer.verdict(&a(), at(44)), Verdict::Dead);
    }

    #[test]
    fn a_wall_clock_that_is_set_makes_nobody_dead() {
        let mut observer = Observer::new(at(0));
        observer.member(&a(), Reading::Present(5, alive()), at(10));
        observer.operator(&Key::Operator, 6, at(10));
        let later = Clocks { wall: Duration::from_hours(2), ..at(11) };
        assert_eq!(observer.verdict(&a(), later), Verdict::Alive);
        assert!(!observer.is_without_operator(&Key::Operator, later));
    }

    #[test]
    fn a_container_that_ended_is_suspected_at_once() {
        let mut observer = Observer::new(at(0));
        observer.member(&a(), Reading::Present(5, alive()), at(10));
        observer.container_ended("u2", 1);
        assert_eq!(observer.verdict(&a(), at(10)), Verdict::Alive);
        let silent = MemberId::new("shop", "b").unwrap();
        let untold = MemberRecord { joined: None, ..alive() };
        observer.member(&silent, Reading::Present(6, untold), at(10));
        observer.container_ended("u1", 1);
        assert_eq!(observer.verdict(&silent, at(10)), Verdict::Alive, "it may have joined since");
        let suspect = Verdict::Suspect { revision: 5, reason: DeathReason::ContainerEnded };
        assert_eq!(observer.verdict(&a(), at(10)), suspect);
    }

    #[test]
    fn the_next_process_of_a_pod_whose_container_started_again_is_alive() {
        let mut observer = Observer::new(at(0));
        observer.member(&a(), Reading::Present(5, alive()), at(10));
        observer.container_ended("u1", 1);
        let next = MemberId::new("shop", "b").unwrap();
        observer.member(&next, Reading::Present(6, alive()), at(11));
        assert_eq!(observer.verdict(&next, at(12)), Verdict::Alive);
        assert!(matches!(observer.verdict(&a(), at(12)), Verdict::Suspect { revision: 5, .. }));
    }

    #[test]
    fn a_container_that_started_again_before_its_end_was_reported_is_alive() {
        let joined = |second| MemberRecord { joined: Some(second), ..alive() };
        let next = MemberId::new("shop", "b").unwrap();
        let mut observer = Observer::new(at(0));
        observer.member(&a(), Reading::Present(5, joined(100)), at(10));
        observer.member(&next, Reading::Present(6, joined(110)), at(11));
        observer.container_ended("u1", 110);
        assert!(matches!(observer.verdict(&a(), at(12)), Verdict::Suspect { revision: 5, .. }));
        assert_eq!(observer.verdict(&next, at(12)), Verdict::Alive);
        observer.container_ended("u1", 120);
        assert!(matches!(observer.verdict(&next, at(12)), Verdict::Suspect { revision: 6, .. }));
    }

    #[test]
    fn where_a_nodes_clock_was_set_back_what_joins_after_the_report_is_alive() {
        let mut observer = Observer::new(at(0));
        observer.container_ended("u1", 7_200);
        let record = MemberRecord { joined: Some(100), ..alive() };
        observer.member(&a(), Reading::Present(5, record), at(10));
        assert_eq!(observer.verdict(&a(), at(11)), Verdict::Alive);
    }

    #[test]
    fn a_member_without_a_key_is_dead_and_one_whose_value_is_unreadable_has_its_time() {
        let mut observer = Observer::new(at(0));
        observer.member(&a(), Reading::Unreadable(5), at(10));
        assert_eq!(observer.verdict(&a(), at(41)), Verdict::Alive);
        assert!(matches!(observer.verdict(&a(), at(42)), Verdict::Suspect { revision: 5, .. }));
        observer.member(&a(), Reading::Absent(6), at(43));
        assert_eq!(observer.verdict(&a(), at(43)), Verdict::Dead);
        observer.member(&a(), Reading::Unavailable, at(44));
        assert_eq!(observer.verdict(&a(), at(44)), Verdict::Dead);
    }

    #[test]
    fn candidates_are_alive_and_handle_the_consumer() {
        let consumer: ConsumerId = "orders.fulfilment".parse().unwrap();
        let mut observer = Observer::new(at(0));
        let handles =
            MemberRecord { consumers: [(consumer.clone(), Participation::default())].into(), ..alive() };
        observer.member(&a(), Reading::Present(5, handles.clone()), at(10));
        observer.member(&MemberId::new("shop", "b").unwrap(), Reading::Present(6, alive()), at(10));
        let leaving = MemberRecord { leaving: true, ..handles };
        observer.member(&MemberId::new("shop", "c").unwrap(), Reading::Present(7, leaving), at(10));
        let ids = |observer: &Observer, now| {
            observer.candidates(&consumer, now).map(|(id, _)| id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&observer, at(20)), [a()]);
        assert_eq!(ids(&observer, at(42)), [a()], "not declared dead yet");
        observer.member(&a(), Reading::Present(8, dead()), at(42));
        assert_eq!(ids(&observer, at(42)), []);
    }

    #[test]
    fn members_help_themselves_where_no_operator_has_written_for_thirty_seconds() {
        let mut observer = Observer::new(at(0));
        let is_without =
            |observer: &Observer, second| observer.is_without_operator(&Key::Operator, at(second));
        assert!(!is_without(&observer, 29) && is_without(&observer, 30));
        observer.operator(&Key::Operator, 8, at(31));
        observer.operator(&Key::Operator, 8, at(50));
        observer.operator(&Key::Operator, 7, at(51));
        observer.operator(&Key::OperatorOf("east".into()), 9, at(52));
        assert!(!is_without(&observer, 60) && is_without(&observer, 61));
    }
}
