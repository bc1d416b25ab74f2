use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{HeaderMap, jetstream::consumer};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use jetwright_crds::{Duration as Text, environment::Binding};
use jetwright_partitions::subjects::Partitions;
use jetwright_process::health::Health;
use jetwright_runtime::{
    AckMode, DecodeError, Event, Handler, HandlerError, HandlerOptions, Metadata, Service, UnknownTypes,
};
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    proxy::Proxy,
    sharing::{Operator, await_drained, publish_values, sharing},
    support::{Bench, Gate, Number, SOON, Scripted, number_headers, publish},
};

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
        if attempt < 3 { Err(HandlerError::transient("not yet")) } else { Ok(()) }
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
async fn attempts_and_their_delays_go_on_after_a_restart() {
    let mut bench = Bench::start().await;
    bench.binding.retry.backoff.initial = Text::from_secs(2);
    bench.binding.retry.backoff.max = Text::from_secs(2);
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 1 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..1).await;
    handler.await_calls(1).await;
    service.stop().await;
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(0, 1), (0, 2)]);
    let [first, second] = [0, 1].map(|call| handler.calls()[call].at);
    // Half of it is certain.
    assert!(second - first >= Duration::from_secs(1), "{:?}", second - first);
    service.stop().await;
}

/// A bench whose services lose JetStream's confirmations of what they settle, when the proxy is told so.
async fn losing_confirmations() -> (Bench, Proxy) {
    let mut bench = Bench::start().await;
    // They have no payload, and nothing else that a service hears is like that.
    let empty = |words: &str, payload: &str| words.starts_with("MSG _INBOX.") && payload.is_empty();
    let proxy = Proxy::before(bench.nats.url(), empty).await;
    bench.url.clone_from(&proxy.url);
    (bench, proxy)
}

#[tokio::test]
async fn a_retry_whose_confirmation_is_lost_is_the_next_attempt_when_it_comes() {
    let (bench, proxy) = losing_confirmations().await;
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 1 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    proxy.lose(1);
    bench.publish(&service.publisher, 0..1).await;
    bench.await_drained().await;
    service.stop().await;
    assert_eq!((handler.attempts(), proxy.left_to_lose()), (vec![(0, 1), (0, 2)], 0));
}

#[tokio::test]
async fn a_settlement_whose_confirmation_is_lost_is_told_again() {
    let (bench, proxy) = losing_confirmations().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    proxy.lose(1);
    bench.publish(&service.publisher, 0..1).await;
    handler.await_calls(1).await;
    bench.await_drained().await;
    let metrics = service.stop().await;
    assert_eq!((handler.attempts(), proxy.left_to_lose()), (vec![(0, 1)], 0));
    assert!(!metrics.contains("settlements_unconfirmed_total{"), "{metrics}");
}

#[tokio::test]
async fn acknowledgements_that_are_only_sent_arrive_and_failures_are_tried_again() {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let handler = Scripted::new(|value, attempt| async move {
        if value % 10 == 0 && attempt == 1 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let limits = HandlerOptions { ack_mode: AckMode::FireAndForget, ..HandlerOptions::default() };
    let service = bench.run_within(&handler, limits).await;
    bench.publish(&service.publisher, 0..500).await;
    bench.await_drained().await;
    assert_eq!((handler.values().len(), handler.calls().len()), (500, 550));
    service.stop().await;
}

#[tokio::test]
async fn a_failure_that_names_its_time_is_tried_again_then_whether_order_is_kept_or_not() {
    for bench in [Bench::start().await, Bench::start().await.ordered()] {
        let handler = Scripted::new(|_, attempt| async move {
            let after = Duration::from_millis(1500);
            if attempt == 1 { Err(HandlerError::retry_after(after, "come again later")) } else { Ok(()) }
        });
        let service = bench.run(&handler).await;
        bench.publish(&service.publisher, 0..1).await;
        bench.await_drained().await;
        assert_eq!(handler.attempts(), [(0, 1), (0, 2)]);
        let [first, second] = [0, 1].map(|call| handler.calls()[call].at);
        assert!(second - first >= Duration::from_millis(1500), "{:?}", second - first);
        service.stop().await;
    }
}

#[tokio::test]
async fn a_time_of_the_next_attempt_that_no_clock_reaches_stops_no_other_event() {
    for bench in [Bench::start().await, Bench::start().await.ordered()] {
        let handler = Scripted::new(|value, _| async move {
            if value == 0 { Err(HandlerError::retry_after(Duration::MAX, "never")) } else { Ok(()) }
        });
        let service = bench.run(&handler).await;
        bench.publish(&service.publisher, 0..20).await;
        await_until("the other events", SOON, async || {
            let done = service.handled("done");
            if done == 19 { Ok(()) } else { Err(done) }
        })
        .await;
        assert_eq!((handler.calls().len(), service.handled("retried")), (20, 1));
        service.stop().await;
    }
}

#[tokio::test]
async fn an_event_of_an_unknown_type_is_given_up_or_ignored_as_the_handler_says() {
    for (unknown_types, outcome) in
        [(UnknownTypes::DeadLetter, "undecodable"), (UnknownTypes::Ignore, "ignored")]
    {
        let bench = Bench::start().await;
        let handler = Scripted::content();
        let options = HandlerOptions { unknown_types, ..HandlerOptions::default() };
        let service = bench.run_within(&handler, options).await;
        let mut headers = HeaderMap::new();
        headers.insert("Event-Type", "events.v2.Number");
        let stored = bench.jetstream.publish_with_headers("numbers.0", headers, "".into()).await.unwrap();
        stored.await.unwrap();
        bench.publish(&service.publisher, 1..2).await;
        bench.await_drained().await;
        assert_eq!(handler.values(), [1]);
        assert_eq!(service.handled(outcome), 1);
        service.stop().await;
    }
}

/// Leaves something behind that panics when it is cleared away.
struct Bomber(Arc<AtomicUsize>);

struct Shell;

impl Drop for Shell {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "cleared away");
    }
}

impl Handler for Bomber {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        if event.value == 0 && metadata.attempt == 1 {
            let _shell = Shell;
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_when_an_attempt_is_cleared_away_costs_that_attempt_alone() {
    for bench in [Bench::without_consumer().await, Bench::without_consumer().await.ordered()] {
        let mut bench = bench;
        bench.binding.handler_deadline = Text::from_millis(200);
        bench.create_consumer().await;
        let calls = Arc::default();
        let service = bench.run_handler(Bomber(Arc::clone(&calls)), HandlerOptions::default()).await;
        bench.publish(&service.publisher, 0..10).await;
        bench.await_drained().await;
        assert_eq!(calls.load(Ordering::SeqCst), 11);
        assert_eq!(bench.deliveries().await, if bench.binding.ordering.is_some() { 10 } else { 11 });
        service.stop().await;
    }
}

/// Keeps a quarter of a MiB while it waits.
struct Large;

impl Handler for Large {
    type Event = Number;

    async fn handle(&self, event: Number, _: &Metadata) -> Result<(), HandlerError> {
        #[expect(clippy::large_stack_arrays, reason = "a future of this size is what the test is about")]
        let kept = [u8::try_from(event.value).unwrap(); 256 * 1024];
        tokio::task::yield_now().await;
        if kept.iter().any(|byte| u64::from(*byte) != event.value) {
            return Err(HandlerError::permanent("the memory changed"));
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_whose_future_is_large_does_not_overflow_the_stack_of_its_thread() {
    let bench = Bench::start().await;
    let service = bench.run_handler(Large, HandlerOptions::default()).await;
    bench.publish(&service.publisher, 0..20).await;
    bench.await_drained().await;
    assert_eq!(service.handled("done"), 20);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_events_are_handled_at_once_than_the_handler_allows_although_nats_dies_again_and_again() {
    let mut bench = Bench::without_consumer().await.ack_wait(1000);
    bench.binding.max_ack_pending = 200;
    bench.create_consumer().await;
    let running = Arc::new(Mutex::new((0_u32, 0_u32)));
    let counted = Arc::clone(&running);
    let handler = Scripted::new(move |_, _| {
        let counted = Arc::clone(&counted);
        async move {
            {
                let (now, most) = &mut *counted.lock().unwrap();
                *now += 1;
                *most = (*most).max(*now);
            }
            sleep(Duration::from_millis(400)).await;
            counted.lock().unwrap().0 -= 1;
            Ok(())
        }
    });
    let options = HandlerOptions { concurrency: 4, ..HandlerOptions::default() };
    let service = bench.run_within(&handler, options).await;
    bench.publish(&service.publisher, 0..60).await;
    for _ in 0..4 {
        let before = handler.calls().len();
        handler.await_calls(before + 6).await;
        bench.nats.kill();
        bench.nats.start_again().await;
    }
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 60);
    assert_eq!(running.lock().unwrap().1, 4);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_waits_goes_on_while_others_that_do_not_wait_come_without_a_pause() {
    const EVENTS: u64 = 10_000;
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 1000;
    let publisher = bench.publisher().await;
    let publishing = (0..EVENTS).map(|value| publish(&publisher, value));
    futures::stream::iter(publishing).buffer_unordered(500).for_each(|_| async {}).await;
    bench.create_consumer().await;
    let waited = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&waited);
    let handler = Scripted::new(move |value, _| {
        let noted = Arc::clone(&noted);
        async move {
            if value == 0 {
                let begun = std::time::Instant::now();
                sleep(Duration::from_millis(20)).await;
                *noted.lock().unwrap() = Some(begun.elapsed());
            } else {
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_micros(300) {}
            }
            Ok(())
        }
    });
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    let waited = waited.lock().unwrap().unwrap();
    assert!(waited < Duration::from_millis(500), "{waited:?}");
    service.stop().await;
}

struct Letters;

impl Handler for Letters {
    type Event = Number;

    async fn handle(&self, _: Number, _: &Metadata) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test]
async fn of_two_handlers_one_whose_consumer_is_missing_does_not_hold_the_other() {
    let bench = Bench::start().await;
    let mut environment = bench.environment();
    let missing = Binding { consumer: "missing".to_owned(), ..bench.binding.clone() };
    environment.bindings.bindings.insert("letters".to_owned(), missing);
    let (health, stop, handler) = (Health::new(), CancellationToken::new(), Scripted::content());
    let mut service = Service::connect(environment, &health, &mut Registry::default()).await.unwrap();
    let publisher = service.publisher();
    service.handle("numbers", handler.clone()).unwrap().handle("letters", Letters).unwrap();
    let running = tokio::spawn(service.run(stop.clone()));
    bench.publish(&publisher, 0..10).await;
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 10);
    let why = format!("{:?}", health.ready().unwrap_err());
    assert!(why.contains("consumer letters") && !why.contains("consumer numbers"), "{why}");
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_last_attempt_ends_an_event_and_is_counted() {
    let bench = Bench::start().await;
    let handler = Scripted::new(|value, _| async move {
        if value == 1 { Err(HandlerError::transient("never")) } else { Ok(()) }
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
    let handler = Scripted::new(|_, _| async { Err(HandlerError::permanent("no")) });
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
    fn decode(event_type: &str, _: Bytes) -> Result<Self, DecodeError> {
        assert!(event_type.is_empty(), "it went off");
        Ok(Self)
    }
}

struct Explosive;

impl Handler for Explosive {
    type Event = Bomb;

    async fn handle(&self, _: Bomb, _: &Metadata) -> Result<(), HandlerError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_while_an_event_is_read_costs_that_event_alone() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let service = bench.run_handler(Explosive, HandlerOptions::default()).await;
    publish(&service.publisher, 1).await;
    await_until("its dead letter", SOON, async || match bench.dead_letters().await.len() {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    bench.await_drained().await;
    service.stop().await;
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
    let limits = HandlerOptions { concurrency: 4, ..HandlerOptions::default() };
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

/// A consumer that is for pushes answers no request, and says so.
#[tokio::test]
async fn a_consumer_that_refuses_every_pull_is_asked_ever_less_until_it_does_not() {
    let bench = Bench::without_consumer().await;
    let pushing = consumer::push::Config {
        durable_name: Some(bench.binding.consumer.clone()),
        deliver_subject: "nowhere".to_owned(),
        ..Default::default()
    };
    bench.jetstream.create_consumer_on_stream(pushing, "numbers").await.unwrap();
    let watcher = bench.nats.client().await;
    let mut pulls = watcher.subscribe("$JS.API.CONSUMER.MSG.NEXT.>").await.unwrap();
    watcher.flush().await.unwrap();

    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    let mut asked = 0;
    let counted = tokio::time::timeout(Duration::from_secs(5), async {
        while pulls.next().await.is_some() {
            asked += 1;
        }
    });
    counted.await.unwrap_err();
    assert!((2..50).contains(&asked), "it was asked {asked} times");

    bench.jetstream.delete_consumer_from_stream("tests", "numbers").await.unwrap();
    bench.create_consumer().await;
    bench.publish(&service.publisher, 0..1).await;
    service.await_ready().await;
    bench.await_drained().await;
    service.stop().await;
}

/// What is asked for stays within what the consumer grants, whatever the process has room for.
#[tokio::test]
async fn a_consumer_with_narrow_limits_is_served_within_them() {
    let narrow: [fn(&mut consumer::pull::Config); 4] = [
        |config| config.max_batch = 1,
        |config| config.max_expires = Duration::from_millis(200),
        |config| config.max_waiting = 1,
        |config| config.max_bytes = 300,
    ];
    for limit in narrow {
        let bench = Bench::without_consumer().await;
        let mut config = bench.consumer();
        limit(&mut config);
        bench.jetstream.create_consumer_on_stream(config.clone(), "numbers").await.unwrap();
        let watcher = bench.nats.client().await;
        let mut asked = watcher.subscribe("$JS.API.CONSUMER.INFO.numbers.tests").await.unwrap();
        watcher.flush().await.unwrap();
        let handler = Scripted::content();
        let service = bench.run(&handler).await;
        service.await_ready().await;
        bench.publish(&service.publisher, 0..50).await;
        handler.await_calls(50).await;
        assert_eq!(handler.values().len(), 50, "{config:?}");
        // Whoever is refused looks for the consumer again.
        let mut questions = 0;
        while asked.next().now_or_never().is_some() {
            questions += 1;
        }
        assert!(questions < 10, "{config:?}: it was asked for {questions} times");
        bench.await_drained().await;
        service.stop().await;
    }
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
                    return Err(HandlerError::transient("once more"));
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

/// An event that was only handed over, however often, is handled: deliveries are no attempts.
#[tokio::test]
async fn an_event_that_was_handed_over_more_often_than_it_may_be_tried_is_handled() {
    let bench = Bench::start().await;
    bench
        .jetstream
        .publish_with_headers("numbers.1", number_headers(), Number { value: 1 }.encode_to_vec().into())
        .await
        .unwrap()
        .await
        .unwrap();
    bench.give_back(9).await;
    let handler = Scripted::new(|_, attempt| async move {
        if attempt == 10 { Err(HandlerError::transient("once")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    handler.await_calls(2).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(1, 10), (1, 11)]);
    assert_eq!((service.handled("done"), service.handled("last-attempt")), (1, 0));
    service.stop().await;
}

/// What runs beside the event with value 0 when it begins and when it ends.
#[derive(Clone, Default)]
struct Beside {
    running: Arc<AtomicUsize>,
    noted: Arc<Mutex<Vec<usize>>>,
}

impl Beside {
    fn handler(&self) -> Scripted {
        let beside = self.clone();
        Scripted::new(move |value, _| {
            let Self { running, noted } = beside.clone();
            async move {
                let others = running.fetch_add(1, Ordering::SeqCst);
                if value == 0 {
                    noted.lock().unwrap().push(others);
                }
                sleep(Duration::from_millis(100)).await;
                let left = running.fetch_sub(1, Ordering::SeqCst) - 1;
                if value == 0 {
                    noted.lock().unwrap().push(left);
                }
                Ok(())
            }
        })
    }

    fn assert_alone(&self) {
        assert_eq!(*self.noted.lock().unwrap(), [0, 0]);
    }
}

#[tokio::test]
async fn an_event_that_was_delivered_far_too_often_runs_alone() {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 100;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    publish(&publisher, 0).await;
    bench.give_back(14).await;
    bench.publish(&publisher, 1..20).await;
    let beside = Beside::default();
    let handler = beside.handler();
    let service = bench.run(&handler).await;
    handler.await_calls(20).await;
    bench.await_drained().await;
    beside.assert_alone();
    service.stop().await;
}

#[tokio::test]
async fn an_event_that_was_delivered_far_too_often_runs_alone_in_all_partitions() {
    const PARTITIONS: u32 = 8;
    let bench = sharing(PARTITIONS).await;
    let _operator = Operator::start(bench.nats.url(), PARTITIONS).await;
    publish_values(&bench.jetstream, 0..1).await;
    let of_stream = Partitions::new("numbers.*", &[2], PARTITIONS).unwrap();
    let partition = |value: u64| of_stream.partition_of(&format!("numbers.{value}"));
    bench.give_back_of(&format!("tests-p{}", partition(0)), 1, 14).await;
    let others: Vec<_> = (1..40).filter(|value| partition(*value) != partition(0)).collect();
    publish_values(&bench.jetstream, others.iter().copied()).await;
    let beside = Beside::default();
    let handler = beside.handler();
    let service = bench.run(&handler).await;
    handler.await_calls(1 + others.len()).await;
    await_drained(&bench.jetstream, PARTITIONS, SOON).await;
    beside.assert_alone();
    service.stop().await;
}

/// One of them may end its process each time, and would take those behind it with it.
#[tokio::test]
async fn events_that_run_alone_take_turns_that_differ_each_time() {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 100;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 0..20).await;
    bench.give_back_all(20, 14).await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    handler.await_calls(20).await;
    bench.await_drained().await;
    let values: Vec<_> = handler.attempts().into_iter().map(|(value, _)| value).collect();
    // One in 2 to the 19th is.
    assert!(!values.is_sorted(), "{values:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_message_that_was_delivered_far_too_often_is_ended_unhandled() {
    let bench = Bench::start().await;
    let publisher = bench.publisher().await;
    publish(&publisher, 1).await;
    bench.give_back(26).await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    await_until("its end", SOON, async || match service.handled("delivered-too-often") {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), []);
    service.stop().await;
}
