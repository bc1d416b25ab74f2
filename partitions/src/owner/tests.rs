use std::time::Duration;

use super::*;
use crate::records::DeathReason;

fn at(seconds: u64) -> Clocks {
    Clocks { boot: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
}

fn a() -> MemberId {
    MemberId::new("shop", "a").unwrap()
}

fn b() -> MemberId {
    MemberId::new("shop", "b").unwrap()
}

fn record(member: MemberId, state: HeldState, epoch: Option<u64>) -> HeldRecord {
    HeldRecord { member, state, epoch }
}

fn write(state: HeldState, epoch: Option<u64>, expected: u64) -> OwnerAction {
    OwnerAction::Write(record(a(), state, epoch), expected)
}

/// The partition as process a sees it, with what a test changes.
struct Bench {
    owner: Owner,
    me: MemberId,
    wish: Wish,
    lease_holds: bool,
    renewed: Option<Clocks>,
    bucket_is_settled: bool,
    holder: Verdict,
    now: Clocks,
}

impl Bench {
    fn new(reading: Reading<HeldRecord>) -> Self {
        let mut owner = Owner::default();
        owner.observed(reading, at(100));
        Self {
            owner,
            me: a(),
            wish: Wish::Have,
            lease_holds: true,
            renewed: Some(at(95)),
            bucket_is_settled: true,
            holder: Verdict::Alive,
            now: at(100),
        }
    }

    fn next(&mut self) -> Option<OwnerAction> {
        self.owner.next(&Circumstances {
            me: &self.me,
            wish: self.wish,
            lease_holds: self.lease_holds,
            renewed: self.renewed,
            bucket_is_settled: self.bucket_is_settled,
            holder: self.holder,
            now: self.now,
        })
    }

    fn answer(&mut self, answer: Answer, state: HeldState, epoch: Option<u64>) {
        self.owner.answered(answer, &record(a(), state, epoch), self.now);
    }

    /// Serving with epoch 12.
    fn serving() -> Self {
        let mut bench = Self::new(Reading::Absent(0));
        assert_eq!(bench.next(), Some(write(HeldState::Held, None, 0)));
        bench.answer(Answer::Stored(12), HeldState::Held, None);
        assert_eq!(bench.next(), None);
        bench.renewed = Some(at(101));
        bench.now = at(101);
        assert_eq!(bench.next(), Some(OwnerAction::Serve(12)));
        assert_eq!(bench.next(), None);
        bench
    }

    fn state(&self) -> OwnerState {
        self.owner.state(self.wish)
    }
}

#[test]
fn what_is_free_is_taken_at_its_revision_and_served_with_that_write_as_its_epoch() {
    let mut bench = Bench::new(Reading::Present(8, record(b(), HeldState::Free, Some(5))));
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 8)));
    assert_eq!(bench.next(), None, "one request at a time");
    bench.answer(Answer::Stored(12), HeldState::Held, None);
    assert_eq!(bench.next(), None);
    assert!(bench.owner.needs_renewal(bench.renewed), "the bucket may be another one by now");
    bench.renewed = Some(at(100));
    assert!(!bench.owner.needs_renewal(bench.renewed));
    bench.bucket_is_settled = false;
    assert_eq!(bench.next(), None, "who held it before the bucket was made may act");
    bench.bucket_is_settled = true;
    assert_eq!(bench.next(), Some(OwnerAction::Serve(12)));
    assert_eq!((bench.state(), bench.owner.epoch()), (OwnerState::Recovering, Some(12)));
    bench.owner.recovered();
    assert_eq!((bench.next(), bench.state()), (None, OwnerState::Serving));
}

#[test]
fn what_a_living_member_has_is_waited_for() {
    let mut bench = Bench::new(Reading::Present(8, record(b(), HeldState::Held, None)));
    assert_eq!((bench.next(), bench.state()), (None, OwnerState::Waiting));
    bench.owner.observed(Reading::Present(9, record(b(), HeldState::Draining, Some(8))), at(101));
    assert_eq!(bench.next(), None);
    bench.owner.observed(Reading::Present(10, record(b(), HeldState::Free, Some(8))), at(102));
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 10)));
}

#[test]
fn what_a_dead_member_had_is_taken_once_that_is_written() {
    let mut bench = Bench::new(Reading::Present(8, record(b(), HeldState::Held, None)));
    bench.holder = Verdict::Unknown;
    assert_eq!(bench.next(), Some(OwnerAction::ReadHolder));
    bench.holder = Verdict::Suspect { revision: 3, reason: DeathReason::Silent };
    assert_eq!(bench.next(), Some(OwnerAction::DeclareDead));
    bench.holder = Verdict::Dead;
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 8)));
}

#[test]
fn a_value_that_cannot_be_read_is_taken_when_its_writer_had_time_to_stop() {
    let mut bench = Bench::new(Reading::Unreadable(8));
    bench.now = at(131);
    assert_eq!(bench.next(), None);
    bench.now = at(132);
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 8)));
}

#[test]
fn nothing_is_taken_without_a_wish_or_a_lease() {
    let mut bench = Bench::new(Reading::Absent(0));
    bench.lease_holds = false;
    assert_eq!(bench.next(), None);
    bench.lease_holds = true;
    for wish in [Wish::Keep, Wish::HandOver] {
        bench.wish = wish;
        assert_eq!((bench.next(), bench.state()), (None, OwnerState::Idle));
    }
}

#[test]
fn of_a_write_whose_answer_was_lost_the_key_says_what_became_of_it() {
    for (reading, expected) in [
        (Reading::Present(12, record(a(), HeldState::Held, None)), Some(OwnerAction::Serve(12))),
        (Reading::Absent(0), Some(write(HeldState::Held, None, 0))),
        (Reading::Present(12, record(b(), HeldState::Held, None)), None),
    ] {
        let mut bench = Bench::new(Reading::Absent(0));
        bench.next();
        bench.answer(Answer::Unsure, HeldState::Held, None);
        assert!(bench.owner.is_doubtful());
        bench.renewed = Some(at(100));
        assert_eq!(bench.next(), Some(OwnerAction::Read));
        assert_eq!(bench.next(), None);
        bench.owner.read(Reading::Unavailable, at(100));
        assert_eq!(bench.next(), Some(OwnerAction::Read), "until there is an answer");
        bench.owner.read(reading.clone(), at(100));
        assert_eq!(bench.next(), expected, "{reading:?}");
    }
}

#[test]
fn a_write_that_arrives_when_nobody_waits_for_it_any_more_is_used_or_undone() {
    let late = Reading::Present(12, record(a(), HeldState::Held, None));
    let mut bench = Bench::new(late.clone());
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 12)), "with an epoch of its own");
    for wish in [Wish::Keep, Wish::HandOver] {
        let mut bench = Bench::new(late.clone());
        bench.wish = wish;
        assert_eq!(bench.next(), Some(OwnerAction::Drain), "this process may have had it under another id");
        assert_eq!(bench.next(), Some(write(HeldState::Draining, Some(12), 12)));
        bench.answer(Answer::Stored(13), HeldState::Draining, Some(12));
        assert_eq!(bench.next(), None, "something of it may run");
        bench.owner.drained();
        assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)));
    }
}

#[test]
fn a_hand_over_finishes_what_has_begun_before_the_partition_is_free() {
    let mut bench = Bench::serving();
    bench.wish = Wish::HandOver;
    assert_eq!(bench.next(), Some(OwnerAction::Drain));
    assert_eq!(bench.next(), Some(write(HeldState::Draining, Some(12), 12)));
    bench.answer(Answer::Stored(13), HeldState::Draining, Some(12));
    assert_eq!((bench.next(), bench.state()), (None, OwnerState::Draining));
    bench.wish = Wish::Have;
    assert_eq!(bench.next(), None, "it is not called back");
    bench.owner.drained();
    assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)));
    bench.answer(Answer::Stored(14), HeldState::Free, Some(12));
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 14)), "it is taken like any other");
}

/// As long as NATS is away, no answer comes.
#[test]
fn a_hand_over_begins_whatever_is_asked() {
    let mut bench = Bench::serving();
    bench.owner.refresh();
    bench.wish = Wish::HandOver;
    assert_eq!(bench.next(), Some(OwnerAction::Drain), "before the question");
    let mut bench = Bench::serving();
    bench.owner.refresh();
    assert_eq!(bench.next(), Some(OwnerAction::Read));
    bench.wish = Wish::HandOver;
    assert_eq!((bench.next(), bench.next()), (Some(OwnerAction::Drain), None), "before the answer");
    bench.owner.read(Reading::Unavailable, bench.now);
    assert_eq!(bench.next(), Some(OwnerAction::Read));
    bench.owner.read(Reading::Present(12, record(a(), HeldState::Held, None)), bench.now);
    assert_eq!(bench.next(), Some(write(HeldState::Draining, Some(12), 12)));
}

#[test]
fn an_answer_that_is_lost_in_a_hand_over_stops_nothing() {
    let mut bench = Bench::serving();
    bench.wish = Wish::HandOver;
    bench.next();
    bench.next();
    bench.owner.drained();
    bench.answer(Answer::Unsure, HeldState::Draining, Some(12));
    assert_eq!(bench.next(), Some(OwnerAction::Read));
    bench.owner.read(Reading::Present(13, record(a(), HeldState::Draining, Some(12))), bench.now);
    assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)));
    bench.answer(Answer::Unsure, HeldState::Free, Some(12));
    bench.next();
    bench.owner.read(Reading::Present(13, record(a(), HeldState::Draining, Some(12))), bench.now);
    assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)), "nothing was stored");
    bench.answer(Answer::Unsure, HeldState::Free, Some(12));
    bench.next();
    bench.owner.read(Reading::Present(14, record(a(), HeldState::Free, Some(12))), bench.now);
    assert_eq!((bench.next(), bench.owner.is_held()), (None, false));
}

#[test]
fn a_drain_that_ends_late_gives_up_nothing_that_was_taken_since() {
    let mut bench = Bench::serving();
    bench.wish = Wish::HandOver;
    assert_eq!(bench.next(), Some(OwnerAction::Drain));
    // It was found dead meanwhile, and its successor gave the partition up.
    bench.now = at(150);
    bench.owner.observed(Reading::Present(20, record(b(), HeldState::Free, Some(15))), bench.now);
    bench.wish = Wish::Have;
    assert_eq!(bench.next(), Some(OwnerAction::Stop));
    assert_eq!(bench.next(), Some(write(HeldState::Held, None, 20)));
    bench.answer(Answer::Stored(21), HeldState::Held, None);
    bench.renewed = Some(at(150));
    assert_eq!(bench.next(), Some(OwnerAction::Serve(21)));
    bench.owner.drained();
    assert_eq!((bench.next(), bench.owner.epoch()), (None, Some(21)));
}

#[test]
fn what_was_taken_and_not_served_is_free_when_nothing_of_an_earlier_tenure_runs() {
    let mut bench = Bench::new(Reading::Absent(0));
    bench.next();
    bench.answer(Answer::Stored(12), HeldState::Held, None);
    bench.wish = Wish::HandOver;
    assert_eq!(bench.next(), Some(OwnerAction::Drain));
    assert_eq!(bench.next(), Some(write(HeldState::Draining, Some(12), 12)));
    bench.answer(Answer::Stored(13), HeldState::Draining, Some(12));
    assert_eq!(bench.next(), None);
    bench.owner.drained();
    assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)));
}

#[test]
fn at_the_end_of_the_lease_everything_stops_whatever_is_under_way() {
    let mut bench = Bench::serving();
    bench.lease_holds = false;
    assert_eq!((bench.next(), bench.next()), (Some(OwnerAction::Suspend), None));
    assert_eq!(bench.state(), OwnerState::Suspended);
    bench.lease_holds = true;
    assert_eq!(bench.next(), Some(OwnerAction::Serve(12)), "nobody found the process dead");
    bench.wish = Wish::HandOver;
    assert_eq!(bench.next(), Some(OwnerAction::Drain));
    assert!(bench.next().is_some());
    bench.lease_holds = false;
    assert_eq!(
        (bench.next(), bench.next()),
        (Some(OwnerAction::Suspend), None),
        "although a write is under way"
    );
    bench.owner.drained();
    bench.answer(Answer::Stored(13), HeldState::Draining, Some(12));
    assert_eq!(bench.next(), Some(write(HeldState::Free, Some(12), 13)), "which is true, and needs no lease");
}

#[test]
fn what_another_member_took_or_removed_is_stopped() {
    for reading in [
        Reading::Present(13, record(b(), HeldState::Held, None)),
        Reading::Present(13, record(b(), HeldState::Free, Some(13))),
        Reading::Absent(13),
        Reading::Unreadable(13),
    ] {
        let mut bench = Bench::serving();
        bench.wish = Wish::Keep;
        bench.owner.observed(Reading::Present(11, record(b(), HeldState::Held, None)), bench.now);
        assert_eq!(bench.next(), None, "a message that comes late");
        bench.owner.observed(reading.clone(), bench.now);
        assert_eq!((bench.next(), bench.next()), (Some(OwnerAction::Stop), None), "{reading:?}");
        assert!(!bench.owner.is_held());
    }
}
