//! What the leading operator writes: that it is there, which members are dead, and which member each partition belongs to. Pure.
//!
//! In: what a watch of the whole bucket and reads bring, answers to writes, and what is declared. Out: writes and reads.
//!
//! Two operators that both take themselves for the leader do no harm: each map is written at the revision that was read, and members
//! take partitions by their own rules, whatever a map says.

use std::collections::{BTreeMap, BTreeSet};

use self::plan::{ConsumerPlan, Planner};
pub use self::{
    declared::{Declared, PodRole, Pods},
    plan::Whereabouts,
};
use crate::{
    actions::{Action, Value},
    deaths::Deaths,
    keys::{ConsumerId, Key, MemberId, PartitionId},
    lease::{Clocks, RENEWAL_INTERVAL},
    observer::{Observer, Verdict},
    records::{HeldRecord, MapRecord, MemberRecord, OperatorRecord, Record, RecordError},
    write::Answer,
};

mod declared;
mod plan;

/// What the leading operator writes.
#[derive(Debug)]
pub struct Coordinator {
    identity: String,
    cluster: String,
    observer: Observer,
    consumers: BTreeMap<ConsumerId, ConsumerPlan>,
    last_heartbeat: Option<Clocks>,
    /// Its own keys whose writes are under way.
    heartbeats: BTreeSet<Key>,
    /// The watch has brought everything that there was.
    is_synced: bool,
    deaths: Deaths,
    /// Members that are being read.
    members: BTreeSet<MemberId>,
}

impl Coordinator {
    /// Leads from now on, under this name and in the cluster of that name: members wait for the operators of the cluster that shares out their
    /// partitions.
    #[must_use]
    pub fn new(identity: impl Into<String>, cluster: impl Into<String>, now: Clocks) -> Self {
        Self {
            identity: identity.into(),
            cluster: cluster.into(),
            observer: Observer::new(now),
            consumers: BTreeMap::new(),
            last_heartbeat: None,
            heartbeats: BTreeSet::new(),
            is_synced: false,
            deaths: Deaths::default(),
            members: BTreeSet::new(),
        }
    }

    /// A consumer is declared like this.
    pub fn declare(&mut self, consumer: ConsumerId, declared: Declared) {
        match self.consumers.get_mut(&consumer) {
            Some(plan) => plan.declared = declared,
            None => drop(self.consumers.insert(consumer, ConsumerPlan::new(declared))),
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
        let plan = self.consumers.get(consumer).filter(|plan| self.is_synced && plan.is_known())?;
        Some(plan.whereabouts(&self.observer, now).collect())
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
                if let Some(plan) = self.consumers.get_mut(consumer) {
                    plan.map_observed(reading);
                }
                result
            }
            Key::Held(PartitionId { consumer, partition }) => {
                let (reading, result) = value.read::<HeldRecord>(key);
                if let Some(plan) = self.consumers.get_mut(consumer) {
                    plan.held_observed(*partition, reading);
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
                if let Some(plan) = self.consumers.get_mut(consumer) {
                    plan.map_read(value);
                }
            }
            Key::Operator | Key::OperatorOf(_) | Key::Held(_) => {}
        }
        self.observed(key, value, now)
    }

    /// A write was answered, or no answer came.
    pub fn answered(&mut self, key: &Key, answer: Answer, now: Clocks) {
        match key {
            Key::Operator | Key::OperatorOf(_) => drop(self.heartbeats.remove(key)),
            Key::Member(id) => {
                if let Some(reading) = self.deaths.answered(id, answer) {
                    self.observer.member(id, reading, now);
                }
            }
            Key::Map(consumer) => {
                if let Some(plan) = self.consumers.get_mut(consumer) {
                    plan.map_answered(answer);
                }
            }
            Key::Held(_) => {}
        }
    }

    /// What to do now.
    pub fn poll(&mut self, now: Clocks) -> Vec<Action> {
        let mut actions = Vec::new();
        let is_due = self.last_heartbeat.is_none_or(|last| now.since(last) >= RENEWAL_INTERVAL);
        if self.heartbeats.is_empty() && is_due {
            self.last_heartbeat = Some(now);
            let value = OperatorRecord { identity: self.identity.clone() }.to_json();
            self.heartbeats = [Key::Operator, Key::OperatorOf(self.cluster.clone())].into();
            let keys = self.heartbeats.iter().cloned();
            actions.extend(keys.map(|key| Action::Put { key, value: value.clone() }));
        }
        if !self.is_synced {
            return actions;
        }
        for (member, revision, reason) in self.observer.suspects(now) {
            actions.extend(self.deaths.declare(member, &self.identity, revision, reason));
        }
        let mut unknown: BTreeSet<_> = self.deaths.doubted().cloned().collect();
        let planner = Planner { cluster: &self.cluster, observer: &self.observer, now };
        for (consumer, plan) in &mut self.consumers {
            actions.extend(plan.poll(consumer, planner));
            let is_unknown = |holder: &&MemberId| self.observer.verdict(holder, now) == Verdict::Unknown;
            unknown.extend(plan.holders().filter(is_unknown).cloned());
        }
        for member in unknown {
            if self.members.insert(member.clone()) {
                actions.push(Action::Read(Key::Member(member)));
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests;
