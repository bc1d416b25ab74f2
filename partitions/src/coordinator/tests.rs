use std::time::Duration;

use super::*;
use crate::records::{Dead, DeathReason, HeldState, MapEntry, Participation};

fn at(seconds: u64) -> Clocks {
    Clocks { boot: Duration::from_secs(seconds), wall: Duration::from_secs(1_000 + seconds) }
}

fn fulfilment() -> ConsumerId {
    "orders.fulfilment".parse().unwrap()
}

fn member(name: &str) -> MemberId {
    MemberId::new("shop", name).unwrap()
}

fn here(name: &str) -> MemberRecord {
    MemberRecord {
        uid: Some(format!("uid-{name}")),
        joined: Some(0),
        consumers: [(fulfilment(), Participation::default())].into(),
        ..MemberRecord::default()
    }
}

fn declared(pods: &[(&str, PodRole)]) -> Declared {
    let roles = pods.iter().map(|(name, role)| (format!("uid-{name}"), *role)).collect();
    let pods = Some(Pods { namespace: "shop".into(), roles });
    Declared { count: 4, drain: Duration::from_secs(30), pods }
}

fn see<R: Record>(coordinator: &mut Coordinator, key: &Key, revision: u64, record: &R, now: Clocks) {
    coordinator.observed(key, Value::Bytes(revision, record.to_json().as_bytes()), now).unwrap();
}

fn join(coordinator: &mut Coordinator, name: &str, revision: u64, now: Clocks) {
    see(coordinator, &Key::Member(member(name)), revision, &here(name), now);
}

fn hold(coordinator: &mut Coordinator, partition: u32, name: &str, revision: u64) {
    let key = Key::Held(PartitionId { consumer: fulfilment(), partition });
    let record = HeldRecord { member: member(name), state: HeldState::Held, epoch: None };
    see(coordinator, &key, revision, &record, at(0));
}

/// Leads a consumer of four partitions since second 0; nothing is there yet.
fn leading(pods: &[(&str, PodRole)]) -> Coordinator {
    let mut coordinator = Coordinator::new("operator-0", "east", at(0));
    coordinator.declare(fulfilment(), declared(pods));
    let map = Key::Map(fulfilment());
    assert!(
        coordinator.poll(at(0)).iter().any(|action| matches!(action, Action::Put { key: Key::Operator, .. }))
    );
    coordinator.synced();
    assert_eq!(coordinator.poll(at(0)), [Action::Read(map.clone())]);
    assert_eq!(coordinator.poll(at(0)), [], "it is read once");
    coordinator.read(&map, Value::Absent(0), at(0)).unwrap();
    coordinator
}

/// The map that is written now, if any, and the revision that it expects.
fn written(coordinator: &mut Coordinator, now: Clocks) -> Option<(MapRecord, u64)> {
    coordinator.poll(now).into_iter().find_map(|action| match action {
        Action::Write { key: Key::Map(_), value, expected } => {
            Some((MapRecord::read(&Key::Operator, value.as_bytes()).unwrap(), expected))
        }
        _ => None,
    })
}

fn targets(map: &MapRecord) -> Vec<String> {
    map.partitions.values().map(|entry| entry.to.as_str().trim_start_matches("shop.").to_owned()).collect()
}

#[test]
fn its_own_key_moves_every_five_seconds() {
    let mut coordinator = Coordinator::new("operator-0", "east", at(0));
    let value = r#"{"identity":"operator-0"}"#;
    let east = Key::OperatorOf("east".into());
    let heartbeats = [Key::Operator, east.clone()].map(|key| Action::Put { key, value: value.to_owned() });
    assert_eq!(coordinator.poll(at(0)), heartbeats);
    coordinator.answered(&Key::Operator, Answer::Unsure, at(0));
    assert_eq!(coordinator.poll(at(9)), [], "one is under way");
    coordinator.answered(&east, Answer::Unsure, at(9));
    assert_eq!(coordinator.poll(at(9)), heartbeats);
    for key in [Key::Operator, east] {
        coordinator.answered(&key, Answer::Stored(1), at(9));
    }
    assert_eq!(coordinator.poll(at(13)), []);
    assert_eq!(coordinator.poll(at(14)), heartbeats);
}

#[test]
fn a_map_names_its_cluster() {
    let mut coordinator = leading(&[]);
    join(&mut coordinator, "a", 2, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!(map.cluster.as_deref(), Some("east"));
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(3), at(1));
    // As one that an earlier version wrote.
    let unnamed = MapRecord { cluster: None, ..map };
    see(&mut coordinator, &Key::Map(fulfilment()), 9, &unnamed, at(10));
    assert_eq!(written(&mut coordinator, at(10)).unwrap().0.cluster.as_deref(), Some("east"));
}

#[test]
fn before_the_watch_has_brought_everything_nothing_is_decided() {
    let mut coordinator = Coordinator::new("operator-0", "east", at(0));
    coordinator.declare(fulfilment(), declared(&[("a", PodRole::Current)]));
    join(&mut coordinator, "a", 5, at(0));
    assert_eq!(coordinator.poll(at(0)).len(), 2, "its own keys");
}

#[test]
fn partitions_are_mapped_to_the_pods_of_the_workload_that_have_joined() {
    let mut coordinator =
        leading(&[("a", PodRole::Current), ("b", PodRole::Current), ("pending", PodRole::Current)]);
    assert_eq!(written(&mut coordinator, at(1)), None, "nobody is there");
    for (revision, name) in [(5, "a"), (6, "b"), (7, "stranger")] {
        join(&mut coordinator, name, revision, at(1));
    }
    let (map, expected) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!(
        (targets(&map), map.generation, map.count, expected),
        (vec!["a".into(), "b".into(), "a".into(), "b".into()], 1, 4, 0)
    );
    assert_eq!(written(&mut coordinator, at(1)), None, "one write at a time");
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(9), at(1));
    assert_eq!(written(&mut coordinator, at(2)), None, "it is right");
}

#[test]
fn a_member_of_another_namespace_that_names_a_pod_of_the_workload_gets_nothing() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    let forged = Key::Member(MemberId::new("bank", "a").unwrap());
    see(&mut coordinator, &forged, 5, &here("a"), at(1));
    assert_eq!(written(&mut coordinator, at(1)), None);
}

#[test]
fn a_hand_over_names_who_has_it_and_keeps_its_deadline() {
    let mut coordinator = leading(&[("a", PodRole::Current), ("b", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    (0..4).for_each(|partition| hold(&mut coordinator, partition, "a", 10 + u64::from(partition)));
    assert!(written(&mut coordinator, at(1)).is_some());
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(20), at(1));
    join(&mut coordinator, "b", 21, at(2));
    let (map, expected) = written(&mut coordinator, at(2)).unwrap();
    let moved: Vec<_> = map.partitions.iter().filter(|(_, entry)| entry.to == member("b")).collect();
    assert_eq!((moved.len(), expected), (2, 20));
    for (_, entry) in &moved {
        assert_eq!((entry.from.clone(), entry.deadline), (Some(member("a")), Some(1_032)));
    }
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(22), at(2));
    assert_eq!(written(&mut coordinator, at(20)), None);
    let first = *moved[0].0;
    hold(&mut coordinator, first, "b", 30);
    let (map, _) = written(&mut coordinator, at(21)).unwrap();
    assert_eq!((map.partitions[&first].from.clone(), map.partitions[&first].deadline), (None, None));
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(31), at(21));
    hold(&mut coordinator, first, "c", 32);
    let (map, _) = written(&mut coordinator, at(22)).unwrap();
    let (from, deadline) = (map.partitions[&first].from.clone(), map.partitions[&first].deadline);
    assert_eq!((from, deadline), (Some(member("c")), Some(1_052)));
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(33), at(22));
    hold(&mut coordinator, first, "d", 34);
    let (map, _) = written(&mut coordinator, at(24)).unwrap();
    assert_eq!(map.partitions[&first].deadline, Some(1_054), "another one begins to give it up");
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(35), at(24));
    let free = HeldRecord { member: member("d"), state: HeldState::Free, epoch: None };
    see(
        &mut coordinator,
        &Key::Held(PartitionId { consumer: fulfilment(), partition: first }),
        36,
        &free,
        at(25),
    );
    let (map, _) = written(&mut coordinator, at(25)).unwrap();
    assert_eq!((map.partitions[&first].from.clone(), map.partitions[&first].deadline), (None, None));
}

#[test]
fn a_map_that_another_operator_wrote_meanwhile_is_read_before_anything_follows() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    assert!(written(&mut coordinator, at(1)).is_some());
    let key = Key::Map(fulfilment());
    coordinator.answered(&key, Answer::Unsure, at(1));
    assert_eq!(coordinator.poll(at(1)), [Action::Read(key.clone())]);
    coordinator.read(&key, Value::Unavailable, at(1)).unwrap();
    assert_eq!(coordinator.poll(at(1)), [Action::Read(key.clone())]);
    let entry = MapEntry { to: member("a"), from: None, deadline: None };
    let theirs = MapRecord {
        generation: 7,
        count: 4,
        cluster: Some("east".into()),
        partitions: (0..4).map(|number| (number, entry.clone())).collect(),
    };
    coordinator.read(&key, Value::Bytes(9, theirs.to_json().as_bytes()), at(1)).unwrap();
    assert_eq!(coordinator.poll(at(1)), []);
}

#[test]
fn a_map_that_is_gone_from_the_stream_is_written_as_the_first_one() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    let key = Key::Map(fulfilment());
    coordinator.answered(&key, Answer::Stored(9), at(1));
    coordinator.declare(fulfilment(), Declared { count: 5, ..declared(&[("a", PodRole::Current)]) });
    assert_eq!(written(&mut coordinator, at(1)).map(|(_, expected)| expected), Some(9));
    coordinator.answered(&key, Answer::Unsure, at(1));
    assert_eq!(coordinator.poll(at(1)), [Action::Read(key.clone())]);
    coordinator.read(&key, Value::Absent(0), at(1)).unwrap();
    let (next, expected) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!((next.generation, expected), (map.generation, 0), "as if there had been none");
}

#[test]
fn an_answer_that_is_older_than_what_the_watch_brought_meanwhile_changes_nothing() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    let key = Key::Map(fulfilment());
    coordinator.answered(&key, Answer::Unsure, at(1));
    assert_eq!(coordinator.poll(at(1)), [Action::Read(key.clone())]);
    see(&mut coordinator, &key, 10, &map, at(1));
    let older = MapRecord { partitions: BTreeMap::new(), ..map };
    coordinator.read(&key, Value::Bytes(9, older.to_json().as_bytes()), at(1)).unwrap();
    assert_eq!(coordinator.poll(at(1)), []);
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(1)).unwrap()[0].to, Some(member("a")));
}

#[test]
fn a_map_that_cannot_be_read_is_replaced_at_its_revision() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    let error = coordinator.observed(&Key::Map(fulfilment()), Value::Bytes(8, b"x"), at(1)).unwrap_err();
    assert!(error.to_string().contains("map.orders.fulfilment"), "{error}");
    assert_eq!(written(&mut coordinator, at(1)).map(|(_, expected)| expected), Some(8));
}

#[test]
fn members_of_an_earlier_template_give_way_and_retiring_ones_give_up_everything() {
    let mut coordinator = leading(&[("a", PodRole::Current), ("b", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    join(&mut coordinator, "b", 6, at(1));
    written(&mut coordinator, at(1)).unwrap();
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(9), at(1));
    join(&mut coordinator, "stranger", 7, at(1));
    let pods = [("a", PodRole::Earlier), ("b", PodRole::Retiring), ("c", PodRole::Current)];
    coordinator.declare(fulfilment(), declared(&pods));
    let (map, _) = written(&mut coordinator, at(2)).unwrap();
    assert_eq!(targets(&map), ["a", "a", "a", "a"], "nobody of the new template is there");
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(10), at(2));
    join(&mut coordinator, "c", 11, at(3));
    let (map, _) = written(&mut coordinator, at(3)).unwrap();
    assert_eq!(targets(&map).iter().filter(|name| *name == "c").count(), 2);
}

#[test]
fn members_of_an_earlier_template_get_nothing_where_one_of_the_present_is_there() {
    let mut coordinator = leading(&[("a", PodRole::Earlier), ("c", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    join(&mut coordinator, "c", 6, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!(targets(&map), ["c"; 4]);
}

#[test]
fn a_hand_over_to_another_member_has_a_deadline_of_its_own() {
    let mut coordinator = leading(&[("a", PodRole::Current), ("b", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    join(&mut coordinator, "b", 6, at(1));
    (0..4).for_each(|partition| hold(&mut coordinator, partition, "a", 10 + u64::from(partition)));
    let (map, _) = written(&mut coordinator, at(2)).unwrap();
    let to_b = MapEntry { to: member("b"), from: Some(member("a")), deadline: Some(1_032) };
    assert_eq!(map.partitions[&3], to_b);
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(20), at(2));
    let pods = [("a", PodRole::Current), ("b", PodRole::Retiring), ("c", PodRole::Current)];
    coordinator.declare(fulfilment(), declared(&pods));
    join(&mut coordinator, "c", 21, at(10));
    let (map, _) = written(&mut coordinator, at(10)).unwrap();
    let to_c = MapEntry { to: member("c"), from: Some(member("a")), deadline: Some(1_040) };
    assert_eq!(map.partitions[&3], to_c);
}

#[test]
fn a_silent_member_is_declared_dead_before_its_partitions_move() {
    let mut coordinator = leading(&[("a", PodRole::Current), ("b", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    join(&mut coordinator, "b", 6, at(1));
    written(&mut coordinator, at(1)).unwrap();
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(9), at(1));
    coordinator.answered(&Key::Operator, Answer::Stored(8), at(1));
    join(&mut coordinator, "a", 12, at(30));
    let actions = coordinator.poll(at(33));
    let dead = Key::Member(member("b"));
    let is_declared =
        |action: &Action| matches!(action, Action::Write { key, expected: 6, .. } if *key == dead);
    assert!(actions.iter().any(is_declared), "{actions:?}");
    assert_eq!(written(&mut coordinator, at(33)), None);
    coordinator.answered(&dead, Answer::Unsure, at(33));
    let actions = coordinator.poll(at(33));
    assert!(actions.contains(&Action::Read(dead.clone())) && !actions.iter().any(is_declared), "{actions:?}");
    coordinator.read(&dead, Value::Unavailable, at(33)).unwrap();
    assert_eq!(coordinator.poll(at(33)), [Action::Read(dead.clone())], "it may be dead already");
    coordinator.read(&dead, Value::Bytes(13, here("b").to_json().as_bytes()), at(33)).unwrap();
    assert_eq!(written(&mut coordinator, at(34)), None, "it had renewed");
    coordinator.container_ended("uid-b", 1_035);
    coordinator.poll(at(35));
    coordinator.answered(&dead, Answer::Stored(14), at(35));
    let (map, _) = written(&mut coordinator, at(35)).unwrap();
    assert_eq!(targets(&map), ["a", "a", "a", "a"]);
}

#[test]
fn a_map_of_another_number_of_partitions_is_not_right() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    coordinator.answered(&Key::Map(fulfilment()), Answer::Unsure, at(1));
    let key = Key::Map(fulfilment());
    assert_eq!(coordinator.poll(at(1)), [Action::Read(key.clone())]);
    let theirs = MapRecord { count: 8, generation: 6, ..map.clone() };
    coordinator.read(&key, Value::Bytes(9, theirs.to_json().as_bytes()), at(1)).unwrap();
    let right = MapRecord { generation: 7, ..map };
    assert_eq!(written(&mut coordinator, at(1)), Some((right, 9)));
}

#[test]
fn a_consumer_that_is_gone_has_no_map() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    coordinator.remove(&fulfilment());
    join(&mut coordinator, "a", 5, at(1));
    assert_eq!(written(&mut coordinator, at(1)), None);
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(1)), None);
}

#[test]
fn where_everybody_is_gone_the_map_stays() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(1));
    written(&mut coordinator, at(1)).unwrap();
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(9), at(1));
    coordinator.declare(fulfilment(), declared(&[]));
    assert_eq!(written(&mut coordinator, at(2)), None);
}

#[test]
fn where_a_partition_is_says_who_has_it_and_whom_it_is_meant_for_and_a_dead_member_has_nothing() {
    let mut coordinator = leading(&[("a", PodRole::Current), ("b", PodRole::Current)]);
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(1)), Some(vec![Whereabouts::default(); 4]));
    join(&mut coordinator, "a", 5, at(1));
    join(&mut coordinator, "b", 6, at(1));
    hold(&mut coordinator, 0, "a", 10);
    written(&mut coordinator, at(1)).unwrap();
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(11), at(1));
    let draining = HeldRecord { member: member("b"), state: HeldState::Draining, epoch: Some(8) };
    see(
        &mut coordinator,
        &Key::Held(PartitionId { consumer: fulfilment(), partition: 1 }),
        12,
        &draining,
        at(1),
    );
    let of = |coordinator: &Coordinator, partition: usize| {
        coordinator.whereabouts(&fulfilment(), at(1)).unwrap().swap_remove(partition)
    };
    let held = Whereabouts { holder: Some(member("a")), is_draining: false, to: Some(member("a")) };
    assert_eq!(of(&coordinator, 0), held);
    let given_up = of(&coordinator, 1);
    assert_eq!((given_up.holder, given_up.is_draining), (Some(member("b")), true));
    let dead = MemberRecord {
        dead: Some(Dead { by: "x".into(), reason: DeathReason::Silent }),
        ..MemberRecord::default()
    };
    see(&mut coordinator, &Key::Member(member("b")), 13, &dead, at(1));
    assert_eq!((of(&coordinator, 1).holder, of(&coordinator, 1).is_draining), (None, false));
}

#[test]
fn who_is_silent_or_not_known_has_what_it_has() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    coordinator.answered(&Key::Operator, Answer::Stored(8), at(0));
    let holders = |coordinator: &Coordinator, now| {
        let whereabouts = coordinator.whereabouts(&fulfilment(), now).unwrap();
        whereabouts.into_iter().map(|place| place.holder).collect::<Vec<_>>()
    };
    join(&mut coordinator, "a", 5, at(0));
    hold(&mut coordinator, 0, "a", 10);
    hold(&mut coordinator, 1, "stranger", 11);
    let both = [Some(member("a")), Some(member("stranger")), None, None];
    assert_eq!(holders(&coordinator, at(40)), both, "its watch may be lost");
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!(map.partitions[&1].from, Some(member("stranger")));
}

#[test]
fn who_is_not_known_is_read_until_an_answer_comes() {
    let mut coordinator = leading(&[]);
    hold(&mut coordinator, 1, "stranger", 11);
    let stranger = Key::Member(member("stranger"));
    let read = Action::Read(stranger.clone());
    assert_eq!(coordinator.poll(at(1)), std::slice::from_ref(&read));
    assert_eq!(coordinator.poll(at(1)), [], "one at a time");
    coordinator.read(&stranger, Value::Unavailable, at(1)).unwrap();
    assert_eq!(coordinator.poll(at(1)), [read]);
    coordinator.read(&stranger, Value::Absent(0), at(1)).unwrap();
    assert_eq!(coordinator.poll(at(1)), []);
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(1)).unwrap()[1].holder, None);
}

#[test]
fn who_is_gone_from_the_stream_has_nothing() {
    let mut coordinator = leading(&[("a", PodRole::Current)]);
    join(&mut coordinator, "a", 5, at(0));
    hold(&mut coordinator, 0, "a", 10);
    coordinator.container_ended("uid-a", 1);
    let key = Key::Member(member("a"));
    let declares = |action: &Action| matches!(action, Action::Write { key: Key::Member(_), .. });
    assert!(coordinator.poll(at(1)).iter().any(declares));
    coordinator.answered(&key, Answer::Unsure, at(1));
    assert!(coordinator.poll(at(1)).contains(&Action::Read(key.clone())));
    coordinator.read(&key, Value::Absent(0), at(1)).unwrap();
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(1)).unwrap()[0].holder, None);
}

#[test]
fn before_everything_was_read_nothing_is_said_of_partitions() {
    let mut coordinator = Coordinator::new("operator-0", "east", at(0));
    coordinator.declare(fulfilment(), declared(&[]));
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(0)), None);
    coordinator.synced();
    assert_eq!(coordinator.whereabouts(&fulfilment(), at(0)), None, "the map was not read");
    let mut reading = Coordinator::new("operator-0", "east", at(0));
    reading.declare(fulfilment(), declared(&[]));
    reading.read(&Key::Map(fulfilment()), Value::Absent(0), at(0)).unwrap();
    assert_eq!(reading.whereabouts(&fulfilment(), at(0)), None, "who has what was not read");
}

#[test]
fn while_a_workload_has_no_pods_that_stay_whoever_joins_in_its_namespace_gets_partitions() {
    let mut coordinator = leading(&[("a", PodRole::Retiring)]);
    // A program that runs elsewhere has no pod.
    let program = MemberRecord { uid: None, ..here("x") };
    see(&mut coordinator, &Key::Member(member("x")), 5, &program, at(1));
    let stranger = Key::Member(MemberId::new("bank", "y").unwrap());
    see(&mut coordinator, &stranger, 6, &program, at(1));
    let (map, _) = written(&mut coordinator, at(1)).unwrap();
    assert_eq!(targets(&map), ["x"; 4]);
    coordinator.answered(&Key::Map(fulfilment()), Answer::Stored(9), at(1));
    coordinator.declare(fulfilment(), declared(&[("b", PodRole::Current)]));
    join(&mut coordinator, "b", 10, at(2));
    let (map, _) = written(&mut coordinator, at(2)).unwrap();
    assert_eq!(targets(&map), ["b"; 4]);
}
