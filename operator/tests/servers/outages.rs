//! Servers of JetStream that do not answer, although NATS is connected.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use futures::{StreamExt, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsCluster, NatsServer, await_until};
use kube::api::ListParams;
use tokio::time::Instant;

use crate::world::{World, condition, metrics_sum};

/// How long a test waits for the servers, which are slow where others use the machine.
const LONG: Duration = Duration::from_mins(2);
/// What is promised for 500 objects.
const PROMISED: Duration = Duration::from_secs(15);
/// What the test itself and a busy machine add to that.
const TOLERANCE: Duration = Duration::from_secs(5);

type Three = World<NatsCluster>;

impl Three {
    /// Declares so many streams with one replica each.
    async fn declare_streams(&self, count: usize) {
        stream::iter(0..count)
            .for_each_concurrent(8, |number| async move {
                let spec = format!("{{subjects: [s{number}], replicas: 1}}");
                self.stream(&format!("s{number}"), &spec).await;
            })
            .await;
    }

    /// The streams by the server that leads them, once all are ready.
    async fn await_leaders(&self, count: usize) -> HashMap<String, Vec<String>> {
        await_until("all streams are ready and have a leader", LONG, || async {
            let objects = self.streams().list(&ListParams::default()).await.unwrap();
            let mut leaders: HashMap<String, Vec<String>> = HashMap::new();
            for object in objects.items.iter().filter(|object| is_ready(object)) {
                let stream = object.status.as_ref().and_then(|status| status.stream.as_ref());
                let leader = stream.and_then(|stream| stream.leader.clone());
                if let Some(leader) = leader {
                    leaders.entry(leader).or_default().push(object.metadata.name.clone().unwrap());
                }
            }
            let found: usize = leaders.values().map(Vec::len).sum();
            if found == count { Ok(leaders) } else { Err(format!("{found} of {count}")) }
        })
        .await
    }

    fn server(&self, name: &str) -> &NatsServer {
        self.nats.servers().iter().find(|server| server.name() == name).unwrap()
    }

    /// How many EventStreams have Ready with this status and reason.
    async fn states(&self) -> BTreeMap<String, Vec<String>> {
        let mut states: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for object in self.streams().list(&ListParams::default()).await.unwrap() {
            let ready = condition(&object, "Ready").map(|ready| format!("{} {}", ready.status, ready.reason));
            states.entry(ready.unwrap_or_default()).or_default().push(object.metadata.name.unwrap());
        }
        states
    }

    async fn available(&self) -> f64 {
        metrics_sum(self.admin, "jetwright_operator_jetstream_available{connection=\"default\"}").await
    }
}

fn is_ready(object: &EventStream) -> bool {
    condition(object, "Ready").is_some_and(|ready| ready.status == "True")
}

const AWAY: &str = "Unknown JetStreamUnavailable";
const READY: &str = "True Reconciled";

#[tokio::test]
async fn of_three_servers_one_that_is_killed_makes_its_streams_unknown_and_no_others() {
    let three = World::clustered(3, &[]).await;
    three.declare_streams(12).await;
    three.stream("payments", "{subjects: [payments], replicas: 3}").await;
    let mut leaders = three.await_leaders(13).await;
    let (server, mut lost) = leaders.drain().max_by_key(|(_, streams)| streams.len()).unwrap();
    lost.retain(|name| name != "payments");
    lost.sort();
    three.consumer("reader", &format!("{{streamRef: {{name: {}}}}}", lost[0])).await;
    three.await_ready::<EventConsumer>("reader").await;
    assert!((three.available().await - 1.0).abs() < 0.5);

    three.server(&server).kill();
    let message = await_until("the streams of the server are away", PROMISED + TOLERANCE, || async {
        let states = three.states().await;
        let mut away = states.get(AWAY).cloned().unwrap_or_default();
        away.retain(|name| name != "payments");
        away.sort();
        if away != lost {
            return Err(format!("{states:?}"));
        }
        let ready = condition(&three.consumers().get("reader").await.unwrap(), "Ready").unwrap();
        let object = three.streams().get(&lost[0]).await.unwrap();
        let message = condition(&object, "Ready").unwrap().message;
        if ready.reason == "JetStreamUnavailable" { Ok(message) } else { Err(format!("{ready:?}")) }
    })
    .await;
    let expected =
        format!("JetStream does not answer for stream {}: server {server}, which leads it", lost[0]);
    assert!(message.starts_with(&expected), "{message}");
    assert!(three.available().await < 0.5);
    await_until("the replicated stream has another leader", LONG, || async {
        let object = three.streams().get("payments").await.unwrap();
        let ready = condition(&object, "Ready").unwrap();
        if ready.status == "True" { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    let states = three.states().await;
    assert_eq!(states.len(), 2, "nothing else is said of any stream: {states:?}");

    three.server(&server).start_again().await;
    await_until("all are ready again", PROMISED, || async {
        let states = three.states().await;
        let reader = condition(&three.consumers().get("reader").await.unwrap(), "Ready").unwrap();
        let ready = states.get(READY).map_or(0, Vec::len);
        if ready == 13 && reader.status == "True" { Ok(()) } else { Err(format!("{states:?} {reader:?}")) }
    })
    .await;
    assert!((three.available().await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_server_alone_that_stops_makes_everything_unknown_until_it_goes_on() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    let before = metrics_sum(world.admin, "jetwright_operator_jetstream_api_requests_total").await;
    world.await_condition::<EventStream>("orders", "Durable", "True", "Reconciled").await;
    world.nats.process().signal("STOP");
    let message =
        world.await_condition::<EventStream>("orders", "Ready", "Unknown", "JetStreamUnavailable").await;
    world.await_condition::<EventStream>("orders", "Durable", "Unknown", "JetStreamUnavailable").await;
    assert!(message.starts_with("JetStream does not answer for stream orders: no server does"), "{message}");
    world
        .await_condition::<EventConsumer>("reader", "ConsumerReady", "Unknown", "JetStreamUnavailable")
        .await;
    // Whether it leads is another question than whether JetStream is there.
    assert_eq!(world.admin("/readyz").await.unwrap().0, 200);
    world.nats.process().signal("CONT");
    world.await_ready::<EventStream>("orders").await;
    world.await_ready::<EventConsumer>("reader").await;
    world.await_condition::<EventStream>("orders", "Durable", "True", "Reconciled").await;
    let after = metrics_sum(world.admin, "jetwright_operator_jetstream_api_requests_total").await;
    assert!(after - before < 20.0, "{before} {after}");
}

#[tokio::test]
async fn with_two_of_three_servers_gone_hundreds_of_objects_say_so_a_hundred_a_second() {
    const STREAMS: usize = 500;
    let three = World::clustered(3, &[]).await;
    three.declare_streams(STREAMS).await;
    let leaders = three.await_leaders(STREAMS).await;
    let mut servers: Vec<_> = leaders.iter().collect();
    servers.sort_by_key(|(_, streams)| streams.len());
    let lost: usize = servers[1..].iter().map(|(_, streams)| streams.len()).sum();
    assert!(lost > STREAMS / 2, "{lost}");
    for (server, _) in &servers[1..] {
        three.server(server).kill();
    }
    let killed = Instant::now();
    await_until("what they lead is away", LONG, || async {
        // Lists of hundreds would take the API server's time.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let states = three.states().await;
        let away = states.get(AWAY).map_or(0, Vec::len);
        if away == lost { Ok(()) } else { Err(format!("{away} of {lost}")) }
    })
    .await;
    let took = killed.elapsed();
    let states = three.states().await;
    assert_eq!(states.get(READY).map_or(0, Vec::len), STREAMS - lost, "the third server answers: {states:?}");
    // Times in conditions are whole seconds.
    let mut a_second: BTreeMap<_, usize> = BTreeMap::new();
    for object in three.streams().list(&ListParams::default()).await.unwrap() {
        if let Some(ready) =
            condition(&object, "Ready").filter(|ready| ready.reason == "JetStreamUnavailable")
        {
            *a_second.entry(ready.last_transition_time.0.as_second()).or_default() += 1;
        }
    }
    println!("{lost} objects within {took:?}: {a_second:?}");
    // A second's worth goes at once, and another one while it lasts.
    assert!(a_second.values().all(|writes| *writes <= 200), "{a_second:?}");
    assert!(took < PROMISED + TOLERANCE, "{took:?}: {a_second:?}");
}
