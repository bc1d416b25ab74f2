//! A stream of numbers, a consumer of it, and a handler that does what the test says.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use async_nats::{
    HeaderMap,
    jetstream::{self, AckKind, consumer, message::StreamMessage, stream},
};
use futures::StreamExt;
use jetwright_crds::{
    Duration as Text, dead_letter,
    environment::{
        Backoff, Binding, Bindings, DeadLetters, HANDLER_DEADLINE, Ordering, Retry, StreamPartitions,
    },
};
use jetwright_nats::Credentials;
use jetwright_partitions::subjects::Partitions;
use jetwright_process::{health::Health, telemetry::record_with};
use jetwright_runtime::{
    Environment, Handler, HandlerError, HandlerOptions, KeyValue, Metadata, PublishOptions, Published,
    Publisher, Reader, Service, ServiceError,
};
use jetwright_testing::{NatsServer, await_until};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use prometheus_client::{encoding::text::encode, registry::Registry};
use prost::Name;
use tokio::{runtime::Runtime, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

pub const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, PartialEq, prost::Message)]
pub struct Number {
    #[prost(uint64, tag = "1")]
    pub value: u64,
}

impl Name for Number {
    const NAME: &'static str = "Number";
    const PACKAGE: &'static str = "tests.v1";
}

pub type Answer = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;

/// One call of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub value: u64,
    pub attempt: u32,
    pub at: Instant,
}

/// Notes every call, and answers as the test says.
#[derive(Clone)]
pub struct Scripted {
    calls: Arc<Mutex<Vec<Call>>>,
    answer: Arc<dyn Fn(u64, u32) -> Answer + Send + Sync>,
}

impl Scripted {
    pub fn new<F>(answer: impl Fn(u64, u32) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Self {
            calls: Arc::default(),
            answer: Arc::new(move |value, attempt| Box::pin(answer(value, attempt))),
        }
    }

    /// Is content with everything.
    pub fn content() -> Self {
        Self::new(|_, _| async { Ok(()) })
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The values and attempts, in the order of the calls.
    pub fn attempts(&self) -> Vec<(u64, u32)> {
        self.calls().iter().map(|call| (call.value, call.attempt)).collect()
    }

    /// Every value that was handled, once.
    pub fn values(&self) -> Vec<u64> {
        let mut values: Vec<_> = self.calls().iter().map(|call| call.value).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    pub async fn await_calls(&self, count: usize) {
        await_until(&format!("{count} calls of the handler"), SOON, async || {
            let calls = self.calls().len();
            if calls >= count { Ok(()) } else { Err(format!("{calls} calls: {:?}", self.attempts())) }
        })
        .await;
    }
}

impl Handler for Scripted {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        let call = Call { value: event.value, attempt: metadata.attempt, at: Instant::now() };
        self.calls.lock().unwrap().push(call);
        (self.answer)(event.value, metadata.attempt).await
    }
}

/// Holds handlers until the test lets them go on.
#[derive(Clone)]
pub struct Gate(Arc<watch::Sender<bool>>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Gate {
    /// Lets all go on, those to come included.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub async fn opened(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }

    /// A handler's answer: content, where `held` says so not before the gate opens.
    pub fn before(&self, held: fn(u64) -> bool) -> impl Fn(u64, u32) -> Answer + Send + Sync + 'static {
        let gate = self.clone();
        move |value, _| {
            let gate = gate.clone();
            Box::pin(async move {
                if held(value) {
                    gate.opened().await;
                }
                Ok(())
            })
        }
    }
}

/// What has a stream store events in these partitions.
pub fn transform(partitions: &StreamPartitions) -> stream::SubjectTransform {
    let StreamPartitions { subject, key_tokens, count } = partitions;
    let partitions = Partitions::new(subject, key_tokens, *count).unwrap();
    stream::SubjectTransform {
        source: partitions.transform_source().to_owned(),
        destination: partitions.transform_destination(),
    }
}

/// A NATS server with the stream `numbers`.
pub struct Bench {
    pub nats: NatsServer,
    pub jetstream: jetstream::Context,
    pub binding: Binding,
    /// Where its services connect.
    pub url: String,
    /// Who its services are there.
    pub credentials: Option<Credentials>,
}

impl Bench {
    /// With the stream and its consumer.
    pub async fn start() -> Self {
        let bench = Self::without_consumer().await;
        bench.create_consumer().await;
        bench
    }

    pub async fn without_consumer() -> Self {
        record_traces();
        let nats = NatsServer::start().await;
        let jetstream = nats.jetstream().await;
        Self::on(nats, jetstream).await
    }

    /// On this server, where the test itself may do everything.
    pub async fn on(nats: NatsServer, jetstream: jetstream::Context) -> Self {
        let binding = Self::bindings(10_000).bindings["numbers"].clone();
        let url = nats.url().to_owned();
        let bench = Self { nats, jetstream, binding, url, credentials: None };
        bench.create_stream().await;
        bench
    }

    /// With partitions from now on, and consumed by a filter.
    pub async fn partitioned(mut self) -> Self {
        let partitions = StreamPartitions { subject: "numbers.*".to_owned(), key_tokens: vec![2], count: 4 };
        let stream = stream::Config {
            name: "numbers".into(),
            subjects: vec!["numbers.*".into()],
            subject_transform: Some(transform(&partitions)),
            ..Default::default()
        };
        self.jetstream.update_stream(stream).await.unwrap();
        self.binding.partitions = Some(partitions);
        self.create_consumer().await;
        self
    }

    pub async fn create_stream(&self) {
        let config = stream::Config {
            name: "numbers".into(),
            subjects: vec!["numbers.*".into()],
            ..Default::default()
        };
        self.jetstream.create_stream(config).await.unwrap();
    }

    /// What the operator would write, with an acknowledgement time of this many milliseconds.
    pub fn bindings(ack_wait: u64) -> Bindings {
        let backoff = Backoff { initial: Text::from_millis(100), factor: 2, max: Text::from_millis(400) };
        let binding = Binding {
            stream: "numbers".to_owned(),
            consumer: "tests".to_owned(),
            ack_wait: Text::from_millis(ack_wait),
            max_ack_pending: 16,
            retry: Retry { max_attempts: 3, backoff },
            handler_deadline: HANDLER_DEADLINE,
            partitions: None,
            ordering: None,
            dead_letters: None,
        };
        Bindings { bindings: [("numbers".to_owned(), binding)].into() }
    }

    /// With a stream for dead letters, as the operator would make it.
    pub async fn keeping_dead_letters(mut self) -> Self {
        self.binding.dead_letters = Some(DeadLetters {
            prefix: dead_letter::prefix("numbers", &self.binding.consumer),
            max_age: None,
        });
        self.create_dead_letters().await;
        self
    }

    pub async fn create_dead_letters(&self) {
        let config = stream::Config {
            name: dead_letter::stream("numbers"),
            subjects: vec![dead_letter::subjects("numbers")],
            max_messages_per_subject: 1,
            allow_message_ttl: true,
            allow_direct: true,
            ..Default::default()
        };
        self.jetstream.create_stream(config).await.unwrap();
    }

    /// All dead letters, in their order.
    pub async fn dead_letters(&self) -> Vec<StreamMessage> {
        let mut stream = self.jetstream.get_stream(dead_letter::stream("numbers")).await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut found = Vec::new();
        for sequence in 1..=last {
            found.extend(stream.get_raw_message(sequence).await.ok());
        }
        // The stream keeps one of each subject: another write would take the place of the first.
        assert_eq!(found.len() as u64, last, "a dead letter was written twice");
        found
    }

    /// With events of one key, which is their subject's last token, one after another.
    pub fn ordered(mut self) -> Self {
        self.binding.ordering = Some(Ordering { key_tokens: vec![2] });
        self
    }

    /// With an acknowledgement time of this many milliseconds, before its consumer is made.
    pub fn ack_wait(mut self, milliseconds: u64) -> Self {
        self.binding.ack_wait = Text::from_millis(milliseconds);
        self
    }

    /// The consumer as the operator would make it.
    pub fn consumer(&self) -> consumer::pull::Config {
        consumer::pull::Config {
            durable_name: Some(self.binding.consumer.clone()),
            ack_policy: consumer::AckPolicy::Explicit,
            ack_wait: self.binding.ack_wait.0,
            max_ack_pending: i64::from(self.binding.max_ack_pending),
            ..Default::default()
        }
    }

    pub async fn create_consumer(&self) {
        self.jetstream.create_consumer_on_stream(self.consumer(), "numbers").await.unwrap();
    }

    pub fn environment(&self) -> Environment {
        let credentials = self.credentials.clone();
        Environment { credentials, ..Self::environment_of(&self.url, self.binding.clone()) }
    }

    /// That of a program which connects there, with this binding.
    pub fn environment_of(url: &str, binding: Binding) -> Environment {
        Environment {
            name: "tests".to_owned(),
            servers: vec![url.parse().unwrap()],
            credentials: None,
            bindings: Bindings { bindings: [("numbers".to_owned(), binding)].into() },
            pod: None,
            unknown_fields: Vec::new(),
        }
    }

    /// Publishes without a handler that consumes.
    pub async fn publisher(&self) -> Publisher {
        let (health, mut registry) = (Health::new(), Registry::default());
        Service::connect(self.environment(), &health, &mut registry).await.unwrap().publisher()
    }

    pub async fn run(&self, handler: &Scripted) -> Running {
        self.run_within(handler, HandlerOptions::default()).await
    }

    pub async fn run_within(&self, handler: &Scripted, limits: HandlerOptions) -> Running {
        self.run_handler(handler.clone(), limits).await
    }

    pub async fn run_handler(&self, handler: impl Handler, limits: HandlerOptions) -> Running {
        let (health, mut registry, stop) = (Health::new(), Registry::default(), CancellationToken::new());
        let mut service = Service::connect(self.environment(), &health, &mut registry).await.unwrap();
        service.handle_with("numbers", handler, limits).unwrap();
        let (publisher, reader, state) = (service.publisher(), service.reader(), service.key_value("state"));
        let task = tokio::spawn(service.run(stop.clone()));
        Running { health, publisher, reader, state, registry, stop, task }
    }

    /// Runs a service that can be killed.
    pub fn run_mortal(&self, handler: &Scripted) -> Mortal {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let (runtime, environment, handler) = (runtime.unwrap(), self.environment(), handler.clone());
        runtime.spawn(async move {
            let (health, mut registry) = (Health::new(), Registry::default());
            let mut service = Service::connect(environment, &health, &mut registry).await.unwrap();
            service.handle("numbers", handler).unwrap();
            service.run(CancellationToken::new()).await
        });
        Mortal::of(runtime)
    }

    /// Publishes these numbers, each once.
    pub async fn publish(&self, publisher: &Publisher, numbers: std::ops::Range<u64>) {
        for value in numbers {
            publish(publisher, value).await;
        }
    }

    pub async fn consumer_info(&self) -> consumer::Info {
        let consumer: consumer::PullConsumer =
            self.jetstream.get_consumer_from_stream("tests", "numbers").await.unwrap();
        consumer.cached_info().clone()
    }

    /// Has the consumer's first event delivered so often, and given back each time.
    pub async fn give_back(&self, times: u32) {
        self.give_back_all(1, times).await;
    }

    /// The same with so many events.
    pub async fn give_back_all(&self, events: usize, times: u32) {
        self.give_back_of("tests", events, times).await;
    }

    /// The same of the consumer with this name.
    pub async fn give_back_of(&self, consumer: &str, events: usize, times: u32) {
        let consumer: consumer::PullConsumer =
            self.jetstream.get_consumer_from_stream(consumer, "numbers").await.unwrap();
        for _ in 0..times {
            let mut batch = consumer.fetch().max_messages(events).expires(SOON).messages().await.unwrap();
            let mut delivered = Vec::new();
            for _ in 0..events {
                delivered.push(batch.next().await.unwrap().unwrap());
            }
            for message in delivered {
                message.double_ack_with(AckKind::Nak(None)).await.unwrap();
            }
        }
    }

    /// How often the consumer delivered anything.
    pub async fn deliveries(&self) -> u64 {
        self.consumer_info().await.delivered.consumer_sequence
    }

    /// How many events the stream holds.
    pub async fn stored(&self) -> u64 {
        let mut stream = self.jetstream.get_stream("numbers").await.unwrap();
        stream.info().await.unwrap().state.messages
    }

    /// Awaits that nothing waits to be delivered or acknowledged.
    pub async fn await_drained(&self) {
        await_until("a drained consumer", SOON, async || {
            let info = self.consumer_info().await;
            let waiting = (info.num_pending, info.num_ack_pending);
            if waiting == (0, 0) { Ok(()) } else { Err(format!("pending and unacknowledged: {waiting:?}")) }
        })
        .await;
    }
}

/// Logs, which are shown with a test that fails, and traces, which nobody is given. For all tests of the process: handlers have threads
/// of their own.
pub fn record_traces() {
    let filter = EnvFilter::new("info,jetwright_runtime=debug");
    let provider = SdkTracerProvider::builder().build();
    let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
    let logs = tracing_subscriber::fmt::layer().with_test_writer();
    let _ = tracing_subscriber::registry().with(filter).with(logs).with(traces).try_init();
}

/// The spans of this process, from the first call on: whichever tests look at theirs, there is one exporter.
pub fn recorded_spans() -> InMemorySpanExporter {
    static SPANS: OnceLock<InMemorySpanExporter> = OnceLock::new();
    let begin = || {
        let exporter = InMemorySpanExporter::default();
        record_with(&SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build());
        exporter
    };
    SPANS.get_or_init(begin).clone()
}

/// What was recorded of a trace, but for what still runs.
pub fn spans_of(exporter: &InMemorySpanExporter, trace: &str) -> Vec<SpanData> {
    let mut spans = exporter.get_finished_spans().unwrap();
    spans.retain(|span| span.span_context.trace_id().to_string() == trace);
    spans
}

/// What a registry has, as Prometheus is given it.
pub fn text_of(registry: &Registry) -> String {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    text
}

/// The value of the series that begins so; 0 where there is none.
pub fn count(metrics: &str, series: &str) -> u64 {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(series))
        .map_or(0, |value| value.trim().parse().unwrap())
}

/// How many attempts of an EventConsumer ended so, whatever their number.
pub fn attempts(metrics: &str, event_consumer: &str, outcome: &str) -> u64 {
    let start =
        format!("jetwright_attempts_total{{event_consumer=\"{event_consumer}\",outcome=\"{outcome}\",");
    let lines = metrics.lines().filter(|line| line.starts_with(&start));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// The headers of a number that is published without the runtime.
pub fn number_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Event-Type", "tests.v1.Number");
    headers
}

pub async fn publish(publisher: &Publisher, value: u64) -> Published {
    publisher
        .publish(&format!("numbers.{value}"), &Number { value }, PublishOptions::default())
        .await
        .unwrap()
}

/// Publishes a number under this key.
pub async fn publish_of(publisher: &Publisher, key: u64, value: u64) {
    publisher.publish(&format!("numbers.{key}"), &Number { value }, PublishOptions::default()).await.unwrap();
}

/// A service that ends in the middle of whatever it does when this is dropped.
pub struct Mortal(Option<Runtime>);

impl Mortal {
    /// That which runs there.
    pub fn of(runtime: Runtime) -> Self {
        Self(Some(runtime))
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A running service.
pub struct Running {
    pub health: Health,
    pub publisher: Publisher,
    pub reader: Reader,
    pub state: KeyValue,
    registry: Registry,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl Running {
    pub fn metrics(&self) -> String {
        text_of(&self.registry)
    }

    /// How many attempts ended so.
    pub fn handled(&self, outcome: &str) -> u64 {
        attempts(&self.metrics(), "numbers", outcome)
    }

    /// How many dead letters were kept for this reason.
    pub fn dead_letters(&self, reason: &str) -> u64 {
        let start =
            format!("jetwright_dead_letters_total{{event_consumer=\"numbers\",reason=\"{reason}\"}} ");
        let metrics = self.metrics();
        metrics.lines().find_map(|line| line.strip_prefix(&start)).map_or(0, |count| count.parse().unwrap())
    }

    /// How many settlements were not confirmed.
    pub fn unconfirmed(&self) -> u64 {
        let metrics = self.metrics();
        let start = "jetwright_settlements_unconfirmed_total{event_consumer=\"numbers\"} ";
        metrics.lines().find_map(|line| line.strip_prefix(start)).map_or(0, |count| count.parse().unwrap())
    }

    pub async fn await_ready(&self) {
        await_until("readiness", SOON, async || self.health.ready().map_err(|why| format!("{why:?}"))).await;
    }

    pub async fn await_unready(&self, reason: &str) {
        await_until(&format!("unreadiness: {reason}"), SOON, async || match self.health.ready() {
            Err(why) if format!("{why:?}").contains(reason) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// It is to stop, and takes its time.
    pub fn begin_stop(&self) {
        self.stop.cancel();
    }

    /// Stops it, and tells what it counted to its end.
    pub async fn stop(mut self) -> String {
        self.begin_stop();
        tokio::time::timeout(SOON, &mut self.task).await.expect("it stops in time").unwrap().unwrap();
        self.metrics()
    }
}
