//! An upgrade from an earlier version, a rollback and the upgrade again, as docs/upgrade.md describes them, while customers order.
//! `e2e/run-tests` installs the earlier version and runs this before all others.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream::consumer::PullConsumer;
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_e2e::{
    cluster::{Cluster, LATER, Nats, OPERATOR, OwnNamespace, PodWatch, SHOP, SOON, Shop, checkout},
    metrics::sum_of,
};
use jetwright_testing::{Folder, await_until};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::Value;

use crate::orders::{each_event_is_stored_once, unique};

/// Time from one order to the next.
const BETWEEN_ORDERS: Duration = Duration::from_millis(500);
/// How many pods each program of the shop has.
const SHOP_PODS: [(&str, usize); 3] =
    [("order-fulfilment", 2), ("payment-simulator", 1), ("user-directory", 1)];
/// Requests that change streams or consumers.
const CHANGES: [&str; 6] = [
    "STREAM.CREATE",
    "STREAM.UPDATE",
    "STREAM.DELETE",
    "CONSUMER.CREATE",
    "CONSUMER.UPDATE",
    "CONSUMER.DELETE",
];
/// What the shop consumes, by stream.
const CONSUMERS: [(&str, &str); 4] = [
    ("orders", "order-fulfilment"),
    ("orders", "order-compensation"),
    ("users", "order-users"),
    ("users", "user-directory"),
];

/// What each step is judged by.
struct World<'a> {
    cluster: &'a Cluster,
    /// Namespace and name of a stream of this test's own.
    own: &'a str,
    /// Streams and consumers before a step.
    before: BTreeMap<String, Value>,
    /// Those of the shop.
    pods: PodWatch,
}

/// One upgrade or rollback.
struct Step<'a> {
    name: &'a str,
    /// What Helm does with the operator's release, and with the shop's.
    operator: &'a str,
    shop: &'a str,
    /// Whether the operator marks what the version before it has changed, as the version that upgrades are tested from does.
    marks: bool,
}

impl World<'_> {
    /// Runs Helm for the operator's release, and for the shop's while the NATS servers still restart one after the other.
    async fn step(&self, step: Step<'_>) {
        let (name, before) = (step.name, self.pods.restarts());
        self.cluster.helm(&format!("{} --namespace {OPERATOR}", step.operator)).await;
        self.rolled_out(OPERATOR, "deployment jetwright-operator").await;
        self.await_reconciled().await;
        let made = self.pods.made_since(&before);
        assert_eq!(made, BTreeMap::new(), "{name}: the operator's release made pods of the shop");

        self.cluster.helm(&format!("{} --namespace {SHOP}", step.shop)).await;
        self.cluster.await_all_ready(SHOP, LATER).await;
        for (program, _) in SHOP_PODS {
            self.rolled_out(SHOP, &format!("deployment {program}")).await;
        }
        self.rolled_out(OPERATOR, "statefulset jetwright-nats").await;
        let all_ready = "eventstream,eventconsumer --all --all-namespaces --for=condition=Ready --timeout=2m";
        self.cluster.kubectl(&format!("wait {all_ready}")).await;

        let changes = self.await_reconciled().await;
        let expected = if step.marks { BTreeMap::from([("STREAM.UPDATE", 1)]) } else { BTreeMap::new() };
        assert_eq!(changes, expected, "{name}: what the operator changed in JetStream");
        let assets = self.cluster.nats(0).await.assets().await;
        let unmarked = |assets| if step.marks { self.without_own_marks(assets) } else { assets };
        assert_eq!(unmarked(assets), unmarked(self.before.clone()), "{name}: streams and consumers");
        let replaced: BTreeMap<_, _> = SHOP_PODS.map(|(program, pods)| (program.to_owned(), pods)).into();
        assert_eq!(self.pods.made_since(&before), replaced, "{name}: each pod is replaced once");
        assert_eq!(
            self.pods.restarted_since(&before),
            Vec::<String>::new(),
            "{name}: pods that ended by themselves"
        );
    }

    async fn rolled_out(&self, namespace: &str, what: &str) {
        self.cluster.kubectl(&format!("rollout status {what} --namespace {namespace} --timeout=4m")).await;
    }

    fn without_own_marks(&self, mut assets: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
        let metadata = assets.get_mut(self.own).and_then(|stream| stream.pointer_mut("/1/metadata"));
        metadata.map(Value::take);
        assets
    }

    /// Changes the own stream, so that the version that runs leaves its mark for the next one.
    async fn change(&mut self, max_age: &str) {
        let at = self.own;
        let patch = format!(r#"{{"spec":{{"limits":{{"maxAge":"{max_age}"}}}}}}"#);
        self.cluster
            .kubectl(&format!("patch eventstream {at} --namespace {at} --type=merge --patch {patch}"))
            .await;
        self.cluster.await_condition::<EventStream>((at, at), ("Ready", "True"), SOON).await;
        let assets = self.cluster.nats(0).await.assets().await;
        assert_ne!(assets, self.before);
        self.before = assets;
    }

    /// Waits until one of the operators has reconciled everything, and returns how often they requested each change of streams or consumers.
    async fn await_reconciled(&self) -> BTreeMap<&'static str, u64> {
        let all = ListParams::default();
        let streams = Api::<EventStream>::all(self.cluster.client()).list(&all).await.unwrap().items.len();
        let consumers =
            Api::<EventConsumer>::all(self.cluster.client()).list(&all).await.unwrap().items.len();
        await_until("an operator has reconciled everything", SOON, async || {
            let metrics = self.operators_metrics().await?;
            let reconciles =
                |text: &String| sum_of(text, |line| line.starts_with("jetwright_operator_reconciles_total"));
            let most = metrics.iter().map(reconciles).max().unwrap_or_default();
            if usize::try_from(most).is_ok_and(|most| most >= streams + consumers) {
                Ok(changes(&metrics.concat()))
            } else {
                Err(format!("{most} reconciles of {streams} streams and {consumers} consumers"))
            }
        })
        .await
    }

    async fn operators_metrics(&self) -> Result<Vec<String>, String> {
        let selected = ListParams::default().labels("app.kubernetes.io/component=operator");
        let pods =
            self.cluster.api::<Pod>(OPERATOR).list(&selected).await.map_err(|error| error.to_string())?;
        let mut metrics = Vec::new();
        // One that ends is of the version before.
        for pod in pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            metrics.push(self.cluster.metrics(&format!("{OPERATOR}/{}:8080", pod.name_any())).await?);
        }
        Ok(metrics)
    }
}

/// The requests that change a stream or consumer, of metrics of any version.
fn changes(metrics: &str) -> BTreeMap<&'static str, u64> {
    let verbs =
        CHANGES.map(|verb| (verb, sum_of(metrics, |line| line.contains(&format!("verb=\"{verb}\"")))));
    verbs.into_iter().filter(|(_, requests)| *requests > 0).collect()
}

/// Places an order, waits until it is accepted, and so on, until it is enough; with the longest time that one waited.
async fn order_until(shop: &Shop<'_>, user: &str, enough: &Cell<bool>) -> (Vec<String>, Duration) {
    let (run, mut orders, mut longest) = (unique("upgrade"), Vec::new(), Duration::ZERO);
    let mut pace = tokio::time::interval(BETWEEN_ORDERS);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !enough.get() {
        pace.tick().await;
        let begun = tokio::time::Instant::now();
        orders.push(shop.place(user, "mug", 1, &format!("{run}-{}", orders.len())).await);
        longest = longest.max(begun.elapsed());
    }
    (orders, longest)
}

/// The present definitions alone, as Helm would apply them, and objects that use what the earlier version does not know: it looks after them.
async fn newer_definitions(cluster: &Cluster, namespace: &OwnNamespace) {
    let definitions = cluster
        .helm(&format!(
            "template jetwright {} --namespace {OPERATOR} --set nats.bundled.enabled=true --show-only templates/crds.yaml",
            checkout("charts/jetwright")
        ))
        .await;
    let folder = Folder::new("definitions");
    let file = folder.path().join("crds.yaml");
    std::fs::write(&file, definitions).unwrap();
    cluster
        .kubectl(&format!(
            "apply --server-side --force-conflicts --field-manager=helm --filename {}",
            file.display()
        ))
        .await;
    let (at, name) = (namespace.name(), namespace.name());
    let metadata = format!("apiVersion: jetwright.dev/v1alpha1\nmetadata: {{name: {name}}}\n");
    let manifests = format!(
        "{metadata}kind: EventStream\nspec: {{subjects: [{name}.*], profile: Standard, limits: {{maxAge: 1h}}, adoptionPolicy: Refuse, deletionPolicy: Delete}}\n---\n\
         {metadata}kind: EventConsumer\nspec: {{streamRef: {{name: {name}}}, adoptionPolicy: Refuse}}\n"
    );
    cluster.apply(at, &manifests).await;
    cluster.await_condition::<EventStream>((at, name), ("Ready", "True"), SOON).await;
    cluster.await_condition::<EventConsumer>((at, name), ("Ready", "True"), SOON).await;
}

/// Requires that no consumer of the shop has anything left to do, and that nothing became a dead letter.
async fn nothing_is_left(nats: &Nats) {
    for (stream, name) in CONSUMERS {
        await_until(&format!("{name} has nothing left to do"), SOON, async || {
            let consumer = nats
                .stream(stream)
                .await
                .get_consumer::<async_nats::jetstream::consumer::pull::Config>(name)
                .await;
            let consumer: PullConsumer = consumer.map_err(|error| error.to_string())?;
            let info = consumer.cached_info();
            if (info.num_pending, info.num_ack_pending) == (0, 0) { Ok(()) } else { Err(format!("{info:?}")) }
        })
        .await;
        assert_eq!(nats.messages(&format!("{stream}-dlq")).await, 0, "dead letters of {stream}");
    }
}

#[tokio::test]
#[ignore = "e2e/run-tests runs it first, on the version that it installs for this"]
async fn an_upgrade_a_rollback_and_an_upgrade_lose_no_order_and_write_no_stream() {
    let tag = std::env::var("JETWRIGHT_UPGRADE_TO").expect("e2e/run-tests upgrade sets it");
    let cluster = Cluster::connect().await;
    let shop = cluster.shop();
    let user = shop.register(&format!("{}@example.org", unique("ann"))).await;
    let namespace = cluster.namespace("newer").await;
    let begun = Timestamp::now();
    newer_definitions(&cluster, &namespace).await;
    let mut world = World {
        cluster: &cluster,
        own: namespace.name(),
        before: cluster.nats(0).await.assets().await,
        pods: cluster.watch_pods(SHOP),
    };
    await_until("the watches begin", SOON, async || {
        if world.pods.restarts().is_empty() { Err("nothing seen") } else { Ok(()) }
    })
    .await;

    let enough = Cell::new(false);
    let steps = async {
        let operator = format!(
            "upgrade jetwright {} --reset-then-reuse-values --set-string image.tag={tag},nats.bundled.image.tag={tag}",
            checkout("charts/jetwright")
        );
        let services = format!(
            "upgrade shop {} --reset-then-reuse-values --set-string image.tag={tag}",
            checkout("charts/shop")
        );
        let upgrade = |name| Step { name, operator: &operator, shop: &services, marks: false };
        world.step(upgrade("the upgrade")).await;
        world.change("2h").await;
        let rollback =
            Step { name: "the rollback", operator: "rollback jetwright", shop: "rollback shop", marks: true };
        world.step(rollback).await;
        world.change("3h").await;
        world.step(upgrade("the upgrade again")).await;
        enough.set(true);
    };
    let ((orders, longest), ()) = tokio::join!(order_until(&shop, &user, &enough), steps);
    println!("{} orders, of which one waited longest to be accepted: {longest:?}", orders.len());

    for order in &orders {
        shop.confirmed(order).await;
    }
    let nats = cluster.nats(0).await;
    assert_eq!(orders.iter().collect::<BTreeSet<_>>().len(), orders.len(), "each key is an order of its own");
    each_event_is_stored_once(&nats, &orders).await;
    nothing_is_left(&nats).await;
    for at in [SHOP, OPERATOR, namespace.name()] {
        let warnings = cluster.warnings(at, begun).await;
        let unlisted: Vec<_> = warnings.into_iter().filter(|warning| !is_kubelets(warning)).collect();
        assert_eq!(unlisted, Vec::<String>::new(), "warnings of {at}");
    }
    let at = namespace.name();
    cluster.kubectl(&format!("delete eventconsumer,eventstream --all --namespace {at} --timeout=60s")).await;
    cluster.await_all_ready(SHOP, LATER).await;
}

/// Whether a warning is one of the two that docs/upgrade.md lists: kubelets say them of pods that do not answer yet or any more, and of those for
/// which they do not have everything yet, as on a busy machine: what they watch has not come, or the API server has not noticed yet that the pod is
/// theirs, and with it what it mounts.
fn is_kubelets(warning: &str) -> bool {
    let is_early = || {
        (warning.contains("failed to sync") && warning.contains("cache: timed out"))
            || warning.contains("no relationship found between node")
    };
    warning.starts_with("Unhealthy Pod/") || (warning.starts_with("FailedMount Pod/") && is_early())
}
