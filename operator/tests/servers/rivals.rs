//! Several operators, or an operator and another tool, at work on one account.

use std::{fmt::Debug, time::Duration};

use async_nats::jetstream::{consumer, stream};
use jetwright_crds::{EventConsumer, EventStream};
use jetwright_testing::{Namespace, Process, await_until, free_port};
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, api::PostParams};
use serde::{Serialize, de::DeserializeOwned};

use crate::world::{SOON, World, arguments, condition, control_plane, metrics_sum, operator};

/// An operator of another Kubernetes cluster on a world's NATS.
struct Rival {
    namespace: Namespace<'static>,
    admin: u16,
    _operator: Process,
}

impl Rival {
    /// Its cluster has this name; its objects are in a namespace of their own, or in one of this name.
    async fn start(world: &World, cluster: &str) -> Self {
        let control_plane = control_plane().await;
        let namespace = control_plane.namespace("rival").await;
        let admin = free_port();
        let mut arguments = arguments(world.nats.url(), namespace.name(), admin);
        arguments.push(format!("--cluster-name={cluster}"));
        Self { _operator: operator(control_plane, &arguments), namespace, admin }
    }

    async fn declare<K>(&self, name: &str, spec: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let spec: serde_json::Value = serde_saphyr::from_str(spec).unwrap();
        let object = serde_json::json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
        });
        let api: Api<K> = self.namespace.api();
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    async fn await_refused(&self, name: &str) {
        let api: Api<EventStream> = self.namespace.api();
        await_until(&format!("{name} is refused"), SOON, || async {
            match condition(&api.get(name).await.unwrap(), "Stalled") {
                Some(stalled) if stalled.reason == "Refused" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
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
        rival.await_refused(&name).await;
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
    world.jetstream.delete_stream("taken").await.unwrap();
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
