//! Partitions and order that change while a stream and its consumers exist, on three servers, with events before, meanwhile and after.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::PullConsumer, stream::Stream};
use futures::{StreamExt as _, TryStreamExt as _};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsCluster, await_until, publish_until_stored};
use tokio::task::JoinSet;

use crate::world::World;

/// How long a change takes at most: 10 s in which nobody publishes, 10 s until every server has it, and what the machine adds.
const CHANGE: Duration = Duration::from_mins(1);
/// How long it takes at most to handle all events, on a machine that does much else.
const HANDLED: Duration = Duration::from_mins(3);
const MARK: &str = "jetwright.dev/partitions-changed";

type Clustered = World<NatsCluster>;

fn orders(count: Option<u32>) -> String {
    let partitions = count.map(|count| format!(", partitions: {{count: {count}, keyTokens: [2]}}"));
    format!("{{subjects: ['orders.*.*'], replicas: 3{}}}", partitions.unwrap_or_default())
}

async fn with_orders(count: Option<u32>) -> Clustered {
    let world = World::<NatsCluster>::clustered(3, &[]).await;
    world.stream("orders", &orders(count)).await;
    await_ready::<EventStream>(&world, "orders").await;
    world
}

async fn await_ready<K: crate::world::Kind>(world: &Clustered, name: &str) {
    world.await_condition_within::<K>(CHANGE, name, ("Ready", "True", "Reconciled")).await;
}

async fn ask_stream(world: &Clustered) -> Result<Stream, String> {
    world.jetstream.get_stream("orders").await.map_err(|error| error.to_string())
}

/// The stream, asked for until a server answers: while a leader is elected, none may.
async fn stream(world: &Clustered) -> Stream {
    await_until("the stream to answer", CHANGE, || ask_stream(world)).await
}

/// Publishes one event of each of 20 keys, `rounds` times.
async fn publish(world: &Clustered, rounds: usize) {
    for _ in 0..rounds {
        for key in 0..20 {
            publish_until_stored(&world.jetstream, &format!("orders.{key}.placed"), "x").await;
        }
    }
}

async fn kill(world: &mut Clustered) {
    world.operator.signal("KILL");
    world.operator.wait_exit(Duration::from_secs(15)).await;
    world.start_again(&[]);
}

/// Waits until something is so in JetStream.
async fn await_in_jetstream(world: &Clustered, what: &str, wanted: impl AsyncFn(&Stream) -> bool) {
    await_until(what, CHANGE, || async {
        let stream = ask_stream(world).await?;
        if wanted(&stream).await { Ok(()) } else { Err(format!("{:?}", stream.cached_info().config)) }
    })
    .await;
}

fn mark(stream: &Stream) -> String {
    stream.cached_info().config.metadata.get(MARK).cloned().unwrap_or_default()
}

/// The marks of a consumer, with its filters; nothing of one that is not there.
async fn described(stream: &Stream, name: &str) -> String {
    let info = stream.consumer_info(name).await;
    info.map(|info| format!("{:?} {:?}", info.config.metadata, info.config)).unwrap_or_default()
}

/// What was handled: consumer, key, sequence, begin and end.
#[derive(Clone, Debug)]
struct Handled {
    consumer: String,
    key: String,
    sequence: u64,
    begun: Instant,
    ended: Instant,
}

/// Programs that handle all that there is of a consumer with this name, one event of each JetStream consumer at a time, whoever appears.
struct Programs {
    handled: Arc<Mutex<Vec<Handled>>>,
    _tasks: JoinSet<()>,
}

impl Programs {
    fn start(world: &Clustered, logical: &'static str) -> Self {
        let handled = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(pull_all(world.jetstream.clone(), logical, handled.clone()));
        Self { handled, _tasks: tasks }
    }

    fn all(&self) -> Vec<Handled> {
        self.handled.lock().unwrap().clone()
    }

    /// Waits until so many events were handled, and checks that each was once, and those of one key in order and one at a time.
    async fn await_each_once_in_order(&self, expected: usize) {
        await_until("all events are handled", HANDLED, || async {
            let sequences: BTreeSet<_> = self.all().iter().map(|handled| handled.sequence).collect();
            let count = sequences.len();
            if count >= expected { Ok(()) } else { Err(format!("{count} of {expected}")) }
        })
        .await;
        let mut all = self.all();
        let mut seen: BTreeMap<u64, Handled> = BTreeMap::new();
        for handled in &all {
            let before = seen.insert(handled.sequence, handled.clone());
            assert!(before.is_none(), "handled twice: {before:?}\n{handled:?}");
        }
        assert_eq!(all.len(), expected);
        all.sort_by_key(|handled| handled.begun);
        let mut last: BTreeMap<String, Handled> = BTreeMap::new();
        for handled in all {
            if let Some(before) = last.insert(handled.key.clone(), handled.clone()) {
                let in_order = before.sequence < handled.sequence && before.ended <= handled.begun;
                assert!(in_order, "{before:?}\n{handled:?}");
            }
        }
    }
}

/// Finds the consumers as they come.
async fn pull_all(jetstream: jetstream::Context, logical: &'static str, handled: Arc<Mutex<Vec<Handled>>>) {
    let (mut pulled, mut tasks) = (BTreeSet::new(), JoinSet::new());
    loop {
        // One that did not answer is tried again while it is there.
        while let Some(Ok(ended)) = tasks.try_join_next() {
            pulled.remove(&ended);
        }
        if let Ok(stream) = jetstream.get_stream("orders").await {
            let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap_or_default();
            for name in names {
                let is_own = name == logical || name.starts_with(&format!("{logical}-p"));
                let Ok(info) = stream.consumer_info(&name).await else { continue };
                // One that is made again is another one.
                let this = (name.clone(), info.created);
                if is_own && pulled.insert(this.clone()) {
                    let pulling = pull(jetstream.clone(), name, handled.clone());
                    tasks.spawn(async move {
                        pulling.await;
                        this
                    });
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn pull(jetstream: jetstream::Context, name: String, handled: Arc<Mutex<Vec<Handled>>>) {
    let Ok(stream) = jetstream.get_stream("orders").await else { return };
    let Ok(consumer): Result<PullConsumer, _> = stream.get_consumer(&name).await else { return };
    loop {
        let Ok(mut messages) =
            consumer.fetch().max_messages(1).expires(Duration::from_secs(1)).messages().await
        else {
            return;
        };
        while let Some(Ok(message)) = messages.next().await {
            let begun = Instant::now();
            tokio::time::sleep(Duration::from_millis(5)).await;
            let sequence = message.info().unwrap().stream_sequence;
            let key = message.subject.split('.').nth(1).unwrap().to_owned();
            let ended = Instant::now();
            handled.lock().unwrap().push(Handled { consumer: name.clone(), key, sequence, begun, ended });
            while message.double_ack().await.is_err() {}
        }
    }
}

/// The subject of a stored event, asked for until a server answers.
async fn stored_subject(stream: &Stream, sequence: u64) -> String {
    let stored = await_until("an event to be read", CHANGE, || stream.get_raw_message(sequence)).await;
    stored.subject.to_string()
}

/// The subjects that each of the servers has stored.
async fn subjects_of_each_server(world: &Clustered) -> BTreeMap<String, Vec<String>> {
    let mut subjects = BTreeMap::new();
    for _ in 0..30 {
        let Ok(stream) = ask_stream(world).await else { continue };
        let info = stream.cached_info();
        let leader = info.cluster.as_ref().and_then(|cluster| cluster.leader.clone());
        if let Some(leader) = leader
            && !subjects.contains_key(&leader)
        {
            let mut stored = Vec::new();
            for sequence in 1..=info.state.last_sequence {
                stored.push(stored_subject(&stream, sequence).await);
            }
            subjects.insert(leader, stored);
        }
        if subjects.len() == 3 {
            break;
        }
        world.nats.step_down("$JS.API.STREAM.LEADER.STEPDOWN.orders").await;
        let _ = await_until("another server leads", Duration::from_secs(15), || async {
            let stream = ask_stream(world).await?;
            let cluster = stream.cached_info().cluster.clone();
            cluster.and_then(|cluster| cluster.leader).ok_or("no leader".to_owned())
        })
        .await;
    }
    subjects
}

async fn assert_equal_copies(world: &Clustered) {
    let subjects = subjects_of_each_server(world).await;
    assert_eq!(subjects.len(), 3, "each server led once: {:?}", subjects.keys());
    let different: BTreeSet<_> = subjects.values().collect();
    assert_eq!(different.len(), 1, "the copies differ");
}

#[tokio::test]
async fn partitions_are_added_to_a_stream_with_events_once_its_publishers_stand_still() {
    let mut world = with_orders(None).await;
    let spec = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}";
    world.consumer("mails", spec).await;
    await_ready::<EventConsumer>(&world, "mails").await;
    publish(&world, 2).await;
    let foreign = jetstream::consumer::pull::Config {
        durable_name: Some("foreign".into()),
        filter_subject: "orders.*.placed".into(),
        ..Default::default()
    };
    world.nats.create_consumer("orders", foreign).await;
    world.stream("orders", &orders(Some(4))).await;
    let changing = async |world: &Clustered, reason: &str| {
        let wanted = ("PartitionsChanging", "False", reason);
        world.await_condition_within::<EventStream>(CHANGE, "orders", wanted).await
    };
    let message = changing(&world, "FiltersTooNarrow").await;
    assert!(
        message.contains("consumer foreign would miss") && message.contains("orders.*.placed.*"),
        "{message}"
    );
    stream(&world).await.delete_consumer("foreign").await.unwrap();
    let wait_busy = changing(&world, "StreamIsBusy");
    let message = tokio::select! {
        message = wait_busy => message,
        () = async { loop { publish(&world, 1).await } } => unreachable!(),
    };
    assert!(message.contains("Stop or pause the publishers"), "{message}");
    // For longer than it may stand still, somebody publishes now and then.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(15) {
        publish(&world, 1).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.config("orders").await.subject_transform, None);
    await_in_jetstream(&world, "the consumer is widened", async |stream| {
        described(stream, "mails").await.contains("orders.*.placed.*")
    })
    .await;
    kill(&mut world).await;
    await_in_jetstream(&world, "the transform is there", async |stream| mark(stream) == "0>4").await;
    kill(&mut world).await;
    await_in_jetstream(&world, "the change is over", async |stream| mark(stream).starts_with("0>4@")).await;
    kill(&mut world).await;
    await_ready::<EventStream>(&world, "orders").await;
    let object = world.streams().get("orders").await.unwrap();
    assert_eq!(crate::world::condition(&object, "PartitionsChanging"), None);
    publish(&world, 3).await;
    let programs = Programs::start(&world, "mails");
    let published = usize::try_from(stream(&world).await.cached_info().state.messages).unwrap();
    programs.await_each_once_in_order(published).await;
    assert_equal_copies(&world).await;
    // With order one could begin with what has numbers alone.
    world.consumer("late", "{streamRef: {name: orders}, ordering: PerKey}").await;
    let wanted = ("Stalled", "True", "Invalid");
    let message = world.await_condition_within::<EventConsumer>(CHANGE, "late", wanted).await;
    assert!(message.contains("Set deliverPolicy to New"), "{message}");
}

/// Kills the operator as soon as each of these is so.
async fn multiply_with_kills(world: &mut Clustered, from: u32, to: u32) {
    world.stream("orders", &orders(Some(to))).await;
    let wide = format!("orders.*.*.{from}\"");
    await_in_jetstream(world, "a consumer is widened", async |stream| {
        described(stream, "fulfilment-p0").await.contains(&wide)
    })
    .await;
    kill(world).await;
    let changed = format!("{from}>{to}");
    await_in_jetstream(world, "the transform is another one", async |stream| mark(stream) == changed).await;
    kill(world).await;
    let over = format!("{changed}@");
    await_in_jetstream(world, "the change is over", async |stream| mark(stream).starts_with(&over)).await;
    kill(world).await;
}

#[tokio::test]
async fn multiplied_partitions_lose_repeat_and_mix_nothing_whenever_the_operator_is_killed() {
    let mut world = with_orders(Some(2)).await;
    world.consumer("fulfilment", "{streamRef: {name: orders}, ordering: PerKey}").await;
    await_ready::<EventConsumer>(&world, "fulfilment").await;
    let programs = Programs::start(&world, "fulfilment");
    publish(&world, 5).await;
    multiply_with_kills(&mut world, 2, 4).await;
    // Publishers may go on: the consumers are divided under load.
    publish(&world, 30).await;
    for (what, name, mark) in [
        ("one is paused", "fulfilment-p0", "jetwright.dev/dividing"),
        ("one has its part", "fulfilment-p2", "jetwright.dev/partition-count"),
        ("one is divided", "fulfilment-p0", "\"jetwright.dev/partition-count\": \"4\""),
    ] {
        await_in_jetstream(&world, what, async |stream| {
            described(stream, name).await.contains(mark)
                || described(stream, "fulfilment-p1")
                    .await
                    .contains("\"jetwright.dev/partition-count\": \"4\"")
        })
        .await;
        kill(&mut world).await;
        publish(&world, 1).await;
    }
    await_ready::<EventConsumer>(&world, "fulfilment").await;
    await_until("it has four partitions", CHANGE, || async {
        let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
        let partitions = status.consumer.and_then(|consumer| consumer.partitions);
        if partitions == Some(4) { Ok(()) } else { Err(format!("{partitions:?}")) }
    })
    .await;
    publish(&world, 5).await;
    programs.await_each_once_in_order(20 * 43).await;
    let by: BTreeSet<_> = programs.all().into_iter().map(|handled| handled.consumer).collect();
    assert_eq!(by.len(), 4, "each partition has a consumer that handles: {by:?}");
    assert_equal_copies(&world).await;
}

#[tokio::test]
async fn a_consumer_without_order_gets_it_and_loses_repeats_and_mixes_nothing() {
    let mut world = with_orders(None).await;
    let spec = |ordering: &str| {
        format!("{{streamRef: {{name: orders}}, ordering: {ordering}, filterSubjects: [orders.*.placed]}}")
    };
    world.consumer("mails", &spec("Unordered")).await;
    await_ready::<EventConsumer>(&world, "mails").await;
    let programs = Programs::start(&world, "mails");
    publish(&world, 5).await;
    world.stream("orders", &orders(Some(4))).await;
    await_in_jetstream(&world, "the change is over", async |stream| mark(stream).starts_with("0>4@")).await;
    await_ready::<EventStream>(&world, "orders").await;
    publish(&world, 20).await;
    world.consumer("mails", &spec("PerKey")).await;
    publish(&world, 5).await;
    await_in_jetstream(&world, "it is paused", async |stream| {
        let names: Vec<String> = stream.consumer_names().try_collect().await.unwrap_or_default();
        described(stream, "mails").await.contains("jetwright.dev/dividing") || names.len() > 1
    })
    .await;
    kill(&mut world).await;
    publish(&world, 5).await;
    await_ready::<EventConsumer>(&world, "mails").await;
    publish(&world, 5).await;
    programs.await_each_once_in_order(20 * 40).await;
    let names: BTreeSet<String> = stream(&world).await.consumer_names().try_collect().await.unwrap();
    assert_eq!(names, (0..4).map(|number| format!("mails-p{number}")).collect());
}

#[tokio::test]
async fn while_one_partition_waits_none_is_divided_and_what_comes_is_delivered_by_those_that_pods_have() {
    let world = with_orders(Some(2)).await;
    world.consumer("fulfilment", "{streamRef: {name: orders}, ordering: PerKey}").await;
    await_ready::<EventConsumer>(&world, "fulfilment").await;
    // An event of one of the two, which nobody handles.
    publish_until_stored(&world.jetstream, "orders.1.placed", "x").await;
    let held = stored_subject(&stream(&world).await, 1).await;
    let (busy, idle) = if held.ends_with(".0") { (0, 1) } else { (1, 0) };
    world.stream("orders", &orders(Some(4))).await;
    await_in_jetstream(&world, "the change is over", async |stream| mark(stream).starts_with("2>4@")).await;
    let changing = ("ConsumerReady", "False", "ChangingPartitions");
    let message = world.await_condition_within::<EventConsumer>(CHANGE, "fulfilment", changing).await;
    assert!(message.contains(&format!("fulfilment-p{busy} is divided when")), "{message}");
    publish(&world, 2).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let found = stream(&world).await;
    let names: BTreeSet<String> = found.consumer_names().try_collect().await.unwrap();
    assert_eq!(names, ["fulfilment-p0", "fulfilment-p1"].map(str::to_owned).into());
    let idle = found.consumer_info(format!("fulfilment-p{idle}")).await.unwrap();
    assert!(!idle.paused && idle.num_pending > 0 && idle.config.filter_subjects.len() == 2, "{idle:?}");
    let programs = Programs::start(&world, "fulfilment");
    await_ready::<EventConsumer>(&world, "fulfilment").await;
    publish(&world, 1).await;
    programs.await_each_once_in_order(61).await;
    let by: BTreeSet<_> = programs.all().into_iter().map(|handled| handled.consumer).collect();
    assert_eq!(by.len(), 4, "{by:?}");
}

#[tokio::test]
async fn partitions_and_order_that_are_declared_at_once_come_one_after_the_other() {
    let mut world = with_orders(None).await;
    let spec = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}";
    world.consumer("mails", spec).await;
    await_ready::<EventConsumer>(&world, "mails").await;
    publish(&world, 2).await;
    // Whichever the operator sees first.
    world.operator.signal("KILL");
    world.operator.wait_exit(Duration::from_secs(15)).await;
    world.consumer("mails", &spec.replacen('{', "{ordering: PerKey, ", 1)).await;
    world.stream("orders", &orders(Some(4))).await;
    world.start_again(&[]);
    await_in_jetstream(&world, "the change is over", async |stream| mark(stream).starts_with("0>4@")).await;
    let programs = Programs::start(&world, "mails");
    await_ready::<EventConsumer>(&world, "mails").await;
    publish(&world, 2).await;
    programs.await_each_once_in_order(80).await;
}
