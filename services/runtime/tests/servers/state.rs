use async_nats::jetstream::kv;
use jetwright_process::health::Health;
use jetwright_runtime::{Entry, ErrorKind, PublishOptions, Service};
use prometheus_client::registry::Registry;

use crate::support::{Bench, Number};

async fn service(bench: &Bench) -> Service {
    Service::connect(bench.environment(), &Health::new(), &mut Registry::default()).await.unwrap()
}

#[tokio::test]
async fn an_aggregate_is_read_in_order_with_its_last_sequence() {
    let bench = Bench::start().await;
    let service = service(&bench).await;
    let publisher = service.publisher();
    for (subject, value) in [("numbers.a", 1), ("numbers.b", 2), ("numbers.a", 3)] {
        publisher.publish(subject, &Number { value }, PublishOptions::default()).await.unwrap();
    }
    let history = service.reader().history("numbers", "numbers.a").await.unwrap();
    let read: Vec<_> = history
        .events
        .iter()
        .map(|event| (event.sequence, event.event_type(), event.decode::<Number>().unwrap().value))
        .collect();
    assert_eq!(read, [(1, "tests.v1.Number", 1), (3, "tests.v1.Number", 3)]);
    assert_eq!(history.last_sequence(), 3);
    assert!(history.events[0].time <= history.events[1].time);
    let none = service.reader().history("numbers", "numbers.c").await.unwrap();
    assert_eq!((none.events.len(), none.last_sequence()), (0, 0));
}

#[tokio::test]
async fn a_stream_that_is_not_there_yet_is_unavailable() {
    let bench = Bench::start().await;
    let error = service(&bench).await.reader().history("letters", "letters.a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_key_is_changed_only_by_who_saw_its_newest_value() {
    let bench = Bench::start().await;
    let config = kv::Config { bucket: "stock".to_owned(), ..kv::Config::default() };
    let peer = bench.jetstream.create_key_value(config).await.unwrap();
    let bucket = service(&bench).await.key_value("stock");

    assert_eq!(bucket.get("sku-1").await.unwrap(), None);
    let first = bucket.create("sku-1", "5").await.unwrap();
    assert_eq!(bucket.create("sku-1", "6").await.unwrap_err().kind(), ErrorKind::Conflict);
    let second = bucket.update("sku-1", "4", first).await.unwrap();
    assert_eq!(bucket.update("sku-1", "3", first).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(bucket.get("sku-1").await.unwrap(), Some(Entry { value: "4".into(), revision: second }));
    // Other clients of NATS see the same.
    assert_eq!(peer.get("sku-1").await.unwrap(), Some("4".into()));

    bucket.delete("sku-1", second).await.unwrap();
    assert_eq!((bucket.get("sku-1").await.unwrap(), peer.get("sku-1").await.unwrap()), (None, None));
    bucket.create("sku-1", "9").await.unwrap();
    assert_eq!(peer.get("sku-1").await.unwrap(), Some("9".into()));
    assert_eq!(bucket.get("a key").await.unwrap_err().kind(), ErrorKind::Refused);
}
