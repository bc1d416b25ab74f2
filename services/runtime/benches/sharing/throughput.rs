//! Ordered throughput over 16 partitions, beside a bare loop.

use std::{
    env, fmt,
    num::ParseIntError,
    process::Stdio,
    slice,
    str::FromStr,
    time::{Duration, Instant, SystemTime},
};

use async_nats::jetstream::{self, consumer, stream};
use futures::{StreamExt, stream::FuturesUnordered};
use jetwright_nats::{Bucket, WatchEvent};
use jetwright_partitions::{
    keys::Key,
    records::{Dead, DeathReason, MemberRecord, Record},
};
use jetwright_process::health::Health;
use jetwright_runtime::{Handler, HandlerError, HandlerOptions, Metadata, Service};
use jetwright_testing::{NatsCluster, NatsServer, await_until, processor_seconds};
use prometheus_client::registry::Registry;
use prost::Message;
use tokio::{
    process::{Child, Command},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    sharing::{Operator, bucket_config, consumers, partitions, share},
    support::{Bench, Number, number_headers, transform},
};

const PARTITIONS: u32 = 16;
const EVENTS: u32 = 100_000;
/// Turns of each side, one after another. The machine's pace changes by a third from one turn to the next.
const TURNS: usize = 9;
/// Most events of a partition that a side has under way.
const MAX_IN_FLIGHT: u64 = 256;
/// How long a process takes for new ones in a bucket at least.
const SETTLED: Duration = Duration::from_secs(33);
/// When everything that is paused goes on, after all have been told.
const RESUMED: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_mins(2);

enum Servers {
    One(NatsServer),
    Three(NatsCluster),
}

impl Servers {
    async fn start(replicas: usize) -> Self {
        if replicas == 1 {
            Self::One(NatsServer::start().await)
        } else {
            Self::Three(NatsCluster::start(3).await)
        }
    }

    fn url(&self) -> &str {
        match self {
            Self::One(server) => server.url(),
            Self::Three(cluster) => cluster.url(),
        }
    }

    async fn jetstream(&self) -> jetstream::Context {
        match self {
            Self::One(server) => server.jetstream().await,
            Self::Three(cluster) => cluster.jetstream().await,
        }
    }

    fn all(&self) -> &[NatsServer] {
        match self {
            Self::One(server) => slice::from_ref(server),
            Self::Three(cluster) => cluster.servers(),
        }
    }

    fn processor_seconds(&self) -> f64 {
        self.all().iter().map(|server| processor_seconds(server.process().pid())).sum()
    }

    /// What all of them received, of clients and of each other.
    async fn received(&self) -> f64 {
        let mut sum = 0.0;
        for server in self.all() {
            sum += server.monitor::<Received>("/varz").await.unwrap().in_msgs;
        }
        sum
    }
}

/// Of what a server says of itself.
#[derive(serde::Deserialize)]
struct Received {
    in_msgs: f64,
}

/// Who handles the events.
#[derive(Clone, Copy, Debug)]
pub enum Side {
    Ours,
    /// A bare loop, with so many events of a partition under way at most.
    Bare(usize),
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours => f.write_str("ours"),
            Self::Bare(most) => write!(f, "bare:{most}"),
        }
    }
}

impl FromStr for Side {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("bare:").map_or(Ok(Self::Ours), |most| most.parse().map(Self::Bare))
    }
}

/// What one side took to handle all events once.
#[derive(Clone)]
struct Taken {
    /// In seconds.
    elapsed: f64,
    /// Processor time of its processes, in seconds.
    processes: f64,
    /// Processor time of the servers, in seconds.
    servers: f64,
    /// Messages that the servers received.
    messages: f64,
}

pub async fn measure(name: &str, replicas: usize, keys: u64) {
    let servers = Servers::start(replicas).await;
    let jetstream = servers.jetstream().await;
    let made = Instant::now();
    create(&jetstream, bucket_config(replicas, 1)).await;
    let stream = stream::Config {
        name: "numbers".into(),
        subjects: vec!["numbers.*".into()],
        subject_transform: Some(transform(&partitions(PARTITIONS))),
        num_replicas: replicas,
        ..Default::default()
    };
    create(&jetstream, stream).await;
    fill(&jetstream, keys).await;
    let operator = Operator::start(servers.url(), PARTITIONS).await;
    sleep(SETTLED.saturating_sub(made.elapsed())).await;
    // A key handles one event at a time, so few keys keep few events under way. The last side has as few without order.
    let narrow = (keys / u64::from(PARTITIONS)).min(MAX_IN_FLIGHT);
    let bare = |most| Side::Bare(usize::try_from(most).unwrap());
    let mut sides = vec![Side::Ours, bare(MAX_IN_FLIGHT)];
    sides.extend((narrow < MAX_IN_FLIGHT).then(|| bare(narrow)));
    for processes in [1, 2, 4] {
        let mut turns = vec![Vec::new(); sides.len()];
        for round in 0..TURNS {
            for index in 0..sides.len() {
                let side = (index + round) % sides.len();
                turns[side].push(turn(&servers, &jetstream, &operator, sides[side], processes).await);
            }
        }
        println!("{name}, {processes} processes");
        for (side, taken) in sides.iter().zip(&turns) {
            let rate = f64::from(EVENTS) / median(taken, |taken| taken.elapsed);
            let an_event = |of: fn(&Taken) -> f64| median(taken, of) / f64::from(EVENTS);
            println!(
                "  {side}: {rate:.0}/s; an event takes {:.1} µs of processes, {:.1} µs of servers, {:.2} messages to servers",
                an_event(|taken| taken.processes) * 1e6,
                an_event(|taken| taken.servers) * 1e6,
                an_event(|taken| taken.messages)
            );
        }
        for (side, others) in sides.iter().zip(&turns).skip(1) {
            let mut ratios: Vec<_> =
                turns[0].iter().zip(others).map(|(ours, other)| other.elapsed / ours.elapsed).collect();
            ratios.sort_unstable_by(f64::total_cmp);
            let [median, low, high] =
                [TURNS / 2, TURNS / 4, TURNS - 1 - TURNS / 4].map(|index| ratios[index]);
            println!(
                "  ours beside {side}, of each round: {median:.2}x (median; the middle half {low:.2} to {high:.2})"
            );
        }
    }
}

fn median(turns: &[Taken], of: fn(&Taken) -> f64) -> f64 {
    let mut values: Vec<_> = turns.iter().map(of).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn create(jetstream: &jetstream::Context, config: stream::Config) {
    await_until("a stream", LONG, async || jetstream.create_stream(config.clone()).await).await;
}

async fn fill(jetstream: &jetstream::Context, keys: u64) {
    let mut acks = FuturesUnordered::new();
    for value in 0..u64::from(EVENTS) {
        let payload = Number { value }.encode_to_vec().into();
        let subject = format!("numbers.{}", value % keys);
        let ack = jetstream.publish_with_headers(subject, number_headers(), payload).await.unwrap();
        acks.push(ack.into_future());
        if acks.len() >= 1_000 {
            acks.next().await.unwrap().unwrap();
        }
    }
    while let Some(ack) = acks.next().await {
        ack.unwrap();
    }
}

/// Has a side handle all events once.
async fn turn(
    servers: &Servers,
    jetstream: &jetstream::Context,
    operator: &Operator,
    side: Side,
    processes: u32,
) -> Taken {
    let stream = jetstream.get_stream("numbers").await.unwrap();
    let mut binding = Bench::bindings(10_000).bindings["numbers"].clone();
    share(&mut binding, PARTITIONS);
    for config in consumers(&binding) {
        let later = SystemTime::now() + Duration::from_hours(1);
        let config = consumer::pull::Config { pause_until: Some(later.into()), ..config };
        await_until("a consumer", LONG, async || stream.create_consumer(config.clone()).await).await;
    }
    let mut running: Vec<_> = (0..processes).map(|number| start(servers, side, number, processes)).collect();
    let is_ours = matches!(side, Side::Ours);
    if is_ours {
        operator.await_shared(PARTITIONS, usize::try_from(processes).unwrap()).await;
    }
    let of_all = async |is_so: fn(&consumer::Info) -> bool| {
        for number in 0..PARTITIONS {
            let info =
                stream.consumer_info(format!("tests-p{number}")).await.map_err(|error| error.to_string())?;
            if !is_so(&info) {
                return Err(format!("partition {number}"));
            }
        }
        Ok(())
    };
    await_until("all consumers to be pulled from", LONG, async || of_all(|info| info.num_waiting > 0).await)
        .await;
    // A pause that is taken back wakes no pull request that is open; one that ends does.
    let begun = SystemTime::now() + RESUMED;
    for number in 0..PARTITIONS {
        stream.pause_consumer(&format!("tests-p{number}"), begun.into()).await.unwrap();
    }
    sleep(RESUMED).await;
    let so_far = async || {
        let processes: f64 = running.iter().filter_map(Child::id).map(processor_seconds).sum();
        (processes, servers.processor_seconds(), servers.received().await)
    };
    let (before, begun) = (so_far().await, Instant::now());
    let is_done = |info: &consumer::Info| (info.num_pending, info.num_ack_pending) == (0, 0);
    await_until("all events to be handled", LONG, async || of_all(is_done).await).await;
    let (elapsed, after) = (begun.elapsed().as_secs_f64(), so_far().await);
    for process in &mut running {
        process.kill().await.unwrap();
    }
    if is_ours {
        end_all(&operator.bucket).await;
    }
    for number in 0..PARTITIONS {
        stream.delete_consumer(&format!("tests-p{number}")).await.unwrap();
    }
    Taken {
        elapsed,
        processes: after.0 - before.0,
        servers: after.1 - before.1,
        messages: after.2 - before.2,
    }
}

/// All members that there are have ended: nobody waits for what they held.
async fn end_all(bucket: &Bucket) {
    let mut watch = bucket.watch(&["member.>".to_owned()]);
    loop {
        match watch.next().await {
            WatchEvent::Value { key, revision, value } => {
                let mut record = MemberRecord::read(&Key::from_str(&key).unwrap(), &value).unwrap();
                if record.dead.is_none() {
                    record.dead =
                        Some(Dead { by: "benches".to_owned(), reason: DeathReason::ContainerEnded });
                    bucket.write(&key, record.to_json(), revision).await;
                }
            }
            WatchEvent::Synced => return,
            _ => {}
        }
    }
}

fn start(servers: &Servers, side: Side, number: u32, processes: u32) -> Child {
    let url = servers.url().split(',').next().unwrap();
    Command::new(env::current_exe().unwrap())
        .args(["--side", &side.to_string(), url, &number.to_string(), &processes.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

struct Decoding;

impl Handler for Decoding {
    type Event = Number;

    async fn handle(&self, event: Number, _: &Metadata) -> Result<(), HandlerError> {
        std::hint::black_box(event);
        Ok(())
    }
}

/// One process of a side. The bare one has each of so many partitions, from the first.
pub async fn run(side: Side, url: &str, first: u32, step: u32) {
    let mut binding = Bench::bindings(10_000).bindings["numbers"].clone();
    share(&mut binding, PARTITIONS);
    let Side::Bare(most) = side else {
        let (environment, mut registry) = (Bench::environment_of(url, binding), Registry::default());
        let mut service = Service::connect(environment, &Health::new(), &mut registry).await.unwrap();
        let options = HandlerOptions { concurrency: 1_024, ..HandlerOptions::default() };
        service.handle_with("numbers", Decoding, options).unwrap();
        service.run(CancellationToken::new()).await.unwrap();
        return;
    };
    let client = async_nats::connect(url).await.unwrap();
    let jetstream = jetstream::new(client.clone());
    let mut loops = FuturesUnordered::new();
    for number in (0..PARTITIONS).filter(|number| number % step == first) {
        let consumer: consumer::PullConsumer =
            jetstream.get_consumer_from_stream(format!("tests-p{number}"), "numbers").await.unwrap();
        let messages = consumer.stream().max_messages_per_batch(256).messages().await.unwrap();
        let client = client.clone();
        loops.push(tokio::spawn(async move {
            let settled = messages.map(|message| {
                let message = message.unwrap();
                std::hint::black_box(Number::decode(message.payload.as_ref()).unwrap());
                let client = client.clone();
                async move { client.request(message.reply.clone().unwrap(), "+ACK".into()).await.unwrap() }
            });
            settled.buffer_unordered(most).for_each(async |_| {}).await;
        }));
    }
    while loops.next().await.is_some() {}
}
