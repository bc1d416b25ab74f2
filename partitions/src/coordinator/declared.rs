//! What is declared of a consumer whose partitions are shared out. Pure.

use std::{collections::BTreeMap, time::Duration};

use crate::records::MemberRecord;

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
    pub(super) fn role_of(&self, record: &MemberRecord) -> Option<PodRole> {
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
