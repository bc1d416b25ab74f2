//! A key-value bucket against a real server: reads, writes and watches, also over restarts and a bucket that is made again.

use std::time::Duration;

use bytes::Bytes;
use jetwright_nats::{Api, Bucket, Connection, Found, Watch, WatchEvent, Written};
use jetwright_testing::{NatsServer, RawClient, await_until};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{SOON, config, connect};

async fn make_bucket(connection: &Connection, first_sequence: u64) {
    let stream = json!({
        "name": "KV_b", "subjects": ["$KV.b.>"], "max_msgs_per_subject": 1, "discard": "new", "num_replicas": 1,
        "deny_delete": true, "deny_purge": true, "allow_msg_ttl": true, "allow_direct": false,
        "first_seq": first_sequence,
    });
    let _: Value = api(connection).create_stream("KV_b", &stream).await.unwrap();
}

fn api(connection: &Connection) -> Api {
    Api::new(connection, SOON, |_, _| {})
}

fn value(key: &str, revision: u64, value: &'static str) -> WatchEvent {
    WatchEvent::Value { key: key.to_owned(), revision, value: Bytes::from_static(value.as_bytes()) }
}

/// The next event that is no reason why changes were missed.
async fn told(watch: &mut Watch) -> WatchEvent {
    loop {
        match timeout(SOON, watch.next()).await.unwrap() {
            WatchEvent::Lost(_) | WatchEvent::Missing => {}
            event => return event,
        }
    }
}

async fn all_told(watch: &mut Watch) -> Vec<WatchEvent> {
    let mut all = Vec::new();
    loop {
        match told(watch).await {
            WatchEvent::Synced => return all,
            event => all.push(event),
        }
    }
}

#[tokio::test]
async fn a_write_is_stored_at_the_revision_that_it_expects_and_a_read_says_what_there_is() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    let bucket = Bucket::new(&connection, "b");
    assert!(matches!(bucket.read("a").await, Found::Unknown(_)));
    assert!(matches!(bucket.write("a", "0", 0).await, Written::Unknown(_)));
    assert!(bucket.age().await.unwrap_err().contains("stream not found"));
    make_bucket(&connection, 5).await;
    assert_eq!(bucket.read("a").await, Found::Absent);
    assert_eq!(bucket.write("a", "1", 0).await, Written::Stored(5));
    assert!(matches!(bucket.write("a", "2", 0).await, Written::Refused(error) if error.err_code == 10071));
    assert_eq!(bucket.write("a", "2", 5).await, Written::Stored(6));
    assert_eq!(bucket.put("b", "3").await, Written::Stored(7));
    assert_eq!(bucket.put("b", "4").await, Written::Stored(8));
    assert_eq!(bucket.read("a").await, Found::Value { revision: 6, value: "2".into() });
    assert!(matches!(bucket.delete("a", 5, Duration::from_secs(1)).await, Written::Refused(_)));
    assert_eq!(bucket.delete("a", 6, Duration::from_secs(1)).await, Written::Stored(9));
    assert_eq!(bucket.read("a").await, Found::Deleted { revision: 9 });
    await_until("the deletion to be forgotten", SOON, async || match bucket.read("a").await {
        Found::Absent => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let age = bucket.age().await.unwrap();
    assert!(age > Duration::from_millis(500) && age < SOON, "{age:?}");
    nats.kill();
    assert!(matches!(bucket.read("b").await, Found::Unknown(_)));
    assert!(matches!(bucket.write("b", "5", 8).await, Written::Unknown(_)));
}

#[tokio::test]
async fn a_watch_tells_what_there_is_and_each_change_also_after_a_restart_and_in_a_bucket_made_again() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    let bucket = Bucket::new(&connection, "b");
    let mut watch = bucket.watch(&["a".to_owned(), "m.*".to_owned()]);
    assert_eq!(timeout(SOON, watch.next()).await.unwrap(), WatchEvent::Missing);
    make_bucket(&connection, 1).await;
    assert_eq!(all_told(&mut watch).await, []);
    bucket.put("a", "1").await;
    bucket.put("other", "2").await;
    bucket.put("m.x", "3").await;
    bucket.delete("a", 1, SOON).await;
    let deleted = WatchEvent::Deleted { key: "a".to_owned(), revision: 4 };
    for expected in [value("a", 1, "1"), value("m.x", 3, "3"), deleted.clone()] {
        assert_eq!(told(&mut watch).await, expected);
    }
    let mut late = bucket.watch(&[">".to_owned()]);
    let all = all_told(&mut late).await;
    assert_eq!(all, [value("other", 2, "2"), value("m.x", 3, "3"), deleted.clone()]);
    drop(late);
    nats.kill();
    nats.start_again().await;
    assert_eq!(all_told(&mut watch).await, [value("m.x", 3, "3"), deleted]);
    assert_eq!(bucket.put("m.y", "5").await, Written::Stored(5));
    assert_eq!(told(&mut watch).await, value("m.y", 5, "5"));
    api(&connection).delete_stream("KV_b").await.unwrap();
    make_bucket(&connection, 1_000).await;
    assert_eq!(bucket.put("m.y", "6").await, Written::Stored(1_000));
    let all = all_told(&mut watch).await;
    assert!(all.is_empty() || all == [value("m.y", 1_000, "6")], "{all:?}");
    if all.is_empty() {
        assert_eq!(told(&mut watch).await, value("m.y", 1_000, "6"));
    }
}

#[tokio::test]
async fn a_watch_that_lost_a_change_begins_again() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    make_bucket(&connection, 1).await;
    let bucket = Bucket::new(&connection, "b");
    let mut watch = bucket.watch(&[">".to_owned()]);
    all_told(&mut watch).await;
    bucket.put("a", "1").await;
    assert_eq!(told(&mut watch).await, value("a", 1, "1"));
    let consumers = api(&connection).list_consumers::<Value>("KV_b", 0).await.unwrap();
    let inbox = consumers.items[0]["config"]["deliver_subject"].as_str().unwrap();
    let heartbeat = b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 3\r\n\r\n";
    RawClient::connect(nats.url()).await.publish(inbox, heartbeat, b"").await;
    assert!(
        matches!(timeout(SOON, watch.next()).await.unwrap(), WatchEvent::Lost(why) if why.contains("lost"))
    );
    assert_eq!(all_told(&mut watch).await, [value("a", 1, "1")]);
}

/// How many connections clients made to a server.
async fn connections(nats: &NatsServer) -> u64 {
    let varz: Value = nats.monitor("/varz").await.unwrap();
    varz["total_connections"].as_u64().unwrap()
}

#[tokio::test]
async fn what_ends_connections_is_told_and_ends_none_that_others_need() {
    let nats = NatsServer::start().await;
    let connection = connect(config(&nats)).await;
    make_bucket(&connection, 1).await;
    let bucket = Bucket::new(&connection, "b");
    let mut writer = RawClient::connect(nats.url()).await;
    bucket.put("m.a", "1").await;
    // A name that is not allowed, a status, and what makes the client panic.
    let blocks = ["X Trace: 1", "Note: a\rb"].map(|line| format!("NATS/1.0\r\n{line}\r\n\r\n"));
    let blocks = [blocks[0].as_str(), "NATS/1.0 503\r\n\r\n", blocks[1].as_str()];
    let mut expected = vec![value("m.a", 1, "1")];
    for number in 0..60_usize {
        let key = format!("m.foreign{number}");
        writer.publish(format!("$KV.b.{key}"), blocks[number % 3].as_bytes(), b"x").await;
        expected.push(value(&key, number as u64 + 2, "x"));
    }
    await_until("all is stored", SOON, async || match bucket.read("m.foreign59").await {
        Found::Value { revision: 61, .. } => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    bucket.put("m.z", "2").await;
    expected.push(value("m.z", 62, "2"));
    let before = connections(&nats).await;
    let mut watch = bucket.watch(&["m.*".to_owned(), "other".to_owned()]);
    assert_eq!(all_told(&mut watch).await, expected);
    // And while it is watched.
    for number in 0..60 {
        writer.publish(format!("$KV.b.m.foreign{number}"), blocks[number % 3].as_bytes(), b"y").await;
        bucket.put("other", format!("{number}")).await;
    }
    let last = value("other", 182, "59");
    while told(&mut watch).await != last {}
    assert_eq!((connection.link().borrow().epoch, connection.link().borrow().generation), (1, 0));
    let made = connections(&nats).await - before;
    assert!(made <= 4, "{made} connections for one watch");
}
