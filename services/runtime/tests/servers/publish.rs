use std::time::{Duration, Instant};

use async_nats::jetstream::stream;
use futures::future::join_all;
use jetwright_crds::dead_letter;
use jetwright_process::health::Health;
use jetwright_runtime::{
    ErrorKind, Expected, Handler, HandlerError, Metadata, PublishOptions, Published, Service,
};
use jetwright_testing::{NatsServer, await_until};
use opentelemetry::{
    Context,
    trace::{TraceContextExt, TraceId},
};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    proxy::Proxy,
    support::{Bench, Number, SOON, Scripted, publish},
};

fn expecting(last_sequence: u64) -> PublishOptions {
    PublishOptions { expected: Some(Expected::last(last_sequence, "numbers.*")), ..PublishOptions::default() }
}

#[tokio::test]
async fn an_event_carries_what_its_readers_need() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    let options = PublishOptions { message_id: Some("orders/7/x/0".to_owned()), ..PublishOptions::default() };
    let stored = service.publisher.publish("numbers.1", &Number { value: 1 }, options.clone()).await.unwrap();
    assert_eq!(stored, Published { stream: "numbers".to_owned(), sequence: 1, duplicate: false });
    let again = service.publisher.publish("numbers.1", &Number { value: 1 }, options).await.unwrap();
    assert_eq!(again, Published { duplicate: true, ..stored });
    let stream = bench.jetstream.get_stream("numbers").await.unwrap();
    let message = stream.get_raw_message(1).await.unwrap();
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Event-Type").as_deref(), Some("tests.v1.Number"));
    assert_eq!(header("Content-Type").as_deref(), Some("application/protobuf"));
    assert_eq!(header("Nats-Msg-Id").as_deref(), Some("orders/7/x/0"));
    service.stop().await;
}

#[tokio::test]
async fn a_writer_that_saw_an_older_state_is_told_of_the_conflict() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    let publisher = &service.publisher;
    publisher.publish("numbers.1", &Number { value: 1 }, expecting(0)).await.unwrap();
    let late = publisher.publish("numbers.2", &Number { value: 2 }, expecting(0)).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late}");
    publisher.publish("numbers.2", &Number { value: 2 }, expecting(1)).await.unwrap();
    assert!(service.metrics().contains(r#"jetwright_publishes_total{kind="event",outcome="conflict"} 1"#));
    service.stop().await;
}

#[tokio::test]
async fn without_nats_a_publish_says_so_in_bounded_time() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    bench.nats.kill();
    service.await_unready("not connected to NATS").await;
    let begun = Instant::now();
    let error = service
        .publisher
        .publish("numbers.1", &Number { value: 1 }, PublishOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(7), "it took {:?}", begun.elapsed());
    service.stop().await;
}

#[tokio::test]
async fn what_no_stream_takes_is_unavailable_and_what_is_malformed_is_refused() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    let kind_of = async |subject: &str, options: PublishOptions| {
        let published = service.publisher.publish(subject, &Number { value: 1 }, options).await;
        published.unwrap_err().kind()
    };
    assert_eq!(kind_of("letters.1", PublishOptions::default()).await, ErrorKind::Unavailable);
    assert_eq!(kind_of("numbers. 1", PublishOptions::default()).await, ErrorKind::Refused);
    let text = "of two\r\nNats-Rollup: all";
    for options in [
        PublishOptions { message_id: Some(text.to_owned()), ..PublishOptions::default() },
        PublishOptions { expected: Some(Expected::none(text)), ..PublishOptions::default() },
    ] {
        assert_eq!(kind_of("numbers.1", options).await, ErrorKind::Refused);
    }
    let updated = service.state.update_once("key", "value", 0, text).await;
    assert_eq!(updated.unwrap_err().kind(), ErrorKind::Refused);
    assert_eq!(bench.stored().await, 0);
    service.stop().await;
}

#[tokio::test]
async fn an_option_that_the_server_would_not_see_is_refused() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    for options in [
        PublishOptions { message_id: Some(String::new()), ..PublishOptions::default() },
        PublishOptions { message_id: Some(" ".to_owned()), ..PublishOptions::default() },
        PublishOptions { expected: Some(Expected::none("")), ..PublishOptions::default() },
        PublishOptions { expected_stream: Some(String::new()), ..PublishOptions::default() },
    ] {
        let refused = service.publisher.publish("numbers.1", &Number { value: 1 }, options.clone()).await;
        let error = refused.map_err(|error| (error.kind(), error.to_string())).unwrap_err();
        assert!(error.0 == ErrorKind::Refused && error.1.contains("must not"), "{options:?}: {error:?}");
    }
    let refused = service.state.update_once("key", "value", 0, "").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert_eq!(bench.stored().await, 0);
    service.stop().await;
}

/// A stream that has the subjects of another one.
async fn thief(bench: &Bench, subjects: &str) -> stream::Stream {
    let config = stream::Config {
        name: "thief".to_owned(),
        subjects: vec![subjects.to_owned()],
        ..Default::default()
    };
    bench.jetstream.create_stream(config).await.unwrap()
}

async fn taken(thief: &mut stream::Stream) -> u64 {
    thief.info().await.unwrap().state.messages
}

#[tokio::test]
async fn a_write_is_refused_by_a_stream_that_is_not_the_expected_one() {
    let bench = Bench::start().await;
    let mut letters = thief(&bench, "letters.*").await;
    let service = bench.run(&Scripted::content()).await;
    let options = PublishOptions { expected_stream: Some("numbers".to_owned()), ..PublishOptions::default() };
    let publish =
        async |subject: &str| service.publisher.publish(subject, &Number { value: 1 }, options.clone()).await;
    assert_eq!(publish("numbers.1").await.unwrap().stream, "numbers");
    let refused = publish("letters.1").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert!(refused.to_string().contains("stream thief has this subject"), "{refused}");
    assert_eq!(taken(&mut letters).await, 0);
    bench.jetstream.delete_stream("thief").await.unwrap();
    let mut entries = thief(&bench, "$KV.state.>").await;
    let refused = service.state.create("key", "value").await.unwrap_err();
    assert!(refused.kind() == ErrorKind::Refused && refused.to_string().contains("thief"), "{refused}");
    assert_eq!(taken(&mut entries).await, 0);
    service.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_not_kept_by_a_stream_that_captured_its_subject() {
    let bench = Bench::start().await.keeping_dead_letters().await;
    let kept_in = dead_letter::stream("numbers");
    bench.jetstream.delete_stream(&kept_in).await.unwrap();
    let mut thief = thief(&bench, "jetwright.dlq.>").await;
    let service = bench.run(&Scripted::new(|_, _| async { Err(HandlerError::permanent("bad")) })).await;
    publish(&service.publisher, 1).await;
    let refused = r#"jetwright_publishes_total{kind="dead-letter",outcome="refused"}"#;
    await_until("a refused dead letter", SOON, async || {
        let metrics = service.metrics();
        if metrics.contains(refused) { Ok(()) } else { Err(metrics) }
    })
    .await;
    assert_eq!((taken(&mut thief).await, bench.consumer_info().await.ack_floor.stream_sequence), (0, 0));
    bench.jetstream.delete_stream("thief").await.unwrap();
    bench.create_dead_letters().await;
    bench.await_drained().await;
    assert_eq!(bench.dead_letters().await.len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn publishes_that_a_full_queue_turns_away_are_repeated() {
    const PUBLISHES: u64 = 2000;
    let config = "jetstream { store_dir: store, max_buffered_msgs: 10 }";
    let nats = NatsServer::builder().config(config).start().await;
    let jetstream = nats.jetstream().await;
    let bench = Bench::on(nats, jetstream).await;
    bench.create_consumer().await;
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    let publishing = (0..PUBLISHES).map(|value| {
        let publisher = service.publisher.clone();
        async move {
            let subject = format!("numbers.{value}");
            publisher.publish(&subject, &Number { value }, PublishOptions::default()).await
        }
    });
    let (mut stored, mut unavailable) = (0, 0);
    for published in join_all(publishing).await {
        match published {
            Ok(_) => stored += 1,
            Err(error) if error.kind() == ErrorKind::Unavailable => unavailable += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(stored > 0 && stored <= bench.stored().await, "{stored} stored, {unavailable} unavailable");
    service.stop().await;
}

#[tokio::test]
async fn a_stream_that_does_not_answer_leaves_room_for_others() {
    let mut bench = Bench::start().await;
    let proxy = Proxy::before(bench.nats.url(), |_, payload| payload.contains(r#"{"stream":"silent""#)).await;
    bench.url.clone_from(&proxy.url);
    let silent = stream::Config {
        name: "silent".to_owned(),
        subjects: vec!["silent.*".to_owned()],
        ..Default::default()
    };
    bench.jetstream.create_stream(silent).await.unwrap();
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    proxy.lose(usize::MAX);
    let in_vain = (0..5000).map(|value| {
        let publisher = service.publisher.clone();
        async move {
            loop {
                let event = Number { value };
                let error =
                    publisher.publish("silent.1", &event, PublishOptions::default()).await.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            }
        }
    });
    let others = async {
        for value in 0..100 {
            publish(&service.publisher, value).await;
        }
    };
    tokio::select! {
        _ = join_all(in_vain) => {}
        () = others => {}
    }
    assert_eq!(bench.stored().await, 100);
    service.stop().await;
}

#[tokio::test]
async fn those_that_nobody_answers_leave_room_for_others() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    service.await_ready().await;
    let in_vain = async |value| {
        let event = Number { value };
        service.publisher.publish("letters.1", &event, PublishOptions::default()).await.unwrap_err()
    };
    let stuck = futures::future::join_all((0..3000).map(in_vain));
    let others = async {
        for value in 0..100 {
            publish(&service.publisher, value).await;
        }
    };
    futures::join!(stuck, others);
    assert_eq!(bench.stored().await, 100);
    service.stop().await;
}

#[tokio::test]
async fn a_full_stream_is_told_at_once() {
    let bench = Bench::start().await;
    let full = stream::Config {
        name: "numbers".to_owned(),
        subjects: vec!["numbers.*".to_owned()],
        max_messages: 1,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    bench.jetstream.update_stream(full).await.unwrap();
    let service = bench.run(&Scripted::content()).await;
    publish(&service.publisher, 0).await;
    let begun = Instant::now();
    let options = PublishOptions::default();
    let error = service.publisher.publish("numbers.1", &Number { value: 1 }, options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
    service.stop().await;
}

#[tokio::test]
async fn a_publish_survives_a_restart_of_nats_and_stores_one_event() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    publish(&service.publisher, 0).await;
    bench.nats.kill();
    let publisher = service.publisher.clone();
    let publishing = tokio::spawn(async move { publish(&publisher, 1).await });
    bench.nats.start_again().await;
    assert_eq!(publishing.await.unwrap().sequence, 2);
    publish(&service.publisher, 2).await;
    assert_eq!(bench.stored().await, 3);
    service.stop().await;
}

/// A bench whose services lose the answers to what they publish, when the proxy is told so.
async fn losing_answers() -> (Bench, Proxy) {
    let mut bench = Bench::start().await;
    let proxy =
        Proxy::before(bench.nats.url(), |_, payload| payload.contains(r#"{"stream":"numbers""#)).await;
    bench.url.clone_from(&proxy.url);
    (bench, proxy)
}

#[tokio::test]
async fn a_publish_whose_answer_was_lost_is_repeated_and_stores_one_event() {
    let (bench, proxy) = losing_answers().await;
    let service = bench.run(&Scripted::content()).await;
    proxy.lose(1);
    let stored = publish(&service.publisher, 0).await;
    assert_eq!(proxy.left_to_lose(), 0, "no answer was lost");
    assert_eq!(stored, Published { stream: "numbers".to_owned(), sequence: 1, duplicate: true });
    assert_eq!(bench.stored().await, 1);
    service.stop().await;
}

#[tokio::test]
async fn a_conflict_after_a_lost_answer_may_be_ones_own_write_and_reading_shows_it() {
    let (bench, proxy) = losing_answers().await;
    let service = bench.run(&Scripted::content()).await;
    proxy.lose(1);
    let event = Number { value: 1 };
    let repeated = service.publisher.publish("numbers.1", &event, expecting(0)).await.unwrap_err();
    assert_eq!((repeated.kind(), proxy.left_to_lose()), (ErrorKind::Conflict, 0), "{repeated}");
    let history = service.reader.history("numbers", "numbers.1").await.unwrap();
    assert_eq!(history.events[0].decode::<Number>().unwrap(), event);
    service.stop().await;
}

/// Tells the trace within which it handles.
struct Tracing(mpsc::UnboundedSender<TraceId>);

impl Handler for Tracing {
    type Event = Number;

    async fn handle(&self, _: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        self.0.send(current_trace()).unwrap();
        if metadata.attempt == 1 { Err(HandlerError::transient("once more")) } else { Ok(()) }
    }
}

fn current_trace() -> TraceId {
    Context::map_current(|context| context.span().span_context().trace_id())
}

#[tokio::test]
async fn the_trace_of_the_publisher_goes_on_in_every_attempt() {
    let bench = Bench::start().await;
    let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
    let mut service = Service::connect(bench.environment(), &health, &mut registry).await.unwrap();
    let (sender, mut traces) = mpsc::unbounded_channel();
    service.handle("numbers", Tracing(sender)).unwrap();
    let publisher = service.publisher();
    let running = tokio::spawn(service.run(stop.clone()));

    let publishing = async {
        publish(&publisher, 1).await;
        current_trace()
    };
    let trace = publishing.instrument(tracing::info_span!("request")).await;
    assert_ne!(trace, TraceId::INVALID);
    for _ in 0..2 {
        assert_eq!(tokio::time::timeout(SOON, traces.recv()).await.unwrap(), Some(trace));
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn many_publishers_at_once_store_everything_once() {
    let bench = Bench::start().await;
    let service = bench.run(&Scripted::content()).await;
    let publishing = (0..3000).map(|value| {
        let publisher = service.publisher.clone();
        async move { publish(&publisher, value).await }
    });
    futures::future::join_all(publishing).await;
    assert_eq!(bench.stored().await, 3000);
    service.stop().await;
}
