//! What a test without a server sees is what there is with one.

use std::collections::BTreeMap;

use jetwright_crds::dead_letter;
use jetwright_runtime::{
    Error, Expected, HandlerError, HeaderMap, PublishOptions, Published, Publisher,
    testing::{self, HandlerTest, RecordedPublisher, Settled},
};
use jetwright_testing::await_until;
use jiff::Timestamp;

use crate::support::{Bench, Number, SOON, Scripted};

/// Publishes that are stored, or are duplicates, conflicts or refused.
async fn publish_all(publisher: &Publisher) -> Vec<Result<Published, Error>> {
    let options = |id: Option<&str>, last: Option<u64>, filter: &str| PublishOptions {
        message_id: id.map(str::to_owned),
        expected: last.map(|last| Expected::last(last, filter)),
        expected_stream: Some("numbers".to_owned()),
        ..PublishOptions::default()
    };
    let mut results = Vec::new();
    for (subject, options) in [
        ("numbers.1", options(Some("a"), None, "")),
        ("numbers.1", options(Some("a"), None, "")),
        ("numbers.1", options(None, Some(0), "numbers.1")),
        ("numbers.2", options(Some("b"), Some(0), "numbers.2")),
        ("numbers.2", options(Some("b"), Some(0), "numbers.2")),
        ("numbers.2", options(Some("b"), Some(2), "numbers.2")),
        ("numbers.3", options(None, Some(1), "numbers.*")),
        ("numbers.3", options(None, Some(2), "numbers.*")),
        ("numbers.4", PublishOptions::default()),
        ("numbers.4", options(Some(""), None, "")),
    ] {
        results.push(publisher.publish(subject, &Number { value: 7 }, options).await);
    }
    results
}

#[tokio::test]
async fn a_recorded_publisher_answers_as_jetstream_does() {
    let bench = Bench::without_consumer().await;
    let stored = publish_all(&bench.publisher().await).await;
    assert_eq!(publish_all(&RecordedPublisher::new().publisher()).await, stored);
    assert_eq!(stored.iter().filter(|published| published.is_ok()).count(), 6, "{stored:?}");
}

fn refusing() -> Scripted {
    Scripted::new(|_, _| async { Err(HandlerError::permanent("no such number")) })
}

/// All headers but for those that say when, and of which attempt.
fn headers(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<_, _> =
        headers.iter().map(|(name, values)| (name.to_string(), values[0].to_string())).collect();
    for passing in [dead_letter::FAILED_AT, dead_letter::FIRST_DELIVERED, "traceparent"] {
        headers.remove(passing);
    }
    headers
}

#[tokio::test]
async fn a_dead_letter_of_a_test_is_the_one_that_a_pod_writes() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let service = bench.run(&refusing()).await;
    let options = PublishOptions { message_id: Some("a".to_owned()), ..PublishOptions::default() };
    service.publisher.publish("numbers.7", &Number { value: 7 }, options).await.unwrap();
    await_until("the dead letter", SOON, async || {
        let letters = service.dead_letters("permanent");
        if letters == 1 { Ok(()) } else { Err(format!("{letters} dead letters")) }
    })
    .await;
    let original = bench.jetstream.get_stream("numbers").await.unwrap().get_raw_message(1).await.unwrap();
    let letters = bench.dead_letters().await;
    service.stop().await;

    let mut test = HandlerTest::new("tests", refusing()).stream("numbers");
    let time = Timestamp::from_nanosecond(original.time.unix_timestamp_nanos()).unwrap();
    let trace = original.headers.get("traceparent").unwrap().as_str();
    let event = testing::event("numbers.7", &Number { value: 7 })
        .header("Nats-Msg-Id", "a")
        .header("traceparent", trace)
        .time(time);
    assert_eq!(test.deliver(event).await, Settled::dead_lettered("permanent", "no such number"));
    let recorded = test.dead_letters().events();
    assert_eq!(recorded[0].subject, letters[0].subject.as_str());
    assert_eq!(headers(&recorded[0].headers), headers(&letters[0].headers));
    assert_eq!((&recorded[0].payload, recorded.len()), (&letters[0].payload, letters.len()));
}
