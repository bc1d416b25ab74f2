//! Order while events are removed from the stream: JetStream stops counting what waits for its turn then.

use async_nats::jetstream::stream;
use prost::Message;
use tokio::time::sleep;

use std::time::Duration;

use jetwright_testing::await_until;

use crate::{
    attack::take_away,
    proxy::Proxy,
    support::{Bench, Number, Running, SOON, Scripted, number_headers},
};

async fn publish(bench: &Bench, subject: &str, value: u64) {
    let payload = Number { value }.encode_to_vec().into();
    let stored = bench.jetstream.publish_with_headers(subject.to_owned(), number_headers(), payload).await;
    stored.unwrap().await.unwrap();
}

/// A stream of which each subject keeps so many events, its key in the second token.
async fn keeping(kept: i64) -> Bench {
    let bench = Bench::without_consumer().await.ack_wait(8000).ordered();
    let config = stream::Config {
        name: "numbers".into(),
        subjects: vec!["numbers.>".into()],
        max_messages_per_subject: kept,
        ..Default::default()
    };
    bench.jetstream.update_stream(config).await.unwrap();
    bench.create_consumer().await;
    bench
}

/// The same. The delivery of number 1 is lost; number 2 is of another key, and number 3 of the same.
async fn losing_the_first(kept: i64) -> (Bench, Scripted, Running) {
    let mut bench = keeping(kept).await;
    let proxy = Proxy::before(&bench.url, |words, _| words.contains("$JS.ACK.")).await;
    bench.url.clone_from(&proxy.url);
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    publish(&bench, "numbers.other.first", 0).await;
    handler.await_calls(1).await;
    bench.await_drained().await;
    proxy.lose(1);
    publish(&bench, "numbers.key.first", 1).await;
    await_until("a lost delivery", SOON, async || (proxy.left_to_lose() == 0).then_some(()).ok_or("none"))
        .await;
    publish_two(&bench).await;
    (bench, handler, service)
}

/// Numbers 2 and 3, while number 1 is owed.
async fn publish_two(bench: &Bench) {
    publish(bench, "numbers.other.second", 2).await;
    publish(bench, "numbers.key.second", 3).await;
    await_until("deliveries", SOON, async || match bench.consumer_info().await.num_ack_pending {
        3 => Ok(()),
        pending => Err(format!("{pending} deliveries")),
    })
    .await;
    // JetStream was asked, and waits for number 1.
    sleep(Duration::from_millis(500)).await;
}

async fn assert_in_order(handler: &Scripted, service: Running, count: usize) {
    handler.await_calls(count).await;
    let values: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    let place = |value| values.iter().position(|called| *called == value);
    assert!(place(1) < place(3) && place(1).is_some(), "{values:?}");
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_deleted_while_it_waits_hides_no_lost_delivery() {
    let (bench, handler, service) = losing_the_first(-1).await;
    bench.jetstream.get_stream("numbers").await.unwrap().delete_message(3).await.unwrap();
    assert_in_order(&handler, service, 4).await;
}

/// The usual way: the stream keeps the newest event of each subject.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_a_newer_one_replaces_while_it_waits_hides_no_lost_delivery() {
    let (bench, handler, service) = losing_the_first(1).await;
    publish(&bench, "numbers.other.second", 4).await;
    assert_in_order(&handler, service, 5).await;
}

/// It has not come again yet, and JetStream counts as many deliveries as are here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_replaced_while_it_waits_hides_none_that_another_process_had() {
    let bench = keeping(1).await;
    publish(&bench, "numbers.key.first", 1).await;
    take_away(&bench, 1).await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    publish_two(&bench).await;
    publish(&bench, "numbers.other.second", 4).await;
    assert_in_order(&handler, service, 4).await;
}
