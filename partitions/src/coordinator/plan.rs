//! Where the partitions of one consumer are, and which map says where they have to go. Pure.

use std::collections::BTreeMap;

use super::declared::{Declared, PodRole};
use crate::{
    actions::{Action, Value},
    assignment::{Candidate, Place, assign},
    keys::{ConsumerId, Key, MemberId},
    lease::Clocks,
    observer::{Observer, Verdict},
    records::{HeldRecord, HeldState, MapEntry, MapRecord, MemberRecord, Record},
    write::{Answer, Reading},
};

/// Where a partition is, as far as the bucket says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// The member that has it and is not known to be dead.
    pub holder: Option<MemberId>,
    /// Whether that one finishes what it has begun, and begins nothing more.
    pub is_draining: bool,
    /// The member that it is meant for.
    pub to: Option<MemberId>,
}

/// What the maps of all consumers depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planner<'a> {
    /// Of the operator.
    pub(super) cluster: &'a str,
    pub(super) observer: &'a Observer,
    pub(super) now: Clocks,
}

/// One consumer, and its map.
#[derive(Debug)]
pub(super) struct ConsumerPlan {
    pub(super) declared: Declared,
    map: Reading<MapRecord>,
    held: BTreeMap<u32, Reading<HeldRecord>>,
    written: Option<MapRecord>,
    is_reading: bool,
    has_to_read: bool,
}

impl ConsumerPlan {
    pub(super) fn new(declared: Declared) -> Self {
        Self {
            declared,
            map: Reading::Unavailable,
            held: BTreeMap::new(),
            written: None,
            is_reading: false,
            has_to_read: true,
        }
    }

    /// Whether the map was read.
    pub(super) fn is_known(&self) -> bool {
        self.map.revision().is_some()
    }

    pub(super) fn map_observed(&mut self, map: Reading<MapRecord>) {
        self.map.update(map);
    }

    pub(super) fn held_observed(&mut self, partition: u32, held: Reading<HeldRecord>) {
        self.held.entry(partition).or_insert(Reading::Unavailable).update(held);
    }

    /// The map was read, or no answer came.
    pub(super) fn map_read(&mut self, value: Value<'_>) {
        self.is_reading = false;
        self.has_to_read &= value == Value::Unavailable;
        // It was removed from the stream, so no later revision will show it.
        if value == Value::Absent(0) {
            self.map = Reading::Absent(0);
        }
    }

    /// The write of the map was answered, or no answer came.
    pub(super) fn map_answered(&mut self, answer: Answer) {
        match (answer, self.written.take()) {
            (Answer::Stored(revision), Some(written)) => self.map.update(Reading::Present(revision, written)),
            _ => self.has_to_read = true,
        }
    }

    /// The members that have a partition, dead ones too.
    pub(super) fn holders(&self) -> impl Iterator<Item = &MemberId> {
        self.held.values().filter_map(held_by).map(|record| &record.member)
    }

    /// Where the partitions are, by number.
    pub(super) fn whereabouts(&self, observer: &Observer, now: Clocks) -> impl Iterator<Item = Whereabouts> {
        let targets = match &self.map {
            Reading::Present(_, map) => Some(&map.partitions),
            _ => None,
        };
        // A suspect is dead only when that is written: it may be this process whose watch is lost.
        let is_alive = move |record: &&HeldRecord| observer.verdict(&record.member, now) != Verdict::Dead;
        (0..self.declared.count).map(move |partition| {
            let held = self.held.get(&partition).and_then(held_by).filter(is_alive);
            Whereabouts {
                holder: held.map(|record| record.member.clone()),
                is_draining: held.is_some_and(|record| record.state == HeldState::Draining),
                to: targets.and_then(|targets| targets.get(&partition)).map(|entry| entry.to.clone()),
            }
        })
    }

    /// What to do now.
    pub(super) fn poll(&mut self, consumer: &ConsumerId, planner: Planner<'_>) -> Option<Action> {
        if self.written.is_some() || self.is_reading {
            return None;
        }
        let key = Key::Map(consumer.clone());
        if self.has_to_read {
            self.is_reading = true;
            return Some(Action::Read(key));
        }
        let expected = self.map.revision()?;
        let map = self.plan(consumer, planner)?;
        let value = map.to_json();
        self.written = Some(map);
        Some(Action::Write { key, value, expected })
    }

    /// The map that has to be written, if the present one is not right.
    fn plan(&self, consumer: &ConsumerId, planner: Planner<'_>) -> Option<MapRecord> {
        let Planner { cluster, observer, now } = planner;
        let nothing = MapRecord::default();
        let present = match &self.map {
            Reading::Present(_, map) => map,
            _ => &nothing,
        };
        let count = self.declared.count;
        let places =
            self.whereabouts(observer, now).map(|Whereabouts { holder, to, .. }| Place { holder, to });
        let places: BTreeMap<_, _> = (0..).zip(places).collect();
        let assignment = assign(count, &self.candidates(consumer, observer, now), &places);
        if assignment.is_empty() {
            // No member is there, so the map stays: the members that come back, or the next ones, get what it says.
            return None;
        }
        let deadline = (now.wall + self.declared.drain).as_secs();
        let entry = |(partition, to): (u32, MemberId)| {
            let from =
                places.get(&partition).and_then(|place| place.holder.clone()).filter(|from| *from != to);
            // A hand-over keeps its deadline.
            let before =
                present.partitions.get(&partition).filter(|before| before.to == to && before.from == from);
            let deadline =
                from.is_some().then(|| before.and_then(|before| before.deadline).unwrap_or(deadline));
            (partition, MapEntry { to, from, deadline })
        };
        let partitions: BTreeMap<_, _> = assignment.into_iter().map(entry).collect();
        let is_right = present.count == count
            && present.cluster.as_deref() == Some(cluster)
            && present.partitions == partitions;
        (!is_right).then(|| MapRecord {
            generation: present.generation + 1,
            count,
            cluster: Some(cluster.to_owned()),
            partitions,
        })
    }

    fn candidates(&self, consumer: &ConsumerId, observer: &Observer, now: Clocks) -> Vec<Candidate> {
        let candidate = |(id, record): (&MemberId, &MemberRecord)| {
            let role = match &self.declared.pods {
                None => PodRole::Current,
                Some(pods) if pods.namespace == id.namespace() => pods.role_of(record)?,
                Some(_) => return None,
            };
            let may_receive = match role {
                PodRole::Current => true,
                PodRole::Earlier => false,
                PodRole::Retiring => return None,
            };
            Some(Candidate { id: id.clone(), may_receive })
        };
        observer.candidates(consumer, now).filter_map(candidate).collect()
    }
}

fn held_by(reading: &Reading<HeldRecord>) -> Option<&HeldRecord> {
    match reading {
        Reading::Present(_, record) if record.state != HeldState::Free => Some(record),
        _ => None,
    }
}
