//! What cannot be processed, and what becomes of it.

use std::{collections::BTreeMap, time::Duration};

use async_nats::{HeaderMap, jetstream::message::StreamMessage};
use futures::StreamExt;
use jetwright_crds::{Duration as Text, dead_letter};
use jetwright_runtime::{HandlerError, HandlerOptions};
use jetwright_testing::await_until;
use jiff::Timestamp;
use opentelemetry::trace::{SpanKind, Status};
use tokio::time::sleep;

use crate::{
    proxy::Proxy,
    sharing::{Operator, await_drained, publish_values, sharing},
    support::{Answer, Bench, SOON, Scripted, publish, recorded_spans, spans_of},
};

fn header<'a>(letter: &'a StreamMessage, name: &str) -> &'a str {
    letter.headers.get(name).map_or("", |value| value.as_str())
}

/// By subject of the original: why it was given up, after how many attempts, with which error.
fn told(letters: &[StreamMessage]) -> BTreeMap<String, (String, String, String)> {
    let told = |letter: &StreamMessage| {
        let header = |name| header(letter, name).to_owned();
        let why = (header(dead_letter::REASON), header(dead_letter::ATTEMPTS), header(dead_letter::ERROR));
        (header(dead_letter::SUBJECT), why)
    };
    letters.iter().map(told).collect()
}

/// Every way to fail, by the number.
fn failing(value: u64) -> Answer {
    assert!(value != 3, "three");
    Box::pin(async move {
        match value {
            1 => Err(HandlerError::permanent("no such user")),
            2 => Err(HandlerError::transient("busy")),
            4 => std::future::pending().await,
            _ => Ok(()),
        }
    })
}

async fn publish_unreadable(bench: &Bench) {
    let unreadable = [
        ("untyped", None, ""),
        ("unknown", Some("tests.v1.Letter"), ""),
        ("garbage", Some("tests.v1.Number"), "not protobuf"),
    ];
    for (name, event_type, payload) in unreadable {
        let mut headers = HeaderMap::new();
        if let Some(event_type) = event_type {
            headers.insert("Event-Type", event_type);
        }
        let subject = format!("numbers.{name}");
        let sent = bench.jetstream.publish_with_headers(subject, headers, payload.into()).await.unwrap();
        sent.await.unwrap();
    }
}

fn expected() -> BTreeMap<String, (String, String, String)> {
    let garbage = "failed to decode the payload as tests.v1.Number: failed to decode Protobuf message: invalid wire type value: 6";
    [
        ("numbers.1", "permanent", "1", "no such user"),
        ("numbers.2", "last-attempt", "3", "busy"),
        ("numbers.3", "last-attempt", "3", "the handler panicked: three"),
        ("numbers.4", "last-attempt", "3", "the handler took longer than 200ms"),
        ("numbers.untyped", "undecodable", "1", "header Event-Type is missing"),
        ("numbers.unknown", "undecodable", "1", "event type \"tests.v1.Letter\" is not handled here"),
        ("numbers.garbage", "undecodable", "1", garbage),
    ]
    .into_iter()
    .map(|(subject, reason, attempts, error)| {
        (subject.to_owned(), (reason.to_owned(), attempts.to_owned(), error.to_owned()))
    })
    .collect()
}

/// Row by row of the table: what is handled is gone, what is not becomes one dead letter that says why.
async fn every_way_to_fail(bench: Bench) {
    let mut bench = bench.keeping_dead_letters().await;
    bench.binding.handler_deadline = Text::from_millis(200);
    let advisories = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.numbers.tests";
    let terminated = bench.nats.client().await.subscribe(advisories).await.unwrap();
    publish_unreadable(&bench).await;
    let handler = Scripted::new(|value, _| failing(value));
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..6).await;
    bench.await_drained().await;

    assert_eq!(told(&bench.dead_letters().await), expected());
    assert_eq!(service.handled("done"), 2);
    assert_eq!(service.dead_letters("undecodable") + service.dead_letters("last-attempt"), 6);
    let reasons: Vec<_> =
        terminated.take(expected().len()).map(|advisory| reason(&advisory.payload)).collect().await;
    assert!(reasons.iter().all(|reason| reason == "jetwright:dead-lettered"), "{reasons:?}");
    service.stop().await;
}

fn reason(advisory: &[u8]) -> String {
    let advisory: serde_json::Value = serde_json::from_slice(advisory).unwrap();
    advisory["reason"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn what_cannot_be_processed_becomes_one_dead_letter_that_says_why() {
    every_way_to_fail(Bench::start().await).await;
}

#[tokio::test]
async fn what_cannot_be_processed_of_a_partition_becomes_one_dead_letter_under_its_published_subject() {
    every_way_to_fail(Bench::without_consumer().await.partitioned().await).await;
}

#[tokio::test]
async fn what_cannot_be_processed_in_order_becomes_one_dead_letter_that_says_why() {
    every_way_to_fail(Bench::start().await.ordered()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_of_a_partition_has_the_name_that_its_consumers_have_in_common() {
    let bench = sharing(2).await.keeping_dead_letters().await;
    let _operator = Operator::start(bench.nats.url(), 2).await;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
    let service = bench.run(&handler).await;
    publish_values(&bench.jetstream, 0..4).await;
    handler.await_calls(4).await;
    await_drained(&bench.jetstream, 2, SOON).await;
    service.stop().await;
    let letters = bench.dead_letters().await;
    let consumers: Vec<_> = letters.iter().map(|letter| header(letter, dead_letter::CONSUMER)).collect();
    assert_eq!(consumers, ["tests"; 4]);
}

#[tokio::test]
async fn a_dead_letter_is_the_original_and_where_it_came_from() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let mut headers = HeaderMap::new();
    headers.insert("Event-Type", "tests.v1.Number");
    headers.insert("Nats-Msg-Id", "an-id");
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let sent = bench.jetstream.publish_with_headers("numbers.7", headers, vec![8, 7].into());
    let sequence = sent.await.unwrap().await.unwrap().sequence;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let letters = bench.dead_letters().await;
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    let original =
        bench.jetstream.get_stream("numbers").await.unwrap().get_raw_message(sequence).await.unwrap();
    let stored = original.time.unix_timestamp_nanos();
    assert_eq!(*letter.subject, *format!("jetwright.dlq.numbers.tests.{sequence}.{stored}"));
    assert_eq!(letter.payload, vec![8, 7]);
    assert_eq!(header(letter, "Event-Type"), "tests.v1.Number");
    assert_eq!(header(letter, "Nats-Msg-Id"), "");
    assert_eq!(header(letter, "Dead-Letter-Original-Nats-Msg-Id"), "an-id");
    assert_eq!(header(letter, dead_letter::STREAM), "numbers");
    assert_eq!(header(letter, dead_letter::CONSUMER), "tests");
    assert_eq!(header(letter, dead_letter::SEQUENCE), sequence.to_string());
    assert_eq!(header(letter, dead_letter::REPLAYS), "0");
    assert!(header(letter, "traceparent").starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{letter:?}");
    service.stop().await;
}

#[tokio::test]
async fn the_trace_of_an_event_that_fails_for_good_ends_in_the_publish_of_its_dead_letter() {
    let exporter = recorded_spans();
    let bench = Bench::start().await.keeping_dead_letters().await;
    let publish = async |trace: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("Event-Type", "tests.v1.Number");
        headers.insert("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
        let sent = bench.jetstream.publish_with_headers("numbers.7", headers, vec![8, 7].into());
        sent.await.unwrap().await.unwrap();
    };
    let trace = "3af7651916cd43dd8448eb211c80319d";
    publish(trace).await;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let letters = bench.dead_letters().await;
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    let spans = spans_of(&exporter, trace);
    let [kept, attempt] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((attempt.name.as_ref(), &attempt.status), ("process numbers", &Status::error("no")));
    assert_eq!(
        (kept.name.as_ref(), &kept.status),
        ("publish jetwright.dlq.numbers.tests.*.*", &Status::Unset)
    );
    assert_eq!((kept.parent_span_id, &kept.span_kind), (attempt.span_context.span_id(), &SpanKind::Producer));
    let subject = kept.attributes.iter().find(|attribute| attribute.key.as_str() == "subject").unwrap();
    assert_eq!(subject.value.as_str(), letter.subject.as_str());
    let carried = format!("00-{trace}-{}-01", kept.span_context.span_id());
    assert_eq!(header(letter, "traceparent"), carried);

    bench.jetstream.delete_stream(dead_letter::stream("numbers")).await.unwrap();
    let trace = "4af7651916cd43dd8448eb211c80319e";
    publish(trace).await;
    await_until("the span of a dead letter that cannot be kept", SOON, async || {
        let spans = spans_of(&exporter, trace);
        let failed = spans.iter().find(|span| span.span_kind == SpanKind::Producer);
        match failed.map(|span| &span.status) {
            Some(Status::Error { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn two_consumers_that_fail_one_event_make_two_dead_letters() {
    let mut bench = Bench::start().await.keeping_dead_letters().await;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
    let service = bench.run(&handler).await;
    // With a message id, which a copy of it would be taken for.
    publish(&service.publisher, 1).await;
    bench.await_drained().await;
    service.stop().await;
    bench.binding.consumer = "others".to_owned();
    bench.binding.dead_letters.as_mut().unwrap().prefix = dead_letter::prefix("numbers", "others");
    bench.create_consumer().await;
    let service = bench.run(&handler).await;
    await_until("both dead letters", SOON, async || {
        let letters = bench.dead_letters().await;
        let mut consumers: Vec<_> =
            letters.iter().map(|letter| header(letter, dead_letter::CONSUMER)).collect();
        consumers.sort_unstable();
        if consumers == ["others", "tests"] { Ok(()) } else { Err(format!("{consumers:?}")) }
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn while_dead_letters_cannot_be_kept_nothing_is_given_up() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    bench.jetstream.delete_stream(dead_letter::stream("numbers")).await.unwrap();
    let handler = Scripted::new(|value, _| async move {
        if value == 0 { Err(HandlerError::permanent("no")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..10).await;
    // Those that can be handled are, whatever becomes of the other.
    await_until("the others", SOON, async || match service.handled("done") {
        9 => Ok(()),
        other => Err(other),
    })
    .await;
    await_until("a second delivery of it", SOON, async || match bench.deliveries().await {
        12.. => Ok(()),
        other => Err(other),
    })
    .await;
    let info = bench.consumer_info().await;
    assert_eq!((info.num_ack_pending, service.dead_letters("permanent")), (1, 0));
    assert_eq!(service.handled("permanent"), 1);
    bench.create_dead_letters().await;
    bench.await_drained().await;
    let letters = told(&bench.dead_letters().await);
    let (reason, attempts, error) = &letters["numbers.0"];
    assert_eq!(
        (reason.as_str(), error.as_str()),
        ("permanent", "no"),
        "as when it was given up: {letters:?}"
    );
    assert!(attempts.parse::<u32>().unwrap() > 1);
    assert_eq!(handler.attempts().iter().filter(|(value, _)| *value == 0).count(), 1, "handled once more");
    service.stop().await;
}

#[tokio::test]
async fn while_dead_letters_cannot_be_kept_they_do_not_take_the_room_of_good_events() {
    let mut bench = Bench::without_consumer().await.keeping_dead_letters().await;
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    bench.jetstream.delete_stream(dead_letter::stream("numbers")).await.unwrap();
    let handler = Scripted::new(|value, _| async move {
        if value < 200 { Err(HandlerError::permanent("no")) } else { Ok(()) }
    });
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..210).await;
    // Each dead letter takes five seconds until it cannot be kept.
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency: 4, ..HandlerOptions::default() }).await;
    await_until("the good ones", SOON, async || match service.handled("done") {
        10 => Ok(()),
        other => Err(other),
    })
    .await;
    bench.create_dead_letters().await;
    bench.await_drained().await;
    assert_eq!((bench.dead_letters().await.len(), service.dead_letters("permanent")), (200, 200));
    assert_eq!(handler.calls().len(), 210);
    service.stop().await;
}

#[tokio::test]
async fn a_dead_letter_says_when_its_event_came_first() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::transient("busy")) });
    let service = bench.run(&handler).await;
    let begun = Timestamp::now();
    publish(&service.publisher, 1).await;
    handler.await_calls(1).await;
    let tried = Timestamp::now();
    bench.await_drained().await;
    let letters = bench.dead_letters().await;
    let time = |name| header(&letters[0], name).parse::<Timestamp>().unwrap();
    let (first, failed) = (time(dead_letter::FIRST_DELIVERED), time(dead_letter::FAILED_AT));
    assert!(begun <= first && first <= tried, "{begun} {first} {tried}");
    // Two delays, of which each may be half of its whole.
    assert!(failed.duration_since(first).as_millis() >= 150, "{first} {failed}");
    service.stop().await;
}

#[tokio::test]
async fn a_dead_letter_whose_confirmation_is_lost_with_the_process_is_there_once() {
    let mut bench = Bench::without_consumer().await.ack_wait(1000).keeping_dead_letters().await;
    bench.create_consumer().await;
    let proxy = Proxy::before(bench.nats.url(), |_, payload| payload.contains("numbers-dlq")).await;
    let direct = std::mem::replace(&mut bench.url, proxy.url.clone());
    proxy.lose(1000);
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
    let mortal = bench.run_mortal(&handler);
    bench.url = direct;
    let publisher = bench.publisher().await;
    publish(&publisher, 1).await;
    await_until("a dead letter that the process does not know of", SOON, async || {
        match (bench.dead_letters().await.len(), proxy.left_to_lose()) {
            (1, left) if left < 1000 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    drop(mortal);
    assert_eq!(bench.consumer_info().await.num_ack_pending, 1);
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let letters = bench.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    service.stop().await;
}

#[tokio::test]
async fn however_often_processes_and_nats_are_killed_each_bad_event_is_one_dead_letter_and_each_good_one_handled()
 {
    const EVENTS: u64 = 600;
    let mut bench = Bench::without_consumer().await.ack_wait(1000).keeping_dead_letters().await;
    bench.binding.max_ack_pending = 1000;
    // More than there are kills: one that a process died with as often would be given up unhandled.
    bench.binding.retry.max_attempts = 20;
    bench.binding.retry.backoff.initial = Text::from_millis(5);
    bench.binding.retry.backoff.max = Text::from_millis(20);
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..EVENTS).await;
    // Two of three are bad, in two ways.
    let handler = Scripted::new(|value, _| async move {
        sleep(Duration::from_millis(value % 5)).await;
        match value % 3 {
            0 => Ok(()),
            1 => Err(HandlerError::permanent("no")),
            _ => Err(HandlerError::transient("busy")),
        }
    });
    for round in 0..12 {
        let mortal = bench.run_mortal(&handler);
        // Killed at whatever it does then.
        sleep(Duration::from_millis(60 + round * 23 % 140)).await;
        drop(mortal);
        if round % 4 == 3 {
            bench.nats.kill();
            bench.nats.start_again().await;
        }
    }
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let mut numbers: Vec<u64> = bench
        .dead_letters()
        .await
        .iter()
        .map(|letter| header(letter, dead_letter::SUBJECT).trim_start_matches("numbers.").parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..EVENTS).filter(|value| value % 3 != 0).collect::<Vec<_>>());
    assert_eq!(handler.values(), (0..EVENTS).collect::<Vec<_>>());
    service.stop().await;
}

#[tokio::test]
async fn events_that_fail_again_and_again_do_not_hold_up_those_that_do_not() {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 10_000;
    // Longer than the test: what failed comes back when it is over.
    bench.binding.retry.backoff.initial = Text::from_secs(60);
    bench.binding.retry.backoff.max = Text::from_secs(60);
    bench.create_consumer().await;
    let handler = Scripted::new(|value, _| async move {
        if value < 2000 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..2100).await;
    let service = bench.run(&handler).await;
    await_until("the good ones", SOON, async || match service.handled("done") {
        100 => Ok(()),
        other => Err(other),
    })
    .await;
    await_until("only bad ones that wait", SOON, async || {
        match bench.consumer_info().await.num_ack_pending {
            2000 => Ok(()),
            other => Err(other),
        }
    })
    .await;
    service.stop().await;
}
