//! NATS is away: who publishes is told in time, and nothing is lost.

use std::time::{Duration, Instant};

use futures::future::join_all;
use jetwright_runtime::{ErrorKind, PublishOptions, Publisher};
use jetwright_testing::await_until;

use crate::support::{Bench, Number, SOON, Scripted, publish};

/// What a publish may take altogether, and what a busy machine adds where thousands end at once.
const BOUND: Duration = Duration::from_secs(5 + 5);
const AWAY: Duration = Duration::from_mins(1);

/// Publishes until it is stored, under the same message id each time. How often it was told that NATS is not there.
async fn insist(publisher: &Publisher, value: u64) -> usize {
    let subject = format!("numbers.{value}");
    let options = PublishOptions { message_id: Some(subject.clone()), ..PublishOptions::default() };
    for refusals in 0.. {
        let begun = Instant::now();
        match publisher.publish(&subject, &Number { value }, options.clone()).await {
            Ok(_) => return refusals,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(begun.elapsed() < BOUND, "it took {:?}: {error}", begun.elapsed());
            }
        }
    }
    unreachable!("a loop without end")
}

#[tokio::test]
async fn a_minute_without_nats_under_load_loses_nothing_and_stores_nothing_twice() {
    const PUBLISHERS: u64 = 16;
    const EACH: u64 = 400;
    let bench = Bench::start().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|first| {
            let publisher = service.publisher.clone();
            tokio::spawn(async move {
                let mut refusals = 0;
                for index in 0..EACH {
                    refusals += insist(&publisher, first * EACH + index).await;
                }
                refusals
            })
        })
        .collect();
    handler.await_calls(500).await;
    bench.nats.kill();
    // The time is what is tested here, so this waits for nothing.
    tokio::time::sleep(AWAY).await;
    service.await_unready("not connected to NATS").await;
    bench.nats.start_again().await;
    let refusals: Vec<_> = join_all(publishers).await.into_iter().map(Result::unwrap).collect();
    // Each was in the middle of its work.
    assert!(refusals.iter().all(|refusals| *refusals > 5), "{refusals:?}");
    bench.await_drained().await;
    assert_eq!(bench.stored().await, PUBLISHERS * EACH);
    assert_eq!(handler.values(), (0..PUBLISHERS * EACH).collect::<Vec<_>>());
    service.await_ready().await;
    service.stop().await;
}

/// Has this many publish at once, and sees that each is told in time that NATS is not there.
async fn all_are_told(publisher: &Publisher, callers: u64) {
    let publishing = (0..callers).map(|value| async move {
        let (subject, begun) = (format!("numbers.{value}"), Instant::now());
        let outcome = publisher.publish(&subject, &Number { value }, PublishOptions::default()).await;
        (outcome.map_err(|error| error.kind()), begun.elapsed())
    });
    for (outcome, took) in join_all(publishing).await {
        assert_eq!(outcome, Err(ErrorKind::Unavailable));
        assert!(took < BOUND, "it took {took:?}");
    }
}

#[tokio::test]
async fn each_of_many_who_publish_is_told_in_time_that_nats_is_dead_or_silent() {
    const CALLERS: u64 = 5000;
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    // It holds its connections, and says nothing.
    bench.nats.process().signal("STOP");
    all_are_told(&service.publisher, CALLERS).await;
    bench.nats.process().signal("CONT");
    // What was told that NATS is not there may be stored nevertheless.
    publish(&service.publisher, CALLERS).await;
    bench.nats.kill();
    all_are_told(&service.publisher, CALLERS).await;
    bench.nats.start_again().await;
    // Nobody's place among the requests in flight was lost.
    join_all((0..CALLERS).map(|value| insist(&service.publisher, value))).await;
    await_until("readiness", SOON, async || service.health.ready().map_err(|why| format!("{why:?}"))).await;
    service.stop().await;
}
