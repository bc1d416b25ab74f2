//! Streams and consumers that are deleted and made again while events are handled.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::jetstream::stream;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, PublishOptions, Publisher};
use jetwright_testing::await_until;
use tokio::time::sleep;

use crate::support::{Bench, Gate, Number, SOON, Scripted, publish};

/// A stream and its consumer are made again within milliseconds while one process holds events of the old one, whose sequences the new
/// one's have again. What another process is given of the new one is its own to acknowledge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_held_of_a_stream_that_was_made_again_acknowledges_no_event_of_the_new_one() {
    for _ in 0..3 {
        made_again(false, Duration::from_millis(50)).await;
    }
}

/// A process that is started with a backlog is served with all of its first request at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn right_after_its_last_request_was_served_a_process_acknowledges_no_event_of_a_new_stream() {
    for _ in 0..3 {
        made_again(true, Duration::from_millis(150)).await;
    }
}

/// With events that wait before the process starts, or come later; and so long after it began them.
async fn made_again(waits_already: bool, pause: Duration) {
    let mut bench = Bench::without_consumer().await;
    bench.binding.max_ack_pending = 64;
    bench.create_consumer().await;
    let publisher = bench.publisher().await;
    if waits_already {
        bench.publish(&publisher, 0..25).await;
    }
    let gate = Gate::default();
    let first = Scripted::new(gate.before(|value| value < 100));
    // As many as it may have at once: no pull request is open, of which it would hear that the consumer is gone.
    let limits = HandlerOptions { concurrency: 25, ..HandlerOptions::default() };
    let first_pod = bench.run_within(&first, limits).await;
    if !waits_already {
        first_pod.await_ready().await;
        bench.publish(&publisher, 0..25).await;
    }
    first.await_calls(25).await;
    // Its last request was served whole a moment ago, and might have been open for longer.
    sleep(pause).await;

    bench.jetstream.delete_stream("numbers").await.unwrap();
    bench.create_stream().await;
    bench.create_consumer().await;
    let done = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&done);
    let second = Scripted::new(move |value, attempt| {
        let noted = Arc::clone(&noted);
        async move {
            sleep(Duration::from_secs(1)).await;
            if attempt == 1 {
                return Err(HandlerError::transient("not yet"));
            }
            noted.lock().unwrap().push(value);
            Ok(())
        }
    });
    let second_pod = bench.run_within(&second, limits).await;
    bench.publish(&publisher, 100..125).await;
    second.await_calls(25).await;
    // The first pod acknowledges 25 deliveries of the stream that is gone.
    gate.open();
    bench.await_drained().await;
    let mut handled = done.lock().unwrap().clone();
    handled.extend(first.values().into_iter().filter(|value| *value >= 100));
    handled.sort_unstable();
    handled.dedup();
    assert_eq!(handled, (100..125).collect::<Vec<_>>());
    first_pod.stop().await;
    second_pod.stop().await;
}

/// Publishes what it gets, and says whether that was taken for a duplicate.
struct Forward(Publisher, Arc<Mutex<Vec<(u64, bool)>>>);

impl Handler for Forward {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        let options =
            PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
        let published = self.0.publish(&format!("mails.{}", event.value), &event, options).await?;
        self.1.lock().unwrap().push((event.value, published.duplicate));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_of_an_event_of_a_stream_that_was_made_again_is_not_taken_for_one_of_the_old_stream() {
    let bench = Bench::start().await;
    let mails = stream::Config {
        name: "mails".to_owned(),
        subjects: vec!["mails.*".to_owned()],
        ..Default::default()
    };
    bench.jetstream.create_stream(mails).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let publisher = bench.publisher().await;
    let service =
        bench.run_handler(Forward(publisher.clone(), Arc::clone(&seen)), HandlerOptions::default()).await;
    let await_seen = async |count: usize| {
        await_until("the effects", SOON, async || match seen.lock().unwrap().len() {
            seen if seen == count => Ok(()),
            seen => Err(seen),
        })
        .await;
    };
    for value in 0..5 {
        publish(&publisher, value).await;
    }
    await_seen(5).await;
    bench.jetstream.delete_stream("numbers").await.unwrap();
    bench.create_stream().await;
    bench.create_consumer().await;
    for value in 100..105 {
        publish(&publisher, value).await;
    }
    await_seen(10).await;
    let mut stream = bench.jetstream.get_stream("mails").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 10, "{:?}", seen.lock().unwrap());
    service.stop().await;
}
