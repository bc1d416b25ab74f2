//! The membership of this process: joining, renewing, and losing it. Pure.
//!
//! In: times, answers to writes, what was read. Out: when to write or read the process's own key, and how long the lease is.
//!
//! One request is under way at a time. After an answer that says nothing, the key is read before it is written again: its revision
//! moved only if a renewal of this process was stored, or if another process found this one dead. But the first write expects no key, so where it
//! is late, a bucket that was deleted and made again stores it, too. Each write has its number, by which that is not taken for a renewal.

use crate::{
    keys::MemberId,
    lease::{Clocks, Lease, RENEWAL_INTERVAL},
    records::MemberRecord,
    write::{Answer, Reading},
};

/// What to do with the process's own key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MembershipRequest {
    /// Write the record, expecting this revision; 0 expects that there is no key.
    Write {
        /// The revision.
        expected: u64,
        /// The number of the write, for the record.
        renewal: u64,
    },
    /// Read the key from the leader of the bucket's stream.
    Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No write is confirmed.
    Joining,
    Joined,
    /// It was found dead, or its key is gone.
    Lost,
}

/// The membership of one process under one id.
#[derive(Clone, Debug)]
pub struct Membership {
    id: MemberId,
    state: State,
    lease: Lease,
    /// Of the newest own write that is known.
    revision: u64,
    /// When the last write was sent, and the number of that write.
    sent: Option<Clocks>,
    written: u64,
    /// Number of the newest write of which it is known that it is stored, or that the key's bucket cannot store it any more.
    decided: u64,
    /// When the earliest write was sent of which it is not known whether it was stored.
    unsure_since: Option<Clocks>,
    is_waiting: bool,
    has_to_read: bool,
    /// The write under way says that it is over.
    is_leaving: bool,
}

impl Membership {
    /// Joins under an id that was never used.
    #[must_use]
    pub fn new(id: MemberId) -> Self {
        Self {
            id,
            state: State::Joining,
            lease: Lease::default(),
            revision: 0,
            sent: None,
            written: 0,
            decided: 0,
            unsure_since: None,
            is_waiting: false,
            has_to_read: false,
            is_leaving: false,
        }
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &MemberId {
        &self.id
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether the process has to give up what it holds, and to join under a new id.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Whether a renewal is confirmed.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.state == State::Joined
    }

    /// The next request, if it is time for one. `at_once` asks for a renewal before its time.
    pub fn next(&mut self, at_once: bool, now: Clocks) -> Option<MembershipRequest> {
        if self.is_lost() || self.is_waiting {
            return None;
        }
        if self.has_to_read {
            self.is_waiting = true;
            return Some(MembershipRequest::Read);
        }
        let is_due = self.sent.is_none_or(|sent| now.since(sent) >= RENEWAL_INTERVAL);
        if !is_due && !at_once {
            return None;
        }
        self.is_waiting = true;
        self.sent = Some(now);
        self.written += 1;
        Some(MembershipRequest::Write { expected: self.revision, renewal: self.written })
    }

    /// The write under way ends the membership, whatever its answer is: nothing is held any more.
    pub fn leave(&mut self) {
        self.is_leaving = true;
    }

    /// The write was answered, or was not in time.
    pub fn answered(&mut self, answer: Answer) {
        self.is_waiting = false;
        if self.is_leaving {
            return self.lose();
        }
        // It expected the revision that was known, so it is this write that was stored.
        if let (Answer::Stored(revision), Some(sent)) = (answer, self.sent) {
            self.confirmed(revision, sent);
        } else {
            self.has_to_read = true;
            self.unsure_since = self.unsure_since.or(self.sent);
        }
    }

    /// The key was read.
    pub fn read(&mut self, reading: &Reading<MemberRecord>) {
        self.is_waiting = false;
        match reading {
            Reading::Unavailable => {}
            // The write may still arrive, so it stays unsure; it is sent again.
            Reading::Absent(_) if self.state == State::Joining => self.has_to_read = false,
            Reading::Present(revision, _) if *revision == self.revision => self.has_to_read = false,
            Reading::Present(revision, record) if *revision > self.revision && self.is_renewal(record) => {
                // An earlier one may have been stored before it.
                match self.unsure_since {
                    Some(sent) => self.confirmed(*revision, sent),
                    None => self.lose(),
                }
            }
            Reading::Absent(_) | Reading::Unreadable(_) | Reading::Present(..) => self.lose(),
        }
    }

    /// A watch brought the key's value. Only what is no renewal matters, as a death, which another process wrote: renewals are known by
    /// their answers.
    pub fn observed(&mut self, revision: u64, record: Option<&MemberRecord>) {
        let is_renewal = record.is_some_and(|record| self.is_renewal(record));
        if !is_renewal && revision > self.revision {
            self.lose();
        }
    }

    /// Whether it is a write of which it is not known what became of it. Others are decided: one that is found nevertheless is in another
    /// bucket, which knows nothing of what this process holds.
    fn is_renewal(&self, record: &MemberRecord) -> bool {
        let is_undecided = |number| self.decided < number && number <= self.written;
        record.dead.is_none() && record.renewal.is_some_and(is_undecided)
    }

    fn confirmed(&mut self, revision: u64, sent: Clocks) {
        if self.is_lost() {
            return;
        }
        self.state = State::Joined;
        self.revision = revision;
        self.decided = self.written;
        self.has_to_read = false;
        self.unsure_since = None;
        self.lease.confirm(sent);
    }

    fn lose(&mut self) {
        self.state = State::Lost;
        self.lease.end();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::records::{Dead, DeathReason};

    const READ: Option<MembershipRequest> = Some(MembershipRequest::Read);

    fn at(seconds: u64) -> Clocks {
        Clocks { boot: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
    }

    /// The write of this number, at this revision.
    fn write(renewal: u64, expected: u64) -> MembershipRequest {
        MembershipRequest::Write { expected, renewal }
    }

    fn joining() -> Membership {
        Membership::new(MemberId::new("shop", "a").unwrap())
    }

    /// Joined at second 0 with revision 10.
    fn joined() -> Membership {
        let mut membership = joining();
        assert_eq!(membership.next(false, at(0)), Some(write(1, 0)));
        membership.answered(Answer::Stored(10));
        membership
    }

    fn record(renewal: u64) -> MemberRecord {
        MemberRecord { renewal: Some(renewal), ..MemberRecord::default() }
    }

    /// The write of this number, as this revision.
    fn stored(renewal: u64, revision: u64) -> Reading<MemberRecord> {
        Reading::Present(revision, record(renewal))
    }

    fn dead(revision: u64) -> Reading<MemberRecord> {
        let dead = Some(Dead { by: "shop.b".into(), reason: DeathReason::Silent });
        Reading::Present(revision, MemberRecord { dead, ..MemberRecord::default() })
    }

    #[test]
    fn it_is_renewed_at_its_own_revision_every_five_seconds() {
        let mut membership = joining();
        assert_eq!(membership.next(false, at(0)), Some(write(1, 0)));
        assert_eq!(membership.next(true, at(9)), None, "one request at a time");
        membership.answered(Answer::Stored(10));
        assert!(
            membership.is_joined() && membership.lease().holds(at(29)) && !membership.lease().holds(at(30))
        );
        assert_eq!(membership.next(false, at(4)), None);
        assert_eq!(membership.next(false, at(5)), Some(write(2, 10)));
        membership.answered(Answer::Stored(15));
        assert!(membership.lease().holds(at(34)) && !membership.lease().holds(at(35)));
        assert_eq!(membership.next(true, at(6)), Some(write(3, 15)), "before its time where it is asked for");
    }

    #[test]
    fn a_renewal_whose_answer_was_lost_counts_from_its_sending() {
        let mut membership = joined();
        assert_eq!(membership.next(false, at(5)), Some(write(2, 10)));
        membership.answered(Answer::Unsure);
        assert_eq!(membership.next(false, at(8)), READ);
        membership.read(&stored(2, 15));
        assert!(membership.lease().holds(at(34)) && !membership.lease().holds(at(35)));
        assert_eq!(membership.next(false, at(10)), Some(write(3, 15)));
        membership.answered(Answer::Unsure);
        membership.next(false, at(12));
        membership.read(&stored(3, 20));
        assert!(membership.lease().holds(at(39)) && !membership.lease().holds(at(40)), "the next one, too");
    }

    #[test]
    fn of_two_renewals_without_an_answer_the_earlier_one_counts() {
        let mut membership = joined();
        membership.next(false, at(5));
        membership.answered(Answer::Unsure);
        membership.next(false, at(8));
        membership.read(&stored(1, 10));
        assert_eq!(membership.next(false, at(10)), Some(write(3, 10)), "nothing was stored by then");
        membership.answered(Answer::Unsure);
        membership.next(false, at(13));
        membership.read(&stored(2, 17));
        assert!(membership.lease().holds(at(34)) && !membership.lease().holds(at(35)));
    }

    #[test]
    fn a_first_write_whose_answer_was_lost_is_repeated_or_found() {
        let mut membership = joining();
        membership.next(false, at(0));
        membership.answered(Answer::Unsure);
        assert_eq!(membership.next(false, at(1)), READ);
        membership.read(&Reading::Absent(0));
        assert!(!membership.is_joined() && !membership.lease().holds(at(1)));
        assert_eq!(membership.next(false, at(5)), Some(write(2, 0)));
        membership.answered(Answer::Unsure);
        membership.next(false, at(6));
        membership.read(&stored(1, 3));
        assert!(
            membership.is_joined() && membership.lease().holds(at(29)) && !membership.lease().holds(at(30))
        );
    }

    #[test]
    fn a_read_without_an_answer_is_repeated() {
        let mut membership = joined();
        membership.next(false, at(5));
        membership.answered(Answer::Unsure);
        assert_eq!(membership.next(false, at(6)), READ);
        membership.read(&Reading::Unavailable);
        assert_eq!(membership.next(false, at(7)), READ);
    }

    #[test]
    fn who_was_found_dead_or_has_no_key_any_more_has_lost_it_for_good() {
        let foreign = Reading::Present(15, MemberRecord::default());
        // Another program may keep what the record says.
        let Reading::Present(_, whole) = dead(15) else { unreachable!() };
        let whole = MemberRecord { renewal: Some(2), ..whole };
        for reading in [
            Reading::Present(15, whole),
            dead(15),
            Reading::Absent(0),
            Reading::Absent(15),
            Reading::Unreadable(15),
            stored(2, 4),
            stored(3, 15),
            foreign,
        ] {
            let mut membership = joined();
            membership.next(false, at(5));
            membership.answered(Answer::Unsure);
            membership.next(false, at(6));
            membership.read(&reading);
            assert!(membership.is_lost() && !membership.lease().holds(at(6)), "{reading:?}");
            membership.answered(Answer::Stored(20));
            assert!(membership.is_lost());
            assert_eq!(membership.next(true, at(60)), None);
        }
    }

    #[test]
    fn a_watch_tells_of_the_death_too() {
        let mut membership = joined();
        membership.observed(10, Some(&record(1)));
        membership.next(false, at(5));
        membership.observed(15, Some(&record(2)));
        assert!(!membership.is_lost(), "its own renewal, seen before its answer");
        let Reading::Present(_, record) = dead(16) else { unreachable!() };
        membership.observed(9, Some(&record));
        assert!(!membership.is_lost(), "older than its own renewal");
        membership.observed(16, Some(&record));
        assert!(membership.is_lost());
    }

    #[test]
    fn a_late_first_write_that_a_bucket_which_was_made_again_stores_is_no_renewal() {
        // The answer to the first write was lost. Either it was not stored, and the second was; or it was, and the second is under way.
        for second in [Answer::Stored(10), Answer::Unsure] {
            let mut membership = joining();
            membership.next(false, at(0));
            membership.answered(Answer::Unsure);
            membership.next(false, at(1));
            membership.read(&Reading::Absent(0));
            assert_eq!(membership.next(false, at(5)), Some(write(2, 0)));
            membership.answered(second);
            if second == Answer::Unsure {
                membership.next(false, at(6));
                membership.read(&stored(1, 10));
            }
            assert!(membership.is_joined());
            let late = if second == Answer::Unsure { 2 } else { 1 };
            let mut watched = membership.clone();
            watched.observed(1_000, Some(&record(late)));
            assert!(watched.is_lost(), "{second:?}");
            assert_eq!(membership.next(false, at(10)), Some(write(3, 10)));
            membership.answered(Answer::Unsure);
            membership.next(false, at(11));
            membership.read(&stored(late, 1_000));
            assert!(membership.is_lost() && !membership.lease().holds(at(11)), "{second:?}");
        }
    }

    #[test]
    fn a_lease_that_ran_out_is_renewed_where_nobody_found_the_process_dead() {
        let mut membership = joined();
        assert!(!membership.lease().holds(at(90)));
        assert_eq!(membership.next(false, at(90)), Some(write(2, 10)));
        membership.answered(Answer::Stored(11));
        assert!(membership.lease().holds(at(119)));
    }
}
