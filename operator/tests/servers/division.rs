//! Partitions that become more, where JetStream refuses a step: what the status says of it, and that no consumer stays paused.

use std::time::{Duration, Instant};

use async_nats::{
    ConnectOptions,
    jetstream::{
        self,
        consumer::{Config, Info, PullConsumer, pull},
    },
};
use futures::StreamExt as _;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, await_until};

use crate::world::{SOON, World, condition, metrics_sum};

/// How long a change takes at most: 10 s in which nobody publishes, 10 s until every server has it, and what the machine adds.
const CHANGE: Duration = Duration::from_mins(1);
const DIVIDING: &str = "jetwright.dev/dividing";
/// How soon a consumer asks again whether its stream has partitions.
const RETRY: Duration = Duration::from_secs(5);
/// Where requests go that are to fail.
const FAILING: &str = "failing";

fn config(denied: &[&str]) -> String {
    let denied: Vec<_> = denied.iter().map(|subject| format!("\"$JS.API.CONSUMER.{subject}\"")).collect();
    format!(
        "authorization {{ users: [{{user: operator, password: pw, permissions: {{publish: {{deny: [{}]}}}}}}, {{user: test, password: pw}}] }}, \
         no_auth_user: operator",
        denied.join(", ")
    )
}

fn orders(partitions: Option<u32>) -> String {
    let partitions = partitions.map(|count| format!(", partitions: {{count: {count}, keyTokens: [2]}}"));
    format!("{{subjects: ['orders.*.*']{}}}", partitions.unwrap_or_default())
}

/// A world whose operator may not send these requests about consumers.
async fn without(denied: &[&str], partitions: Option<u32>) -> World {
    let nats = NatsServer::builder().config(&config(denied)).start().await;
    let options = ConnectOptions::with_user_and_password("test".into(), "pw".into());
    let jetstream = jetstream::new(nats.client_with(options).await);
    let world = World::on(nats, jetstream, &[]).await;
    world.stream("orders", &orders(partitions)).await;
    world.await_ready::<EventStream>("orders").await;
    world
}

/// The same with a consumer of two partitions.
async fn ordered(denied: &[&str]) -> World {
    let world = without(denied, Some(2)).await;
    declare(&world, 100).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world
}

/// Declares the consumer, with another limit than before: an object that changes is reconciled at once.
async fn declare(world: &World, max_ack_pending: u32) {
    let spec = format!("{{streamRef: {{name: orders}}, ordering: PerKey, maxAckPending: {max_ack_pending}}}");
    world.consumer("fulfilment", &spec).await;
}

async fn permit(world: &World, denied: &[&str]) {
    world.nats.reconfigure(&config(denied));
    world.nats.process().signal("HUP");
    world.nats.process().await_log("Reloaded server configuration", SOON).await;
}

/// Doubles the partitions, and waits until the consumers of those may be divided.
async fn double(world: &World) {
    world.stream("orders", &orders(Some(4))).await;
    await_until("the stream has its partitions", CHANGE, async || {
        let metadata = world.config("orders").await.metadata;
        let mark = metadata.get("jetwright.dev/partitions-changed").cloned().unwrap_or_default();
        if mark.starts_with("2>4@") { Ok(()) } else { Err(mark) }
    })
    .await;
}

async fn info(world: &World, name: &str) -> Result<Info, String> {
    let stream = world.jetstream.get_stream("orders").await.map_err(|error| error.to_string())?;
    stream.consumer_info(name).await.map_err(|error| error.to_string())
}

async fn await_consumer(world: &World, name: &str, wanted: impl Fn(&Info) -> bool) {
    await_until(&format!("consumer {name} is as wanted"), CHANGE, async || {
        let info = info(world, name).await?;
        if wanted(&info) { Ok(()) } else { Err(format!("{info:?}")) }
    })
    .await;
}

fn goes_on(info: &Info) -> bool {
    !info.paused && !info.config.metadata.contains_key(DIVIDING)
}

/// Waits until the condition of the consumer, which is not ready, says something with these words.
async fn await_said(world: &World, words: &str) -> String {
    await_until(&format!("it says {words}"), CHANGE, async || {
        let object = world.consumers().get("fulfilment").await.unwrap();
        let found = condition(&object, "ConsumerReady").filter(|found| found.status == "False");
        let message = found.map(|found| found.message).unwrap_or_default();
        if message.contains(words) { Ok(message) } else { Err(message) }
    })
    .await
}

async fn await_divided(world: &World) {
    world
        .await_condition_within::<EventConsumer>(CHANGE, "fulfilment", ("Ready", "True", "Reconciled"))
        .await;
    let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
    assert_eq!(status.consumer.unwrap().partitions, Some(4));
    assert_eq!(status.lag, Some(0));
    for number in 0..4 {
        let info = info(world, &format!("fulfilment-p{number}")).await.unwrap();
        assert!(goes_on(&info) && info.config.filter_subject == format!("orders.*.*.{number}"), "{info:?}");
    }
}

#[tokio::test]
async fn what_jetstream_refuses_of_a_division_is_in_the_condition_while_all_go_on() {
    let world = ordered(&["CREATE.orders.fulfilment-p3"]).await;
    double(&world).await;
    await_said(&world, "failed to create consumer fulfilment-p3").await;
    // Its own figures are those of consumers that are no longer all that there are.
    declare(&world, 101).await;
    let said = await_said(&world, "could not be divided, and goes on for 20 s before the next attempt").await;
    assert!(said.contains("$JS.API.CONSUMER.CREATE.orders.fulfilment-p3"), "{said}");
    assert_eq!(world.consumers().get("fulfilment").await.unwrap().status.unwrap().lag, None);
    for name in ["fulfilment-p0", "fulfilment-p1"] {
        await_consumer(&world, name, goes_on).await;
    }
    permit(&world, &[]).await;
    declare(&world, 102).await;
    await_divided(&world).await;
}

#[tokio::test]
async fn where_one_consumer_cannot_be_paused_no_other_stays_paused() {
    let world = ordered(&["PAUSE.orders.fulfilment-p1"]).await;
    double(&world).await;
    await_said(&world, "$JS.API.CONSUMER.PAUSE.orders.fulfilment-p1").await;
    for name in ["fulfilment-p0", "fulfilment-p1"] {
        await_consumer(&world, name, |info| !info.paused).await;
    }
    permit(&world, &[]).await;
    declare(&world, 101).await;
    await_divided(&world).await;
}

/// Delivers one event of the first partition, and acknowledges those of the other.
async fn hold_one(world: &World) -> jetstream::Message {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    for key in 0.. {
        world.jetstream.publish(format!("orders.{key}.placed"), "x".into()).await.unwrap().await.unwrap();
        for number in 0..2 {
            let consumer: PullConsumer = stream.get_consumer(&format!("fulfilment-p{number}")).await.unwrap();
            let mut messages = consumer.fetch().max_messages(1).messages().await.unwrap();
            let Some(message) = messages.next().await else { continue };
            let message = message.unwrap();
            if number == 0 {
                return message;
            }
            message.double_ack().await.unwrap();
        }
    }
    unreachable!("some key is in the first partition");
}

#[tokio::test]
async fn one_consumer_that_cannot_be_divided_leaves_none_behind_that_is_paused() {
    let world = ordered(&[]).await;
    let held = hold_one(&world).await;
    double(&world).await;
    for name in ["fulfilment-p0", "fulfilment-p1"] {
        await_consumer(&world, name, |info| info.paused).await;
    }
    // It may make the parts, and not change the first of those that are divided.
    permit(&world, &["CREATE.orders.fulfilment-p0"]).await;
    held.double_ack().await.unwrap();
    await_said(&world, "$JS.API.CONSUMER.CREATE.orders.fulfilment-p0").await;
    await_consumer(&world, "fulfilment-p0", |info| !info.paused).await;
    await_consumer(&world, "fulfilment-p1", |info| {
        goes_on(info) && info.config.filter_subject == "orders.*.*.1"
    })
    .await;
    permit(&world, &[]).await;
    declare(&world, 101).await;
    await_divided(&world).await;
}

/// Acknowledges what waits at a consumer, which is so many events.
async fn take(world: &World, name: &str, count: usize) {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer(name).await.unwrap();
    let mut messages = consumer.fetch().max_messages(count).messages().await.unwrap();
    for _ in 0..count {
        messages.next().await.unwrap().unwrap().double_ack().await.unwrap();
    }
}

#[tokio::test]
async fn a_consumer_that_is_deleted_before_it_is_divided_gets_what_it_had_to_deliver() {
    let world = ordered(&[]).await;
    for key in 0..20 {
        world.jetstream.publish(format!("orders.{key}.placed"), "x".into()).await.unwrap().await.unwrap();
    }
    let waiting = |of: u64| info(&world, if of == 0 { "fulfilment-p0" } else { "fulfilment-p1" });
    let [of_first, of_other] = [waiting(0).await.unwrap().num_pending, waiting(1).await.unwrap().num_pending];
    assert!(of_first > 0 && of_other > 0 && of_first + of_other == 20);
    double(&world).await;
    await_said(&world, "is divided when").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.delete_consumer("fulfilment-p0").await.unwrap();
    take(&world, "fulfilment-p1", usize::try_from(of_other).unwrap()).await;
    await_consumer(&world, "fulfilment-p0", |info| {
        info.num_pending == of_first && info.config.filter_subjects.len() == 2
    })
    .await;
    await_said(&world, "fulfilment-p0 is divided when").await;
    take(&world, "fulfilment-p0", usize::try_from(of_first).unwrap()).await;
    await_divided(&world).await;
}

/// Has these requests about consumers answered with an error that passes, instead of by JetStream.
fn fail(world: &World, requests: &[&str]) {
    let mapped: Vec<_> =
        requests.iter().map(|request| format!("\"$JS.API.CONSUMER.{request}\": \"{FAILING}\"")).collect();
    world.nats.reconfigure(&format!("{}, mappings: {{{}}}", config(&[]), mapped.join(", ")));
    world.nats.process().signal("HUP");
}

/// Answers what fails.
async fn answer_failing(world: &World) {
    let options = ConnectOptions::with_user_and_password("test".into(), "pw".into());
    let client = world.nats.client_with(options).await;
    let mut requests = client.subscribe(FAILING).await.unwrap();
    client.flush().await.unwrap();
    let error = r#"{"error": {"code": 500, "err_code": 10028, "description": "insufficient memory resources available"}}"#;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            client.publish(request.reply.unwrap(), error.into()).await.unwrap();
        }
    });
}

/// The parts of the one that is divided are handled when those of all are.
#[tokio::test]
async fn where_one_is_divided_the_others_stay_paused_through_errors_that_pass() {
    let world = ordered(&[]).await;
    answer_failing(&world).await;
    let held = hold_one(&world).await;
    double(&world).await;
    for name in ["fulfilment-p0", "fulfilment-p1"] {
        await_consumer(&world, name, |info| info.paused).await;
    }
    let narrowing = "CREATE.orders.fulfilment-p1";
    fail(&world, &[narrowing]);
    await_until("the server has its configuration", SOON, async || {
        let answer = world.jetstream.request(format!("CONSUMER.{narrowing}"), &()).await;
        let answer: jetstream::response::Response<Info> = answer.map_err(|error| error.to_string())?;
        match answer {
            jetstream::response::Response::Err { error } if error.code() == 500 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    held.double_ack().await.unwrap();
    await_said(&world, "of consumer fulfilment-p1 of stream orders: JetStream refused").await;
    await_consumer(&world, "fulfilment-p0", |info| {
        goes_on(info) && info.config.filter_subject == "orders.*.*.0"
    })
    .await;
    // A part of the other one.
    fail(&world, &[narrowing, "INFO.orders.fulfilment-p3"]);
    for limit in [101, 102] {
        declare(&world, limit).await;
        await_said(&world, "failed to read consumer fulfilment-p3").await;
        let info = info(&world, "fulfilment-p1").await.unwrap();
        assert!(info.paused && info.config.filter_subject != "orders.*.*.1", "{info:?}");
    }
    // Without any mapping a server keeps those that it has.
    fail(&world, &["INFO.orders.nobody"]);
    declare(&world, 103).await;
    await_divided(&world).await;
}

#[tokio::test]
async fn a_consumer_that_gets_order_says_that_it_waits_for_its_stream_and_asks_now_and_then() {
    let world = without(&[], None).await;
    let unordered = "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}";
    world.consumer("fulfilment", unordered).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let foreign = pull::Config {
        durable_name: Some("foreign".into()),
        filter_subject: "orders.*.placed".into(),
        ..pull::Config::default()
    };
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.create_consumer(foreign).await.unwrap();
    world.stream("orders", &orders(Some(2))).await;
    world.consumer("fulfilment", &unordered.replacen('{', "{ordering: PerKey, ", 1)).await;
    await_said(&world, "it gets order when EventStream orders has its partitions").await;
    let narrow = ("PartitionsChanging", "False", "FiltersTooNarrow");
    world.await_condition_within::<EventStream>(CHANGE, "orders", narrow).await;
    let reconciles = async || {
        metrics_sum(world.admin, "jetwright_operator_reconciles_total{controller=\"consumer\"").await
    };
    let (before, begun) = (reconciles().await, Instant::now());
    await_until("it asks three times", CHANGE, async || {
        let count = reconciles().await - before;
        if count >= 3.0 { Ok(()) } else { Err(count) }
    })
    .await;
    assert!(begun.elapsed() > RETRY, "{:?}", begun.elapsed());
    stream.delete_consumer("foreign").await.unwrap();
    world
        .await_condition_within::<EventConsumer>(CHANGE, "fulfilment", ("Ready", "True", "Reconciled"))
        .await;
    let Config { filter_subject, .. } = info(&world, "fulfilment-p1").await.unwrap().config;
    assert_eq!(filter_subject, "orders.*.placed.1");
}
