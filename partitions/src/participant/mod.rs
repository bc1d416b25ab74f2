//! One process that takes part: its membership, and every partition of every consumer that it handles. Pure.
//!
//! In: what a watch and reads bring, answers to writes, and how far the partitions are. Out: actions, which a driver carries out.
//!
//! The driver watches `operator`, `operator.*`, `member.>`, and `map` and `held` of its consumers, calls [`Participant::poll`] after every input and at
//! least every 100 ms, and carries out what that returns:
//!
//! - It answers each [`Action::Write`], [`Action::Read`] and [`Action::ReadBucket`] exactly once, also if only time passed: by
//!   [`Participant::answered`], [`Participant::read`] and [`Participant::bucket_age`].
//! - It gives an answer that says nothing, as that nobody responds, a second after the request at the earliest: what is not known is asked for
//!   again at the next poll.
//! - It looks at [`Participant::lease`] right before it begins a handler, sends an in-progress acknowledgement, or pulls.
//! - After [`Action::Lost`] it drops this value and joins under a new id.

mod requests;
mod wishes;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::requests::{Requests, action_of};
use crate::{
    actions::Action,
    keys::{ConsumerId, Key, MemberId, PartitionId},
    lease::{Clocks, Lease, PATIENCE},
    membership::Membership,
    observer::{Observer, Verdict},
    owner::{Circumstances, Owner, OwnerAction, OwnerState, Wish},
    records::{Figures, MapRecord, MemberRecord, Participation},
    write::Reading,
};

/// One process that takes part.
#[derive(Debug)]
pub struct Participant {
    membership: Membership,
    record: MemberRecord,
    observer: Observer,
    consumers: BTreeMap<ConsumerId, Shares>,
    /// From when on, by CLOCK_BOOTTIME, the bucket is so old that each process which held something before it was created has stopped.
    settled_at: Option<Duration>,
    /// When operators' keys were last read.
    operators_read: BTreeMap<Key, Clocks>,
    requests: Requests,
    /// The record that was written last says that the process leaves.
    says_leaving: bool,
    is_told_of_loss: bool,
}

/// The partitions of one consumer.
#[derive(Debug)]
struct Shares {
    /// Number of partitions where no map says it.
    count: u32,
    map: Reading<MapRecord>,
    has_to_read_map: bool,
    owners: BTreeMap<u32, Owner>,
}

impl Shares {
    fn new(count: u32) -> Self {
        Self { count, map: Reading::Unavailable, has_to_read_map: true, owners: BTreeMap::new() }
    }

    fn record(&self) -> Option<&MapRecord> {
        match &self.map {
            Reading::Present(_, map) => Some(map),
            _ => None,
        }
    }

    /// The key of the operators that share them out.
    fn operator(&self) -> Key {
        let cluster = self.record().and_then(|map| map.cluster.clone());
        cluster.map_or(Key::Operator, Key::OperatorOf)
    }

    fn count(&self) -> u32 {
        self.record().map_or(self.count, |map| map.count)
    }
}

impl Participant {
    /// Joins, under an id that was never used, with these consumers and their numbers of partitions. `pod` is name and UID of the
    /// process's pod, if it has one.
    #[must_use]
    pub fn new(
        id: MemberId,
        pod: Option<(String, String)>,
        consumers: impl IntoIterator<Item = (ConsumerId, u32)>,
        now: Clocks,
    ) -> Self {
        let consumers: BTreeMap<_, _> =
            consumers.into_iter().map(|(consumer, count)| (consumer, Shares::new(count))).collect();
        let (pod, uid) = pod.unzip();
        let joined = Some(now.wall.as_secs());
        let participations = consumers.keys().map(|consumer| (consumer.clone(), Participation::default()));
        Self {
            record: MemberRecord {
                pod,
                uid,
                joined,
                consumers: participations.collect(),
                ..MemberRecord::default()
            },
            membership: Membership::new(id),
            observer: Observer::new(now),
            consumers,
            settled_at: None,
            operators_read: BTreeMap::new(),
            requests: Requests::default(),
            says_leaving: false,
            is_told_of_loss: false,
        }
    }

    /// The process joined first at this time since 1970, under an id that it lost. Its clock may have been set back since, and the container
    /// of before would seem to have ended later.
    pub fn joined_first(&mut self, wall: Duration) {
        self.record.joined = Some(wall.as_secs());
    }

    /// The id of the process.
    #[must_use]
    pub fn id(&self) -> &MemberId {
        self.membership.id()
    }

    /// The right to act for what is held.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        self.membership.lease()
    }

    /// Whether the membership is confirmed and not lost.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.membership.is_joined()
    }

    /// The process stops: it finishes what it has begun, and takes nothing more, which its record says at once. [`Action::Lost`] follows when
    /// nothing is left.
    pub fn leave(&mut self) {
        self.record.leaving = true;
    }

    /// The partitions that it holds, or writes that it does.
    pub fn held(&self) -> impl Iterator<Item = PartitionId> {
        self.consumers.iter().flat_map(|(consumer, shares)| {
            let held = shares.owners.iter().filter(|(_, owner)| owner.is_held());
            held.map(|(partition, _)| PartitionId { consumer: consumer.clone(), partition: *partition })
        })
    }

    /// Kubernetes reports that the container of this pod ended, at this second since 1970 by the clock of its node.
    pub fn container_ended(&mut self, uid: &str, ended_at: u64) {
        self.observer.container_ended(uid, ended_at);
    }

    /// Figures of a partition, for the next renewal, while it is held.
    pub fn report(&mut self, partition: &PartitionId, figures: Figures) {
        if let Some(participation) = self.record.consumers.get_mut(&partition.consumer) {
            participation.partitions.insert(partition.partition, figures);
        }
    }

    /// What was reported of partitions that are not held any more.
    fn forget_figures(&mut self) {
        for (consumer, participation) in &mut self.record.consumers {
            let Some(shares) = self.consumers.get(consumer) else { continue };
            let epoch = |partition: &u32| shares.owners.get(partition).and_then(Owner::epoch);
            participation.partitions.retain(|partition, _| epoch(partition).is_some());
        }
    }

    /// The order of a partition is recovered.
    pub fn recovered(&mut self, partition: &PartitionId) {
        if let Some(owner) = self.owner_mut(partition) {
            owner.recovered();
        }
    }

    /// Of a partition nothing runs any more, and what had not begun is given back.
    pub fn drained(&mut self, partition: &PartitionId) {
        if let Some(owner) = self.owner_mut(partition) {
            owner.drained();
        }
    }

    /// The age of the bucket, by the clock of the server that answered: the time of the answer less the stream's creation time.
    pub fn bucket_age(&mut self, age: Option<Duration>, now: Clocks) {
        self.requests.bucket_answered();
        self.settled_at = age.map(|age| now.boot + PATIENCE.saturating_sub(age)).or(self.settled_at);
    }

    /// What is held and waited for, by partition.
    pub fn states(&self, now: Clocks) -> impl Iterator<Item = (PartitionId, OwnerState, Option<u64>)> {
        self.consumers.iter().flat_map(move |(consumer, shares)| {
            let wishes = self.wishes(consumer, shares, now);
            shares.owners.iter().map(move |(partition, owner)| {
                let wish = wishes.get(partition).map_or(Wish::Keep, |(wish, _)| *wish);
                let id = PartitionId { consumer: consumer.clone(), partition: *partition };
                (id, owner.state(wish), owner.epoch())
            })
        })
    }

    /// What to do now.
    pub fn poll(&mut self, now: Clocks) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.membership.is_lost() {
            self.stop_everything(&mut actions);
            return actions;
        }
        self.poll_membership(now, &mut actions);
        if self.membership.is_joined() {
            if self.settled_at.is_none() {
                actions.extend(self.requests.read_bucket());
            }
            self.poll_maps(now, &mut actions);
            self.poll_owners(now, &mut actions);
        }
        actions
    }

    /// Other members have what it held, or will.
    fn stop_everything(&mut self, actions: &mut Vec<Action>) {
        if std::mem::replace(&mut self.is_told_of_loss, true) {
            return;
        }
        for (consumer, shares) in &self.consumers {
            let held = shares.owners.iter().filter(|(_, owner)| owner.epoch().is_some());
            actions.extend(held.map(|(partition, _)| {
                Action::Stop(PartitionId { consumer: consumer.clone(), partition: *partition })
            }));
        }
        actions.push(Action::Lost);
    }

    fn poll_owners(&mut self, now: Clocks, actions: &mut Vec<Action>) {
        let mut unknown = BTreeSet::new();
        let mut suspects = BTreeSet::new();
        for consumer in self.consumers.keys().cloned().collect::<Vec<_>>() {
            let Some(shares) = self.consumers.get(&consumer) else { continue };
            for (partition, (wish, needed)) in self.wishes(&consumer, shares, now) {
                unknown.extend(needed);
                let partition = PartitionId { consumer: consumer.clone(), partition };
                while let Some(action) = self.next_of(&partition, wish, now) {
                    let Some(shares) = self.consumers.get_mut(&consumer) else { break };
                    let holder = || shares.owners.get(&partition.partition).and_then(Owner::holder).cloned();
                    match &action {
                        OwnerAction::ReadHolder => unknown.extend(holder()),
                        OwnerAction::DeclareDead => suspects.extend(holder()),
                        action => self.requests.note_write(&partition, action),
                    }
                    match action_of(&partition, &action, deadline_of(&shares.map, partition.partition)) {
                        Some(action) => actions.push(action),
                        None => break,
                    }
                }
            }
        }
        for member in suspects {
            if let Verdict::Suspect { revision, reason } = self.observer.verdict(&member, now) {
                let by = self.membership.id().as_str();
                actions.extend(self.requests.deaths.declare(&member, by, revision, reason));
            }
        }
        unknown.extend(self.requests.deaths.doubted().cloned());
        actions.extend(unknown.iter().filter_map(|member| self.requests.read_member(member)));
    }

    fn next_of(&mut self, partition: &PartitionId, wish: Wish, now: Clocks) -> Option<OwnerAction> {
        let PartitionId { consumer, partition } = partition;
        let owner = self.consumers.get_mut(consumer)?.owners.entry(*partition).or_default();
        let verdict = owner.holder().map(|holder| self.observer.verdict(holder, now));
        let lease = self.membership.lease();
        let circumstances = Circumstances {
            me: self.membership.id(),
            wish,
            lease_holds: lease.holds(now),
            renewed: lease.renewed(),
            bucket_is_settled: self.settled_at.is_some_and(|settled_at| now.boot >= settled_at),
            holder: verdict.unwrap_or(Verdict::Unknown),
            now,
        };
        owner.next(&circumstances)
    }

    fn owner_mut(&mut self, partition: &PartitionId) -> Option<&mut Owner> {
        self.consumers.get_mut(&partition.consumer)?.owners.get_mut(&partition.partition)
    }
}

fn deadline_of(map: &Reading<MapRecord>, partition: u32) -> Option<u64> {
    match map {
        Reading::Present(_, map) => map.partitions.get(&partition)?.deadline,
        _ => None,
    }
}

#[cfg(test)]
mod tests;
