//! Keeps docs/partitions-protocol.md true to the code and to the example in Python. Tests alone.

use std::{fs, path::Path, time::Duration};

use crate::{
    keys::{BUCKET, BUCKET_STREAM, Key, SUBJECT_PREFIX},
    lease::{LEASE, MAX_PULL, PATIENCE, PULL_MARGIN, RENEWAL_INTERVAL, SKEW},
    records::{DeathReason, Figures, HeldRecord, HeldState, MapRecord, MemberRecord, OperatorRecord, Record},
};

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(path)).unwrap()
}

fn page() -> String {
    read("docs/partitions-protocol.md")
}

/// The cells of each row of a table that follows this line.
fn table(page: &str, after: &str) -> Vec<Vec<String>> {
    let (_, rest) = page.split_once(after).unwrap();
    let rows = rest.lines().skip_while(|line| !line.starts_with("| --- |")).skip(1);
    let cells =
        |row: &str| row.split(" | ").map(|cell| cell.trim_matches(['|', ' ', '`']).to_owned()).collect();
    rows.take_while(|row| row.starts_with('|')).map(cells).collect()
}

/// The value as this kind of record, written again.
fn rewritten<R: Record>(key: &str, value: &str) -> String {
    R::read(&key.parse::<Key>().unwrap(), value.as_bytes()).unwrap().to_json()
}

#[test]
fn keys_and_values_of_the_page_are_those_of_the_code() {
    let page = page();
    let rows = table(&page, "## Keys and values");
    let [operator, of_cluster, member, map, held] = &rows[..] else { panic!("{rows:?}") };
    let example = |row: &[String]| {
        let key = row[0].replace("<stream>", "orders").replace("<consumer>", "order-fulfilment");
        let key = key.replace("<namespace>", "shop").replace("<process id>", "a").replace("<partition>", "7");
        let key = key.replace("<cluster>", "east");
        (key, row[1].clone())
    };
    for (rewritten, row) in [
        (rewritten::<OperatorRecord> as fn(&str, &str) -> String, operator),
        (rewritten::<OperatorRecord>, of_cluster),
        (rewritten::<MemberRecord>, member),
        (rewritten::<MapRecord>, map),
        (rewritten::<HeldRecord>, held),
    ] {
        let (key, value) = example(row);
        assert_eq!(rewritten(&key, &value), value);
    }
    for state in [HeldState::Held, HeldState::Draining, HeldState::Free] {
        assert!(page.contains(&format!("`{}`", serde_json::to_value(state).unwrap().as_str().unwrap())));
    }
    for reason in [DeathReason::ContainerEnded, DeathReason::Silent, DeathReason::Left] {
        assert!(page.contains(&format!("`{}`", serde_json::to_value(reason).unwrap().as_str().unwrap())));
    }
    let figures = Figures {
        delivered: 90,
        ack_floor: 80,
        pending: 7,
        ack_pending: 3,
        busy: Some(true),
        running: Some(2),
        queued: Some(1),
    };
    assert!(
        page.contains(&format!(r#"{{"partitions":{{"3":{}}}}}"#, serde_json::to_string(&figures).unwrap()))
    );
    for name in [BUCKET, BUCKET_STREAM, &format!("{SUBJECT_PREFIX}>")] {
        assert!(page.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn times_of_the_page_and_of_the_example_are_those_of_the_code() {
    let times = [
        ("RENEWAL_INTERVAL", RENEWAL_INTERVAL),
        ("LEASE", LEASE),
        ("SKEW", SKEW),
        ("PATIENCE", PATIENCE),
        ("MAX_PULL", MAX_PULL),
        ("PULL_MARGIN", PULL_MARGIN),
    ];
    let of_the_page: Vec<_> =
        table(&page(), "## Times").into_iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect();
    assert_eq!(of_the_page, times.map(|(name, time)| (name.to_owned(), time.as_secs())));
    let seconds = |time: Duration| time.as_secs();
    let (renewal, lease, skew) = (seconds(RENEWAL_INTERVAL), seconds(LEASE), seconds(SKEW));
    let membership = format!("RENEWAL, LEASE, SKEW = {renewal}, {lease}, {skew}\nPATIENCE = LEASE + SKEW\n");
    assert!(read("docs/examples/python/membership.py").contains(&membership));
    let events = format!("MAX_PULL, PULL_MARGIN = {}, {}\n", seconds(MAX_PULL), seconds(PULL_MARGIN));
    assert!(read("docs/examples/python/events.py").contains(&events));
}

#[test]
fn the_parts_in_python_stand_in_the_example() {
    let files =
        ["bucket.py", "membership.py", "events.py"].map(|file| read(&format!("docs/examples/python/{file}")));
    let page = page();
    let parts: Vec<_> =
        page.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(parts.len() > 5, "{}", parts.len());
    for part in parts {
        assert!(files.iter().any(|file| file.contains(part)), "no file of docs/examples/python has:\n{part}");
    }
}
