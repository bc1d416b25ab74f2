//! An ackWait that is changed in JetStream before the pods have it.

use std::time::Duration;

use async_nats::jetstream::consumer;
use tokio::time::sleep;

use crate::support::{Bench, Gate, Scripted, publish_of};

/// Each such delivery would count: what was delivered far too often becomes a dead letter, and here no handler was called with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_turn_is_not_delivered_again_and_again_under_a_shorter_ack_wait_than_the_pods_know()
 {
    const EVENTS: u64 = 10;
    let bench = Bench::without_consumer().await.ack_wait(60_000).ordered();
    bench.create_consumer().await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|value| value == 0));
    let service = bench.run(&handler).await;
    service.await_ready().await;
    let shorter = consumer::pull::Config { ack_wait: Duration::from_secs(1), ..bench.consumer() };
    bench.jetstream.get_stream("numbers").await.unwrap().update_consumer(shorter).await.unwrap();
    for value in 0..EVENTS {
        publish_of(&service.publisher, 0, value).await;
    }
    handler.await_calls(1).await;
    sleep(Duration::from_secs(12)).await;
    let deliveries = bench.deliveries().await;
    assert!(deliveries <= 8 * EVENTS, "{deliveries} deliveries of {EVENTS} events in twelve seconds");
    gate.open();
    bench.await_drained().await;
    let called: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(called, (0..EVENTS).collect::<Vec<_>>());
    service.stop().await;
}
