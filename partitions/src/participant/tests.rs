use super::*;
use crate::{
    actions::Value,
    keys::Key,
    records::{Dead, DeathReason, HeldRecord, HeldState, MapEntry, OperatorRecord, Record},
    write::Answer,
};

fn at(seconds: u64) -> Clocks {
    Clocks { boot: Duration::from_secs(seconds), wall: Duration::from_secs(seconds) }
}

fn fulfilment() -> ConsumerId {
    "orders.fulfilment".parse().unwrap()
}

fn member(name: &str) -> MemberId {
    MemberId::new("shop", name).unwrap()
}

fn partition(partition: u32) -> PartitionId {
    PartitionId { consumer: fulfilment(), partition }
}

fn held(number: u32) -> Key {
    Key::Held(partition(number))
}

fn see<R: Record>(participant: &mut Participant, key: &Key, revision: u64, record: &R, now: Clocks) {
    participant.observed(key, Value::Bytes(revision, record.to_json().as_bytes()), now).unwrap();
}

fn map_to(names: &[&str]) -> MapRecord {
    let entry = |name: &&str| MapEntry { to: member(name), from: None, deadline: None };
    let partitions: BTreeMap<_, _> = (0..).zip(names.iter().map(entry)).collect();
    MapRecord {
        generation: 1,
        count: u32::try_from(names.len()).unwrap(),
        partitions,
        ..MapRecord::default()
    }
}

fn record_of(name: &str) -> MemberRecord {
    MemberRecord {
        joined: Some(0),
        uid: Some(format!("uid-{name}")),
        consumers: [(fulfilment(), Participation::default())].into(),
        ..MemberRecord::default()
    }
}

/// Member a, which joined at second 0 with revision 10 in an old bucket.
fn joined() -> Participant {
    let pod = Some(("pod-a".to_owned(), "uid-a".to_owned()));
    let mut participant = Participant::new(member("a"), pod, [(fulfilment(), 2)], at(0));
    let value =
        r#"{"pod":"pod-a","uid":"uid-a","joined":0,"renewal":1,"consumers":{"orders.fulfilment":{}}}"#
            .to_owned();
    let join = Action::Write { key: Key::Member(member("a")), value, expected: 0 };
    assert_eq!(participant.poll(at(0)), [join]);
    participant.answered(&Key::Member(member("a")), Answer::Stored(10), at(0));
    assert_eq!(participant.poll(at(0)), [Action::ReadBucket, Action::Read(Key::Map(fulfilment()))]);
    participant.bucket_age(Some(Duration::from_hours(1)), at(0));
    participant.read(&Key::Map(fulfilment()), Value::Absent(0), at(0)).unwrap();
    see(&mut participant, &Key::Operator, 9, &OperatorRecord { identity: "o".into() }, at(0));
    assert_eq!(participant.poll(at(0)), []);
    participant
}

/// It serves both partitions, with the epochs 20 and 21.
fn serving() -> Participant {
    let mut participant = joined();
    see(&mut participant, &Key::Map(fulfilment()), 11, &map_to(&["a", "a"]), at(1));
    assert_eq!(participant.poll(at(1)), [Action::Read(held(0)), Action::Read(held(1))]);
    for number in 0..2 {
        participant.read(&held(number), Value::Absent(0), at(1)).unwrap();
    }
    assert_eq!(participant.poll(at(1)).len(), 2);
    participant.answered(&held(0), Answer::Stored(20), at(1));
    participant.answered(&held(1), Answer::Stored(21), at(1));
    participant.poll(at(1));
    let renewal = participant.poll(at(2));
    assert!(matches!(&renewal[0], Action::Write { key: Key::Member(_), expected: 10, .. }), "{renewal:?}");
    participant.answered(&Key::Member(member("a")), Answer::Stored(22), at(2));
    let served =
        [(0, 20), (1, 21)].map(|(number, epoch)| Action::Serve { partition: partition(number), epoch });
    let actions = participant.poll(at(2));
    assert!(served.iter().all(|serve| actions.contains(serve)), "{actions:?}");
    participant
}

/// The actions that are no reads.
fn decisions(participant: &mut Participant, now: Clocks) -> Vec<Action> {
    participant.poll(now).into_iter().filter(|action| !matches!(action, Action::Read(_))).collect()
}

#[test]
fn what_the_map_means_for_it_is_taken_and_served_after_one_more_renewal() {
    let participant = serving();
    let states: Vec<_> = participant.states(at(2)).map(|(_, state, epoch)| (state, epoch)).collect();
    assert_eq!(states, [(OwnerState::Recovering, Some(20)), (OwnerState::Recovering, Some(21))]);
}

#[test]
fn in_a_young_bucket_nothing_is_served() {
    let mut participant = joined();
    participant.bucket_age(Some(Duration::from_secs(10)), at(0));
    see(&mut participant, &Key::Map(fulfilment()), 11, &map_to(&["a"]), at(1));
    participant.poll(at(1));
    participant.read(&held(0), Value::Absent(0), at(1)).unwrap();
    participant.poll(at(1));
    participant.answered(&held(0), Answer::Stored(20), at(1));
    participant.poll(at(1));
    let is_served = |second| {
        let actions = participant.poll(at(second));
        participant.answered(&Key::Member(member("a")), Answer::Stored(100 + second), at(second));
        actions.iter().any(|action| matches!(action, Action::Serve { .. }))
    };
    // After 32 seconds, less the 10 of its age.
    assert_eq!([6, 11, 16, 21, 22].map(is_served), [false, false, false, false, true]);
}

#[test]
fn a_partition_is_handed_over_to_a_member_that_is_there_and_kept_for_one_that_is_not() {
    let mut participant = serving();
    see(&mut participant, &Key::Map(fulfilment()), 30, &map_to(&["b", "a"]), at(3));
    assert_eq!(participant.poll(at(3)), [Action::Read(Key::Member(member("b")))], "who is that?");
    participant.read(&Key::Member(member("b")), Value::Absent(0), at(3)).unwrap();
    assert_eq!(decisions(&mut participant, at(3)), [], "nobody");
    see(&mut participant, &Key::Member(member("b")), 31, &record_of("b"), at(3));
    let actions = decisions(&mut participant, at(3));
    assert_eq!(actions[0], Action::Drain { partition: partition(0), deadline: None });
    let leaving = MemberRecord { leaving: true, ..record_of("b") };
    let mut participant = serving();
    see(&mut participant, &Key::Map(fulfilment()), 30, &map_to(&["b", "a"]), at(3));
    see(&mut participant, &Key::Member(member("b")), 31, &leaving, at(3));
    assert_eq!(decisions(&mut participant, at(3)), [], "it takes nothing any more");
}

#[test]
fn a_member_that_is_found_dead_is_written_dead_once_and_then_followed() {
    let mut participant = joined();
    see(&mut participant, &Key::Member(member("b")), 12, &record_of("b"), at(1));
    let of_b = HeldRecord { member: member("b"), state: HeldState::Held, epoch: None };
    see(&mut participant, &held(0), 13, &of_b, at(1));
    see(&mut participant, &Key::Map(fulfilment()), 14, &map_to(&["a"]), at(1));
    assert_eq!(decisions(&mut participant, at(1)), []);
    participant.container_ended("uid-b", 1_000);
    let dead = Dead { by: "shop.a".into(), reason: DeathReason::ContainerEnded };
    let value = MemberRecord { dead: Some(dead), ..MemberRecord::default() }.to_json();
    let declare = Action::Write { key: Key::Member(member("b")), value, expected: 12 };
    assert_eq!(decisions(&mut participant, at(1)), [declare]);
    assert_eq!(decisions(&mut participant, at(1)), []);
    participant.answered(&Key::Member(member("b")), Answer::Stored(15), at(1));
    let actions = decisions(&mut participant, at(1));
    assert!(matches!(&actions[..], [Action::Write { key: Key::Held(_), expected: 13, .. }]), "{actions:?}");
}

#[test]
fn who_was_found_dead_stops_everything_and_says_that_it_is_lost_once() {
    let mut participant = serving();
    let dead = Dead { by: "shop.b".into(), reason: DeathReason::Silent };
    let record = MemberRecord { dead: Some(dead), ..MemberRecord::default() };
    see(&mut participant, &Key::Member(member("a")), 40, &record, at(3));
    let stops = [Action::Stop(partition(0)), Action::Stop(partition(1)), Action::Lost];
    assert_eq!(participant.poll(at(3)), stops);
    assert_eq!(participant.poll(at(4)), []);
}

#[test]
fn at_the_end_of_the_lease_all_partitions_are_suspended() {
    let mut participant = serving();
    let actions = decisions(&mut participant, at(32));
    let suspended = [Action::Suspend(partition(0)), Action::Suspend(partition(1))];
    assert!(suspended.iter().all(|suspend| actions.contains(suspend)), "{actions:?}");
    assert!(!participant.lease().holds(at(32)));
}

#[test]
fn who_leaves_finishes_first_and_then_ends_its_membership_itself() {
    let mut participant = serving();
    participant.leave();
    let drains = |number| Action::Drain { partition: partition(number), deadline: None };
    let actions = decisions(&mut participant, at(3));
    assert!(actions.contains(&drains(0)) && actions.contains(&drains(1)), "{actions:?}");
    participant.answered(&Key::Member(member("a")), Answer::Stored(49), at(3));
    for number in 0..2 {
        participant.answered(&held(number), Answer::Stored(50 + u64::from(number)), at(3));
        participant.drained(&partition(number));
    }
    let freed = decisions(&mut participant, at(3));
    assert_eq!(freed.len(), 2, "{freed:?}");
    for number in 0..2 {
        participant.answered(&held(number), Answer::Stored(60 + u64::from(number)), at(3));
    }
    decisions(&mut participant, at(3));
    let actions = decisions(&mut participant, at(3));
    let is_farewell =
        |action: &Action| matches!(action, Action::Write { value, .. } if value.contains("Left"));
    assert!(actions.iter().any(is_farewell), "{actions:?}");
    participant.answered(&Key::Member(member("a")), Answer::Unsure, at(3));
    assert_eq!(participant.poll(at(3)), [Action::Lost]);
}

/// The record that was last written for it.
fn written(actions: &[Action]) -> MemberRecord {
    let key = Key::Member(member("a"));
    let value = actions.iter().find_map(|action| match action {
        Action::Write { key: to, value, .. } if *to == key => Some(value),
        _ => None,
    });
    MemberRecord::read(&key, value.unwrap().as_bytes()).unwrap()
}

#[test]
fn who_leaves_says_so_at_once_also_where_something_does_not_end() {
    let mut participant = serving();
    participant.leave();
    let record = written(&participant.poll(at(3)));
    assert!(record.leaving && record.dead.is_none(), "{record:?}");
    participant.answered(&Key::Member(member("a")), Answer::Stored(49), at(3));
    for number in 0..2 {
        participant.answered(&held(number), Answer::Stored(50 + u64::from(number)), at(3));
    }
    participant.drained(&partition(1));
    participant.poll(at(3));
    participant.answered(&held(1), Answer::Stored(60), at(3));
    let is_of_member = |action: &Action| matches!(action, Action::Write { key: Key::Member(_), .. });
    assert!(!participant.poll(at(3)).iter().any(is_of_member), "said once");
    assert_eq!(participant.held().collect::<Vec<_>>(), [partition(0)]);
}

#[test]
fn figures_are_those_of_the_partitions_that_it_holds() {
    let mut participant = serving();
    for number in 0..2 {
        participant.report(&partition(number), Figures { delivered: 7, ..Figures::default() });
    }
    let reported = |record: &MemberRecord| {
        record.consumers[&fulfilment()].partitions.keys().copied().collect::<Vec<_>>()
    };
    assert_eq!(reported(&written(&participant.poll(at(7)))), [0, 1]);
    participant.answered(&Key::Member(member("a")), Answer::Stored(30), at(7));
    let taken = HeldRecord { member: member("b"), state: HeldState::Held, epoch: None };
    see(&mut participant, &held(1), 40, &taken, at(8));
    assert!(participant.poll(at(8)).contains(&Action::Stop(partition(1))));
    // The loop of a partition that was lost may not have ended.
    participant.report(&partition(1), Figures::default());
    assert_eq!(reported(&written(&participant.poll(at(12)))), [0]);
}

#[test]
fn without_an_operator_its_share_is_taken_once_the_silence_was_read() {
    let mut participant = joined();
    for second in (5..=30).step_by(5) {
        participant.poll(at(second));
        participant.answered(&Key::Member(member("a")), Answer::Stored(100 + second), at(second));
        participant.read(&Key::Map(fulfilment()), Value::Absent(0), at(second)).unwrap();
    }
    assert_eq!(decisions(&mut participant, at(31)), [], "its watch may be lost");
    participant.read(&Key::Operator, Value::Bytes(9, b"{}"), at(31)).unwrap();
    let actions = participant.poll(at(31));
    assert!(
        actions.contains(&Action::Read(held(0))) && actions.contains(&Action::Read(held(1))),
        "{actions:?}"
    );
}

#[test]
fn the_operator_of_another_cluster_keeps_nobody_from_its_share() {
    let mut participant = joined();
    let map = MapRecord { cluster: Some("east".into()), ..map_to(&["gone", "gone"]) };
    see(&mut participant, &Key::Map(fulfilment()), 30, &map, at(1));
    let [east, west] = ["east", "west"].map(|cluster| Key::OperatorOf(cluster.into()));
    let mut asked = BTreeSet::new();
    for second in (5..=30).step_by(5) {
        for key in [&Key::Operator, &west] {
            see(&mut participant, key, 30 + second, &OperatorRecord { identity: "west".into() }, at(second));
        }
        let actions = participant.poll(at(second));
        asked.extend(actions.into_iter().filter_map(|action| match action {
            Action::Read(key) => Some(key),
            _ => None,
        }));
        participant.answered(&Key::Member(member("a")), Answer::Stored(100 + second), at(second));
    }
    assert!(asked.contains(&east) && !asked.contains(&Key::Operator), "{asked:?}");
    participant.read(&Key::Member(member("gone")), Value::Absent(0), at(31)).unwrap();
    participant.read(&east, Value::Absent(0), at(31)).unwrap();
    assert!(participant.poll(at(31)).contains(&Action::Read(held(0))));
}

#[test]
fn bytes_that_cannot_be_read_are_told_and_change_nothing() {
    let mut participant = serving();
    for key in [Key::Map(fulfilment()), Key::Member(member("b"))] {
        let error = participant.observed(&key, Value::Bytes(90, b"\xff"), at(3)).unwrap_err();
        assert!(error.to_string().contains(&key.to_string()), "{error}");
    }
    assert_eq!(decisions(&mut participant, at(3)), []);
    participant.observed(&held(0), Value::Bytes(91, b"{}"), at(3)).unwrap_err();
    assert_eq!(
        decisions(&mut participant, at(3)),
        [Action::Stop(partition(0))],
        "its revision is not the own one any more"
    );
}
