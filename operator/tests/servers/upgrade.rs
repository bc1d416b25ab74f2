//! An upgrade of the operator, and the way back: no event for anything that is declared.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use futures::TryStreamExt;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{NatsServer, await_until, binary};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service, ServiceAccount},
    events::v1::Event,
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Resource, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    workloads::{SPEC, await_bound, await_deployment, run_pods, run_pods_of},
    world::{World, arguments, operator_of},
};

/// How long an operator may take to have looked at everything; owned objects are applied at most 20 a second.
const SETTLED: Duration = Duration::from_secs(30);

/// The script's exit code where the checkout does not have the earlier version's commit.
const NO_HISTORY: i32 = 3;

/// The operator of the version that upgrades are tested from, which is built where it is not there yet; `None` where the checkout does not
/// have its commit.
async fn previous_operator() -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../testing/programs/previous-version");
    let made = tokio::process::Command::new(script).output().await.unwrap();
    let why = String::from_utf8_lossy(&made.stderr);
    if made.status.code() == Some(NO_HISTORY) {
        eprintln!("skipped: {why}");
        return None;
    }
    assert!(made.status.success(), "{why}");
    Some(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()).join("programs/jetwright-operator"))
}

/// Helpers that set nothing themselves, which the earlier version left so.
const WITH_HELPERS: &str = "
    streamRef: {name: orders}
    workload:
      replicas: 2
      template:
        spec:
          containers: [{name: app, image: 'shop/order:1'}, {name: helper, image: 'x:1', resources: {limits: {cpu: 1000m}}}]
          initContainers: [{name: init, image: 'x:1'}]
";

/// What an upgrade must leave as it is.
#[derive(Debug, PartialEq)]
struct Snapshot {
    /// Streams and consumers in JetStream, by name: when each was created, and its configuration.
    jetstream: BTreeMap<String, Value>,
    /// Objects of workloads by kind, with their resource versions.
    owned: BTreeMap<String, String>,
    /// Generations of EventStreams and EventConsumers.
    generations: BTreeMap<String, Option<i64>>,
    /// Notes of events that warn.
    warnings: Vec<String>,
}

impl Snapshot {
    async fn of(world: &World) -> Self {
        let warnings: Api<Event> = world.namespace.api();
        let warnings = warnings.list(&ListParams::default()).await.unwrap().items.into_iter();
        let warnings = warnings.filter(|event| event.type_.as_deref() == Some("Warning"));
        let mut owned = BTreeMap::new();
        add::<Deployment>(world, &mut owned).await;
        add::<ConfigMap>(world, &mut owned).await;
        add::<Service>(world, &mut owned).await;
        add::<ServiceAccount>(world, &mut owned).await;
        add::<PodDisruptionBudget>(world, &mut owned).await;
        let streams = world.streams().list(&ListParams::default()).await.unwrap().items;
        let consumers = world.consumers().list(&ListParams::default()).await.unwrap().items;
        let generations =
            streams
                .iter()
                .map(|stream| (format!("stream {}", stream.name_any()), stream.metadata.generation))
                .chain(consumers.iter().map(|consumer| {
                    (format!("consumer {}", consumer.name_any()), consumer.metadata.generation)
                }));
        Self {
            jetstream: jetstream(world).await,
            owned,
            generations: generations.collect(),
            warnings: warnings.filter_map(|event| event.note).collect(),
        }
    }
}

async fn jetstream(world: &World) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let streams: Vec<_> = world.jetstream.streams().try_collect().await.unwrap();
    for info in streams {
        let stream = world.jetstream.get_stream(&info.config.name).await.unwrap();
        let consumers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        for consumer in consumers {
            let name = format!("{}/{}", info.config.name, consumer.name);
            found.insert(name, json!([consumer.created.to_string(), consumer.config]));
        }
        found.insert(info.config.name.clone(), json!([info.created.to_string(), info.config]));
    }
    found
}

async fn add<K>(world: &World, owned: &mut BTreeMap<String, String>)
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: Api<K> = world.namespace.api();
    for object in api.list(&ListParams::default()).await.unwrap().items {
        let name = format!("{} {}", K::kind(&()), object.name_any());
        owned.insert(name, object.resource_version().unwrap());
    }
}

/// Waits until an operator has reconciled everything and come to rest.
async fn settled(world: &World) {
    let total = |text: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with("jetwright_operator_reconciles_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    await_until("everything is reconciled", SETTLED, || async {
        let (_, before) = world.admin("/metrics").await.ok_or("it does not answer")?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (_, after) = world.admin("/metrics").await.ok_or("it does not answer")?;
        if total(&before) >= 6 && total(&before) == total(&after) { Ok(()) } else { Err(after) }
    })
    .await;
}

/// The operator's requests that change something in JetStream.
async fn writes(world: &World) -> Vec<String> {
    let (_, text) = world.admin("/metrics").await.unwrap();
    let writes = |line: &&str| {
        ["CREATE", "UPDATE", "DELETE"].iter().any(|verb| {
            line.contains(&format!("verb=\"STREAM.{verb}\""))
                || line.contains(&format!("verb=\"CONSUMER.{verb}\""))
        })
    };
    text.lines().filter(writes).map(str::to_owned).collect()
}

#[tokio::test]
async fn an_upgrade_and_the_way_back_change_nothing_and_warn_of_nothing() {
    let Some(previous) = previous_operator().await else { return };
    let mut world = World::by(&previous, NatsServer::start().await).await;
    world.stream("orders", "{subjects: [orders.*.*], profile: Critical, limits: {maxBytes: 1Gi}}").await;
    world.stream("scratch", "{subjects: [scratch.>], profile: Ephemeral, deletionPolicy: Delete}").await;
    world.consumer("fulfilment", SPEC).await;
    world.consumer("mails", "{streamRef: {name: orders}, workloadRef: {name: fulfilment}}").await;
    world.consumer("plain", "{streamRef: {name: scratch}, retry: {maxAttempts: 3}, ackWait: 5s}").await;
    await_deployment(&world, "the deployment", |_| true).await;
    world.consumer("helped", WITH_HELPERS).await;
    await_bound(&world, &["fulfilment", "mails"]).await;
    run_pods(&world).await;
    let deployments: Api<Deployment> = world.namespace.api();
    await_until("the other deployment", SETTLED, || deployments.get("helped")).await;
    run_pods_of(&world, "helped").await;
    for name in ["orders", "orders-dlq", "scratch"] {
        world.await_ready::<EventStream>(name).await;
    }
    for name in ["fulfilment", "mails", "plain", "helped"] {
        world.await_ready::<EventConsumer>(name).await;
    }
    world.jetstream.publish("orders.1.placed", "x".into()).await.unwrap().await.unwrap();
    settled(&world).await;
    let before = Snapshot::of(&world).await;

    for program in [binary("jetwright-operator"), previous, binary("jetwright-operator")] {
        world.operator.signal("TERM");
        world.operator.wait_exit(SETTLED).await;
        let arguments = arguments(world.nats.url(), world.namespace.name(), world.admin);
        world.operator = operator_of(&program, world.namespace.control_plane(), &arguments);
        settled(&world).await;
        assert_eq!(writes(&world).await, Vec::<String>::new(), "{}", program.display());
        assert_eq!(Snapshot::of(&world).await, before, "{}", program.display());
        for name in ["fulfilment", "mails", "plain", "helped"] {
            world.await_ready::<EventConsumer>(name).await;
        }
    }
    // What changes anyway is as this version makes it.
    world.consumer("helped", &WITH_HELPERS.replace("order:1", "order:2")).await;
    await_until("restricted helpers", SETTLED, || async {
        let deployment = deployments.get("helped").await.map_err(|error| error.to_string())?;
        let pod = deployment.spec.unwrap().template.spec.unwrap();
        let all = pod.containers.iter().chain(pod.init_containers.iter().flatten());
        let bare: Vec<_> = all.filter(|container| container.security_context.is_none()).collect();
        if bare.is_empty() { Ok(()) } else { Err(format!("{bare:?}")) }
    })
    .await;
}
