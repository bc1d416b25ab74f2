//! Streams with partitions, and consumers with order, which are a JetStream consumer for each.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream::{
    consumer::{Config, Info, PullConsumer, pull},
    stream::{self, SubjectTransform},
};
use futures::{StreamExt as _, TryStreamExt as _};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsCluster, NatsServer, await_until};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::world::{SOON, World};

const ORDERS: &str = "{subjects: ['orders.*.*'], partitions: {count: 3, keyTokens: [2]}}";
const ORDERED_PLACED: &str =
    "{streamRef: {name: orders}, ordering: PerKey, filterSubjects: [orders.*.placed]}";
const ORDERED: &str = "{streamRef: {name: orders}, ordering: PerKey}";

async fn with_orders() -> World {
    let world = World::start().await;
    world.stream("orders", ORDERS).await;
    world.await_ready::<EventStream>("orders").await;
    world
}

async fn info<N>(world: &World<N>, name: &str) -> Result<Info, String> {
    let stream = world.jetstream.get_stream("orders").await.map_err(|error| error.to_string())?;
    stream.consumer_info(name).await.map_err(|error| error.to_string())
}

async fn await_consumer(world: &World, name: &str, wanted: impl Fn(&Config) -> bool) {
    await_until(&format!("consumer {name} is as wanted"), SOON, || async {
        let config = info(world, name).await?.config;
        if wanted(&config) { Ok(()) } else { Err(format!("{config:?}")) }
    })
    .await;
}

/// Names of the consumers of the stream in JetStream.
async fn names<N>(world: &World<N>) -> BTreeSet<String> {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    stream.consumer_names().try_collect().await.unwrap()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

async fn publish<N>(world: &World<N>, subject: &str) {
    world.jetstream.publish(subject.to_owned(), "x".into()).await.unwrap().await.unwrap();
}

/// The subjects under which events are stored.
async fn stored(world: &World) -> Vec<String> {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let last = stream.cached_info().state.last_sequence;
    let mut subjects = Vec::new();
    for sequence in 1..=last {
        subjects.push(stream.get_raw_message(sequence).await.unwrap().subject.to_string());
    }
    subjects
}

#[tokio::test]
async fn events_are_stored_with_the_number_of_their_partition_and_each_partition_has_a_consumer() {
    let world = with_orders().await;
    world.consumer("fulfilment", ORDERED_PLACED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for key in 0..20 {
        publish(&world, &format!("orders.{key}.placed")).await;
        publish(&world, &format!("orders.{key}.paid")).await;
    }
    let mut partitions = BTreeMap::new();
    for subject in stored(&world).await {
        let (published, number) = subject.rsplit_once('.').unwrap();
        let key = published.split('.').nth(1).unwrap().to_owned();
        let number: u64 = number.parse().unwrap();
        assert!(published.split('.').count() == 3 && number < 3, "{subject}");
        assert_eq!(*partitions.entry(key).or_insert(number), number, "a key has one partition: {subject}");
    }
    assert_eq!(partitions.values().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(names(&world).await, set(["fulfilment-p0", "fulfilment-p1", "fulfilment-p2"]));
    for number in 0..3 {
        let found = info(&world, &format!("fulfilment-p{number}")).await.unwrap();
        let Config {
            filter_subject,
            max_ack_pending,
            ack_wait,
            max_deliver,
            memory_storage,
            num_replicas,
            ..
        } = found.config;
        assert_eq!(filter_subject, format!("orders.*.placed.{number}"));
        assert_eq!((max_ack_pending, ack_wait, max_deliver), (256, Duration::from_secs(10), -1));
        assert_eq!((memory_storage, num_replicas), (false, 0), "it has as many copies as its stream");
        let expected = partitions.values().filter(|partition| **partition == number).count();
        assert_eq!(found.num_pending, u64::try_from(expected).unwrap());
    }
}

#[tokio::test]
async fn the_status_and_the_metrics_describe_all_partitions_as_one_consumer() {
    let world = World::with(
        NatsServer::start().await,
        &["--jetstream-resync-interval=1s", "--status-stats-interval=1s", "--stats-interval=1s"],
    )
    .await;
    world.stream("orders", ORDERS).await;
    world.consumer("fulfilment", ORDERED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for key in 0..10 {
        publish(&world, &format!("orders.{key}.placed")).await;
    }
    for number in 0..3 {
        let stream = world.jetstream.get_stream("orders").await.unwrap();
        let consumer: PullConsumer = stream.get_consumer(&format!("fulfilment-p{number}")).await.unwrap();
        consumer.fetch().max_messages(1).messages().await.unwrap().next().await.unwrap().unwrap();
    }
    await_until("lag and unacknowledged events are sums", SOON, || async {
        let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
        let consumer = status.consumer.unwrap();
        assert_eq!((consumer.name.as_str(), consumer.partitions), ("fulfilment", Some(3)));
        if (status.lag, status.ack_pending) == (Some(7), Some(3)) {
            Ok(())
        } else {
            Err(format!("{:?} {:?}", status.lag, status.ack_pending))
        }
    })
    .await;
    let line = format!(
        "jetwright_consumer_pending{{namespace=\"{}\",event_consumer=\"fulfilment\",stream=\"orders\",consumer=\"fulfilment\"}}",
        world.namespace.name()
    );
    await_until("the lag of all is exported once", Duration::from_secs(30), || async {
        let (_, text) = world.admin("/metrics").await.ok_or("no answer")?;
        let lines: Vec<_> =
            text.lines().filter(|line| line.starts_with("jetwright_consumer_pending{")).collect();
        if lines == [format!("{line} 7")] { Ok(()) } else { Err(format!("{lines:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_becomes_of_one_partition_is_put_right_and_told() {
    let world = with_orders().await;
    world.consumer("fulfilment", ORDERED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let Config { metadata, .. } = info(&world, "fulfilment-p1").await.unwrap().config;
    let changed = pull::Config {
        durable_name: Some("fulfilment-p1".into()),
        filter_subject: "orders.*.*.1".into(),
        ack_wait: Duration::from_secs(10),
        max_ack_pending: 5,
        metadata,
        ..pull::Config::default()
    };
    stream.update_consumer(changed).await.unwrap();
    await_consumer(&world, "fulfilment-p1", |config| config.max_ack_pending == 256).await;
    world
        .await_event(
            "fulfilment",
            "DriftRepaired",
            "corrected what another writer had changed: max_ack_pending",
        )
        .await;
    // Times in a status are whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stream.delete_consumer("fulfilment-p2").await.unwrap();
    await_consumer(&world, "fulfilment-p2", |_| true).await;
    world.await_one_event("fulfilment", "Recreated").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
}

#[tokio::test]
async fn an_edit_reaches_every_partition() {
    let world = with_orders().await;
    world.consumer("fulfilment", ORDERED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world.consumer("fulfilment", "{streamRef: {name: orders}, ordering: PerKey, filterSubjects: [orders.*.paid], maxAckPending: 9}").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for number in 0..3 {
        let Config { filter_subject, max_ack_pending, .. } =
            info(&world, &format!("fulfilment-p{number}")).await.unwrap().config;
        assert_eq!((filter_subject, max_ack_pending), (format!("orders.*.paid.{number}"), 9));
    }
}

async fn foreign_partition(world: &World, number: u8) {
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let foreign = pull::Config {
        durable_name: Some(format!("fulfilment-p{number}")),
        filter_subject: format!("orders.*.*.{number}"),
        max_ack_pending: 3,
        ..pull::Config::default()
    };
    stream.create_consumer(foreign).await.unwrap();
}

#[tokio::test]
async fn a_partition_that_is_anothers_is_left_alone_until_it_may_be_adopted_and_survives_the_object() {
    let world = with_orders().await;
    foreign_partition(&world, 1).await;
    world.consumer("fulfilment", ORDERED).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "NameConflict").await;
    assert!(message.contains("consumer fulfilment-p1 was not created by Jetwright"), "{message}");
    assert_eq!(info(&world, "fulfilment-p1").await.unwrap().config.max_ack_pending, 3);
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert_eq!(names(&world).await, set(["fulfilment-p1"]));
    world
        .consumer("fulfilment", "{streamRef: {name: orders}, ordering: PerKey, adoptionPolicy: AdoptUnowned}")
        .await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    assert_eq!(info(&world, "fulfilment-p1").await.unwrap().config.max_ack_pending, 256);
}

#[tokio::test]
async fn all_partitions_go_with_their_object_and_others_stay() {
    let world = with_orders().await;
    for name in ["fulfilment", "mails"] {
        world.consumer(name, ORDERED).await;
        world.await_ready::<EventConsumer>(name).await;
    }
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert_eq!(names(&world).await, set(["mails-p0", "mails-p1", "mails-p2"]));
    // Its EventStream may be gone before: how many partitions there are, the status says.
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.delete::<EventConsumer>("mails").await;
    world.await_gone::<EventConsumer>("mails").await;
    assert_eq!(names(&world).await, set([]));
}

#[tokio::test]
async fn what_partitions_are_refused_holds_up_no_other_and_none_stays_behind() {
    let denied = ["0", "3"].map(|number| format!("\"$JS.API.CONSUMER.CREATE.orders.fulfilment-p{number}\""));
    let config = format!(
        "authorization {{ users: [{{user: u, password: p, permissions: {{publish: {{deny: [{}]}}}}}}] }}, no_auth_user: u",
        denied.join(", ")
    );
    let world = World::with(NatsServer::builder().config(&config).start().await, &[]).await;
    world.stream("orders", "{subjects: ['orders.*.*'], partitions: {count: 40, keyTokens: [2]}}").await;
    world.consumer("fulfilment", ORDERED).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "False", "Refused").await;
    assert!(
        message.contains("consumer fulfilment-p0 of stream orders, and 1 more of its 40 consumers"),
        "{message}"
    );
    let made = names(&world).await;
    assert!(made.len() == 38 && made.contains("fulfilment-p39"), "{made:?}");
    // Nothing says any more how many there may be: the status was never told of any.
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert_eq!(names(&world).await, set([]));
}

#[tokio::test]
async fn who_has_its_consumer_in_jetstream_keeps_the_name_whoever_is_older() {
    let mut world = with_orders().await;
    let kept = "{streamRef: {name: orders}, deletionPolicy: Retain}";
    world.consumer("x-p1", kept).await;
    world.await_ready::<EventConsumer>("x-p1").await;
    world.delete::<EventConsumer>("x-p1").await;
    world.await_gone::<EventConsumer>("x-p1").await;
    world.stop().await;
    world.consumer("x", ORDERED).await;
    // Which of two is older, their times of creation say, in whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.consumer("x-p1", "{streamRef: {name: orders}}").await;
    world.start_again(&[]);
    world.await_ready::<EventConsumer>("x-p1").await;
    let message = world.await_condition::<EventConsumer>("x", "Stalled", "True", "Invalid").await;
    assert!(message.contains("x is taken: EventConsumer x-p1"), "{message}");
    world.delete::<EventConsumer>("x-p1").await;
    world.await_ready::<EventConsumer>("x").await;
}

#[tokio::test]
async fn a_name_that_a_partition_has_is_refused_to_the_newer_object_until_the_older_one_goes() {
    let world = with_orders().await;
    world.consumer("x", ORDERED).await;
    world.await_ready::<EventConsumer>("x").await;
    // Which of two is older, their times of creation say, in whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.consumer("x-p1", "streamRef: {name: orders}").await;
    let message = world.await_condition::<EventConsumer>("x-p1", "Stalled", "True", "Invalid").await;
    assert!(message.contains("x-p1 is taken: EventConsumer x"), "{message}");
    world.await_ready::<EventConsumer>("x").await;
    assert_eq!(info(&world, "x-p1").await.unwrap().config.filter_subject, "orders.*.*.1");
    world.delete::<EventConsumer>("x").await;
    world.await_ready::<EventConsumer>("x-p1").await;
    assert_eq!(info(&world, "x-p1").await.unwrap().config.filter_subject, "");
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.consumer("x", ORDERED).await;
    let message = world.await_condition::<EventConsumer>("x", "Stalled", "True", "Invalid").await;
    assert!(message.contains("EventConsumer x-p1"), "{message}");
}

#[tokio::test]
async fn order_needs_partitions_and_a_stream_on_disk() {
    let world = World::start().await;
    world.stream("orders", "subjects: ['orders.*.*']").await;
    world.consumer("fulfilment", ORDERED).await;
    let message = world.await_condition::<EventConsumer>("fulfilment", "Stalled", "True", "Invalid").await;
    assert!(message.contains("declares none: set its spec.partitions"), "{message}");
    assert_eq!(names(&world).await, set([]));
    // It has neither, so it may.
    world.stream("orders", ORDERS).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    world
        .stream("fleeting", "{subjects: ['fleeting.*'], partitions: {keyTokens: [2]}, storage: Memory}")
        .await;
    world.consumer("reader", "{streamRef: {name: fleeting}, ordering: PerKey}").await;
    let message = world.await_condition::<EventConsumer>("reader", "Stalled", "True", "Invalid").await;
    assert!(message.contains("make another EventStream with storage File"), "{message}");
}

#[tokio::test]
async fn a_stream_whose_events_go_once_they_are_acknowledged_gets_no_partitions_while_it_has_some() {
    let world = World::start().await;
    let queue = "{subjects: ['orders.*.*'], retention: WorkQueue}";
    world.stream("orders", queue).await;
    world.await_ready::<EventStream>("orders").await;
    publish(&world, "orders.1.placed").await;
    world
        .stream(
            "orders",
            "{subjects: ['orders.*.*'], retention: WorkQueue, partitions: {count: 3, keyTokens: [2]}}",
        )
        .await;
    let message = world.await_condition::<EventStream>("orders", "Stalled", "True", "ImmutableField").await;
    assert!(
        message.contains("its retention is not Limits") && message.contains("make another EventStream"),
        "{message}"
    );
    publish(&world, "orders.1.paid").await;
    assert_eq!(stored(&world).await, ["orders.1.placed", "orders.1.paid"]);
    world.consumer("fulfilment", ORDERED).await;
    let message = world
        .await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "False", "StreamNotReady")
        .await;
    assert!(message.contains("has other partitions than it declares"), "{message}");
    assert_eq!(names(&world).await, set([]));
    world.stream("orders", queue).await;
    world.await_ready::<EventStream>("orders").await;
}

#[tokio::test]
async fn a_transform_that_another_client_takes_away_is_put_back_and_no_event_is_missed_without_order() {
    let world = with_orders().await;
    world.consumer("mails", "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}").await;
    world.await_ready::<EventConsumer>("mails").await;
    publish(&world, "orders.1.placed").await;
    world.stop().await;
    let declared = world.config("orders").await;
    let transform = SubjectTransform {
        source: "orders.*.*".into(),
        destination: "orders.{{wildcard(1)}}.{{wildcard(2)}}.{{partition(3,1)}}".into(),
    };
    assert_eq!(declared.subject_transform.as_ref(), Some(&transform));
    world.jetstream.update_stream(stream::Config { subject_transform: None, ..declared }).await.unwrap();
    publish(&world, "orders.2.placed").await;
    let mut world = world;
    world.start_again(&[]);
    world.await_config("orders", |config| config.subject_transform.as_ref() == Some(&transform)).await;
    world
        .await_event(
            "orders",
            "DriftRepaired",
            "corrected what another writer had changed: subject_transform",
        )
        .await;
    assert_eq!(stored(&world).await[1], "orders.2.placed");
    assert_eq!(info(&world, "mails").await.unwrap().num_pending, 2);
}

/// Takes an object's status away, as a backup without statuses does.
async fn without_status(world: &World, name: &str) {
    let status = Patch::Merge(json!({"status": {"consumer": null}}));
    world.consumers().patch_status(name, &PatchParams::default(), &status).await.unwrap();
}

#[tokio::test]
async fn an_order_that_goes_behind_the_api_servers_back_makes_and_deletes_nothing() {
    let mut world = with_orders().await;
    let unordered = "streamRef: {name: orders}";
    world.consumer("mails", ORDERED).await;
    world.await_ready::<EventConsumer>("mails").await;
    world.stop().await;
    without_status(&world, "mails").await;
    world.consumer("mails", unordered).await;
    world.start_again(&[]);
    let message = world.await_condition::<EventConsumer>("mails", "Stalled", "True", "ImmutableField").await;
    assert!(message.contains("consumer mails-p0 was created for this object"), "{message}");
    let names = names(&world).await;
    assert!(names.contains("mails-p0") && !names.contains("mails"), "{names:?}");
    world.consumer("mails", ORDERED).await;
    world.await_ready::<EventConsumer>("mails").await;
}

#[tokio::test]
async fn a_consumer_without_order_on_a_stream_that_always_had_partitions_gets_order_where_it_was() {
    let world = with_orders().await;
    world.consumer("mails", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("mails").await;
    for key in 0..20 {
        publish(&world, &format!("orders.{key}.placed")).await;
    }
    let stream = world.jetstream.get_stream("orders").await.unwrap();
    let consumer: PullConsumer = stream.get_consumer("mails").await.unwrap();
    let mut taken = consumer.fetch().max_messages(8).messages().await.unwrap();
    let mut last = None;
    while let Some(message) = taken.next().await {
        let message = message.unwrap();
        match message.info().unwrap().stream_sequence {
            8 => last = Some(message),
            _ => message.double_ack().await.unwrap(),
        }
    }
    world.consumer("mails", ORDERED).await;
    let message =
        world.await_condition::<EventConsumer>("mails", "ConsumerReady", "False", "ChangingPartitions").await;
    assert!(message.contains("mails is paused") && message.contains("have acknowledged"), "{message}");
    assert_eq!(names(&world).await, set(["mails"]));
    last.unwrap().double_ack().await.unwrap();
    world.await_ready::<EventConsumer>("mails").await;
    assert_eq!(names(&world).await, set(["mails-p0", "mails-p1", "mails-p2"]));
    let mut pending = 0;
    for number in 0..3 {
        let found = info(&world, &format!("mails-p{number}")).await.unwrap();
        assert_eq!(found.config.filter_subject, format!("orders.*.*.{number}"));
        pending += found.num_pending;
    }
    assert_eq!(pending, 12, "what was not acknowledged is left");
    // It stays as it is at the next look.
    world.consumer("mails", "{streamRef: {name: orders}, ordering: PerKey, maxAckPending: 9}").await;
    await_consumer(&world, "mails-p2", |config| config.max_ack_pending == 9).await;
    world.await_ready::<EventConsumer>("mails").await;
    assert_eq!(world.events("mails", "Recreated").await, Vec::<String>::new());
}

#[tokio::test]
async fn in_a_work_queue_of_three_servers_each_partition_has_its_copies_and_its_own_events() {
    let world = World::<NatsCluster>::clustered(3, &[]).await;
    world.stream("orders", "{subjects: ['orders.*.*'], retention: WorkQueue, replicas: 3, partitions: {count: 3, keyTokens: [2]}}").await;
    world.consumer("fulfilment", ORDERED_PLACED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for number in 0..3 {
        let found = info(&world, &format!("fulfilment-p{number}")).await.unwrap();
        assert_eq!(found.cluster.unwrap().replicas.len(), 2);
    }
    world
        .consumer("paid", "{streamRef: {name: orders}, ordering: PerKey, filterSubjects: [orders.*.paid]}")
        .await;
    world.await_ready::<EventConsumer>("paid").await;
    world
        .consumer("paid", "{streamRef: {name: orders}, ordering: PerKey, filterSubjects: [orders.1.*]}")
        .await;
    let message = world.await_condition::<EventConsumer>("paid", "Stalled", "True", "Invalid").await;
    assert!(message.contains("overlaps with") && message.contains("EventConsumer fulfilment"), "{message}");
    world
        .consumer("paid", "{streamRef: {name: orders}, ordering: PerKey, filterSubjects: [orders.*.paid]}")
        .await;
    world.await_ready::<EventConsumer>("paid").await;
    world.consumer("mails", "{streamRef: {name: orders}, filterSubjects: [orders.*.mailed]}").await;
    world.await_ready::<EventConsumer>("mails").await;
    world.consumer("mails", "{streamRef: {name: orders}, filterSubjects: [orders.*.placed]}").await;
    let message = world.await_condition::<EventConsumer>("mails", "Stalled", "True", "Invalid").await;
    assert!(message.contains("overlaps with"), "{message}");
}

#[tokio::test]
async fn pods_are_told_of_the_partitions_and_who_they_are() {
    let world = with_orders().await;
    let workload = "workload: {template: {spec: {containers: [{name: app, image: 'shop/order:1'}]}}}";
    world
        .consumer("fulfilment", &format!("{{streamRef: {{name: orders}}, ordering: PerKey, {workload}}}"))
        .await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let files: Api<ConfigMap> = world.namespace.api();
    let file = await_until("the bindings are there", SOON, || async {
        files.get("fulfilment-bindings").await.map_err(|error| error.to_string())
    })
    .await;
    let file: serde_json::Value = serde_saphyr::from_str(&file.data.unwrap()["bindings.yaml"]).unwrap();
    assert_eq!(file["version"], 2);
    let binding = &file["bindings"]["fulfilment"];
    assert_eq!(binding["consumer"], "fulfilment");
    assert_eq!(binding["partitions"], json!({"subject": "orders.*.*", "keyTokens": [2], "count": 3}));
    assert_eq!(binding["ordering"], json!({"keyTokens": [2]}));
    assert_eq!((&binding["ackWait"], &binding["maxAckPending"]), (&json!("10s"), &json!(256)));
    let deployments: Api<Deployment> = world.namespace.api();
    let deployment = await_until("the deployment is there", SOON, || async {
        deployments.get("fulfilment").await.map_err(|error| error.to_string())
    })
    .await;
    let pod = deployment.spec.unwrap().template.spec.unwrap();
    let names: BTreeSet<_> =
        pod.containers[0].env.iter().flatten().map(|variable| variable.name.clone()).collect();
    for name in ["JETWRIGHT_POD_NAME", "JETWRIGHT_POD_NAMESPACE", "JETWRIGHT_POD_UID"] {
        assert!(names.contains(name), "{names:?}");
    }
}

#[tokio::test]
async fn a_partition_that_a_tool_deletes_again_and_again_is_named_and_holds_up_no_other() {
    let world = with_orders().await;
    world.consumer("fulfilment", ORDERED).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    let options = async_nats::ConnectOptions::new().name("cleaner");
    let cleaner = async_nats::jetstream::new(world.nats.client_with(options).await);
    let orders = cleaner.get_stream("orders").await.unwrap();
    let clean = async {
        loop {
            // It may be gone already.
            let _ = orders.delete_consumer("fulfilment-p1").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = clean => {}
        message = world.await_condition::<EventConsumer>("fulfilment", "Ready", "False", "Contested") => {
            assert!(message.starts_with("consumer fulfilment-p1: within a minute"), "{message}");
            assert!(message.contains("the client with name \"cleaner\""), "{message}");
        }
    }
    orders.delete_consumer("fulfilment-p2").await.unwrap();
    await_consumer(&world, "fulfilment-p2", |_| true).await;
    world.await_condition::<EventConsumer>("fulfilment", "Ready", "False", "Contested").await;
}

#[tokio::test]
async fn an_operator_that_is_killed_while_it_makes_or_deletes_partitions_goes_on_where_it_was() {
    let mut world = World::start().await;
    world.stream("orders", "{subjects: ['orders.*.*'], partitions: {count: 500, keyTokens: [2]}}").await;
    world.await_ready::<EventStream>("orders").await;
    world.consumer("fulfilment", ORDERED).await;
    let count = async |world: &World| names(world).await.len();
    await_until("some are made", SOON, || async {
        if count(&world).await > 0 { Ok(()) } else { Err("none") }
    })
    .await;
    world.operator.signal("KILL");
    world.operator.wait_exit(SOON).await;
    let made = count(&world).await;
    world.start_again(&[]);
    world.await_ready::<EventConsumer>("fulfilment").await;
    assert_eq!(count(&world).await, 500);
    assert!(made < 500, "it was killed too late to show anything");
    assert_eq!(world.events("fulfilment", "Recreated").await, Vec::<String>::new());
    world.delete::<EventConsumer>("fulfilment").await;
    await_until("some are deleted", SOON, || async {
        if count(&world).await < 500 { Ok(()) } else { Err("none") }
    })
    .await;
    world.operator.signal("KILL");
    world.operator.wait_exit(SOON).await;
    let left = count(&world).await;
    world.start_again(&[]);
    world.await_gone::<EventConsumer>("fulfilment").await;
    assert_eq!(count(&world).await, 0);
    assert!(left > 0, "it was killed too late to show anything");
}

#[tokio::test]
async fn where_the_servers_allow_fewer_consumers_the_message_says_how_to_have_more() {
    let limits = "jetstream { store_dir: store, limits { default_max_consumers: 2 } }";
    let world = World::with(NatsServer::builder().config(limits).start().await, &[]).await;
    world.stream("orders", ORDERS).await;
    world.consumer("fulfilment", ORDERED).await;
    let message =
        world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "False", "Refused").await;
    assert!(message.contains("(400/10026)") && message.contains("default_max_consumers"), "{message}");
}

#[tokio::test]
async fn what_objects_without_a_trace_left_in_jetstream_is_taken_up_by_others_of_their_names() {
    let world = with_orders().await;
    let kept = "{streamRef: {name: orders}, ordering: PerKey, deletionPolicy: Retain}";
    world.consumer("fulfilment", kept).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for key in 0..10 {
        publish(&world, &format!("orders.{key}.placed")).await;
    }
    let before = async |number: u8| info(&world, &format!("fulfilment-p{number}")).await.unwrap();
    for number in 0..3 {
        let stream = world.jetstream.get_stream("orders").await.unwrap();
        let consumer: PullConsumer = stream.get_consumer(&format!("fulfilment-p{number}")).await.unwrap();
        let event = consumer.fetch().max_messages(1).messages().await.unwrap().next().await;
        event.unwrap().unwrap().double_ack().await.unwrap();
    }
    let known = [before(0).await, before(1).await, before(2).await];
    world.delete::<EventConsumer>("fulfilment").await;
    world.await_gone::<EventConsumer>("fulfilment").await;
    world.delete::<EventStream>("orders").await;
    world.await_gone::<EventStream>("orders").await;
    world.stream("orders", ORDERS).await;
    world.consumer("fulfilment", kept).await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    for (number, known) in (0..3).zip(known) {
        let now = before(number).await;
        assert_eq!(
            (now.created, now.ack_floor.stream_sequence),
            (known.created, known.ack_floor.stream_sequence)
        );
        assert_eq!(now.num_pending, known.num_pending);
    }
    assert_eq!(stored(&world).await.len(), 10);
}
