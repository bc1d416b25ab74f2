//! What tests of shared partitions need: the bucket, a stream with partitions, their consumers, an operator's part, and a handler that sees
//! each violation of the order over all processes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::jetstream::{self, consumer, stream};
use jetwright_crds::{
    Duration as Text,
    environment::{Binding, Ordering, StreamPartitions},
};
use jetwright_nats::{
    Bucket, Connection, ConnectionConfig, Credentials, Found, WatchEvent, Written, parse_addresses,
};
use jetwright_partitions::{
    actions::{Action, Value},
    coordinator::{Coordinator, Declared},
    keys::{BUCKET, ConsumerId, Key, PartitionId},
    lease::Clocks,
    records::{HeldRecord, HeldState, Record},
    subjects::Partitions,
    write::Answer,
};
use jetwright_runtime::{Handler, HandlerError, Metadata};
use jetwright_testing::{NatsCluster, await_until};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    proxy::Proxy,
    support::{Bench, Number, SOON, number_headers, transform},
};
use prost::Message;

/// No key of the tests' events.
pub const NO_KEY: u64 = u64::MAX;
/// Keys of the tests' events.
pub const KEYS: u64 = 40;

pub fn consumer_id() -> ConsumerId {
    ConsumerId { stream: "numbers".to_owned(), consumer: "tests".to_owned() }
}

/// The bucket, as the operator makes it.
pub fn bucket_config(replicas: usize, first_sequence: u64) -> stream::Config {
    stream::Config {
        name: format!("KV_{BUCKET}"),
        subjects: vec![format!("$KV.{BUCKET}.>")],
        max_messages_per_subject: 1,
        num_replicas: replicas,
        first_sequence: Some(first_sequence),
        allow_message_ttl: true,
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    }
}

/// How many deliveries of these consumers of the stream `numbers` are unacknowledged.
pub async fn unacknowledged(bench: &Bench, consumers: impl IntoIterator<Item = String>) -> usize {
    let mut sum = 0;
    for name in consumers {
        let consumer: consumer::PullConsumer =
            bench.jetstream.get_consumer_from_stream(name, "numbers").await.unwrap();
        sum += consumer.cached_info().num_ack_pending;
    }
    sum
}

/// The partitions of the stream `numbers`.
pub fn partitions(count: u32) -> StreamPartitions {
    StreamPartitions { subject: "numbers.*".to_owned(), key_tokens: vec![2], count }
}

/// Has processes share this many partitions of a binding.
pub fn share(binding: &mut Binding, count: u32) {
    binding.partitions = Some(partitions(count));
    binding.ordering = Some(Ordering { key_tokens: vec![2] });
    (binding.ack_wait, binding.max_ack_pending) = (Text::from_secs(10), 256);
}

/// The consumers of a binding, as the operator makes them.
pub fn consumers(binding: &Binding) -> Vec<consumer::pull::Config> {
    let StreamPartitions { subject, key_tokens, count } = binding.partitions.as_ref().unwrap();
    let of_stream = Partitions::new(subject, key_tokens, *count).unwrap();
    (0..*count)
        .map(|number| consumer::pull::Config {
            durable_name: Some(format!("{}-p{number}", binding.consumer)),
            ack_policy: consumer::AckPolicy::Explicit,
            ack_wait: binding.ack_wait.0,
            max_ack_pending: i64::from(binding.max_ack_pending),
            filter_subjects: of_stream.filters_of(number, &[]).unwrap(),
            ..Default::default()
        })
        .collect()
}

/// A stream with partitions, a bucket that seems to be old, and the consumers.
pub async fn sharing(count: u32) -> Bench {
    let mut bench = of_partitions(count).await;
    bench.url = Proxy::aging(bench.nats.url()).await.url;
    bench
}

/// The same, and the bucket is as old as it is.
pub async fn of_partitions(count: u32) -> Bench {
    with_partitions(Bench::without_consumer().await, count).await
}

/// Gives a stream partitions, and makes the bucket and the consumers.
pub async fn with_partitions(mut bench: Bench, count: u32) -> Bench {
    bench.jetstream.create_stream(bucket_config(1, 1)).await.unwrap();
    let stream = stream::Config {
        name: "numbers".into(),
        subjects: vec!["numbers.*".into()],
        subject_transform: Some(transform(&partitions(count))),
        ..Default::default()
    };
    bench.jetstream.update_stream(stream).await.unwrap();
    share(&mut bench.binding, count);
    for consumer in consumers(&bench.binding) {
        bench.jetstream.create_consumer_on_stream(consumer, "numbers").await.unwrap();
    }
    bench
}

/// The same on three servers, all with three replicas.
pub async fn on_cluster(count: u32) -> (NatsCluster, Bench) {
    let cluster = NatsCluster::start(3).await;
    let mut bench = of_partitions(count).await;
    let jetstream = cluster.jetstream().await;
    cluster.create_stream(bucket_config(3, 1)).await;
    let stream = stream::Config {
        name: "numbers".into(),
        subjects: vec!["numbers.*".into()],
        subject_transform: Some(transform(&partitions(count))),
        num_replicas: 3,
        ..Default::default()
    };
    cluster.create_stream(stream).await;
    for consumer in consumers(&bench.binding) {
        cluster.create_consumer("numbers", consumer).await;
    }
    bench.jetstream = jetstream;
    (cluster, bench)
}

/// Publishes values, each under the key that it leaves divided by the number of keys.
pub async fn publish_values(jetstream: &jetstream::Context, values: impl IntoIterator<Item = u64>) {
    let mut last = None;
    for value in values {
        let payload = Number { value }.encode_to_vec().into();
        let subject = format!("numbers.{}", value % KEYS);
        last = Some(jetstream.publish_with_headers(subject, number_headers(), payload).await.unwrap());
    }
    if let Some(last) = last {
        last.await.unwrap();
    }
}

/// Awaits that nothing waits to be delivered or acknowledged in any partition.
pub async fn await_drained(jetstream: &jetstream::Context, count: u32, within: Duration) {
    await_until("drained partitions", within, async || {
        let mut left = BTreeMap::new();
        for number in 0..count {
            let consumer: Result<consumer::PullConsumer, _> =
                jetstream.get_consumer_from_stream(format!("tests-p{number}"), "numbers").await;
            let info = consumer.map_err(|error| error.to_string())?.cached_info().clone();
            if (info.num_pending, info.num_ack_pending) != (0, 0) {
                left.insert(number, (info.num_pending, info.num_ack_pending));
            }
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// What a handler of all processes saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// The newest value of each key that began.
    newest: HashMap<u64, u64>,
    /// The keys that are handled, and by whom.
    running: BTreeMap<u64, String>,
    pub values: BTreeSet<u64>,
    pub calls: usize,
    pub violations: Vec<String>,
    /// When each value began first, and under which epoch.
    pub begun: HashMap<u64, (Instant, u64)>,
}

impl Seen {
    pub fn begin(&mut self, value: u64, epoch: u64) {
        self.begin_by("", value, epoch);
    }

    /// This process begins a value.
    pub fn begin_by(&mut self, process: &str, value: u64, epoch: u64) {
        let key = value % KEYS;
        self.calls += 1;
        if self.running.insert(key, process.to_owned()).is_some() {
            self.violations.push(format!("{value} began while its key ran"));
        }
        let newest = self.newest.get(&key).copied();
        let expected = newest.map_or(key, |newest| newest + KEYS);
        if value > expected {
            self.violations.push(format!("{value} began before {expected}"));
        }
        self.newest.insert(key, newest.map_or(value, |newest| newest.max(value)));
        self.begun.entry(value).or_insert((Instant::now(), epoch));
    }

    /// A process is dead.
    pub fn forget(&mut self, process: &str) {
        self.running.retain(|_, by| by != process);
    }

    /// It is tried again later.
    pub fn fail(&mut self, value: u64) {
        self.running.remove(&(value % KEYS));
    }

    pub fn end(&mut self, value: u64) {
        self.running.remove(&(value % KEYS));
        self.values.insert(value);
    }
}

/// Notes what all processes of a test handle, and takes its time.
#[derive(Clone)]
pub struct Observer {
    pub seen: Arc<Mutex<Seen>>,
    takes: Duration,
    /// The key that fails and waits for long until its next attempt.
    pub failing: Arc<AtomicU64>,
}

impl Observer {
    pub fn new(takes: Duration) -> Self {
        Self { seen: Arc::default(), takes, failing: Arc::new(AtomicU64::new(NO_KEY)) }
    }

    pub fn assert_in_order(&self, count: u64) {
        let seen = self.seen.lock();
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
        let missing: Vec<_> = (0..count).filter(|value| !seen.values.contains(value)).collect();
        assert!(missing.is_empty(), "{} missing: {:?}", missing.len(), &missing[..10.min(missing.len())]);
    }

    pub async fn await_values(&self, count: usize, within: Duration) {
        await_until(&format!("{count} values"), within, async || {
            let handled = self.seen.lock().values.len();
            if handled >= count { Ok(()) } else { Err(format!("{handled}")) }
        })
        .await;
    }
}

/// A handler that runs, until it ends or is interrupted with the lease.
struct Running<'s> {
    seen: &'s Mutex<Seen>,
    value: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.seen.lock().fail(self.value);
    }
}

impl Handler for Observer {
    type Event = Number;

    async fn handle(&self, event: Number, metadata: &Metadata) -> Result<(), HandlerError> {
        let (value, key) = (event.value, event.value % KEYS);
        self.seen.lock().begin(value, metadata.source.epoch);
        let running = Running { seen: &self.seen, value };
        sleep(self.takes).await;
        drop(running);
        let mut seen = self.seen.lock();
        if self.failing.load(Relaxed) == key {
            return Err(HandlerError::RetryAfter(Duration::from_hours(1), "not yet".into()));
        }
        seen.values.insert(value);
        Ok(())
    }
}

fn clocks() -> Clocks {
    // The tests' machine is not suspended.
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Clocks { boot: wall, wall }
}

type Command = Box<dyn FnOnce(&mut Coordinator) + Send>;

/// The operator's part, until it is dropped.
pub struct Operator {
    pub bucket: Bucket,
    commands: mpsc::UnboundedSender<Command>,
    _task: AbortOnDropHandle<()>,
}

impl Operator {
    /// Leads, and shares this many partitions.
    pub async fn start(url: &str, count: u32) -> Self {
        Self::start_as(None, url, count).await
    }

    /// The same as this user.
    pub async fn start_as(credentials: Option<Credentials>, url: &str, count: u32) -> Self {
        let config = ConnectionConfig {
            name: "operator".to_owned(),
            servers: parse_addresses(url).collect::<Result<_, _>>().unwrap(),
            credentials,
            credentials_setting: "--credentials",
            domain: None,
        };
        let bucket = Bucket::new(&Connection::open(config).await.unwrap(), BUCKET);
        let (commands, inbound) = mpsc::unbounded_channel();
        let mut coordinator = Coordinator::new("operator-0", "east", clocks());
        let declared = Declared { count, drain: Duration::from_secs(20), pods: None };
        coordinator.declare(consumer_id(), declared);
        let task = tokio::spawn(lead(coordinator, bucket.clone(), inbound));
        Self { bucket, commands, _task: AbortOnDropHandle::new(task) }
    }

    pub fn tell(&self, command: impl FnOnce(&mut Coordinator) + Send + 'static) {
        self.commands.send(Box::new(command)).unwrap();
    }

    /// Who holds each partition, by what the bucket says.
    pub async fn held(&self, count: u32) -> BTreeMap<u32, String> {
        let mut held = BTreeMap::new();
        for partition in 0..count {
            let key = Key::Held(PartitionId { consumer: consumer_id(), partition });
            if let Found::Value { value, .. } = self.bucket.read(&key.to_string()).await {
                let record = HeldRecord::read(&key, &value).unwrap();
                if record.state == HeldState::Held {
                    held.insert(partition, record.member.to_string());
                }
            }
        }
        held
    }

    /// Awaits that so many members hold all partitions, with no more than one between them.
    pub async fn await_shared(&self, count: u32, members: usize) -> BTreeMap<u32, String> {
        await_until(&format!("{count} partitions of {members} members"), SOON * 3, async || {
            let held = self.held(count).await;
            let mut sizes: HashMap<&String, usize> = HashMap::new();
            for member in held.values() {
                *sizes.entry(member).or_default() += 1;
            }
            let all = usize::try_from(count).unwrap();
            let is_even =
                sizes.values().max().zip(sizes.values().min()).is_some_and(|(max, min)| max - min <= 1);
            if held.len() == all && sizes.len() == members && is_even {
                Ok(held)
            } else {
                Err(format!("{held:?}"))
            }
        })
        .await
    }
}

enum Response {
    Written(Key, Written),
    Read(Key, Found),
}

async fn lead(mut coordinator: Coordinator, bucket: Bucket, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut watch = bucket.watch(&[">".to_owned()]);
    let mut requests = JoinSet::new();
    let mut tick = interval(Duration::from_millis(100));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = watch.next() => match event {
                WatchEvent::Value { key, revision, value } => {
                    let key = Key::from_str(&key).unwrap();
                    coordinator.observed(&key, Value::Bytes(revision, &value), clocks()).unwrap();
                }
                WatchEvent::Deleted { key, revision } => {
                    let key = Key::from_str(&key).unwrap();
                    coordinator.observed(&key, Value::Absent(revision), clocks()).unwrap();
                }
                WatchEvent::Synced => coordinator.synced(),
                WatchEvent::Missing | WatchEvent::Lost(_) => {}
            },
            Some(response) = requests.join_next() => match response.unwrap() {
                Response::Written(key, Written::Stored(revision)) => {
                    coordinator.answered(&key, Answer::Stored(revision), clocks());
                }
                Response::Written(key, _) => coordinator.answered(&key, Answer::Unsure, clocks()),
                Response::Read(key, found) => {
                    let value = match &found {
                        Found::Value { revision, value } => Value::Bytes(*revision, value),
                        Found::Deleted { revision } => Value::Absent(*revision),
                        Found::Absent => Value::Absent(0),
                        Found::Unknown(_) => Value::Unavailable,
                    };
                    coordinator.read(&key, value, clocks()).unwrap();
                }
            },
            Some(command) = commands.recv() => command(&mut coordinator),
            _ = tick.tick() => {}
        }
        for action in coordinator.poll(clocks()) {
            let bucket = bucket.clone();
            requests.spawn(async move {
                match action {
                    Action::Write { key, value, expected } => {
                        let written = bucket.write(&key.to_string(), value, expected).await;
                        Response::Written(key, written)
                    }
                    Action::Put { key, value } => {
                        let written = bucket.put(&key.to_string(), value).await;
                        Response::Written(key, written)
                    }
                    Action::Read(key) => {
                        let found = bucket.read(&key.to_string()).await;
                        Response::Read(key, found)
                    }
                    other => unreachable!("an operator does not {other:?}"),
                }
            });
        }
    }
}
