//! What the leading operator writes: that it is there, which members are dead, and which member each partition belongs to. Pure.
//!
//! In: what a watch of the whole bucket and reads bring, answers to writes, and what is declared. Out: writes and reads.
//!
//! Two operators that both take themselves for the leader do no harm: each map is written at the revision that was read, and members
//! take partitions by their own rules, whatever a map says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    actions::{Action, Value},
    assignment::{Candidate, Place, assign},
    deaths::Deaths,
    keys::{ConsumerId, Key, MemberId, PartitionId},
    lease::{Clocks, RENEWAL_INTERVAL},
    observer::{Observer, Verdict},
    records::{
        HeldRecord, HeldState, MapEntry, MapRecord, MemberRecord, OperatorRecord, Record, RecordError,
    },
    write::{Answer, Reading},
};

/// What is declared of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Number of partitions.
    pub count: u32,
    /// How long a hand-over should take at most: the longest deadline of its handler, with a margin.
    pub drain: Duration,
    /// The pods of its workload, where the operator runs one: as long as it has any that stay, no other process gets partitions. While it has
    /// none, the members of its namespace do, as a program elsewhere. Without a workload, all members that handle the consumer do.
    pub pods: Option<Pods>,
}

/// The pods of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Their namespace. A program may write members of its own namespace alone, and could name any pod in them.
    pub namespace: String,
    /// What each is to the workload, by its UID.
    pub roles: BTreeMap<String, PodRole>,
}

impl Pods {
    /// What the process of a member is to the workload; None where it is none of it.
    fn role_of(&self, record: &MemberRecord) -> Option<PodRole> {
        let of_pod = record.uid.as_ref().and_then(|uid| self.roles.get(uid)).copied();
        let is_at_rest = || self.roles.values().all(|role| *role == PodRole::Retiring);
        of_pod.or_else(|| is_at_rest().then_some(PodRole::Current))
    }
}

/// What a pod is to its workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// It has the workload's template.
    Current,
    /// It has an earlier template: it gets nothing more where one of the current template is there.
    Earlier,
    /// It is chosen to be removed: it gives up what it has.
    Retiring,
}

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

/// What the leading operator writes.
#[derive(Debug)]
pub struct Coordinator {
    identity: String,
    cluster: Option<String>,
    observer: Observer,
    consumers: BTreeMap<ConsumerId, Shared>,
    beat: Option<Clocks>,
    /// Its own keys whose writes are under way.
    beating: BTreeSet<Key>,
    /// The watch has brought everything that there was.
    is_synced: bool,
    deaths: Deaths,
    /// Members that are being read.
    members: BTreeSet<MemberId>,
}

/// One consumer.
#[derive(Debug)]
struct Shared {
    declared: Declared,
    map: Reading<MapRecord>,
    held: BTreeMap<u32, Reading<HeldRecord>>,
    written: Option<MapRecord>,
    is_reading: bool,
    has_to_read: bool,
}

impl Coordinator {
    /// Leads from now on, under this name.
    #[must_use]
    pub fn new(identity: impl Into<String>, now: Clocks) -> Self {
        Self {
            identity: identity.into(),
            cluster: None,
            observer: Observer::new(now),
            consumers: BTreeMap::new(),
            beat: None,
            beating: BTreeSet::new(),
            is_synced: false,
            deaths: Deaths::default(),
            members: BTreeSet::new(),
        }
    }

    /// The same, in a cluster of this name: members wait for the operators of the cluster that shares out their partitions.
    #[must_use]
    pub fn of_cluster(self, name: impl Into<String>) -> Self {
        Self { cluster: Some(name.into()), ..self }
    }

    /// A consumer is declared like this.
    pub fn declare(&mut self, consumer: ConsumerId, declared: Declared) {
        if let Some(shared) = self.consumers.get_mut(&consumer) {
            shared.declared = declared;
        } else {
            let shared = Shared {
                declared,
                map: Reading::Unavailable,
                held: BTreeMap::new(),
                written: None,
                is_reading: false,
                has_to_read: true,
            };
            self.consumers.insert(consumer, shared);
        }
    }

    /// A consumer is gone.
    pub fn remove(&mut self, consumer: &ConsumerId) {
        self.consumers.remove(consumer);
    }

    /// Kubernetes reports that the container of this pod ended, at this second since 1970 by the clock of its node. Said
    /// once, after everything that there was is told.
    pub fn container_ended(&mut self, uid: &str, ended_at: u64) {
        self.observer.container_ended(uid, ended_at);
    }

    /// The watch has brought everything that there was: what is missing is not there.
    pub fn synced(&mut self) {
        self.is_synced = true;
    }

    /// What was seen of the members.
    #[must_use]
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// Where the partitions of a consumer are, by number; `None` before everything was read.
    #[must_use]
    pub fn whereabouts(&self, consumer: &ConsumerId, now: Clocks) -> Option<Vec<Whereabouts>> {
        let shared = self.consumers.get(consumer)?;
        let is_known = self.is_synced && shared.map.revision().is_some();
        is_known.then(|| shared.whereabouts(&self.observer, now).collect())
    }

    /// A watch brought a value, or the deletion of one.
    ///
    /// # Errors
    ///
    /// The value cannot be read. It is taken for what it is, and the error is for the log.
    pub fn observed(&mut self, key: &Key, value: Value<'_>, now: Clocks) -> Result<(), RecordError> {
        match key {
            Key::Operator | Key::OperatorOf(_) => Ok(()),
            Key::Member(id) => {
                let (reading, result) = value.read::<MemberRecord>(key);
                self.observer.member(id, reading, now);
                result
            }
            Key::Map(consumer) => {
                let (reading, result) = value.read::<MapRecord>(key);
                if let Some(shared) = self.consumers.get_mut(consumer) {
                    shared.map.update(reading);
                }
                result
            }
            Key::Held(PartitionId { consumer, partition }) => {
                let (reading, result) = value.read::<HeldRecord>(key);
                if let Some(shared) = self.consumers.get_mut(consumer) {
                    shared.held.entry(*partition).or_insert(Reading::Unavailable).update(reading);
                }
                result
            }
        }
    }

    /// A key was read, or no answer came.
    ///
    /// # Errors
    ///
    /// The value cannot be read. It is taken for what it is, and the error is for the log.
    pub fn read(&mut self, key: &Key, value: Value<'_>, now: Clocks) -> Result<(), RecordError> {
        let is_answered = value != Value::Unavailable;
        match key {
            Key::Member(id) => {
                self.members.remove(id);
                if is_answered {
                    self.deaths.read(id);
                }
                let (reading, result) = value.read(key);
                self.observer.member_read(id, reading, now);
                return result;
            }
            Key::Map(consumer) => {
                if let Some(shared) = self.consumers.get_mut(consumer) {
                    shared.is_reading = false;
                    shared.has_to_read &= !is_answered;
                    // It was removed from the stream, so no later revision will show it.
                    if value == Value::Absent(0) {
                        shared.map = Reading::Absent(0);
                    }
                }
            }
            Key::Operator | Key::OperatorOf(_) | Key::Held(_) => {}
        }
        self.observed(key, value, now)
    }

    /// A write was answered, or no answer came.
    pub fn answered(&mut self, key: &Key, answer: Answer, now: Clocks) {
        match key {
            Key::Operator | Key::OperatorOf(_) => drop(self.beating.remove(key)),
            Key::Member(id) => {
                if let Some(reading) = self.deaths.answered(id, answer) {
                    self.observer.member(id, reading, now);
                }
            }
            Key::Map(consumer) => {
                let Some(shared) = self.consumers.get_mut(consumer) else { return };
                match (answer, shared.written.take()) {
                    (Answer::Stored(revision), Some(written)) => {
                        shared.map.update(Reading::Present(revision, written));
                    }
                    _ => shared.has_to_read = true,
                }
            }
            Key::Held(_) => {}
        }
    }

    /// What to do now.
    pub fn poll(&mut self, now: Clocks) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.beating.is_empty() && self.beat.is_none_or(|beat| now.since(beat) >= RENEWAL_INTERVAL) {
            self.beat = Some(now);
            let of_cluster = self.cluster.clone().map(Key::OperatorOf);
            let value = OperatorRecord { identity: self.identity.clone() }.to_json();
            self.beating = [Key::Operator].into_iter().chain(of_cluster).collect();
            let keys = self.beating.iter().cloned();
            actions.extend(keys.map(|key| Action::Put { key, value: value.clone() }));
        }
        if !self.is_synced {
            return actions;
        }
        for (member, revision, reason) in self.observer.suspects(now) {
            actions.extend(self.deaths.declare(member, &self.identity, revision, reason));
        }
        let mut unknown: BTreeSet<_> = self.deaths.doubted().cloned().collect();
        for (consumer, shared) in &mut self.consumers {
            actions.extend(shared.poll(consumer, self.cluster.as_deref(), &self.observer, now));
            let holders = shared.held.values().filter_map(held_by).map(|record| &record.member);
            let is_unknown = |holder: &&MemberId| self.observer.verdict(holder, now) == Verdict::Unknown;
            unknown.extend(holders.filter(is_unknown).cloned());
        }
        for member in unknown {
            if self.members.insert(member.clone()) {
                actions.push(Action::Read(Key::Member(member)));
            }
        }
        actions
    }
}

impl Shared {
    fn whereabouts(&self, observer: &Observer, now: Clocks) -> impl Iterator<Item = Whereabouts> {
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

    fn poll(
        &mut self,
        consumer: &ConsumerId,
        cluster: Option<&str>,
        observer: &Observer,
        now: Clocks,
    ) -> Option<Action> {
        if self.written.is_some() || self.is_reading {
            return None;
        }
        let key = Key::Map(consumer.clone());
        if self.has_to_read {
            self.is_reading = true;
            return Some(Action::Read(key));
        }
        let expected = self.map.revision()?;
        let map = self.plan(consumer, cluster, observer, now)?;
        let value = map.to_json();
        self.written = Some(map);
        Some(Action::Write { key, value, expected })
    }

    /// The map that has to be written, if the present one is not right.
    fn plan(
        &self,
        consumer: &ConsumerId,
        cluster: Option<&str>,
        observer: &Observer,
        now: Clocks,
    ) -> Option<MapRecord> {
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
            && present.cluster.as_deref() == cluster
            && present.partitions == partitions;
        (!is_right).then(|| MapRecord {
            generation: present.generation + 1,
            count,
            cluster: cluster.map(Into::into),
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

#[cfg(test)]
mod tests;
