//! Promises against what nobody would do on purpose: streams and consumers that are changed behind a process that holds their events, stops in
//! the middle of a recovery, and events of one process that compete for its room.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::consumer;
use futures::StreamExt;
use jetwright_crds::environment::Binding;
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, PublishOptions, Service};
use jetwright_testing::{RawClient, await_until};
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    proxy::Proxy,
    support::{Bench, Gate, Number, SOON, Scripted, count, publish_of},
};

/// An event of some size.
#[derive(Clone, PartialEq, prost::Message)]
struct Sized {
    #[prost(uint64, tag = "1")]
    value: u64,
    #[prost(bytes, tag = "2")]
    filling: Vec<u8>,
}

impl prost::Name for Sized {
    const NAME: &'static str = "Sized";
    const PACKAGE: &'static str = "tests.v1";
}

/// Events of a key that began after a later one.
fn inversions(handler: &Scripted, keys: u64) -> Vec<(u64, u64)> {
    let mut newest: HashMap<u64, u64> = HashMap::new();
    let mut inverted = Vec::new();
    for call in handler.calls() {
        let newest = newest.entry(call.value % keys).or_default();
        if call.value < *newest {
            inverted.push((*newest, call.value));
        }
        *newest = call.value.max(*newest);
    }
    inverted
}

async fn pull_consumer(bench: &Bench) -> consumer::PullConsumer {
    bench.jetstream.get_consumer_from_stream("tests", "numbers").await.unwrap()
}

/// Has so many events delivered to somebody who does nothing with them.
pub async fn take_away(bench: &Bench, events: usize) {
    let consumer = pull_consumer(bench).await;
    let mut batch = consumer.fetch().max_messages(events).expires(SOON).messages().await.unwrap();
    for _ in 0..events {
        batch.next().await.unwrap().unwrap();
    }
}

/// Waits.
struct Waiting(Gate, Arc<AtomicUsize>);

impl Handler for Waiting {
    type Event = Sized;

    async fn handle(&self, _: Sized, _: &Metadata) -> Result<(), HandlerError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.opened().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_handlers_that_ask_at_once_hold_no_more_bytes_than_the_limit() {
    const SIZE: usize = 100 * 1024;
    const BYTES: usize = 4 * 1024 * 1024;
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 10_000;
    bench.create_consumer().await;
    let config = consumer::pull::Config { durable_name: Some("others".to_owned()), ..bench.consumer() };
    bench.jetstream.create_consumer_on_stream(config, "numbers").await.unwrap();
    let publisher = bench.publisher().await;
    let event = Sized { value: 0, filling: vec![7; SIZE] };
    for key in 0..100 {
        publisher.publish(&format!("numbers.{key}"), &event, PublishOptions::default()).await.unwrap();
    }
    let mut environment = bench.environment();
    let other = Binding { consumer: "others".to_owned(), ..bench.binding.clone() };
    environment.bindings.bindings.insert("others".to_owned(), other);
    let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
    let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
    let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let limits = HandlerOptions { bytes: BYTES, ..HandlerOptions::default() };
    service.handle_with("numbers", Waiting(gate.clone(), Arc::clone(&calls)), limits).unwrap();
    service.handle_with("others", Waiting(gate.clone(), Arc::clone(&calls)), limits).unwrap();
    let running = tokio::spawn(service.run(stop.clone()));
    let held = async || {
        let mut held = 0;
        for consumer in ["tests", "others"] {
            let consumer: consumer::PullConsumer =
                bench.jetstream.get_consumer_from_stream(consumer, "numbers").await.unwrap();
            held += consumer.cached_info().num_ack_pending;
        }
        held
    };
    await_until("most of what may be held", SOON, async || match held().await {
        held if held * SIZE >= BYTES / 2 => Ok(()),
        held => Err(held),
    })
    .await;
    sleep(Duration::from_secs(2)).await;
    let held = held().await;
    assert!(held * SIZE <= BYTES, "{held} events of {SIZE} bytes are held");
    assert!(held * SIZE >= BYTES * 3 / 4, "only {held} events of {SIZE} bytes are held");
    gate.open();
    await_until("all events", SOON, async || match calls.load(Ordering::SeqCst) {
        200 => Ok(()),
        calls => Err(calls),
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();
}

/// One that takes its time keeps no room from others that it does not take itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_did_not_fit_comes_when_there_is_room_and_not_when_all_else_has_ended() {
    struct FirstWaits(Gate, Arc<AtomicUsize>);
    impl Handler for FirstWaits {
        type Event = Sized;

        async fn handle(&self, event: Sized, _: &Metadata) -> Result<(), HandlerError> {
            if event.value == 0 {
                self.0.opened().await;
            }
            self.1.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 10_000;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    for value in 0..10 {
        let event = Sized { value, filling: vec![7; if value == 0 { 1 } else { 600 * 1024 }] };
        publisher.publish(&format!("numbers.{value}"), &event, PublishOptions::default()).await.unwrap();
    }
    let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let limits = HandlerOptions { bytes: 1024 * 1024, ..HandlerOptions::default() };
    let service = bench.run_handler(FirstWaits(gate.clone(), Arc::clone(&calls)), limits).await;
    await_until("all others", Duration::from_secs(10), async || match calls.load(Ordering::SeqCst) {
        9 => Ok(()),
        calls => Err(calls),
    })
    .await;
    gate.open();
    bench.await_drained().await;
    service.stop().await;
}

/// An attempt runs while the connection is lost and made again, and the next event of its key begins when it has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnection_during_an_attempt_is_no_violation_of_order() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 100;
    bench.create_consumer().await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|value| value == 0));
    let service = bench.run(&handler).await;
    service.await_ready().await;
    for value in 0..5 {
        publish_of(&service.publisher, 0, value).await;
    }
    handler.await_calls(1).await;
    bench.nats.stop().await;
    bench.nats.start_again().await;
    service.await_ready().await;
    await_until("a recovery", SOON, async || {
        let metrics = service.metrics();
        let series = "jetwright_order_recoveries_total{event_consumer=\"numbers\",cause=\"reconnect\"} ";
        if count(&metrics, series) > 0 { Ok(()) } else { Err(metrics) }
    })
    .await;
    gate.open();
    bench.await_drained().await;
    assert_eq!(handler.values(), [0, 1, 2, 3, 4]);
    assert_eq!(inversions(&handler, 1), []);
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

/// A consumer that is made again delivers what runs already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_handled_is_not_handled_beside_itself_when_its_consumer_is_made_again() {
    beside_itself(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordered_event_that_is_handled_is_not_handled_beside_itself_when_its_consumer_is_made_again() {
    beside_itself(true).await;
}

async fn beside_itself(ordered: bool) {
    let mut bench = Bench::without_consumer().await;
    if ordered {
        bench = bench.ordered();
    }
    bench.binding.max_ack_pending = 100;
    bench.create_consumer().await;
    let (running, beside) =
        (Arc::new(Mutex::new(HashMap::<u64, u32>::new())), Arc::new(Mutex::new(Vec::new())));
    let (runs, twice) = (Arc::clone(&running), Arc::clone(&beside));
    let handler = Scripted::new(move |value, _| {
        let (runs, twice) = (Arc::clone(&runs), Arc::clone(&twice));
        async move {
            {
                let mut runs = runs.lock().unwrap();
                let now = runs.entry(value).or_default();
                *now += 1;
                if *now > 1 {
                    twice.lock().unwrap().push(value);
                }
            }
            sleep(Duration::from_secs(2)).await;
            *runs.lock().unwrap().get_mut(&value).unwrap() -= 1;
            Ok(())
        }
    });
    let service = bench.run(&handler).await;
    service.await_ready().await;
    for value in 0..10 {
        publish_of(&service.publisher, value, value).await;
    }
    handler.await_calls(10).await;
    bench.jetstream.delete_consumer_from_stream("tests", "numbers").await.unwrap();
    bench.create_consumer().await;
    bench.await_drained().await;
    assert_eq!(*beside.lock().unwrap(), Vec::<u64>::new());
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

/// Something is owed for longer than the stop may take, and events still come of the last request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_in_the_middle_of_a_recovery_gives_back_what_comes_meanwhile() {
    let mut bench = Bench::without_consumer().await.ack_wait(60_000).ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    publish_of(&publisher, 0, 0).await;
    take_away(&bench, 1).await;
    for value in 1..10 {
        publish_of(&publisher, 0, value).await;
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    await_until("deliveries that wait", SOON, async || match bench.consumer_info().await.num_ack_pending {
        10 => Ok(()),
        held => Err(held),
    })
    .await;
    service.begin_stop();
    for value in 10..20 {
        publish_of(&publisher, 0, value).await;
    }
    service.stop().await;
    assert!(handler.calls().is_empty());
    // What was given back is there at once, in its order.
    let consumer = pull_consumer(&bench).await;
    let mut batch = consumer.fetch().max_messages(19).expires(SOON).messages().await.unwrap();
    let mut values = Vec::new();
    while values.len() < 19 {
        let message = batch.next().await.unwrap().unwrap();
        values.push(Number::decode(message.payload.clone()).unwrap().value);
    }
    assert_eq!(values, (1..20).collect::<Vec<_>>());
}

/// JetStream forgets what a purge takes away, and a process still holds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_were_purged_while_they_are_held_do_not_stand_for_those_that_are_owed() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let proxy = Proxy::before(&bench.url, |words, _| words.contains("$JS.ACK.")).await;
    bench.url.clone_from(&proxy.url);
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|value| value < 20));
    let service = bench.run(&handler).await;
    service.await_ready().await;
    let publisher = bench.publisher().await;
    for value in 0..20 {
        publish_of(&publisher, 100 + value, value).await;
    }
    handler.await_calls(20).await;
    bench.jetstream.get_stream("numbers").await.unwrap().purge().await.unwrap();
    proxy.lose(3);
    for value in 20..60 {
        publish_of(&publisher, value % 2, value).await;
    }
    await_until("the others", SOON, async || match handler.values().len() {
        60 => Ok(()),
        values => Err(values),
    })
    .await;
    gate.open();
    bench.await_drained().await;
    let calls: Vec<_> = handler.calls().iter().map(|call| call.value).filter(|value| *value >= 20).collect();
    let mut sorted =
        [0, 1].map(|key| calls.iter().copied().filter(|value| value % 2 == key).collect::<Vec<_>>());
    let before = sorted.clone();
    for of_key in &mut sorted {
        of_key.sort_unstable();
    }
    assert_eq!(before, sorted);
    service.stop().await;
}

async fn publish_foreign(bench: &Bench, subject: &str) {
    let payload = Number { value: 666 }.encode_to_vec();
    let mut client = RawClient::connect(&bench.url).await;
    client.publish(subject, b"NATS/1.0\r\nX Trace: 1\r\n\r\n", &payload).await;
}

/// As after a server that was killed forgot its termination.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_the_client_cannot_parse_may_come_again_after_its_end() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).keeping_dead_letters().await;
    bench.binding.max_ack_pending = 200;
    bench.create_consumer().await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    bench.publish(&service.publisher, 0..10).await;
    publish_foreign(&bench, "numbers.666").await;
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 10..20).await;
    bench.await_drained().await;
    await_until("a dead letter", SOON, async || match bench.dead_letters().await.len() {
        1 => Ok(()),
        found => Err(found),
    })
    .await;
    let client = bench.nats.client().await;
    let reset = client.request("$JS.API.CONSUMER.RESET.numbers.tests", r#"{"seq":1}"#.into()).await.unwrap();
    assert!(!String::from_utf8_lossy(&reset.payload).contains("error"), "{reset:?}");
    bench.publish(&publisher, 20..40).await;
    await_until("all others", SOON, async || match handler.values().len() {
        40 => Ok(()),
        values => Err(values),
    })
    .await;
    bench.await_drained().await;
    assert_eq!(bench.dead_letters().await.len(), 1);
    let connections = count(&service.metrics(), "jetwright_nats_connections_total ");
    assert!(connections <= 3, "{connections} connections");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_the_client_cannot_parse_hold_up_no_other_while_dead_letters_cannot_be_kept() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).keeping_dead_letters().await;
    bench.binding.max_ack_pending = 200;
    bench.create_consumer().await;
    bench.jetstream.delete_stream("numbers-dlq").await.unwrap();
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    service.await_ready().await;
    bench.publish(&service.publisher, 0..10).await;
    for _ in 0..3 {
        publish_foreign(&bench, "numbers.666").await;
    }
    let publisher = bench.publisher().await;
    bench.publish(&publisher, 10..20).await;
    await_until("all others", SOON, async || match handler.values().len() {
        20 => Ok(()),
        values => Err(values),
    })
    .await;
    bench.create_dead_letters().await;
    bench.await_drained().await;
    assert_eq!(bench.dead_letters().await.len(), 3);
    service.stop().await;
}

/// An event that was given up is tried no more, so it cannot end its process: however often it is delivered, it runs beside others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_given_up_and_comes_again_and_again_leaves_others_their_room() {
    let mut bench = Bench::without_consumer().await.keeping_dead_letters().await;
    bench.binding.max_ack_pending = 200;
    bench.binding.retry.max_attempts = 1;
    bench.create_consumer().await;
    bench.jetstream.delete_stream("numbers-dlq").await.unwrap();
    let gate = Gate::default();
    let opened = gate.clone();
    let handler = Scripted::new(move |value, _| {
        let gate = opened.clone();
        async move {
            match value {
                0 => return Err(HandlerError::permanent("no")),
                1 => gate.opened().await,
                _ => {}
            }
            Ok(())
        }
    });
    let service = bench.run(&handler).await;
    bench.publish(&service.publisher, 0..1).await;
    await_until("many deliveries", SOON, async || match bench.deliveries().await {
        13.. => Ok(()),
        deliveries => Err(deliveries),
    })
    .await;
    bench.publish(&service.publisher, 1..2).await;
    handler.await_calls(2).await;
    let before = bench.deliveries().await;
    await_until("another delivery of what was given up", SOON, async || match bench.deliveries().await {
        deliveries if deliveries > before + 1 => Ok(()),
        deliveries => Err(deliveries),
    })
    .await;
    bench.publish(&service.publisher, 2..10).await;
    await_until("the others", Duration::from_secs(5), async || match handler.values().len() {
        10 => Ok(()),
        values => Err(values),
    })
    .await;
    gate.open();
    bench.create_dead_letters().await;
    bench.await_drained().await;
    assert_eq!(
        bench.dead_letters().await[0].headers.get("Dead-Letter-Reason").unwrap().as_str(),
        "permanent"
    );
    service.stop().await;
}

/// A consumer that is deleted and made again all the time, with two processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_made_again_all_the_time_loses_nothing() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000);
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(5)).await;
        Ok(())
    });
    let (one, two) = (bench.run(&handler).await, bench.run(&handler).await);
    one.await_ready().await;
    let publisher = bench.publisher().await;
    let publishing = async {
        for value in 0..600 {
            publish_of(&publisher, value % 20, value).await;
            sleep(Duration::from_millis(2)).await;
        }
    };
    let remaking = async {
        for _ in 0..10 {
            sleep(Duration::from_millis(200)).await;
            bench.jetstream.delete_consumer_from_stream("tests", "numbers").await.unwrap();
            bench.create_consumer().await;
        }
    };
    tokio::join!(publishing, remaking);
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 600);
    one.stop().await;
    two.stop().await;
}

/// Blocks its thread when it is dropped at its deadline.
struct BlocksInDrop(Arc<AtomicUsize>);

impl Handler for BlocksInDrop {
    type Event = Number;

    async fn handle(&self, event: Number, _: &Metadata) -> Result<(), HandlerError> {
        struct Blocks;
        impl Drop for Blocks {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_secs(2));
            }
        }
        if event.value == 0 {
            let _blocks = Blocks;
            sleep(Duration::from_mins(1)).await;
        }
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_when_it_is_cleared_away_holds_up_no_other() {
    let mut bench = Bench::without_consumer().await.ack_wait(1000).keeping_dead_letters().await;
    bench.binding.handler_deadline = jetwright_crds::Duration::from_millis(500);
    bench.create_consumer().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let service = bench.run_handler(BlocksInDrop(Arc::clone(&calls)), HandlerOptions::default()).await;
    bench.publish(&service.publisher, 0..50).await;
    await_until("all others", SOON, async || match calls.load(Ordering::SeqCst) {
        49 => Ok(()),
        calls => Err(calls),
    })
    .await;
    bench.await_drained().await;
    assert_eq!(bench.dead_letters().await.len(), 1);
    service.stop().await;
}

/// All that may be changed of a consumer but its filters: with those JetStream itself leaves events out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_of_a_consumer_lose_no_event_and_no_order() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let handler = Scripted::new(|value, attempt| async move {
        sleep(Duration::from_millis(20)).await;
        if value % 17 == 0 && attempt == 1 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    service.await_ready().await;
    let stream = bench.jetstream.get_stream("numbers").await.unwrap();
    let publishing = async {
        for value in 0..1500 {
            publish_of(&service.publisher, value % 20, value).await;
            if value % 50 == 0 {
                sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let editing = async {
        for round in 0..12_u64 {
            sleep(Duration::from_millis(300)).await;
            let config = consumer::pull::Config {
                max_ack_pending: if round % 2 == 0 { 3 } else { 1000 },
                ack_wait: Duration::from_millis(if round % 3 == 0 { 300 } else { 2000 }),

                ..bench.consumer()
            };
            stream.update_consumer(config).await.unwrap();
            if round % 4 == 1 {
                let until = jiff::Timestamp::now() + Duration::from_millis(200);
                let pause = format!("{{\"pause_until\":\"{until}\"}}");
                bench
                    .nats
                    .client()
                    .await
                    .request("$JS.API.CONSUMER.PAUSE.numbers.tests", pause.into())
                    .await
                    .unwrap();
            }
        }
    };
    tokio::join!(publishing, editing);
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 1500);
    assert_eq!(inversions(&handler, 20), []);
    let metrics = service.stop().await;
    assert!(!metrics.contains("jetwright_order_violations_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_the_client_cannot_parse_hold_their_consumers_order_until_they_are_kept() {
    let mut bench = Bench::without_consumer().await.ack_wait(2000).keeping_dead_letters().await.ordered();
    bench.binding.max_ack_pending = 200;
    let config = consumer::pull::Config {
        filter_subjects: vec!["numbers.0".to_owned(), "numbers.1".to_owned()],
        ..bench.consumer()
    };
    bench.jetstream.create_consumer_on_stream(config, "numbers").await.unwrap();
    let full = async |full: bool| {
        let mut config =
            bench.jetstream.get_stream("numbers-dlq").await.unwrap().cached_info().config.clone();
        (config.max_bytes, config.discard) = if full {
            (10, async_nats::jetstream::stream::DiscardPolicy::New)
        } else {
            (-1, async_nats::jetstream::stream::DiscardPolicy::Old)
        };
        bench.jetstream.update_stream(config).await.unwrap();
    };
    full(true).await;
    let publisher = bench.publisher().await;
    for value in 0..40 {
        publish_of(&publisher, value % 4, value).await;
    }
    for _ in 0..10 {
        publish_foreign(&bench, "numbers.0").await;
    }
    for value in 40..80 {
        publish_of(&publisher, value % 4, value).await;
    }
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    // Longer than ackWait. Those before them may have been handled before the connection ended.
    sleep(Duration::from_secs(3)).await;
    assert!(handler.values().iter().all(|value| *value < 40), "{:?}", handler.values());
    full(false).await;
    bench.await_drained().await;
    assert_eq!(handler.values(), (0..80).filter(|value| value % 4 < 2).collect::<Vec<_>>());
    assert_eq!(inversions(&handler, 4), []);
    assert_eq!(bench.dead_letters().await.len(), 10);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_events_of_a_short_ack_wait_are_handled_once() {
    for (ordered, pending) in [(false, 1), (true, 1), (true, 16)] {
        let mut bench = Bench::without_consumer().await.ack_wait(200);
        if ordered {
            bench = bench.ordered();
        }
        bench.binding.max_ack_pending = pending;
        bench.create_consumer().await;
        let handler = Scripted::new(|_, _| async {
            sleep(Duration::from_millis(500)).await;
            Ok(())
        });
        let service = bench.run(&handler).await;
        for value in 0..6 {
            publish_of(&service.publisher, 0, value).await;
        }
        bench.await_drained().await;
        assert_eq!(handler.values().len(), 6);
        assert_eq!(handler.calls().len(), 6);
        service.stop().await;
    }
}

/// What is new is not taken without end while something is owed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_recovery_few_new_events_are_taken_beyond_the_limit() {
    const SIZE: usize = 200 * 1024;
    let mut bench = Bench::without_consumer().await.ack_wait(20_000).ordered();
    bench.binding.max_ack_pending = 10_000;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    let event = Sized { value: 0, filling: vec![7; SIZE] };
    for key in 0..60 {
        publisher.publish(&format!("numbers.{}", key % 5), &event, PublishOptions::default()).await.unwrap();
    }
    take_away(&bench, 1).await;
    let limits = HandlerOptions { bytes: 2 * 1024 * 1024, ..HandlerOptions::default() };
    let service = bench.run_handler(Waiting(Gate::default(), Arc::default()), limits).await;
    let held = async || bench.consumer_info().await.num_ack_pending;
    await_until("as many as it may hold", SOON, async || match held().await {
        held if held >= 10 => Ok(()),
        held => Err(held),
    })
    .await;
    sleep(Duration::from_secs(5)).await;
    let held = held().await;
    // One is owed, ten have room, and in twenty seconds sixteen are taken beyond it.
    assert!(held <= 1 + 10 + 6, "{held} events are held");
    service.stop().await;
}

/// Nothing can be delivered until somebody changes the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_larger_than_its_consumer_grants_is_not_asked_for_without_a_pause() {
    let bench = Bench::without_consumer().await;
    let config = consumer::pull::Config { max_bytes: 1000, ..bench.consumer() };
    bench.jetstream.create_consumer_on_stream(config, "numbers").await.unwrap();
    let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    gate.open();
    let service = bench.run_handler(Waiting(gate, Arc::clone(&calls)), HandlerOptions::default()).await;
    service.await_ready().await;
    let event = Sized { value: 0, filling: vec![7; 10_000] };
    service.publisher.publish("numbers.0", &event, PublishOptions::default()).await.unwrap();
    let received =
        async || bench.nats.monitor::<serde_json::Value>("/varz").await.unwrap()["in_msgs"].as_u64().unwrap();
    let before = received().await;
    sleep(Duration::from_secs(3)).await;
    let requests = received().await - before;
    assert!(requests < 200, "{requests} requests in 3 s");
    let stream = bench.jetstream.get_stream("numbers").await.unwrap();
    stream.update_consumer(bench.consumer()).await.unwrap();
    // What is granted is learnt when the consumer is found again.
    bench.nats.stop().await;
    bench.nats.start_again().await;
    bench.await_drained().await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    service.stop().await;
}

/// Attempts take as long as JetStream waits, so that many events are delivered again while they are acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_comes_again_while_it_is_acknowledged_is_not_handled_again() {
    for ordered in [false, true] {
        let mut bench = Bench::without_consumer().await.ack_wait(300);
        if ordered {
            bench = bench.ordered();
        }
        bench.binding.max_ack_pending = 1000;
        bench.create_consumer().await;
        // It is not told that these are in progress.
        bench.binding.ack_wait = jetwright_crds::Duration::from_secs(60);
        let handler = Scripted::new(|value, _| async move {
            sleep(Duration::from_millis(290 + value % 20)).await;
            Ok(())
        });
        let service = bench
            .run_within(&handler, HandlerOptions { concurrency: 500, ..HandlerOptions::default() })
            .await;
        service.await_ready().await;
        for value in 0..1000 {
            publish_of(&service.publisher, value % 200, value).await;
        }
        bench.await_drained().await;
        assert_eq!(handler.calls().len(), 1000, "ordered: {ordered}");
        assert_eq!(inversions(&handler, 200), []);
        service.stop().await;
    }
}
