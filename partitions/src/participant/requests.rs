//! What a process asks of the bucket, and what it hears: from bytes to inputs of the parts, and from their actions to bytes. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Participant, Shares};
use crate::{
    actions::{Action, Value},
    deaths::Deaths,
    keys::{Key, MemberId, PartitionId},
    lease::{Clocks, RENEWAL_INTERVAL},
    membership::MembershipRequest,
    owner::{Owner, OwnerAction},
    records::{Dead, DeathReason, HeldRecord, MapRecord, MemberRecord, Record, RecordError},
    write::{Answer, Reading},
};

/// Requests under way, so that none is made twice.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bucket: bool,
    operators: BTreeSet<Key>,
    maps: BTreeSet<Key>,
    members: BTreeSet<MemberId>,
    pub(super) deaths: Deaths,
    /// What was written to the keys of partitions.
    held: BTreeMap<PartitionId, HeldRecord>,
}

impl Requests {
    pub(super) fn read_bucket(&mut self) -> Option<Action> {
        (!std::mem::replace(&mut self.bucket, true)).then_some(Action::ReadBucket)
    }

    pub(super) fn bucket_answered(&mut self) {
        self.bucket = false;
    }

    pub(super) fn read_member(&mut self, member: &MemberId) -> Option<Action> {
        self.members.insert(member.clone()).then(|| Action::Read(Key::Member(member.clone())))
    }

    /// Remembers what is written to a partition's key, for its answer.
    pub(super) fn note_write(&mut self, partition: &PartitionId, action: &OwnerAction) {
        if let OwnerAction::Write(record, _) = action {
            self.held.insert(partition.clone(), record.clone());
        }
    }
}

impl Participant {
    /// A watch brought a value, or the deletion of one.
    ///
    /// # Errors
    ///
    /// The value cannot be read. It is taken for what it is, and the error is for the log.
    pub fn observed(&mut self, key: &Key, value: Value<'_>, now: Clocks) -> Result<(), RecordError> {
        match key {
            Key::Operator | Key::OperatorOf(_) => {
                if let Value::Bytes(revision, _) = value {
                    self.observer.operator(key, revision, now);
                }
                Ok(())
            }
            Key::Member(id) => {
                let (reading, result) = value.read::<MemberRecord>(key);
                if id == self.membership.id() {
                    match &reading {
                        Reading::Present(revision, record) => {
                            self.membership.observed(*revision, Some(record));
                        }
                        Reading::Unreadable(revision) | Reading::Absent(revision) => {
                            self.membership.observed(*revision, None);
                        }
                        Reading::Unavailable => {}
                    }
                }
                self.observer.member(id, reading, now);
                result
            }
            Key::Map(consumer) => {
                let (reading, result) = value.read::<MapRecord>(key);
                if let Some(shares) = self.consumers.get_mut(consumer) {
                    shares.map.update(reading);
                }
                result
            }
            Key::Held(partition) => {
                let (reading, result) = value.read::<HeldRecord>(key);
                if let Some(owner) = self.owner_or_new(partition) {
                    owner.observed(reading, now);
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
            Key::Operator | Key::OperatorOf(_) => {
                self.requests.operators.remove(key);
                if is_answered {
                    self.operators_read.insert(key.clone(), now);
                }
            }
            Key::Member(id) if id == self.membership.id() => {
                self.membership.read(&value.read(key).0);
            }
            Key::Member(id) => {
                self.requests.members.remove(id);
                if is_answered {
                    self.requests.deaths.read(id);
                }
                let (reading, result) = value.read(key);
                self.observer.member_read(id, reading, now);
                return result;
            }
            Key::Map(consumer) => {
                self.requests.maps.remove(key);
                if let Some(shares) = self.consumers.get_mut(consumer).filter(|_| is_answered) {
                    shares.has_to_read_map = false;
                }
            }
            Key::Held(partition) => {
                let (reading, result) = value.read::<HeldRecord>(key);
                if let Some(owner) = self.owner_or_new(partition) {
                    owner.read(reading, now);
                }
                return result;
            }
        }
        self.observed(key, value, now)
    }

    /// A write was answered, or no answer came.
    pub fn answered(&mut self, key: &Key, answer: Answer, now: Clocks) {
        match key {
            Key::Member(id) if id == self.membership.id() => self.membership.answered(answer),
            Key::Member(id) => {
                if let Some(reading) = self.requests.deaths.answered(id, answer) {
                    self.observer.member(id, reading, now);
                }
            }
            Key::Held(partition) => {
                let written = self.requests.held.remove(partition);
                if let (Some(owner), Some(written)) = (self.owner_or_new(partition), written) {
                    owner.answered(answer, &written, now);
                }
            }
            // A process writes none of them.
            Key::Operator | Key::OperatorOf(_) | Key::Map(_) => {}
        }
    }

    fn owner_or_new(&mut self, partition: &PartitionId) -> Option<&mut Owner> {
        let shares = self.consumers.get_mut(&partition.consumer)?;
        Some(shares.owners.entry(partition.partition).or_default())
    }

    pub(super) fn poll_membership(&mut self, now: Clocks, actions: &mut Vec<Action>) {
        let renewed = self.membership.lease().renewed();
        let owners = || self.consumers.values().flat_map(|shares| shares.owners.values());
        let at_once = owners().any(|owner| owner.needs_renewal(renewed));
        let is_finished = self.record.leaving && !owners().any(Owner::is_held);
        let is_news = self.record.leaving && !self.says_leaving;
        let Some(request) = self.membership.next(at_once || is_finished || is_news, now) else { return };
        let key = Key::Member(self.membership.id().clone());
        match request {
            MembershipRequest::Read => actions.push(Action::Read(key)),
            MembershipRequest::Write { expected, renewal } => {
                self.forget_figures();
                self.says_leaving = self.record.leaving;
                let mut record = MemberRecord { renewal: Some(renewal), ..self.record.clone() };
                if is_finished {
                    record.dead = Some(Dead { by: self.id().to_string(), reason: DeathReason::Left });
                    self.membership.leave();
                }
                actions.push(Action::Write { key, value: record.to_json(), expected });
                self.refresh(now);
            }
        }
    }

    /// A watch may miss changes: at each renewal the map is read again, and with it the partitions that are waited for.
    fn refresh(&mut self, now: Clocks) {
        if !self.membership.is_joined() {
            return;
        }
        for (consumer, wanted) in self.wanted(now) {
            if let Some(shares) = self.consumers.get_mut(&consumer) {
                shares.has_to_read_map = true;
                for partition in wanted {
                    shares.owners.entry(partition).or_default().refresh();
                }
            }
        }
    }

    pub(super) fn poll_maps(&mut self, now: Clocks, actions: &mut Vec<Action>) {
        for (consumer, shares) in &self.consumers {
            let key = Key::Map(consumer.clone());
            if shares.has_to_read_map && self.requests.maps.insert(key.clone()) {
                actions.push(Action::Read(key));
            }
        }
        for key in self.consumers.values().map(Shares::operator).collect::<BTreeSet<_>>() {
            let is_silent = self.observer.operator_silent_for(&key, now) >= 2 * RENEWAL_INTERVAL;
            let read = self.operators_read.get(&key);
            let was_read = read.is_some_and(|read| now.since(*read) < RENEWAL_INTERVAL);
            if is_silent && !was_read && self.requests.operators.insert(key.clone()) {
                actions.push(Action::Read(key));
            }
        }
    }
}

/// What the driver has to do for an owner; nothing where that is about another key.
pub(super) fn action_of(
    partition: &PartitionId,
    action: &OwnerAction,
    deadline: Option<u64>,
) -> Option<Action> {
    let partition = partition.clone();
    Some(match action {
        OwnerAction::Write(record, expected) => {
            Action::Write { key: Key::Held(partition), value: record.to_json(), expected: *expected }
        }
        OwnerAction::Read => Action::Read(Key::Held(partition)),
        OwnerAction::Serve(epoch) => Action::Serve { partition, epoch: *epoch },
        OwnerAction::Suspend => Action::Suspend(partition),
        OwnerAction::Drain => Action::Drain { partition, deadline },
        OwnerAction::Stop => Action::Stop(partition),
        OwnerAction::ReadHolder | OwnerAction::DeclareDead => return None,
    })
}
