//! Several operators, or an operator and another tool, at work on one account.

use std::{path::Path, time::Duration};

use async_nats::jetstream::{consumer, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{ControlPlane, Process, await_until, free_port};
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::Namespace as KubernetesNamespace,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta},
};
use kube::{Api, Client, Resource, api::PostParams};

use crate::world::{Kind, SOON, World, arguments, condition, control_plane, manifest, metrics_sum, operator};

/// An operator of another Kubernetes cluster on a world's NATS.
struct Rival {
    admin: u16,
    client: Client,
    namespace: String,
    _operator: Process,
    /// What it is in ends with it.
    _kubernetes: Box<dyn Send + Sync>,
}

impl Rival {
    /// Of a cluster with this name, in a namespace of its own.
    async fn start(world: &World, cluster: &str) -> Self {
        let namespace = control_plane().await.namespace("rival").await;
        let (client, name) = (namespace.client(), namespace.name().to_owned());
        let (admin, operator) = Self::operator(world, namespace.control_plane(), cluster, &name);
        Self { admin, client, namespace: name, _operator: operator, _kubernetes: Box::new(namespace) }
    }

    /// Of another cluster with the name of the world's, in a namespace of the same name.
    async fn twin(world: &World) -> Self {
        let control_plane = ControlPlane::start().await;
        control_plane.apply(Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/manifests")).await;
        let (client, name) = (control_plane.client().await, world.namespace.name().to_owned());
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = KubernetesNamespace { metadata, ..KubernetesNamespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        let (admin, operator) = Self::operator(world, &control_plane, "test", &name);
        Self { admin, client, namespace: name, _operator: operator, _kubernetes: Box::new(control_plane) }
    }

    fn operator(
        world: &World,
        control_plane: &ControlPlane,
        cluster: &str,
        namespace: &str,
    ) -> (u16, Process) {
        let admin = free_port();
        let mut arguments = arguments(world.nats.url(), namespace, admin);
        arguments.push(format!("--cluster-name={cluster}"));
        (admin, operator(control_plane, &arguments))
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn declare<K>(&self, name: &str, spec: &str)
    where
        K: Kind,
    {
        let object = serde_json::from_value(manifest::<K>(name, spec)).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap();
    }

    async fn ready<K>(&self, name: &str) -> Condition
    where
        K: Kind,
    {
        await_until(&format!("{name} has a status"), SOON, || async {
            condition(&self.api::<K>().get(name).await.unwrap(), "Ready").ok_or("none")
        })
        .await
    }

    async fn await_reason<K>(&self, name: &str, reason: &str) -> String
    where
        K: Kind,
    {
        await_until(&format!("{name} has the reason {reason}"), SOON, || async {
            let ready = self.ready::<K>(name).await;
            if ready.reason == reason { Ok(ready.message) } else { Err(format!("{ready:?}")) }
        })
        .await
    }
}

/// Requests of a verb that an operator sent so far.
async fn requests(admin: u16, verb: &str) -> f64 {
    metrics_sum(admin, &format!("jetwright_operator_jetstream_api_requests_total{{verb=\"{verb}\"")).await
}

/// How many requests of these verbs an operator sends within this time.
async fn requests_within(time: Duration, admins: &[u16], verbs: &[&str]) -> Vec<Vec<f64>> {
    let count = || async {
        let mut all = Vec::new();
        for admin in admins {
            let mut of_one = Vec::new();
            for verb in verbs {
                of_one.push(requests(*admin, verb).await);
            }
            all.push(of_one);
        }
        all
    };
    let before = count().await;
    tokio::time::sleep(time).await;
    let after = count().await;
    let grown = |(after, before): (&Vec<f64>, &Vec<f64>)| {
        after.iter().zip(before).map(|(after, before)| after - before).collect()
    };
    after.iter().zip(&before).map(grown).collect()
}

/// Sends requests that JetStream refuses, one after another, for ever.
async fn send_without_pause(world: &World, subjects: &[String], body: &serde_json::Value) {
    let client = world.nats.client().await;
    for subject in subjects.iter().cycle() {
        client.request(subject.clone(), body.to_string().into()).await.unwrap();
    }
}

/// Time in which requests are counted; an object that JetStream refuses is tried twice in it at most.
const WHILE: Duration = Duration::from_secs(10);
const TRIES: f64 = 2.0;

#[tokio::test]
async fn streams_that_jetstream_refuses_to_two_clusters_are_tried_as_rarely_as_those_of_one() {
    const OBJECTS: u8 = 10;
    let world = World::start().await;
    let rival = Rival::start(&world, "other").await;
    let taken = stream::Config { name: "taken".into(), subjects: vec!["a.>".into()], ..Default::default() };
    world.jetstream.create_stream(taken).await.unwrap();
    for number in 0..OBJECTS {
        let (name, spec) = (format!("s{number}"), format!("subjects: [a.{number}]"));
        world.stream(&name, &spec).await;
        rival.declare::<EventStream>(&name, &spec).await;
    }
    for number in 0..OBJECTS {
        let name = format!("s{number}");
        world.await_condition::<EventStream>(&name, "Stalled", "True", "Refused").await;
        rival.await_reason::<EventStream>(&name, "Refused").await;
    }
    let verbs = ["STREAM.CREATE", "STREAM.INFO"];
    let sent = requests_within(WHILE, &[world.admin, rival.admin], &verbs).await;
    let most = TRIES * f64::from(OBJECTS);
    for of_one in &sent {
        // Before each try its stream is asked for, and after each try of the other.
        assert!(of_one[0] <= most && of_one[1] <= 3.0 * most, "creates and reads: {sent:?}");
    }
}

#[tokio::test]
async fn a_stream_that_jetstream_refuses_waits_for_its_next_try_however_often_others_ask_for_the_same() {
    let world = World::start().await;
    let taken = stream::Config { name: "taken".into(), subjects: vec!["a.>".into()], ..Default::default() };
    world.jetstream.create_stream(taken).await.unwrap();
    world.stream("orders", "subjects: [a.1]").await;
    world.await_condition::<EventStream>("orders", "Stalled", "True", "Refused").await;
    let body = serde_json::json!({"name": "orders", "subjects": ["a.2"]});
    let subjects = ["$JS.API.STREAM.CREATE.orders".to_owned()];
    let (admins, verbs) = ([world.admin], ["STREAM.CREATE", "STREAM.INFO"]);
    tokio::select! {
        () = send_without_pause(&world, &subjects, &body) => {}
        sent = requests_within(WHILE, &admins, &verbs) => {
            // A request that was refused changed nothing, so that nothing has to be read either.
            assert!(sent[0][0] <= TRIES && sent[0][1] <= 2.0 * TRIES, "creates and reads: {sent:?}");
        }
    }
    // Once another has the stream, that is news.
    let foreign = stream::Config { name: "orders".into(), subjects: vec!["b".into()], ..Default::default() };
    world.jetstream.create_stream(foreign).await.unwrap();
    world.await_condition::<EventStream>("orders", "Stalled", "True", "NameConflict").await;
}

#[tokio::test]
async fn a_consumer_that_jetstream_refuses_to_two_operators_is_tried_as_rarely_as_that_of_one() {
    const OBJECTS: u8 = 5;
    let world = World::start().await;
    let second = free_port();
    let _second = world.another_operator(&[&format!("--admin-address=127.0.0.1:{second}")]);
    world.stream("jobs", "{subjects: ['jobs.*'], retention: WorkQueue}").await;
    world.await_ready::<EventStream>("jobs").await;
    let jobs = world.jetstream.get_stream("jobs").await.unwrap();
    let all = consumer::pull::Config { durable_name: Some("all".into()), ..Default::default() };
    jobs.create_consumer(all).await.unwrap();
    // A work queue gives each message to one consumer alone.
    for number in 0..OBJECTS {
        let spec = format!("{{streamRef: {{name: jobs}}, filterSubjects: [jobs.{number}]}}");
        world.consumer(&format!("c{number}"), &spec).await;
    }
    for number in 0..OBJECTS {
        world.await_condition::<EventConsumer>(&format!("c{number}"), "Stalled", "True", "Refused").await;
    }
    let verbs = ["CONSUMER.CREATE", "CONSUMER.INFO"];
    let sent = requests_within(WHILE, &[world.admin, second], &verbs).await;
    let most = TRIES * f64::from(OBJECTS);
    for of_one in &sent {
        assert!(of_one[0] <= most && of_one[1] <= 3.0 * most, "creates and reads: {sent:?}");
    }
}

#[tokio::test]
async fn two_clusters_of_one_name_that_declare_a_stream_differently_both_say_so_and_write_it_once_a_minute() {
    let world = World::start().await;
    let rival = Rival::twin(&world).await;
    world.stream("orders", "{subjects: [orders.*], limits: {maxMessages: 1}}").await;
    world.await_ready::<EventStream>("orders").await;
    rival.declare::<EventStream>("orders", "{subjects: [orders.*], limits: {maxMessages: 2}}").await;
    let ours = world.await_condition::<EventStream>("orders", "Ready", "False", "Contested").await;
    let theirs = rival.await_reason::<EventStream>("orders", "Contested").await;
    let uid = |object: EventStream| object.metadata.uid.unwrap();
    for (message, other) in [
        (&ours, uid(rival.api().get("orders").await.unwrap())),
        (&theirs, uid(world.streams().get("orders").await.unwrap())),
    ] {
        assert!(message.contains("name \"jetwright-operator/test/default/"), "{message}");
        assert!(message.contains("host \"127.0.0.1\""), "{message}");
        assert!(
            message.contains(&format!(
                "same --cluster-name, whose EventStream of this namespace and name has the uid {other}"
            )),
            "{message}"
        );
    }
    let sent = requests_within(WHILE, &[world.admin, rival.admin], &["STREAM.UPDATE", "STREAM.INFO"]).await;
    assert!(sent.iter().flatten().all(|count| *count <= 2.0), "updates and reads: {sent:?}");
    let updates = requests(world.admin, "STREAM.UPDATE").await + requests(rival.admin, "STREAM.UPDATE").await;
    assert!(updates <= 40.0, "{updates}");
    assert_eq!(rival.ready::<EventStream>("orders").await.reason, "Contested");
    world.await_condition::<EventStream>("orders", "Ready", "False", "Contested").await;
}

#[tokio::test]
async fn a_tool_that_deletes_a_consumer_again_and_again_is_named() {
    let world = World::start().await;
    world.stream("orders", "subjects: [orders.*]").await;
    world.consumer("reader", "streamRef: {name: orders}").await;
    world.await_ready::<EventConsumer>("reader").await;
    let options = async_nats::ConnectOptions::new().name("cleaner");
    let cleaner = async_nats::jetstream::new(world.nats.client_with(options).await);
    let clean = async {
        let orders = cleaner.get_stream("orders").await.unwrap();
        loop {
            // It may be gone already.
            let _ = orders.delete_consumer("reader").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = clean => {}
        message = world.await_condition::<EventConsumer>("reader", "Ready", "False", "Contested") => {
            assert!(message.contains("this operator wrote this consumer"), "{message}");
            assert!(message.contains("the client with name \"cleaner\""), "{message}");
            assert!(message.contains("stop it, or remove the consumer from this EventConsumer"), "{message}");
        }
    }
    world.await_one_event("reader", "Contested").await;
}

#[tokio::test]
async fn a_declaration_that_changes_all_the_time_is_no_contest() {
    let world = World::start().await;
    for number in 1..=40 {
        let spec = format!("{{subjects: ['orders.*'], limits: {{maxMessages: {number}}}}}");
        world.stream("orders", &spec).await;
        world.await_config("orders", |config| config.max_messages == number).await;
    }
    world.await_ready::<EventStream>("orders").await;
    assert_eq!(world.events("orders", "Contested").await, Vec::<String>::new());
}
