//! What a process holds and does at once: bytes, and threads that handlers block.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use jetwright_crds::Duration as Text;
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, PublishOptions, Service};
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Gate, Number, SOON, Scripted, publish};

#[derive(Clone, PartialEq, prost::Message)]
struct Large {
    #[prost(bytes, tag = "1")]
    value: Vec<u8>,
}

impl prost::Name for Large {
    const NAME: &'static str = "Large";
    const PACKAGE: &'static str = "tests.v1";
}

/// Counts what it is given, and waits.
struct Held(Gate, Arc<AtomicUsize>);

impl Handler for Held {
    type Event = Large;

    async fn handle(&self, _: Large, _: &Metadata) -> Result<(), HandlerError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.opened().await;
        Ok(())
    }
}

async fn no_more_bytes_are_held(ordered: bool) {
    const SIZE: usize = 200 * 1024;
    const BYTES: usize = 2 * 1024 * 1024;
    let mut bench = Bench::without_consumer().await;
    if ordered {
        bench = bench.ordered();
    }
    bench.binding.max_ack_pending = 10_000;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    let event = Large { value: vec![7; SIZE] };
    for key in 0..60 {
        publisher.publish(&format!("numbers.{}", key % 5), &event, PublishOptions::default()).await.unwrap();
    }
    let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    let limits = HandlerOptions { bytes: BYTES, ..HandlerOptions::default() };
    let service = bench.run_handler(Held(gate.clone(), Arc::clone(&calls)), limits).await;
    await_until("as many as it may hold", SOON, async || match bench.consumer_info().await.num_ack_pending {
        held if held >= BYTES / SIZE - 2 => Ok(()),
        held => Err(held),
    })
    .await;
    // Until requests would have asked for more.
    sleep(Duration::from_secs(2)).await;
    let held = bench.consumer_info().await.num_ack_pending;
    assert!(held * SIZE <= BYTES, "{held} events of {SIZE} bytes are held");
    gate.open();
    bench.await_drained().await;
    assert_eq!(calls.load(Ordering::SeqCst), 60);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_bytes_of_events_are_held_than_the_limit() {
    no_more_bytes_are_held(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_bytes_of_ordered_events_are_held_than_the_limit() {
    no_more_bytes_are_held(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_are_larger_than_the_limit_are_handled_one_at_a_time() {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 100;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    let event = Large { value: vec![7; 100_000] };
    for key in 0..10 {
        publisher.publish(&format!("numbers.{key}"), &event, PublishOptions::default()).await.unwrap();
    }
    let (gate, calls) = (Gate::default(), Arc::new(AtomicUsize::new(0)));
    gate.open();
    let limits = HandlerOptions { bytes: 10_000, ..HandlerOptions::default() };
    let service = bench.run_handler(Held(gate, Arc::clone(&calls)), limits).await;
    bench.await_drained().await;
    assert_eq!(calls.load(Ordering::SeqCst), 10);
    service.stop().await;
}

/// Blocks its thread for as long as the test says.
struct Blocking(Duration);

impl Handler for Blocking {
    type Event = Number;

    async fn handle(&self, _: Number, _: &Metadata) -> Result<(), HandlerError> {
        thread::sleep(self.0);
        Ok(())
    }
}

/// Two handlers in one process, one of which blocks every thread that it is given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_threads_holds_up_no_other_and_fails_liveness() {
    let mut bench = Bench::without_consumer().await.ack_wait(1500);
    bench.binding.handler_deadline = Text::from_secs(1);
    bench.create_consumer().await;
    let mut environment = bench.environment();
    let blocking =
        jetwright_crds::environment::Binding { consumer: "blocking".to_owned(), ..bench.binding.clone() };
    environment.bindings.bindings.insert("blocking".to_owned(), blocking);
    let config = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("blocking".to_owned()),
        ..bench.consumer()
    };
    bench.jetstream.create_consumer_on_stream(config, "numbers").await.unwrap();
    let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
    let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
    let handler = Scripted::content();
    service.handle("blocking", Blocking(Duration::from_secs(20))).unwrap();
    service.handle("numbers", handler.clone()).unwrap();
    let publisher = service.publisher();
    let running = tokio::spawn(service.run(stop.clone()));
    for value in 0..40 {
        publish(&publisher, value).await;
    }
    handler.await_calls(40).await;
    bench.await_drained().await;
    assert_eq!(health.live(), Ok(()));
    await_until("a failed liveness", SOON, async || match health.live() {
        Err(reasons) if format!("{reasons:?}").contains("handler blocking") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    // Events that go on are told of, since the threads that are blocked are none of those that tell JetStream.
    for value in 40..60 {
        publish(&publisher, value).await;
    }
    handler.await_calls(60).await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.expect("it stops in time").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocking_code_has_threads_of_its_own() {
    struct Offloading(Arc<AtomicUsize>);
    impl Handler for Offloading {
        type Event = Number;

        async fn handle(&self, event: Number, _: &Metadata) -> Result<(), HandlerError> {
            let calls = Arc::clone(&self.0);
            jetwright_runtime::blocking(move || {
                thread::sleep(Duration::from_millis(if event.value == 0 { 3000 } else { 10 }));
                calls.fetch_add(1, Ordering::SeqCst);
            })
            .await
        }
    }
    let bench = Bench::start().await;
    let calls = Arc::new(AtomicUsize::new(0));
    let service = bench.run_handler(Offloading(Arc::clone(&calls)), HandlerOptions::default()).await;
    bench.publish(&service.publisher, 0..12).await;
    await_until("all but the slow one", SOON, async || match calls.load(Ordering::SeqCst) {
        11.. => Ok(()),
        calls => Err(calls),
    })
    .await;
    bench.await_drained().await;
    assert_eq!(calls.load(Ordering::SeqCst), 12);
    service.stop().await;
}
