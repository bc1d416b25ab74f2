//! Pods that follow what waits for them. The test plays Kubernetes' controllers and the pods.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::{self, consumer::PullConsumer};
use futures::StreamExt as _;
use jetwright_crds::EventConsumer;
use jetwright_testing::{NatsServer, await_until};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::world::{World, condition, metrics_sum};

/// How long what a test awaits may take. The longest is from four pods to none: what waits is worked off, fewer pods must have been enough for
/// a while, and the four steps have 15 seconds between them; more than a minute on an idle machine.
const STEPS: Duration = Duration::from_mins(4);
/// How often the played pods work.
const TICK: Duration = Duration::from_millis(200);

/// A consumer of orders whose pods are scaled so.
fn spec(autoscaling: &str) -> String {
    format!(
        "{{streamRef: {{name: orders}}, filterSubjects: [orders.*.placed], workload: {{replicas: 1, autoscaling: {autoscaling}, template: \
         {{spec: {{containers: [{{name: app, image: 'shop/order:1'}}]}}}}}}}}"
    )
}

async fn with(autoscaling: &str, flags: &[&str]) -> World {
    let world = World::with(NatsServer::start().await, flags).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("fulfilment", &spec(autoscaling)).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    world
}

async fn replicas(world: &World) -> Result<i32, String> {
    let api: Api<Deployment> = world.namespace.api();
    let found = api.get("fulfilment").await.map_err(|error| error.to_string())?;
    found.spec.and_then(|spec| spec.replicas).ok_or_else(|| "no replicas".to_owned())
}

async fn await_replicas(world: &World, wanted: impl Fn(i32) -> bool) -> i32 {
    await_until("the pods are as many as wanted", STEPS, || async {
        let replicas = replicas(world).await?;
        let scaling = condition(&world.consumers().get("fulfilment").await.unwrap(), "ScalingActive");
        if wanted(replicas) { Ok(replicas) } else { Err(format!("{replicas} pods: {scaling:?}")) }
    })
    .await
}

async fn publish(world: &World, subject: &str, count: usize) {
    for _ in 0..count {
        world.jetstream.publish(subject.to_owned(), "x".into()).await.unwrap().await.unwrap();
    }
}

/// What runs beside a test, until its end.
struct Played(Vec<JoinHandle<()>>);

impl Drop for Played {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Kubernetes' controllers: as many pods are ready at once as the Deployment says. How many there are.
fn controllers(world: &World) -> (JoinHandle<()>, Arc<AtomicU64>) {
    let (api, ready): (Api<Deployment>, _) = (world.namespace.api(), Arc::new(AtomicU64::new(0)));
    let pods = ready.clone();
    let task = tokio::spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            let Ok(found) = api.get("fulfilment").await else { continue };
            let wanted = found.spec.and_then(|spec| spec.replicas).unwrap_or_default();
            let status = json!({"status": {
                "observedGeneration": found.metadata.generation, "replicas": wanted, "updatedReplicas": wanted,
                "availableReplicas": wanted, "readyReplicas": wanted,
            }});
            let _ = api.patch_status("fulfilment", &PatchParams::default(), &Patch::Merge(status)).await;
            pods.store(u64::try_from(wanted).unwrap(), Ordering::Relaxed);
        }
    });
    (task, ready)
}

/// Pods that settle so many messages a second each.
fn pods(
    jetstream: jetstream::Context,
    consumer: &'static str,
    ready: Arc<AtomicU64>,
    rate: f64,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let (mut credit, mut paid) = (0.0, Instant::now());
        loop {
            tokio::time::sleep(TICK).await;
            // By the time that passed: on a busy machine it is more than a tick, and pods that get slower would teach another capacity.
            let passed = paid.elapsed().as_secs_f64();
            paid = Instant::now();
            #[allow(clippy::cast_precision_loss, reason = "a few pods")]
            let more = ready.load(Ordering::Relaxed) as f64 * rate * passed;
            credit = more + f64::fract(credit);
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few messages")]
            let batch = credit as usize;
            if batch == 0 {
                continue;
            }
            let Ok(stream) = jetstream.get_stream("orders").await else { continue };
            let Ok(consumer) = stream.get_consumer(consumer).await else { continue };
            let consumer: PullConsumer = consumer;
            let Ok(mut messages) = consumer.fetch().max_messages(batch).messages().await else { continue };
            while let Some(Ok(message)) = messages.next().await {
                let _ = message.ack().await;
            }
        }
    })
}

#[tokio::test]
async fn a_burst_brings_pods_that_work_it_off_and_go_to_zero_until_the_next_message() {
    let autoscaling = "{minReplicas: 0, maxReplicas: 4, targetDrainTime: 5s, scaleDownAfter: 10s}";
    let world = with(autoscaling, &["--status-stats-interval=1s"]).await;
    let (controllers, ready) = controllers(&world);
    let _played = Played(vec![controllers, pods(world.jetstream.clone(), "fulfilment", ready, 20.0)]);
    await_replicas(&world, |replicas| replicas == 0).await;

    let published = Instant::now();
    publish(&world, "orders.1.placed", 1).await;
    await_replicas(&world, |replicas| replicas == 1).await;
    // It is sampled within two seconds; the rest is for a machine that is busy, and still less than a window of figures takes.
    let took = published.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");

    publish(&world, "orders.1.placed", 1200).await;
    await_replicas(&world, |replicas| replicas == 4).await;
    world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "True", "ScaledUp").await;
    await_until("what one pod can do is learnt", STEPS, || async {
        let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
        let capacity = status.autoscaling.as_ref().and_then(|scaling| scaling.consumers[0].capacity.clone());
        let learnt = capacity.as_ref().and_then(|capacity| capacity.parse::<f64>().ok());
        learnt
            .filter(|learnt| (10.0..=30.0).contains(learnt))
            .ok_or_else(|| format!("{:?}", status.autoscaling))
    })
    .await;
    await_replicas(&world, |replicas| replicas == 0).await;
    // The status follows the Deployment, and says ScaledDown since there was one pod less.
    await_until("the status says the same", STEPS, || async {
        let consumer = world.consumers().get("fulfilment").await.unwrap();
        let reason = condition(&consumer, "ScalingActive").map(|condition| condition.reason);
        let status = consumer.status.unwrap();
        let desired = status.autoscaling.map(|scaling| scaling.desired_replicas);
        let said = (status.lag, desired, reason.as_deref());
        if said == (Some(0), Some(0), Some("ScaledDown")) { Ok(()) } else { Err(format!("{said:?}")) }
    })
    .await;
    let told = world.events("fulfilment", "Scaled").await;
    assert!(told.iter().any(|note| note.starts_with("scaled from 0 to 1 pods: fulfilment has")), "{told:?}");
    for metric in ["workload_replicas_decided", "workload_replicas_max", "consumer_pod_capacity_per_second"] {
        assert!(
            world.admin("/metrics").await.unwrap().1.contains(&format!("jetwright_{metric}{{")),
            "{metric}"
        );
    }
}

#[tokio::test]
async fn while_jetstream_is_away_the_pods_stay_as_they_are_and_the_condition_says_why() {
    let world = with("{minReplicas: 0, maxReplicas: 4, scaleDownAfter: 10s}", &[]).await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    publish(&world, "orders.1.placed", 250).await;
    await_replicas(&world, |replicas| replicas == 3).await;
    world.nats.process().signal("STOP");
    let held = await_held(&world).await;
    world.nats.process().signal("CONT");
    assert!(held.contains("there are 3 pods until") && held.contains("fulfilment does not answer"), "{held}");
    assert_eq!(replicas(&world).await, Ok(3));
    await_until("it goes on", STEPS, || async {
        let found = condition(&world.consumers().get("fulfilment").await.unwrap(), "ScalingActive").unwrap();
        if found.status == "True" { Ok(()) } else { Err(found.message) }
    })
    .await;
    assert_eq!(replicas(&world).await, Ok(3));
}

async fn await_held(world: &World) -> String {
    await_until("the figures are unknown", STEPS, || async {
        let found = condition(&world.consumers().get("fulfilment").await.unwrap(), "ScalingActive").unwrap();
        if found.reason == "FiguresUnknown" { Ok(found.message) } else { Err(found.reason) }
    })
    .await
}

#[tokio::test]
async fn an_observer_says_what_it_would_do_and_leaves_the_pods_to_others() {
    let observe = "{maxReplicas: 4, mode: Observe}";
    let world = with(observe, &["--status-stats-interval=1s"]).await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    publish(&world, "orders.1.placed", 250).await;
    await_until("the wish is in the status", STEPS, || async {
        let status = world.consumers().get("fulfilment").await.unwrap().status.unwrap();
        let desired = status.autoscaling.as_ref().map(|scaling| scaling.desired_replicas);
        if desired == Some(3) { Ok(()) } else { Err(format!("{:?}", status.autoscaling)) }
    })
    .await;
    world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "False", "Observing").await;
    assert_eq!(replicas(&world).await, Ok(1));
    let scale = Patch::Merge(json!({"spec": {"replicas": 2}}));
    world.consumers().patch_scale("fulfilment", &PatchParams::default(), &scale).await.unwrap();
    await_replicas(&world, |replicas| replicas == 2).await;

    // Active, it goes on with what there is, and nobody else scales.
    world.consumer("fulfilment", &spec("{maxReplicas: 4}").replace("replicas: 1", "replicas: 2")).await;
    await_replicas(&world, |replicas| replicas == 3).await;
    let refused = world.consumers().patch_scale("fulfilment", &PatchParams::default(), &scale).await;
    assert!(refused.is_ok(), "what is there already changes nothing");
    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    let refused =
        world.consumers().patch_scale("fulfilment", &PatchParams::default(), &scale).await.unwrap_err();
    assert!(refused.to_string().contains("autoscaling decides how many pods there are"), "{refused}");

    // Others scale while it observes, and right before it is active again: it takes over what they left.
    let change = async |workload: serde_json::Value| {
        let patch = Patch::Merge(json!({"spec": {"workload": workload}}));
        world.consumers().patch("fulfilment", &PatchParams::default(), &patch).await.unwrap();
    };
    change(json!({"replicas": 3, "autoscaling": {"maxReplicas": 9, "mode": "Observe"}})).await;
    // It looks at what there is every two seconds.
    tokio::time::sleep(Duration::from_secs(5)).await;
    change(json!({"replicas": 7})).await;
    await_replicas(&world, |replicas| replicas == 7).await;
    change(json!({"autoscaling": {"scaleDownAfter": "1h", "mode": "Active"}})).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(replicas(&world).await, Ok(7));
}

#[tokio::test]
async fn an_operator_that_is_killed_scales_nothing_when_it_comes_back_and_then_goes_on() {
    let mut world = with("{minReplicas: 0, maxReplicas: 9, scaleDownAfter: 10s}", &[]).await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    publish(&world, "orders.1.placed", 250).await;
    await_replicas(&world, |replicas| replicas == 3).await;
    world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "True", "ScaledUp").await;
    let api: Api<Deployment> = world.namespace.api();
    let generation = api.get("fulfilment").await.unwrap().metadata.generation;
    world.operator.kill();
    world.start_again(&[]);
    publish(&world, "orders.1.placed", 250).await;
    await_replicas(&world, |replicas| replicas > 3).await;
    // The first change after the restart is the step up.
    let now = api.get("fulfilment").await.unwrap();
    assert_eq!(now.spec.unwrap().replicas, Some(5));
    assert_eq!(now.metadata.generation, generation.map(|before| before + 1));
}

#[tokio::test]
async fn the_lag_of_any_consumer_in_the_pods_counts() {
    let world = with("{maxReplicas: 4}", &[]).await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    let guest =
        "{streamRef: {name: orders}, filterSubjects: [orders.*.paid], workloadRef: {name: fulfilment}}";
    world.consumer("payments", guest).await;
    world.await_condition::<EventConsumer>("payments", "ConsumerReady", "True", "Reconciled").await;
    publish(&world, "orders.1.paid", 250).await;
    await_replicas(&world, |replicas| replicas == 3).await;
    let said =
        world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "True", "ScaledUp").await;
    assert!(said.contains("payments has 250 unsettled messages"), "{said}");
    assert_eq!(condition(&world.consumers().get("payments").await.unwrap(), "ScalingActive"), None);
}

/// Waits until a count is at least so high and has stayed the same for three seconds, and returns it.
async fn await_rest<A: Future<Output = f64>>(count: impl Fn() -> A, least: f64) -> f64 {
    await_until("the count stays the same", STEPS, || async {
        let before = count().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let after = count().await;
        if after >= least && after - before < 0.5 { Ok(after) } else { Err(format!("{before} {after}")) }
    })
    .await
}

#[tokio::test]
async fn a_consumer_without_autoscaling_costs_no_samples_and_one_with_it_no_writes_at_rest() {
    let flags = ["--stats-interval=1h", "--jetstream-resync-interval=1h", "--status-stats-interval=1s"];
    let world = World::with(NatsServer::start().await, &flags).await;
    world.stream("orders", "subjects: [orders.*.*]").await;
    world.consumer("plain", "{streamRef: {name: orders}, filterSubjects: [orders.*.paid]}").await;
    world.await_ready::<EventConsumer>("plain").await;
    let samples = || metrics_sum(world.admin, "jetwright_operator_stats_requests_total");
    let writes = || metrics_sum(world.admin, "jetwright_operator_kubernetes_requests_total{verb=\"patch\"");
    // The one round of figures of all objects, which comes when the connection is there.
    let before = await_rest(&samples, 1.0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = samples().await;
    assert!(after - before < 0.5, "{} samples", after - before);

    world.consumer("fulfilment", &spec("{maxReplicas: 4}")).await;
    let (controllers, _) = controllers(&world);
    let played = Played(vec![controllers]);
    world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "True", "Steady").await;
    world.await_ready::<EventConsumer>("fulfilment").await;
    drop(played);
    await_rest(&writes, 1.0).await;
    let (begun, before) = (Instant::now(), (samples().await, writes().await));
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (after, took) = ((samples().await, writes().await), begun.elapsed().as_secs_f64());
    let looks = after.0 - before.0;
    assert!(looks >= 3.0 && looks <= took / 2.0 + 2.0, "{looks} samples in {took} s");
    assert!(after.1 - before.1 < 0.5, "{} writes", after.1 - before.1);
}

#[tokio::test]
async fn with_order_there_are_no_more_pods_than_partitions_in_which_events_wait() {
    let world = World::with(NatsServer::start().await, &[]).await;
    world.stream("orders", "{subjects: ['orders.*.*'], partitions: {count: 4, keyTokens: [2]}}").await;
    let autoscaling = "{minReplicas: 0, maxReplicas: 9, lagPerReplica: 1, scaleDownAfter: 10s}";
    world.consumer("fulfilment", &spec(autoscaling).replacen('{', "{ordering: PerKey, ", 1)).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    await_replicas(&world, |replicas| replicas == 0).await;
    publish(&world, "orders.1.placed", 30).await;
    await_replicas(&world, |replicas| replicas == 1).await;
    for key in 0..40 {
        publish(&world, &format!("orders.{key}.placed"), 1).await;
    }
    assert_eq!(await_replicas(&world, |replicas| replicas > 1).await, 4);
}

#[tokio::test]
async fn while_its_consumer_is_divided_and_while_it_gets_order_a_workload_is_scaled_by_all_that_waits() {
    let flags = ["--status-stats-interval=1s", "--stats-interval=1s"];
    let world = World::with(NatsServer::start().await, &flags).await;
    let stream =
        |count: u32| format!("{{subjects: ['orders.*.*'], partitions: {{count: {count}, keyTokens: [2]}}}}");
    world.stream("orders", &stream(2)).await;
    let spec = spec("{minReplicas: 0, maxReplicas: 9, scaleDownAfter: 10s}");
    world.consumer("fulfilment", &spec.replacen('{', "{ordering: PerKey, ", 1)).await;
    world.await_condition::<EventConsumer>("fulfilment", "ConsumerReady", "True", "Reconciled").await;
    let (controllers, _) = controllers(&world);
    let _played = Played(vec![controllers]);
    await_replicas(&world, |replicas| replicas == 0).await;
    // What nobody handles keeps it from being divided.
    for key in 0..20 {
        publish(&world, &format!("orders.{key}.placed"), 1).await;
    }
    world.stream("orders", &stream(4)).await;
    let changing = ("ConsumerReady", "False", "ChangingPartitions");
    world.await_condition_within::<EventConsumer>(STEPS, "fulfilment", changing).await;
    assert_eq!(await_replicas(&world, |replicas| replicas > 0).await, 1);
    for key in 0..400 {
        publish(&world, &format!("orders.{}.placed", key % 20), 1).await;
    }
    assert_eq!(await_replicas(&world, |replicas| replicas > 1).await, 2, "as many as there are consumers");
    world.await_condition::<EventConsumer>("fulfilment", "ScalingActive", "True", "ScaledUp").await;
}
