//! What breaks, and the alert that each failure fires.

use std::{fs, process::Command, time::Duration};

use async_nats::jetstream::consumer::PullConsumer;
use futures::{TryStreamExt, future::join_all};
use jetwright_testing::{Folder, publish_until_stored};

use super::world::World;

/// A stream with limits and thresholds, and three consumers without pods: one whose reader acknowledges nothing, one that nobody reads, and one
/// of a stream that does not exist.
const GREENHOUSE: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: greenhouse}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventStream
metadata: {name: readings, namespace: greenhouse}
spec:
  profile: Standard
  subjects: [readings.*]
  deletionPolicy: Delete
  limits: {maxMessages: 1000, maxBytes: 1Mi}
  monitoring: {peersExpected: 3, peerLagCritical: 500}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: alarms, namespace: greenhouse}
spec:
  streamRef: {name: readings}
  ackWait: 10m
  monitoring: {lagWarning: 1000, deliveryDelay: 5s}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: archive, namespace: greenhouse}
spec:
  streamRef: {name: readings}
  monitoring: {lagWarning: 3}
---
apiVersion: jetwright.dev/v1alpha1
kind: EventConsumer
metadata: {name: misspelt, namespace: greenhouse}
spec:
  streamRef: {name: raedings}
";
/// Orders that wait for the payment gateway.
const ORDERS: usize = 20;
/// How long a read may take.
const READ: Duration = Duration::from_secs(30);
const GATEWAY: &str = "deployment/payment-simulator";
const OF_SHOP: &str = "--namespace=shop";
const TIMEOUT: &str = "--timeout=60s";

const STALLED: &str = "ConsumerStalled";
const RETRIED: &str = "RetryRatioHigh";
const DEAD_LETTERS: &str = "DeadLettersArriving";
const UNSERVED: &str = "ConsumerUnserved";
const NOT_READY: &str = "ObjectNotReady";
const LAGS: &str = "ConsumerLagHigh";

/// The label of an alert of this consumer.
fn of(consumer: &str) -> [(&str, &str); 1] {
    [("event_consumer", consumer)]
}

/// The payment gateway goes, a reader acknowledges nothing, another does not come, and an event cannot be read; then all that ends.
pub async fn each_fires_its_alert_and_resolves_it(world: &World, user: &str) {
    let jetstream = world.jetstream().await;
    scale_gateway(world, 0);
    let orders = join_all((0..ORDERS).map(|_| world.place(user, "mug", 1))).await;
    declare_greenhouse(world);
    for plant in ["tomatoes", "peppers", "chillies"] {
        publish_until_stored(&jetstream, &format!("readings.{plant}"), "21.5 C").await;
    }
    let alarms: PullConsumer = jetstream.get_consumer_from_stream("alarms", "readings").await.unwrap();
    let read = alarms.fetch().max_messages(3).expires(READ).messages().await.unwrap();
    let unacknowledged: Vec<_> = read.try_collect().await.unwrap();
    assert_eq!(unacknowledged.len(), 3);
    jetstream.publish("users.nobody.created", "no user at all".into()).await.unwrap().await.unwrap();
    tokio::join!(
        world.fires(RETRIED, of("order-fulfilment")),
        world.fires(STALLED, of("order-fulfilment")),
        world.fires(STALLED, of("alarms")),
        world.fires(UNSERVED, of("archive")),
        world.fires(LAGS, of("archive")),
        world.fires(DEAD_LETTERS, of("user-directory")),
        world.fires(NOT_READY, [("kind", "EventConsumer"), ("name", "misspelt")]),
    );

    scale_gateway(world, 1);
    for message in unacknowledged {
        message.ack().await.unwrap();
    }
    join_all(orders.iter().map(|order| world.ended(order))).await;
    tokio::join!(
        world.resolves(RETRIED, of("order-fulfilment")),
        world.resolves(STALLED, of("order-fulfilment")),
        world.resolves(STALLED, of("alarms")),
        world.resolves(DEAD_LETTERS, of("user-directory")),
    );
}

/// Waits until the gateway has no pod, or one that is available.
fn scale_gateway(world: &World, replicas: u32) {
    world.kubectl(&["scale", GATEWAY, OF_SHOP, &format!("--replicas={replicas}")]);
    if replicas == 0 {
        let pods = "--selector=app.kubernetes.io/name=payment-simulator";
        world.kubectl(&["wait", "pod", pods, "--for=delete", OF_SHOP, TIMEOUT]);
    } else {
        world.kubectl(&["wait", GATEWAY, "--for=condition=Available", OF_SHOP, TIMEOUT]);
    }
}

fn declare_greenhouse(world: &World) {
    let folder = Folder::new("greenhouse");
    let file = folder.path().join("greenhouse.yaml");
    fs::write(&file, GREENHOUSE).unwrap();
    world.kubectl(&["apply", "--server-side", "--filename", file.to_str().unwrap()]);
    for object in ["eventstream/readings", "eventconsumer/alarms", "eventconsumer/archive"] {
        world.kubectl(&["wait", object, "--for=condition=Ready", "--namespace=greenhouse", TIMEOUT]);
    }
}

/// The operator recreates it, empty.
pub async fn a_stream_that_is_deleted_past_the_operator_fires_its_alert(world: &World) {
    world.jetstream().await.delete_stream("readings").await.unwrap();
    world.fires("StreamRecreated", [("namespace", "greenhouse"), ("stream", "readings")]).await;
}

/// The server stays away. It must not be the one with the only copy of a stream in memory: without that one, NATS takes seconds to list streams,
/// and these rules take seconds for minutes.
pub async fn a_killed_nats_server_fires_its_alert(world: &World) {
    let mut notifications = world.jetstream().await.get_stream("notifications").await.unwrap();
    let cluster = notifications.info().await.unwrap().cluster.clone().unwrap();
    assert!(cluster.replicas.is_empty(), "{cluster:?}");
    let servers = world.nats_servers();
    assert_eq!(servers.len(), 3, "{servers:?}");
    let (_, killed) = servers.iter().find(|(name, _)| Some(name) != cluster.leader.as_ref()).unwrap();
    assert!(Command::new("kill").args(["-KILL", &killed.to_string()]).status().unwrap().success());
    world.fires("StreamReplicaBehind", [("namespace", "shop"), ("event_stream", "orders")]).await;
}
