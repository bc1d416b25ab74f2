//! Declaring members dead: one write for each, and a read where its answer is lost. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    actions::Action,
    keys::{Key, MemberId},
    records::{Dead, DeathReason, MemberRecord, Record},
    write::{Answer, Reading},
};

/// Declarations under way.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    written: BTreeMap<MemberId, MemberRecord>,
    /// Nothing more is written before these are read.
    doubted: BTreeSet<MemberId>,
}

impl Deaths {
    /// Writes that a member is dead, at the revision that was seen: a renewal meanwhile makes it fail.
    pub(crate) fn declare(
        &mut self,
        member: &MemberId,
        by: &str,
        revision: u64,
        reason: DeathReason,
    ) -> Option<Action> {
        if self.written.contains_key(member) || self.doubted.contains(member) {
            return None;
        }
        let record =
            MemberRecord { dead: Some(Dead { by: by.to_owned(), reason }), ..MemberRecord::default() };
        let value = record.to_json();
        self.written.insert(member.clone(), record);
        Some(Action::Write { key: Key::Member(member.clone()), value, expected: revision })
    }

    /// The write was answered, or was not in time; returns what is known of the member now.
    pub(crate) fn answered(&mut self, member: &MemberId, answer: Answer) -> Option<Reading<MemberRecord>> {
        let record = self.written.remove(member)?;
        match answer {
            Answer::Stored(revision) => Some(Reading::Present(revision, record)),
            Answer::Unsure => {
                self.doubted.insert(member.clone());
                None
            }
        }
    }

    /// The members that have to be read.
    pub(crate) fn doubted(&self) -> impl Iterator<Item = &MemberId> {
        self.doubted.iter()
    }

    /// A member was read.
    pub(crate) fn read(&mut self, member: &MemberId) {
        self.doubted.remove(member);
    }
}
