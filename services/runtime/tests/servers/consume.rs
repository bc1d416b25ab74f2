use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream::consumer};
use bytes::Bytes;
use futures::StreamExt;
use jetwright_crds::Duration as Text;
use jetwright_process::health::Health;
use jetwright_runtime::{Event, Failure, Handler, Limits, Metadata, Service, Undecodable};
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Gate, SOON, Scripted, publish};

#[tokio::test]
async fn what_is_handled_is_acknowledged_and_delivered_once() {
    let bench = Bench::start().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..100).await;
    bench.await_drained().await;
    assert_eq!(handler.calls().len(), 100);
    assert_eq!(handler.values(), (0..100).collect::<Vec<_>>());
    assert_eq!(bench.consumer_info().await.num_redelivered, 0);
    assert_eq!(service.handled("done"), 100);
    service.stop().await;
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_after_a_growing_delay() {
    let bench = Bench::start().await;
    let handler = Scripted::new(|_, attempt| async move {
        if attempt < 3 { Err(Failure::transient("not yet")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 7..8).await;
    handler.await_calls(3).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(7, 1), (7, 2), (7, 3)]);
    let calls = handler.calls();
    let delays: Vec<_> = calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    // At least the half of 100 ms and 200 ms; the server adds its own time.
    assert!(delays[0] >= Duration::from_millis(50) && delays[1] >= Duration::from_millis(100), "{delays:?}");
    assert_eq!((service.handled("retried"), service.handled("done")), (2, 1));
    service.stop().await;
}

#[tokio::test]
async fn the_last_attempt_ends_an_event_and_is_counted() {
    let bench = Bench::start().await;
    let handler = Scripted::new(|value, _| async move {
        if value == 1 { Err(Failure::transient("never")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..3).await;
    bench.await_drained().await;
    let of_one = handler.attempts().into_iter().filter(|(value, _)| *value == 1).collect::<Vec<_>>();
    assert_eq!(of_one, [(1, 1), (1, 2), (1, 3)]);
    assert_eq!((service.handled("last-attempt"), service.handled("done")), (1, 2));
    service.stop().await;
}

#[tokio::test]
async fn a_permanent_failure_is_not_tried_again() {
    let bench = Bench::start().await;
    let handler = Scripted::new(|_, _| async { Err(Failure::permanent("no")) });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..1).await;
    handler.await_calls(1).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(0, 1)]);
    assert_eq!(service.handled("permanent"), 1);
    service.stop().await;
}

#[tokio::test]
async fn what_does_not_decode_does_not_stop_the_stream() {
    let bench = Bench::start().await;
    let of_type =
        |event_type: &str| HeaderMap::from_iter([("Event-Type".parse().unwrap(), event_type.into())]);
    let cases = [(None, "x"), (Some("tests.v1.Number"), "not protobuf"), (Some("tests.v1.Letter"), "")];
    for (event_type, payload) in cases {
        let headers = event_type.map(of_type).unwrap_or_default();
        let sent =
            bench.jetstream.publish_with_headers("numbers.bad", headers, payload.into()).await.unwrap();
        sent.await.unwrap();
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 5..6).await;
    bench.await_drained().await;
    assert_eq!(handler.values(), [5]);
    assert_eq!((service.handled("undecodable"), service.handled("done")), (3, 1));
    service.stop().await;
}

#[tokio::test]
async fn a_panic_costs_one_attempt_and_nothing_else() {
    let bench = Bench::start().await;
    let handler = Scripted::new(|value, attempt| {
        // One before and one within the future.
        assert!(value != 1 || attempt != 1, "before");
        async move {
            assert!(value != 1 || attempt != 2, "within");
            Ok(())
        }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..3).await;
    bench.await_drained().await;
    let of_one = handler.attempts().into_iter().filter(|(value, _)| *value == 1).collect::<Vec<_>>();
    assert_eq!(of_one, [(1, 1), (1, 2), (1, 3)]);
    assert_eq!((service.handled("retried"), service.handled("done")), (2, 3));
    service.stop().await;
}

/// An event whose reading is at fault.
struct Bomb;

impl Event for Bomb {
    fn decode(event_type: &str, _: Bytes) -> Result<Self, Undecodable> {
        assert!(event_type.is_empty(), "it went off");
        Ok(Self)
    }
}

struct Explosive;

impl Handler for Explosive {
    type Event = Bomb;
    const BINDING: &'static str = "numbers";

    async fn handle(&self, _: Bomb, _: &Metadata) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_while_an_event_is_read_costs_that_event_alone() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
    let mut service = Service::connect(bench.environment(), &health, &mut registry).await.unwrap();
    service.handle(Explosive).unwrap();
    let publisher = service.publisher();
    let task = tokio::spawn(service.run(stop.clone()));
    publish(&publisher, 1).await;
    await_until("its dead letter", SOON, async || match bench.dead_letters().await.len() {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    bench.await_drained().await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_slow_handler_keeps_its_event() {
    let bench = Bench::without_consumer().await.ack_wait(2000);
    bench.create_consumer().await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|_| true));
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..1).await;
    handler.await_calls(1).await;
    // Two of ackWait, during which nobody is to be given it again.
    sleep(Duration::from_secs(4)).await;
    gate.open();
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(0, 1)]);
    service.stop().await;
}

#[tokio::test]
async fn a_handler_that_hangs_is_given_up_at_its_deadline_and_tried_again() {
    let mut bench = Bench::start().await;
    bench.binding.handler_deadline = Text::from_millis(200);
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 1 {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..1).await;
    handler.await_calls(2).await;
    bench.await_drained().await;
    assert_eq!((service.handled("retried"), service.handled("done")), (1, 1));
    service.stop().await;
}

#[tokio::test]
async fn no_more_is_held_than_the_limit_and_one_that_waits_holds_nobody_else() {
    let bench = Bench::start().await;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let gate = Gate::default();
    let slow = gate.clone();
    let handler = Scripted::new(move |value, _| {
        let (now, most, slow) = (Arc::clone(&now), Arc::clone(&seen), slow.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            if value == 0 {
                slow.opened().await;
            }
            sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..200).await;
    let limits = Limits { concurrency: 4, ..Limits::default() };
    let service = bench.run_within(&handler, limits).await;
    await_until("all but the slow one", SOON, async || {
        let info = bench.consumer_info().await;
        assert!(info.num_ack_pending <= 4, "{} are held", info.num_ack_pending);
        let waiting = (info.num_pending, info.num_ack_pending);
        if waiting == (0, 1) { Ok(()) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    gate.open();
    bench.await_drained().await;
    assert_eq!(most.load(Ordering::SeqCst), 4);
    service.stop().await;
}

#[tokio::test]
async fn a_graceful_stop_under_load_gives_nothing_back() {
    let bench = Bench::start().await;
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..1000).await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|value| value >= 100));
    let first = bench.run(&handler).await;
    // All that it may hold is in its hands when it is asked to stop.
    handler.await_calls(100 + 16).await;
    let opening = async {
        sleep(Duration::from_millis(100)).await;
        gate.open();
    };
    tokio::join!(first.stop(), opening);
    let info = bench.consumer_info().await;
    assert_eq!((info.num_ack_pending, info.num_redelivered), (0, 0));
    let so_far = handler.calls().len();
    assert!(so_far < 1000, "{so_far} were handled before the stop: it was not under load");

    let second = bench.run(&handler).await;
    bench.await_drained().await;
    let mut times = BTreeMap::<u64, usize>::new();
    handler.calls().iter().for_each(|call| *times.entry(call.value).or_default() += 1);
    assert_eq!(times, (0..1000).map(|value| (value, 1)).collect());
    second.stop().await;
}

#[tokio::test]
async fn a_consumer_that_refuses_every_pull_is_asked_ever_less_until_it_does_not() {
    let bench = Bench::without_consumer().await;
    let config = bench.consumer();
    let refusing = consumer::pull::Config { max_batch: 1, ..config.clone() };
    bench.jetstream.create_consumer_on_stream(refusing, "numbers").await.unwrap();
    let watcher = bench.nats.client().await;
    let mut pulls = watcher.subscribe("$JS.API.CONSUMER.MSG.NEXT.>").await.unwrap();
    watcher.flush().await.unwrap();

    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_unready("409 Exceeded MaxRequestBatch of 1").await;
    let mut asked = 0;
    let counted = tokio::time::timeout(Duration::from_secs(5), async {
        while pulls.next().await.is_some() {
            asked += 1;
            let reasons = format!("{:?}", service.health.ready());
            assert!(asked == 1 || reasons.contains("MaxRequestBatch"), "{reasons}");
        }
    });
    counted.await.unwrap_err();
    assert!((2..50).contains(&asked), "it was asked {asked} times");

    bench.jetstream.create_consumer_on_stream(config, "numbers").await.unwrap();
    bench.publish(&service.publisher, 0..1).await;
    service.await_ready().await;
    bench.await_drained().await;
    service.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_made_again_during_an_attempt_loses_nothing_by_its_settlement() {
    let bench = Bench::start().await;
    let (old, new) = (Gate::default(), Gate::default());
    let (of_old, of_new) = (old.clone(), new.clone());
    let handler = Scripted::new(move |value, attempt| {
        let (of_old, of_new) = (of_old.clone(), of_new.clone());
        async move {
            match (value, attempt) {
                (1, _) => of_old.opened().await,
                (2, 1) => {
                    of_new.opened().await;
                    return Err(Failure::transient("once more"));
                }
                _ => {}
            }
            Ok(())
        }
    });
    let service = bench.run(&handler).await;
    publish(&service.publisher, 1).await;
    handler.await_calls(1).await;
    bench.jetstream.delete_stream("numbers").await.unwrap();
    service.await_unready("consumer tests of stream numbers").await;
    bench.create_stream().await;
    bench.create_consumer().await;
    assert_eq!(publish(&service.publisher, 2).await.sequence, 1, "the sequence of the first event");
    handler.await_calls(2).await;

    // The old event's settlement names the new one.
    old.open();
    await_until("the end of the old attempt", SOON, async || match service.unconfirmed() {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    new.open();
    handler.await_calls(3).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(1, 1), (2, 1), (2, 2)]);
    service.stop().await;
}

#[tokio::test]
async fn a_consumer_that_is_made_later_is_waited_for() {
    let bench = Bench::without_consumer().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..3).await;
    service.await_unready("consumer tests of stream numbers: consumer not found").await;
    bench.create_consumer().await;
    service.await_ready().await;
    bench.await_drained().await;
    assert_eq!(handler.values(), [0, 1, 2]);
    service.stop().await;
}

#[tokio::test]
async fn a_consumer_that_is_deleted_and_made_again_is_found_again() {
    let bench = Bench::start().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    bench.jetstream.delete_consumer_from_stream("tests", "numbers").await.unwrap();
    service.await_unready("consumer not found").await;
    bench.create_consumer().await;
    bench.publish(&service.publisher, 0..3).await;
    service.await_ready().await;
    bench.await_drained().await;
    assert_eq!(handler.values(), [0, 1, 2]);
    service.stop().await;
}

#[tokio::test]
async fn a_message_that_was_delivered_too_often_is_ended_unhandled() {
    let bench = Bench::without_consumer().await.ack_wait(300);
    bench.create_consumer().await;
    // Processes that died with it: three deliveries that nobody settled.
    let consumer: async_nats::jetstream::consumer::PullConsumer =
        bench.jetstream.get_consumer_from_stream("tests", "numbers").await.unwrap();
    bench.jetstream.publish("numbers.1", "".into()).await.unwrap().await.unwrap();
    for _ in 0..3 {
        await_until("a delivery", SOON, async || {
            let mut batch =
                consumer.fetch().max_messages(1).messages().await.map_err(|error| error.to_string())?;
            batch.next().await.map(drop).ok_or("none yet".to_owned())
        })
        .await;
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    await_until("its end", SOON, async || match service.handled("last-attempt") {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), []);
    service.stop().await;
}
