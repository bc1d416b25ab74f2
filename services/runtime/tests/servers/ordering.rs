//! Events of one key, one after another.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{self, AtomicUsize},
    },
    time::Duration,
};

use jetwright_crds::Duration as Text;
use jetwright_runtime::{HandlerError, HandlerOptions};
use jetwright_testing::await_until;
use tokio::time::sleep;

use crate::support::{Bench, Gate, SOON, Scripted, publish_of};

const KEYS: u64 = 20;

#[tokio::test]
async fn events_of_a_key_are_handled_in_the_order_of_the_stream_whatever_fails() {
    let mut bench = Bench::without_consumer().await.ordered().keeping_dead_letters().await;
    bench.binding.max_ack_pending = 1000;
    bench.binding.retry.backoff.initial = Text::from_millis(5);
    bench.create_consumer().await;
    let handler = Scripted::new(|value, attempt| async move {
        sleep(Duration::from_millis(value * 7 % 5)).await;
        match value % 11 {
            0 if attempt < 3 => Err(HandlerError::transient("busy")),
            1 => Err(HandlerError::permanent("no")),
            2 => Err(HandlerError::transient("never")),
            _ => Ok(()),
        }
    });
    let service = bench.run(&handler).await;
    for value in 0..600 {
        publish_of(&service.publisher, value % KEYS, value).await;
    }
    bench.await_drained().await;
    let mut by_key: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for call in handler.calls() {
        by_key.entry(call.value % KEYS).or_default().push(call.value);
    }
    for (key, values) in &by_key {
        assert!(values.is_sorted(), "key {key}: {values:?}");
    }
    let values: BTreeSet<_> = by_key.into_values().flatten().collect();
    assert_eq!(values.len(), 600);
    let given_up = (0..600).filter(|value| [1, 2].contains(&(value % 11))).count();
    assert_eq!(bench.dead_letters().await.len(), given_up);
    assert_eq!(bench.consumer_info().await.num_redelivered, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_key_that_is_tried_again_holds_no_other_key() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let gate = Gate::default();
    let open = gate.clone();
    let handler = Scripted::new(move |value, _| {
        let open = open.clone();
        async move { if value == 0 && !open.is_open() { Err(HandlerError::transient("not yet")) } else { Ok(()) } }
    });
    bench.binding.retry.max_attempts = 1000;
    let service = bench.run(&handler).await;
    for value in 0..100 {
        publish_of(&service.publisher, value % 2, value).await;
    }
    await_until("all of the other key", SOON, async || match service.handled("done") {
        50 => Ok(()),
        other => Err(other),
    })
    .await;
    assert!(handler.values().iter().all(|value| *value == 0 || value % 2 == 1), "{:?}", handler.values());
    gate.open();
    bench.await_drained().await;
    let of_key: Vec<_> =
        handler.calls().iter().map(|call| call.value).filter(|value| value % 2 == 0).collect();
    assert!(of_key.is_sorted());
    assert_eq!(handler.values().len(), 100);
    service.stop().await;
}

#[tokio::test]
async fn keys_that_are_tried_again_leave_their_room_to_others() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 1000;
    bench.binding.retry.backoff.initial = Text::from_secs(60);
    bench.binding.retry.backoff.max = Text::from_secs(60);
    bench.create_consumer().await;
    let handler = Scripted::new(|value, _| async move {
        if value < 8 { Err(HandlerError::transient("busy")) } else { Ok(()) }
    });
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency: 4, ..HandlerOptions::default() }).await;
    for value in 0..40 {
        publish_of(&service.publisher, value, value).await;
    }
    await_until("all others", SOON, async || match service.handled("done") {
        32 => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(handler.calls().len(), 40);
    service.stop().await;
}

#[tokio::test]
async fn what_is_tried_again_in_its_place_is_not_given_to_others_meanwhile() {
    let mut bench = Bench::without_consumer().await.ack_wait(500).ordered();
    bench.binding.retry.backoff.initial = Text::from_millis(1000);
    bench.binding.retry.backoff.max = Text::from_millis(1000);
    bench.create_consumer().await;
    let handler = Scripted::new(|value, attempt| async move {
        if value == 0 && attempt < 3 { Err(HandlerError::transient("not yet")) } else { Ok(()) }
    });
    let service = bench.run(&handler).await;
    for value in 0..10 {
        publish_of(&service.publisher, 0, value).await;
    }
    bench.await_drained().await;
    let values: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(values, [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(bench.consumer_info().await.num_redelivered, 0);
    service.stop().await;
}

#[tokio::test]
async fn no_more_keys_are_handled_at_once_than_the_limit() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    let (gate, [now, most]) = (Gate::default(), [(); 2].map(|()| Arc::new(AtomicUsize::new(0))));
    let (holding, counted) = (gate.clone(), Arc::clone(&most));
    let handler = Scripted::new(move |_, _| {
        let (gate, now, most) = (holding.clone(), Arc::clone(&now), Arc::clone(&counted));
        async move {
            most.fetch_max(now.fetch_add(1, atomic::Ordering::SeqCst) + 1, atomic::Ordering::SeqCst);
            gate.opened().await;
            sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, atomic::Ordering::SeqCst);
            Ok(())
        }
    });
    let service =
        bench.run_within(&handler, HandlerOptions { concurrency: 4, ..HandlerOptions::default() }).await;
    for value in 0..40 {
        publish_of(&service.publisher, value, value).await;
    }
    await_until("what the process holds", SOON, async || match bench.consumer_info().await.num_ack_pending {
        40 => Ok(()),
        other => Err(other),
    })
    .await;
    handler.await_calls(4).await;
    assert_eq!(handler.calls().len(), 4);
    gate.open();
    bench.await_drained().await;
    assert_eq!(handler.values().len(), 40);
    assert_eq!(most.load(atomic::Ordering::SeqCst), 4);
    service.stop().await;
}

#[tokio::test]
async fn what_a_stop_leaves_no_time_for_is_given_back_soon_and_in_its_order() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.max_ack_pending = 1000;
    bench.binding.handler_deadline = Text::from_secs(1);
    bench.create_consumer().await;
    let handler = Scripted::new(|_, _| async {
        sleep(Duration::from_millis(50)).await;
        Ok(())
    });
    let publisher = bench.publisher().await;
    for value in 0..100 {
        publish_of(&publisher, 0, value).await;
    }
    let service = bench.run(&handler).await;
    await_until("what the process holds", SOON, async || match bench.consumer_info().await.num_ack_pending {
        held if held > 50 => Ok(()),
        other => Err(other),
    })
    .await;
    service.stop().await;
    let before = handler.calls().len();
    assert!(before < 100, "the stop came too late");
    let service = bench.run(&handler).await;
    let again = std::time::Instant::now();
    handler.await_calls(before + 1).await;
    assert!(again.elapsed() < bench.binding.ack_wait.0 / 2, "it was not given back");
    bench.await_drained().await;
    let values: Vec<_> = handler.calls().iter().map(|call| call.value).collect();
    assert_eq!(values, (0..100).collect::<Vec<_>>());
    service.stop().await;
}

#[tokio::test]
async fn what_comes_during_a_stop_is_not_handled_before_what_of_its_key_was_given_back() {
    for _ in 0..5 {
        let mut bench = Bench::without_consumer().await.ordered();
        bench.binding.retry.backoff.initial = Text::from_secs(60);
        bench.binding.retry.backoff.max = Text::from_secs(60);
        bench.create_consumer().await;
        let handler = Scripted::new(|value, _| async move {
            if value == 0 { Err(HandlerError::transient("busy")) } else { Ok(()) }
        });
        let publisher = bench.publisher().await;
        let service = bench.run(&handler).await;
        publish_of(&publisher, 0, 0).await;
        handler.await_calls(1).await;
        service.begin_stop();
        // A request is open for a second still.
        sleep(Duration::from_millis(100)).await;
        publish_of(&publisher, 0, 1).await;
        publish_of(&publisher, 1, 2).await;
        service.stop().await;
        assert!(handler.values().iter().all(|value| *value != 1), "{:?}", handler.attempts());
        if bench.deliveries().await == 3 {
            assert_eq!(handler.attempts(), [(0, 1), (2, 1)]);
            return;
        }
        // A machine that stands still for a second has to try again.
    }
    panic!("nothing came during a stop");
}

#[tokio::test]
async fn an_event_with_which_processes_die_is_given_up_in_the_end_and_its_key_goes_on() {
    let bench = Bench::without_consumer().await.ack_wait(1000).ordered().keeping_dead_letters().await;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    publish_of(&publisher, 0, 0).await;
    // As many deliveries as it may have, and no end.
    bench.give_back(24).await;
    let hanging = Scripted::new(|_, _| std::future::pending());
    for deaths in 1..=2 {
        let mortal = bench.run_mortal(&hanging);
        hanging.await_calls(deaths).await;
        drop(mortal);
    }
    // Each time it was the first attempt of a delivery.
    assert_eq!(hanging.attempts(), [(0, 1); 2]);
    publish_of(&publisher, 0, 1).await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    assert_eq!(handler.attempts(), [(1, 1)]);
    assert_eq!((bench.dead_letters().await.len(), service.dead_letters("delivered-too-often")), (1, 1));
    service.stop().await;
}

/// Each hand-over gives back what waits behind an event of its key, so it is delivered again and again, and no handler was called with it.
#[tokio::test]
async fn an_event_that_others_of_its_key_held_up_over_many_hand_overs_is_handled() {
    let bench = Bench::without_consumer().await.ordered().keeping_dead_letters().await;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    for (key, value) in [(0, 0), (1, 1), (0, 2), (0, 3)] {
        publish_of(&publisher, key, value).await;
    }
    bench.give_back_all(4, 27).await;
    let handler = Scripted::content();
    let service = bench.run(&handler).await;
    bench.await_drained().await;
    // The first of each key may be what ended its processes.
    assert_eq!(handler.attempts(), [(2, 1), (3, 1)]);
    assert_eq!(service.dead_letters("delivered-too-often"), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_what_waits_for_its_next_attempt() {
    let mut bench = Bench::without_consumer().await.ordered();
    bench.binding.handler_deadline = Text::from_secs(60);
    bench.binding.retry.backoff.initial = Text::from_secs(60);
    bench.binding.retry.backoff.max = Text::from_secs(60);
    bench.create_consumer().await;
    let handler = Scripted::new(|_, _| async { Err(HandlerError::transient("busy")) });
    let service = bench.run(&handler).await;
    publish_of(&service.publisher, 0, 0).await;
    publish_of(&service.publisher, 0, 1).await;
    handler.await_calls(1).await;
    // Within the time that a test gives a stop.
    service.stop().await;
    assert_eq!(handler.attempts(), [(0, 1)]);
}
