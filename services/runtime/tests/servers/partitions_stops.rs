//! Partitions that are given up, or lost, in the middle of something: each ends by itself, and nothing runs twice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use jetwright_crds::{Duration as Text, environment::Bindings};
use jetwright_nats::Found;
use jetwright_partitions::{
    coordinator::Declared,
    keys::{ConsumerId, Key, PartitionId},
    records::{HeldRecord, HeldState, MemberRecord, Record},
    subjects::Partitions,
};
use jetwright_process::health::Health;
use jetwright_runtime::{Environment, HandlerError, Service};
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    sharing::{KEYS, Operator, consumer_id, consumers, publish_values, sharing, unacknowledged},
    support::{Gate, SOON, Scripted},
};

pub async fn read<R: Record>(operator: &Operator, key: &Key) -> R {
    let found = operator.bucket.read(&key.to_string()).await;
    let value = if let Found::Value { value, .. } = &found { Some(value) } else { None };
    R::read(key, value.unwrap()).unwrap()
}

pub fn held_by(consumer: &ConsumerId) -> Key {
    Key::Held(PartitionId { consumer: consumer.clone(), partition: 0 })
}

pub async fn await_state(operator: &Operator, state: HeldState) {
    await_until(&format!("a partition that is {state:?}"), SOON, async || {
        let held: HeldRecord = read(operator, &held_by(&consumer_id())).await;
        if held.state == state { Ok(()) } else { Err(format!("{held:?}")) }
    })
    .await;
}

/// A handler that blocks its thread can be ended by nothing but the end of its process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_does_not_end_in_time_keeps_no_other_from_being_given_up() {
    let bench = sharing(1).await;
    let slow = ConsumerId { stream: "numbers".to_owned(), consumer: "slow".to_owned() };
    let mut binding = bench.binding.clone();
    (binding.consumer, binding.handler_deadline) = ("slow".to_owned(), Text::from_secs(30));
    for consumer in consumers(&binding) {
        bench.jetstream.create_consumer_on_stream(consumer, "numbers").await.unwrap();
    }
    let operator = Operator::start(bench.nats.url(), 1).await;
    let declared = Declared { count: 1, drain: SOON, pods: None };
    let declaring = slow.clone();
    operator.tell(move |coordinator| coordinator.declare(declaring, declared));
    let mut blocked = bench.binding.clone();
    blocked.handler_deadline = Text::from_secs(1);
    let bindings = [("numbers".to_owned(), blocked), ("slow".to_owned(), binding)].into();
    let environment = Environment { bindings: Bindings { bindings }, ..bench.environment() };
    let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
    let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let blocking = Scripted::new({
        let is_over = Arc::clone(&is_over);
        move |_, _| {
            let is_over = Arc::clone(&is_over);
            async move {
                while !is_over.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
        }
    });
    // Longer than what a stop leaves to the other handler.
    let finishing = Scripted::new(|_, _| async {
        sleep(Duration::from_secs(6)).await;
        Ok(())
    });
    service.handle("numbers", blocking.clone()).unwrap();
    service.handle("slow", finishing.clone()).unwrap();
    let running = tokio::spawn(service.run(stop.clone()));
    publish_values(&bench.jetstream, 0..1).await;
    blocking.await_calls(1).await;
    finishing.await_calls(1).await;
    stop.cancel();
    tokio::time::timeout(SOON, running).await.unwrap().unwrap().unwrap();
    let free: HeldRecord = read(&operator, &held_by(&slow)).await;
    assert_eq!((free.state, unacknowledged(&bench, ["slow-p0".to_owned()]).await), (HeldState::Free, 0));
    let kept: HeldRecord = read(&operator, &held_by(&consumer_id())).await;
    assert_eq!(kept.state, HeldState::Draining, "what it had begun may still run");
    let member: MemberRecord = read(&operator, &Key::Member(kept.member)).await;
    assert!(member.leaving && member.dead.is_none(), "{member:?}");
    is_over.store(true, SeqCst);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_deadline_of_the_map_a_drain_waits_for_what_runs_and_for_no_acknowledgement() {
    // It blocks its thread, so that its deadline does not end it.
    hand_over_while_it_runs(|takes, ended| async move {
        std::thread::sleep(takes);
        ended.fetch_add(1, SeqCst);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_waits_for_blocking_code_whose_attempt_has_reached_its_deadline() {
    hand_over_while_it_runs(|takes, ended| async move {
        let code = move || {
            std::thread::sleep(takes);
            ended.fetch_add(1, SeqCst);
        };
        jetwright_runtime::blocking(code).await.unwrap();
    })
    .await;
}

/// Its consumer is gone, so that no acknowledgement is ever answered. What runs is waited for all the same.
async fn hand_over_while_it_runs<F>(
    handle: impl Fn(Duration, Arc<AtomicUsize>) -> F + Copy + Send + Sync + 'static,
) where
    F: Future<Output = ()> + Send,
{
    const TAKES: Duration = Duration::from_secs(6);
    let mut bench = sharing(2).await;
    bench.binding.handler_deadline = Text::from_secs(1);
    let operator = Operator::start(bench.nats.url(), 2).await;
    let declared = Declared { count: 2, drain: Duration::from_secs(1), pods: None };
    operator.tell(move |coordinator| coordinator.declare(consumer_id(), declared));
    let ended = Arc::<AtomicUsize>::default();
    let noting = Arc::clone(&ended);
    let handler = Scripted::new(move |_, _| {
        let ended = Arc::clone(&noting);
        async move {
            handle(TAKES, ended).await;
            Ok(())
        }
    });
    let first = bench.run(&handler).await;
    operator.await_shared(2, 1).await;
    let of_stream = Partitions::new("numbers.*", &[2], 2).unwrap();
    let value_in = |partition| {
        (0..KEYS).find(|key| of_stream.partition_of(&format!("numbers.{key}")) == partition).unwrap()
    };
    publish_values(&bench.jetstream, [value_in(0), value_in(1)]).await;
    handler.await_calls(2).await;
    let second = bench.run(&Scripted::content()).await;
    let partition = await_until("a hand-over", TAKES, async || {
        for partition in 0..2 {
            let key = Key::Held(PartitionId { consumer: consumer_id(), partition });
            let held: HeldRecord = read(&operator, &key).await;
            if held.state == HeldState::Draining {
                return Ok(partition);
            }
        }
        Err("none")
    })
    .await;
    let gone = bench.jetstream.get_stream("numbers").await.unwrap();
    gone.delete_consumer(&format!("tests-p{partition}")).await.unwrap();
    operator.await_shared(2, 2).await;
    assert!(ended.load(SeqCst) > 0, "the partition was free while its handler ran");
    first.stop().await;
    second.stop().await;
}

/// Others may have the partition when the lease is over, so nothing of this process may go on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_runs_when_the_lease_ends_is_interrupted() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    let mut bench = sharing(1).await;
    bench.binding.handler_deadline = Text::from_secs(300);
    let _operator = Operator::start(bench.nats.url(), 1).await;
    let (gate, dropped) = (Gate::default(), Arc::<AtomicUsize>::default());
    let (waiting, noting) = (gate.clone(), Arc::clone(&dropped));
    let handler = Scripted::new(move |_, _| {
        let (gate, guard) = (waiting.clone(), Dropped(Arc::clone(&noting)));
        async move {
            gate.opened().await;
            drop(guard);
            Ok::<_, HandlerError>(())
        }
    });
    let running = bench.run(&handler).await;
    publish_values(&bench.jetstream, 0..1).await;
    handler.await_calls(1).await;
    bench.nats.stop().await;
    let stopped = Instant::now();
    await_until("the end of the handler", SOON * 2, async || {
        if dropped.load(SeqCst) == 1 { Ok(()) } else { Err("it runs") }
    })
    .await;
    let took = stopped.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(33)).contains(&took), "{took:?}");
    assert_eq!(handler.calls().len(), 1);
    bench.nats.start_again().await;
    gate.open();
    handler.await_calls(2).await;
    assert_eq!(handler.attempts(), [(0, 1), (0, 1)], "an attempt that was interrupted is made again");
    running.stop().await;
}
