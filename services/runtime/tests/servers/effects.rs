//! Effects of events that are delivered more than once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::stream;
use jetwright_process::health::Health;
use jetwright_runtime::{
    ErrorKind, Expected, Handler, HandlerError, KeyValue, Metadata, PublishOptions, Publisher, Service,
};
use jetwright_testing::await_until;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::support::{Bench, Mortal, Number, SOON};

const EVENTS: u64 = 50;
/// So short that what is delivered again comes after it.
const SHORT: Duration = Duration::from_millis(100);

/// Has an effect of each kind that the runtime promises to be once, and then may wait for its end.
struct Effects {
    publisher: Publisher,
    state: KeyValue,
    had: Arc<AtomicUsize>,
    ends_before_the_acknowledgement: bool,
}

impl Effects {
    /// Once within the duplicate window of the stream.
    async fn mail(&self, number: u64, metadata: &Metadata) -> Result<(), HandlerError> {
        let options =
            PublishOptions { message_id: Some(metadata.message_id(0)), ..PublishOptions::default() };
        self.publisher.publish(&format!("mails.{number}"), &Number { value: number }, options).await?;
        Ok(())
    }

    /// Once for ever: nobody has booked it before.
    async fn book(&self, number: u64) -> Result<(), HandlerError> {
        let expected = Some(Expected::none(format!("bookings.{number}.>")));
        let options = PublishOptions { expected, ..PublishOptions::default() };
        let subject = format!("bookings.{number}.made");
        match self.publisher.publish(&subject, &Number { value: number }, options).await {
            Err(error) if error.kind() != ErrorKind::Conflict => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Once for ever: what was counted is kept with the sum.
    async fn count(&self, number: u64) -> Result<(), HandlerError> {
        loop {
            let entry = self.state.get("counted").await?;
            let text = entry
                .as_ref()
                .map_or(String::new(), |entry| String::from_utf8_lossy(&entry.value).into_owned());
            let mut counted: Vec<u64> = text.split(',').filter_map(|number| number.parse().ok()).collect();
            if counted.contains(&number) {
                return Ok(());
            }
            counted.push(number);
            let text = counted.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            let written = match entry {
                Some(entry) => self.state.update("counted", text, entry.revision).await,
                None => self.state.create("counted", text).await,
            };
            match written {
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                written => return Ok(written.map(drop)?),
            }
        }
    }
}

impl Handler for Effects {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        self.mail(event.value, metadata).await?;
        self.book(event.value).await?;
        self.count(event.value).await?;
        self.had.fetch_add(1, Ordering::SeqCst);
        if self.ends_before_the_acknowledgement {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// Runs the handler in a process of its own, and counts how often it had its effects.
fn run(bench: &Bench, ends_before_the_acknowledgement: bool) -> (Mortal, Arc<AtomicUsize>) {
    let runtime: Runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (environment, had) = (bench.environment(), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&had);
    runtime.spawn(async move {
        let mut service =
            Service::connect(environment, &Health::new(), &mut Registry::default()).await.unwrap();
        let (publisher, state) = (service.publisher(), service.key_value("state"));
        service
            .handle("numbers", Effects { publisher, state, had: counter, ends_before_the_acknowledgement })
            .unwrap();
        service.run(CancellationToken::new()).await
    });
    (Mortal::of(runtime), had)
}

async fn create_streams(bench: &Bench) {
    let streams = [
        ("mails", "mails.*", Duration::from_mins(2)),
        ("bookings", "bookings.*.*", SHORT),
        ("KV_state", "$KV.state.>", SHORT),
    ];
    for (name, subject, duplicate_window) in streams {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            duplicate_window,
            ..Default::default()
        };
        bench.jetstream.create_stream(config).await.unwrap();
    }
}

#[tokio::test]
async fn events_that_are_delivered_three_times_with_kills_before_the_acknowledgement_have_every_effect_once()
{
    let mut bench = Bench::without_consumer().await.ack_wait(1000);
    bench.binding.max_ack_pending = 1000;
    bench.create_consumer().await;
    create_streams(&bench).await;
    bench.publish(&bench.publisher().await, 0..EVENTS).await;
    let all = usize::try_from(EVENTS).unwrap();
    for _ in 0..2 {
        let (mortal, had) = run(&bench, true);
        await_until("all effects", SOON, async || match had.load(Ordering::SeqCst) {
            now if now == all => Ok(()),
            other => Err(other),
        })
        .await;
        drop(mortal);
    }
    let (_last, had) = run(&bench, false);
    bench.await_drained().await;
    assert_eq!(had.load(Ordering::SeqCst), all, "every event had its effects three times over");

    for stream in ["mails", "bookings"] {
        let messages = bench.jetstream.get_stream(stream).await.unwrap().cached_info().state.messages;
        assert_eq!(messages, EVENTS, "{stream}");
    }
    let state = bench.jetstream.get_stream("KV_state").await.unwrap();
    let counted = state.get_last_raw_message_by_subject("$KV.state.counted").await.unwrap().payload;
    let mut counted: Vec<u64> =
        String::from_utf8_lossy(&counted).split(',').map(|number| number.parse().unwrap()).collect();
    counted.sort_unstable();
    assert_eq!(counted, (0..EVENTS).collect::<Vec<_>>());
}
