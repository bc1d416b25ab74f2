//! Partitions that a process loses in the middle of something: it is found dead, or the bucket is made again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use jetwright_crds::Duration as Text;
use jetwright_nats::{Found, Written};
use jetwright_partitions::{
    keys::{Key, MemberId},
    records::{Dead, DeathReason, HeldRecord, HeldState, MemberRecord, Record},
};
use jetwright_runtime::HandlerError;
use jetwright_testing::await_until;
use tokio::time::sleep;

use crate::{
    partitions_stops::{await_state, held_by, read},
    proxy::Proxy,
    sharing::{Operator, bucket_config, consumer_id, of_partitions, publish_values, sharing, unacknowledged},
    support::{Bench, Gate, Running, SOON, Scripted, count},
};

/// A handler that blocks its thread in its first call, until it is released, and then fails for good.
struct Blocked {
    handler: Scripted,
    is_over: Arc<AtomicBool>,
}

impl Blocked {
    fn new() -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let waits_for = Arc::clone(&is_over);
        let handler = Scripted::new(move |_, _| {
            let is_over = Arc::clone(&waits_for);
            async move {
                if is_over.load(SeqCst) {
                    return Ok(());
                }
                while !is_over.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(HandlerError::permanent("no"))
            }
        });
        Self { handler, is_over }
    }
}

/// Finds the owner of the partition dead, as another process would that did not hear of it.
async fn find_dead(operator: &Operator) {
    let (id, _) = await_owner(operator).await;
    let key = Key::Member(id);
    let dead = Some(Dead { by: "another".to_owned(), reason: DeathReason::Silent });
    let value = MemberRecord { dead, ..MemberRecord::default() }.to_json();
    await_until("the death", SOON, async || {
        let revision = match operator.bucket.read(&key.to_string()).await {
            Found::Value { revision, .. } => revision,
            other => return Err(format!("{other:?}")),
        };
        match operator.bucket.write(&key.to_string(), value.clone(), revision).await {
            Written::Stored(_) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn await_owner(operator: &Operator) -> (MemberId, MemberRecord) {
    let key = held_by(&consumer_id());
    let held = await_until("an owner", SOON, async || match operator.bucket.read(&key.to_string()).await {
        Found::Value { value, .. } => Ok(HeldRecord::read(&key, &value).unwrap()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let record = read(operator, &Key::Member(held.member.clone())).await;
    (held.member, record)
}

async fn await_next_owner(operator: &Operator, last: &MemberId) -> MemberRecord {
    await_until("another owner", SOON, async || {
        let (id, record) = await_owner(operator).await;
        if id == *last { Err(id) } else { Ok(record) }
    })
    .await
}

/// Awaits that a process counts this many of these changes of its partition.
async fn await_changes(running: &Running, change: &str, expected: u64) {
    let line =
        format!("jetwright_partition_changes_total{{event_consumer=\"numbers\",change=\"{change}\"}} ");
    await_until(&format!("{expected} times {change}"), SOON, async || {
        if count(&running.metrics(), &line) == expected { Ok(()) } else { Err(running.metrics()) }
    })
    .await;
}

async fn await_loss(running: &Running) {
    await_changes(running, "lost", 1).await;
}

/// A process that handles an event when its partition is lost.
async fn losing(bench: &Bench, operator: &Operator, blocked: &Blocked) -> Running {
    let running = bench.run(&blocked.handler).await;
    publish_values(&bench.jetstream, 0..1).await;
    blocked.handler.await_calls(1).await;
    find_dead(operator).await;
    await_loss(&running).await;
    running
}

/// Its clock may be set back meanwhile, and it would seem to be in the container that ended before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_joins_again_says_when_it_joined_first() {
    let bench = sharing(1).await;
    let operator = Operator::start(bench.nats.url(), 1).await;
    let running = bench.run(&Scripted::content()).await;
    let (first, before) = await_owner(&operator).await;
    // Times are of whole seconds.
    sleep(Duration::from_secs(1)).await;
    find_dead(&operator).await;
    let after = await_next_owner(&operator, &first).await;
    assert!(before.joined.is_some());
    assert_eq!(before.joined, after.joined);
    running.stop().await;
}

/// What becomes of the event is for whoever has the partition next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_behind_the_loss_of_a_partition_makes_no_dead_letter() {
    let bench = sharing(1).await.keeping_dead_letters().await;
    let operator = Operator::start(bench.nats.url(), 1).await;
    let blocked = Blocked::new();
    let running = losing(&bench, &operator, &blocked).await;
    blocked.is_over.store(true, SeqCst);
    blocked.handler.await_calls(2).await;
    await_until("the event's end", SOON, async || {
        let left = unacknowledged(&bench, ["tests-p0".to_owned()]).await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    assert_eq!((bench.dead_letters().await.len(), running.handled("done")), (0, 1));
    running.stop().await;
}

/// The process took the partition again, under another name, and gives it up before the handler of before has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_not_free_while_a_handler_runs_from_before_it_was_lost() {
    let mut bench = sharing(1).await;
    bench.binding.handler_deadline = Text::from_secs(60);
    let operator = Operator::start(bench.nats.url(), 1).await;
    let blocked = Blocked::new();
    let running = losing(&bench, &operator, &blocked).await;
    await_changes(&running, "taken", 2).await;
    let next = bench.run(&Scripted::content()).await;
    next.await_ready().await;
    running.begin_stop();
    await_state(&operator, HeldState::Draining).await;
    // Time enough to free it, and for the other process to handle the event.
    sleep(Duration::from_secs(2)).await;
    await_state(&operator, HeldState::Draining).await;
    assert_eq!(next.handled("done"), 0);
    blocked.is_over.store(true, SeqCst);
    await_until("the event", SOON, async || match next.handled("done") {
        1 => Ok(()),
        other => Err(other),
    })
    .await;
    running.stop().await;
    next.stop().await;
}

/// The same, before the partition is served again: in a bucket that is young nothing is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_only_taken_is_not_free_while_a_handler_runs_from_before_it_was_lost() {
    let mut bench = of_partitions(1).await;
    let proxy = Proxy::aging(bench.nats.url()).await;
    bench.url.clone_from(&proxy.url);
    bench.binding.handler_deadline = Text::from_secs(60);
    let operator = Operator::start(bench.nats.url(), 1).await;
    let blocked = Blocked::new();
    let running = bench.run(&blocked.handler).await;
    publish_values(&bench.jetstream, 0..1).await;
    blocked.handler.await_calls(1).await;
    let (first, _) = await_owner(&operator).await;
    proxy.stop_aging();
    find_dead(&operator).await;
    await_next_owner(&operator, &first).await;
    running.begin_stop();
    await_state(&operator, HeldState::Draining).await;
    // Time enough to free it.
    sleep(Duration::from_secs(2)).await;
    await_state(&operator, HeldState::Draining).await;
    blocked.is_over.store(true, SeqCst);
    running.stop().await;
    await_state(&operator, HeldState::Free).await;
}

/// The bucket was made again meanwhile, so the process is no member any more, and its acknowledgement reaches nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_was_lost_ends_while_nats_is_away() {
    let mut bench = sharing(1).await;
    bench.binding.handler_deadline = Text::from_secs(60);
    let operator = Operator::start(bench.nats.url(), 1).await;
    let gate = Gate::default();
    let handler = Scripted::new(gate.before(|_| true));
    let running = bench.run(&handler).await;
    publish_values(&bench.jetstream, 0..1).await;
    handler.await_calls(1).await;
    running.begin_stop();
    await_state(&operator, HeldState::Draining).await;
    bench.jetstream.delete_stream("KV_jetwright").await.unwrap();
    bench.jetstream.create_stream(bucket_config(1, 1_000_000_000)).await.unwrap();
    await_loss(&running).await;
    bench.nats.stop().await;
    gate.open();
    running.stop().await;
}
